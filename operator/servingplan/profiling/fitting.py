"""From measured levels to coefficients, and how a server compares with what was believed of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from servingplan.api.v1alpha1 import Profile
from servingplan.latency.capacity import latency
from servingplan.latency.closedloop import Client, Limits, Loops, predict
from servingplan.latency.fit import ClosedLoop, Fit, Measurement, OpenLoop, RequestLog, fit
from servingplan.latency.profile import EngineProfile, StepTime, TokenMix
from servingplan.profiling.decoding import Stretch, decode_log, stretches
from servingplan.profiling.levels import SPREAD, Lengths
from servingplan.profiling.measured import Measured

DEFAULT_MAX_NUM_SEQS = 256
DEFAULT_BUDGETS = (2048, 8192)
"""What vLLM sets when not told, on small and on large accelerators."""

_OUTPUT_CV = SPREAD / math.sqrt(3)
_CLEARLY_BETTER = 0.9
_FEWEST_REQUESTS = 10
_FEWEST_STEPS = 20
"""What the fit takes for a request log."""


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Limits of the engine, and in words where each was learnt."""

    max_num_seqs: int
    max_num_batched_tokens: int
    kv_tokens: int | None
    seqs_source: str
    budget_source: str
    kv_source: str

    @property
    def of_latency(self) -> Limits:
        """As predictions take them."""
        return Limits(self.max_num_seqs, self.max_num_batched_tokens, self.kv_tokens)


@dataclass(frozen=True, slots=True)
class Found:
    """A fit, the limits it was made with, and the levels it looked at.

    Attributes:
        levels: In the order of the fit's first residuals; those of request logs come after them.
        stretches: How many stretches of undisturbed decoding it looked at.
    """

    fit: Fit
    limits: EngineLimits
    levels: tuple[Measured, ...]
    stretches: int

    @property
    def residuals(self) -> tuple[tuple[float, float], ...]:
        """Relative errors of TTFT and inter-token time, one pair a level."""
        return tuple((one.ttft or 0.0, one.tpot) for one in self.fit.residuals[: len(self.levels)])

    @property
    def misfit(self) -> float:
        """Root mean square of these errors."""
        return math.sqrt(fmean(error**2 for pair in self.residuals for error in pair))


def fitted(levels: Sequence[Measured], known: Sequence[EngineLimits]) -> Found:
    """Fits the coefficients to the usable levels.

    Three views of the same requests go into one fit: the means of each level, which hold times to first token; each
    level's requests, whose prompts the log places; and the stretches in which nothing but decoding happened.

    Args:
        levels: What was measured.
        known: The engine's limits; several where the token budget is not known: that which explains the levels best is
            taken, and the first unless another is clearly better.

    Raises:
        ValueError: The levels cannot tell the coefficients; one sentence says why.
    """
    usable = tuple(level for level in levels if level.usable)
    if not usable:
        raise ValueError("no level was measured that a fit may look at")
    quiet = [stretches((*level.samples, *level.others)) for level in usable]
    measurements = [_measurement(level) for level in usable]
    measurements += [log for level in usable if (log := _log(level)) is not None]
    measurements += _decode_logs(usable, quiet)
    count = sum(map(len, quiet))
    found = [Found(_fit(measurements, limits), limits, usable, count) for limits in known]
    best = found[0]
    for other in found[1:]:
        if other.misfit < _CLEARLY_BETTER * best.misfit:
            best = other
    return best


def _fit(measurements: Sequence[Measurement], limits: EngineLimits) -> Fit:
    return fit(
        measurements,
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        kv_tokens=limits.kv_tokens,
        first_wave=0.0,
    )


def _measurement(found: Measured) -> Measurement:
    if found.level.rate_rps:
        return OpenLoop(found.rate_rps, _mix(found), found.ttft.mean, found.tpot.mean, found.requests)
    return ClosedLoop(
        concurrency=found.level.clients,
        prompt_tokens=found.prompt_tokens,
        output_tokens=found.output_tokens,
        ttft_s=found.ttft.mean,
        tpot_s=found.tpot.mean,
        requests=found.requests,
        simultaneous=False,
    )


