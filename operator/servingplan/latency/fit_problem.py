"""The least-squares problem of a fit: parameters, errors, and what is believed before any measurement.

The parameters are logarithms, in the order of ``PARAMETERS``. Errors are logarithms of predicted over measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from servingplan.latency.capacity import latency
from servingplan.latency.closedloop import NO_EXTRA, Array, Client, Extra, Limits, Loops, predict
from servingplan.latency.fit_log import LoggedWork, logged_work
from servingplan.latency.fit_measurements import ClosedLoop, Measurement, OpenLoop, RequestLog
from servingplan.latency.profile import EngineProfile, StepTime

PARAMETERS = (
    "alpha",
    "beta",
    "gamma",
    "floor",
    "overhead",
    "start",
    "wave",
    "bunching",
    "prompt",
    "ramp",
    "ramp_tokens",
    "idle",
)

_CLIENT = ("overhead", "start", "wave", "bunching")
_NEGLIGIBLE_S = 1e-12
_TYPICAL_REQUESTS = 200
_POINTS_PER_LOG = 10

_TYPICAL = {"overhead": 0.01, "start": 1.3, "wave": 0.1, "bunching": 0.5, "ramp_tokens": 60.0, "idle": 0.02}
_SPREAD = {
    "alpha": 1.0,
    "beta": 1.5,
    "gamma": 1.5,
    "floor": 3.0,
    "overhead": 1.5,
    "start": 0.5,
    "wave": 1.0,
    "bunching": 1.5,
    "prompt": 1.5,
    "ramp": 1.5,
    "ramp_tokens": 1.0,
    "idle": 2.0,
}
"""Standard deviations of the logarithms: next to nothing for the engine, what benchmarks have shown for their clients."""


@dataclass(frozen=True, slots=True)
class Prior:
    """What is believed of a replica before it is measured, say from a like one.

    Attributes:
        spread: Relative standard deviation of the belief, for each of the engine's parameters.
        client_spread: The same for the client's.
    """

    step: StepTime
    client: Client
    extra: Extra = NO_EXTRA
    spread: float = 0.3
    client_spread: float = 0.5


@dataclass(frozen=True, slots=True)
class Errors:
    """Logarithms of predicted over measured.

    Attributes:
        closed: (closed loops, 2) of TTFT and TPOT.
        opened: (open loops, 2)
        logs: (judged requests,) of the decode time, for each log.
        unqueued: (judged requests that did not queue,) of the time to first token, for each log.
    """

    closed: Array
    opened: Array
    logs: tuple[Array, ...]
    unqueued: tuple[Array, ...]

    def of_ttft(self) -> Array:
        """All errors of times to first token."""
        return np.concatenate([self.closed[:, 0], self.opened[:, 0], *self.unqueued])

    def of_tpot(self) -> Array:
        """All errors of times per output token."""
        return np.concatenate([self.closed[:, 1], self.opened[:, 1], *self.logs])


@dataclass(frozen=True, slots=True)
class Scales:
    """Standard deviations that errors are divided by."""

    ttft: float = 0.1
    tpot: float = 0.03


@dataclass(frozen=True, slots=True)
class FitProblem:
    """Measurements as arrays, with their places in the order given.

    Attributes:
        measured: (closed loops, 2) seconds.
        weights: (closed loops,)
        waved: (closed loops,) 0 where the first wave is known to be left out.
        wave: The share in the first wave, or None to fit it.
        center, spread, lower, upper: (parameters,) of the logarithms.
    """

    limits: Limits
    loops: Loops
    measured: Array
    weights: Array
    waved: Array
    closed_places: tuple[int, ...]
    opens: tuple[tuple[int, OpenLoop], ...]
    logs: tuple[tuple[int, LoggedWork], ...]
    wave: float | None
    floor: bool
    extra: bool
    center: Array
    spread: Array
    lower: Array
    upper: Array

    def free(self) -> Array:
        """Places of the parameters that are searched."""
        fixed = set() if self.floor else {"floor"}
        fixed |= set() if self.wave is None else {"wave"}
        # Without closed loops nothing depends on how their clients behave.
        fixed |= set() if self.closed_places else {"start", "wave", "bunching"}
        fixed |= set() if self.extra else {"prompt", "ramp", "ramp_tokens", "idle"}
        return np.array([place for place, name in enumerate(PARAMETERS) if name not in fixed])

    def unpack(self, x: Array) -> tuple[StepTime, Client, Extra]:
        """The parameters' meaning."""
        alpha, beta, gamma, floor, overhead, start, wave, bunching, prompt, ramp, knee, idle = map(float, np.exp(x))
        step = StepTime(alpha, beta, gamma, floor if self.floor else 0.0)
        return (
            step,
            Client(overhead, wave if self.wave is None else self.wave, start, bunching),
            Extra(prompt, ramp, knee, idle) if self.extra else NO_EXTRA,
        )

    def errors(self, x: Array) -> Errors:
        """Logarithmic errors with these parameters."""
        step, client, extra = self.unpack(x)
        closed = np.zeros((0, 2))
        if self.closed_places:
            ttft_s, tpot_s = predict(self.loops, step, self.limits, client, client.first_wave * self.waved, extra)
            closed = np.log(np.column_stack([ttft_s, tpot_s]) / self.measured)
        seqs, budget, kv = self.limits.max_num_seqs, self.limits.max_num_batched_tokens, self.limits.kv_tokens
        profile = EngineProfile(step=step, max_num_seqs=seqs, max_num_batched_tokens=budget, kv_tokens=kv)
        opened = []
        for _, point in self.opens:
            found = latency(profile, point.mix, point.rate_rps)
            mean_s = client.overhead_s + found.ttft_s(None)
            opened.append((math.log(mean_s / point.ttft_s), math.log(found.inter_token_s / point.tpot_s)))
        return Errors(
            closed,
            np.array(opened).reshape(-1, 2),
            tuple(work.log_errors(step) for _, work in self.logs),
            tuple(work.unqueued.log_errors(step) for _, work in self.logs),
        )

    def residuals(self, x: Array, scales: Scales) -> Array:
        """Errors over their standard deviations, then the distance from what was believed."""
        errors = self.errors(x)
        pair = np.array([scales.ttft, scales.tpot])
        opened = [row / pair * _weight(point.requests) for row, (_, point) in zip(errors.opened, self.opens, strict=True)]
        # Requests of one run share their steps, so a log does not count as hundreds of points.
        logs = [row / scales.tpot * math.sqrt(min(1.0, _POINTS_PER_LOG / len(row))) for row in errors.logs]
        logs += [row / scales.ttft * math.sqrt(min(1.0, _POINTS_PER_LOG / max(1, len(row)))) for row in errors.unqueued]
        closed = (errors.closed / pair * self.weights[:, None]).ravel()
        return np.concatenate([closed, *opened, *logs, (x - self.center) / self.spread])


