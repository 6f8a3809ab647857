"""What a level showed, and whether the server was saturated by it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from servingplan.profiling.exchange import Sample
from servingplan.profiling.levels import Level
from servingplan.profiling.limits import Gauges
from servingplan.profiling.loops import Course
from servingplan.profiling.steady import Summary, percentile, summary

GROWTH = 0.10
"""Relative gain of throughput per doubling of the load below which a server counts as saturated."""

_EXPLODED, _SLOWER = 10.0, 3.0
_CPU = 0.7
_LATE = 0.25


@dataclass(frozen=True, slots=True)
class Measured:
    """Latencies of the requests that ended during one level.

    Attributes:
        level: The load.
        prompt_tokens, output_tokens: Means, as the server counted them.
        requests: How many.
        ttft, tpot, e2e: In seconds.
        throughput_rps: Requests ended per second; in a closed loop the clients over the time of a request.
        rate_rps: Requests sent per second.
        steady: Whether the halves of the level agree.
        overloaded: An open loop whose requests piled up: its latencies depend on when it was ended.
        queued: Whether requests waited for a slot of the engine.
        cached: Share of the prompt tokens that came from a prefix cache.
        starved: Whether this client was so short of CPU that it may have measured itself.
        lag_s: How late this client was on the average.
        samples: The requests, and
        others: those that were load only.
    """

    level: Level
    prompt_tokens: float
    output_tokens: float
    requests: int
    ttft: Summary
    tpot: Summary
    e2e: Summary
    throughput_rps: float
    rate_rps: float
    steady: bool
    overloaded: bool = False
    queued: bool = False
    cached: float = 0.0
    starved: bool = False
    lag_s: float = 0.0
    samples: tuple[Sample, ...] = ()
    others: tuple[Sample, ...] = ()

    @property
    def usable(self) -> bool:
        """Whether a fit may look at it."""
        return not self.overloaded and not self.starved


def measured(level: Level, course: Course, gauges: Gauges = Gauges()) -> Measured | None:  # noqa: B008 - it is immutable
    """Summarises a level; None where too little ended during it to say anything.

    Args:
        level: The load.
        course: What happened.
        gauges: The engine at the end of the level.
    """
    samples = course.samples
    if len(samples) < max(3, level.clients // 2) or course.counted_s <= 0:
        return None
    tpot = summary([sample.tpot_s for sample in samples])
    e2e = summary([sample.e2e_s for sample in samples])
    prompts = sum(sample.prompt_tokens for sample in samples)
    lags_s = sorted(course.lag_s) or [0.0]
    return Measured(
        level=level,
        prompt_tokens=prompts / len(samples),
        output_tokens=fmean(sample.output_tokens for sample in samples),
        requests=len(samples),
        ttft=summary([sample.ttft_s for sample in samples]),
        tpot=tpot,
        e2e=e2e,
        # Little's law: the few ends in a short level are no measure of their rate.
        throughput_rps=level.clients / e2e.mean if level.clients else len(samples) / course.counted_s,
        rate_rps=course.sent / course.counted_s,
        steady=course.steady,
        overloaded=course.overloaded,
        queued=gauges.slots is not None,
        cached=sum(sample.cached_tokens for sample in samples) / max(1, prompts),
        starved=course.cpu > _CPU or percentile(lags_s, 50) > _LATE * tpot.mean,
        lag_s=fmean(lags_s),
        samples=tuple(samples),
        others=tuple(course.others),
    )


def saturation(ladder: Sequence[Measured]) -> str | None:
    """Why more load on these lengths would show nothing new, in words; None where it would.

    Args:
        ladder: Levels of one pair of lengths, from gentle to hard.
    """
    if not ladder:
        return None
    first, last = ladder[0], ladder[-1]
    load = f"{last.level.rate_rps:g} requests/s" if last.level.rate_rps else f"{last.level.clients} clients"
    reason = None
    if last.overloaded:
        reason = f"requests pile up: the server ends {last.throughput_rps:.3g} a second"
    elif last.queued:
        reason = "requests wait for a slot of the engine"
    elif len(ladder) > 1 and last.level.clients:
        reason = _no_growth(ladder[-2], last)
    if reason is None and last.ttft.mean > _EXPLODED * first.ttft.mean and last.e2e.mean > _SLOWER * first.e2e.mean:
        reason = f"the time to first token is {last.ttft.mean / first.ttft.mean:.0f} times that of the gentlest level"
    return None if reason is None else f"at {load} {reason}"


def _no_growth(before: Measured, last: Measured) -> str | None:
    doublings = math.log2(last.level.clients / before.level.clients)
    gain = last.throughput_rps / before.throughput_rps - 1
    if gain >= GROWTH * doublings:
        return None
    return f"throughput is {last.throughput_rps:.3g} requests/s, {100 * gain:+.0f} % against {before.level.clients} clients"