def _log(found: Measured) -> RequestLog | None:
    """The level's requests, those judged first; None where they are too few or too short."""
    load = [sample for sample in found.others if math.isfinite(sample.first_s)]
    rows = [*found.samples, *load]
    if len(rows) < _FEWEST_REQUESTS or max(sample.output_tokens for sample in found.samples) <= _FEWEST_STEPS:
        return None
    return RequestLog(
        arrival_s=tuple(row.sent_s for row in rows),
        prompt_tokens=tuple(row.prompt_tokens for row in rows),
        output_tokens=tuple(row.output_tokens for row in rows),
        first_token_s=tuple(row.first_s for row in rows),
        last_token_s=tuple(row.last_s for row in rows),
        judged=(0, len(found.samples)),
    )


def _decode_logs(levels: Sequence[Measured], quiet: Sequence[list[Stretch]]) -> list[RequestLog]:
    """One log of stretches for each pair of lengths that has enough of them, and one for the rest."""
    by_lengths: dict[Lengths, list[Stretch]] = {}
    for level, own in zip(levels, quiet, strict=True):
        by_lengths.setdefault(level.level.lengths, []).extend(own)
    logs: list[RequestLog] = []
    rest: list[Stretch] = []
    for own in by_lengths.values():
        log = decode_log(own)
        if log is None:
            rest += own
        else:
            logs.append(log)
    log = decode_log(rest)
    return logs if log is None else [*logs, log]


def _mix(found: Measured) -> TokenMix:
    return TokenMix(found.prompt_tokens, found.output_tokens, prompt_cv=0.0, output_cv=_OUTPUT_CV)


def predicted(levels: Sequence[Measured], step: StepTime, limits: EngineLimits, client: Client) -> list[tuple[float, float]]:
    """TTFT and time between tokens of each level by the model, in seconds."""
    profile = EngineProfile(
        step=step,
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        kv_tokens=limits.kv_tokens,
    )
    values = []
    for level in levels:
        if level.level.rate_rps:
            at = latency(profile, _mix(level), level.rate_rps)
            values.append((client.overhead_s + at.ttft_mean_s, at.inter_token_s))
            continue
        loops = Loops(
            *(np.array([x], dtype=np.float64) for x in (level.level.clients, level.prompt_tokens, level.output_tokens))
        )
        ttft_s, tpot_s = predict(loops, step, limits.of_latency, client)
        values.append((float(ttft_s[0]), float(tpot_s[0])))
    return values


def compared(levels: Sequence[Measured], believed: Profile, found: Found) -> str:
    """One sentence on how much slower or faster the server is than a profile says.

    Args:
        levels: What was measured.
        believed: A profile with coefficients.
        found: The fit, for what the client adds.
    """
    if believed.coefficients is None:
        return "The believed profile holds measured points; only coefficients can be compared."
    its = believed.coefficients
    step = StepTime(*(float(value) / 1e3 for value in (its.alpha_ms, its.beta_ms, its.gamma_ms, its.floor_ms)))
    usable = [level for level in levels if level.usable]
    values = predicted(usable, step, found.limits, found.fit.client)
    ttft = _ratio([level.ttft.mean / value[0] for level, value in zip(usable, values, strict=True)])
    tpot = _ratio([level.tpot.mean / value[1] for level, value in zip(usable, values, strict=True)])
    return (
        f"Against what was believed, the time to first token is {_times(ttft)} and the time between tokens {_times(tpot)},"
        f" over {len(usable)} levels."
    )


def _ratio(ratios: Sequence[float]) -> float:
    """Geometric mean of those that are numbers."""
    logs = [math.log(ratio) for ratio in ratios if math.isfinite(ratio) and ratio > 0]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def _times(ratio: float) -> str:
    if not math.isfinite(ratio):
        return "not comparable"
    return f"{ratio:.2f} times as long"