def problem_of(
    measurements: Sequence[Measurement], limits: Limits, first_wave: bool | float, floor: bool, extra: bool, prior: Prior | None
) -> FitProblem:
    """The least-squares problem of checked measurements.

    Raises:
        ValueError: If a measured request cannot have fitted in the KV cache.
    """
    closed = [(place, m) for place, m in enumerate(measurements) if isinstance(m, ClosedLoop)]
    opens = [(place, m) for place, m in enumerate(measurements) if isinstance(m, OpenLoop)]
    budget = limits.max_num_batched_tokens
    logs = [(place, logged_work(m, budget)) for place, m in enumerate(measurements) if isinstance(m, RequestLog)]
    for place, m in closed:
        if limits.kv_tokens is not None and m.prompt_tokens + m.output_tokens > limits.kv_tokens:
            tokens = m.prompt_tokens + m.output_tokens
            raise ValueError(f"measurement {place + 1}: {tokens:g} tokens do not fit in {limits.kv_tokens} tokens of KV cache")

    def column(name: str) -> Array:
        return np.array([getattr(m, name) for _, m in closed], dtype=np.float64)

    fastest_s = min([m.tpot_s for _, m in closed] + [m.tpot_s for _, m in opens] + [work.fastest_s for _, work in logs])
    center, spread, lower, upper = _box(0.7 * fastest_s, prior)
    return FitProblem(
        limits=limits,
        loops=Loops(column("concurrency"), column("prompt_tokens"), column("output_tokens")),
        measured=np.column_stack([column("ttft_s"), column("tpot_s")]),
        weights=np.array([_weight(m.requests) for _, m in closed], dtype=np.float64),
        waved=np.array([m.simultaneous is not False for _, m in closed], dtype=np.float64),
        closed_places=tuple(place for place, _ in closed),
        opens=tuple(opens),
        logs=tuple(logs),
        wave=None if first_wave is True else float(first_wave),
        floor=floor,
        extra=extra,
        center=center,
        spread=spread,
        lower=lower,
        upper=upper,
    )


def _box(alpha_s: float, prior: Prior | None) -> tuple[Array, Array, Array, Array]:
    """Center, spread, lower and upper bounds of the logarithms, from a guess of alpha."""
    center = {
        "alpha": alpha_s,
        "beta": alpha_s / 250,
        "gamma": alpha_s / 250e3,
        "floor": alpha_s / 4,
        "prompt": alpha_s / 4,
        "ramp": alpha_s / 4,
    } | _TYPICAL
    spread = dict(_SPREAD)
    lower = {name: value * 1e-4 for name, value in center.items()} | {"start": 0.1}
    upper = {name: value * 1e2 for name, value in center.items()} | {
        "alpha": alpha_s * 2,
        "start": 4.0,
        "wave": 1.0,
        "ramp_tokens": 1000.0,
        "idle": 2.0,
    }
    if prior:
        step, client = prior.step, prior.client
        engine = (step.alpha_s, step.beta_s, step.gamma_s, step.floor_s or center["floor"])
        others = (client.overhead_s, client.start_steps, client.first_wave or center["wave"], client.bunching)
        further = prior.extra
        rest = (further.prompt_s, further.ramp_s, further.ramp_tokens, further.idle_slots)
        if not further.ramp_s:
            rest = (center["prompt"], center["ramp"], center["ramp_tokens"], center["idle"])
        center = dict(zip(PARAMETERS, engine + others + rest, strict=True))
        ours = {name: prior.client_spread if name in _CLIENT else prior.spread for name in PARAMETERS}
        spread = {name: min(value, ours[name]) for name, value in spread.items()}

    def logarithms(values: dict[str, float]) -> Array:
        return np.log([max(_NEGLIGIBLE_S, values[name]) for name in PARAMETERS])

    low, high = logarithms(lower), logarithms(upper)
    return np.clip(logarithms(center), low, high), np.array([spread[name] for name in PARAMETERS]), low, high


def _weight(requests: int) -> float:
    """Root of the relative number of requests, between a half and two."""
    return min(2.0, max(0.5, math.sqrt(requests / _TYPICAL_REQUESTS))) if requests else 1.0
