"""A replica known by measured points alone.

The points of the nearest lengths make a ladder of rates and latencies. A ladder is noisy, while requests in the system,
f(u) = u l(u), rise convexly in the rate u. So f is replaced by the lower hull of its points, raised in proportion until it
covers them all: nothing that was measured is promised better than it was. Points that do not raise the rate any more are
saturated and count for nothing; the last rate is a hard cap, and nothing is extrapolated past it.

The points are means of closed loops. They say nothing of tails: an exponential one is assumed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from servingplan.latency.mix import TokenMix
from servingplan.latency.profile import Point


@dataclass(frozen=True, slots=True)
class Ladder:
    """Latency by rate.

    Attributes:
        rates_rps: Ascending, from 0.
        ttft: Requests that wait for their first token, at each rate; convex.
        decoding: Rate times the inter-token latency, at each rate; convex.
        idle_ttft_s: Time to first token at a rate of 0.
        idle_tpot_s: Inter-token latency at a rate of 0.
    """

    rates_rps: tuple[float, ...]
    ttft: tuple[float, ...]
    decoding: tuple[float, ...]
    idle_ttft_s: float
    idle_tpot_s: float

    def ttft_s(self, rate_rps: float) -> float:
        """Mean time to first token."""
        return _at(self.rates_rps, self.ttft, rate_rps, self.idle_ttft_s)

    def tpot_s(self, rate_rps: float) -> float:
        """Mean inter-token latency."""
        return _at(self.rates_rps, self.decoding, rate_rps, self.idle_tpot_s)


def measured_rate_rps(points: tuple[Point, ...], mix: TokenMix) -> float:
    """The highest rate that was measured, in requests of the mix per second."""
    return ladder(points, mix).rates_rps[-1]


@lru_cache(maxsize=1024)
def ladder(points: tuple[Point, ...], mix: TokenMix) -> Ladder:
    """The ladder of the lengths nearest to the mix."""
    nearest = _nearest(points, mix)
    rates, ttfts, tpots = [0.0], [nearest[0].ttft_s], [nearest[0].tpot_s]
    for point in nearest:
        rate = _rate_rps(point, mix)
        if rate > rates[-1]:
            rates.append(rate)
            # A slower point at a lower rate is believed.
            ttfts.append(max(ttfts[-1], point.ttft_s))
            tpots.append(max(tpots[-1], point.tpot_s))
    waiting, decoding = _convex(rates, ttfts), _convex(rates, tpots)
    return Ladder(tuple(rates), waiting, decoding, waiting[1] / rates[1], decoding[1] / rates[1])


def _nearest(points: tuple[Point, ...], mix: TokenMix) -> list[Point]:
    """The points of one pair of lengths, in the order of concurrency."""

    def distance(point: Point) -> tuple[float, int, int]:
        apart = abs(math.log(point.prompt_tokens / mix.prompt_tokens))
        apart += abs(math.log(point.output_tokens / mix.output_tokens))
        return apart, point.prompt_tokens, point.output_tokens

    best = min(points, key=distance)
    lengths = (best.prompt_tokens, best.output_tokens)
    of_lengths = [point for point in points if (point.prompt_tokens, point.output_tokens) == lengths]
    return sorted(of_lengths, key=lambda point: (point.concurrency, point.ttft_s, point.tpot_s))


def _rate_rps(point: Point, mix: TokenMix) -> float:
    """Rate of the measured loop, scaled by tokens where the mix's lengths differ from the measured ones."""
    cycle_s = point.ttft_s + max(0, point.output_tokens - 1) * point.tpot_s
    scale = (point.prompt_tokens + point.output_tokens) / (mix.prompt_tokens + mix.output_tokens)
    return point.concurrency / cycle_s * scale


def _convex(rates: list[float], latencies_s: list[float]) -> tuple[float, ...]:
    """Rate times latency, as a convex function through the origin that is nowhere below the points."""
    values = [rate * latency_s for rate, latency_s in zip(rates, latencies_s, strict=True)]
    hull = [0]
    for at in range(1, len(rates)):
        while len(hull) > 1 and _slope(rates, values, hull[-2], hull[-1]) >= _slope(rates, values, hull[-1], at):
            hull.pop()
        hull.append(at)
    lower = [0.0]
    for left, right in pairwise(hull):
        slope = _slope(rates, values, left, right)
        lower += [values[left] + slope * (rates[at] - rates[left]) for at in range(left + 1, right + 1)]
    raised = max(value / below for value, below in zip(values[1:], lower[1:], strict=True))
    return tuple(raised * below for below in lower)


def _slope(xs: list[float], ys: list[float], a: int, b: int) -> float:
    return (ys[b] - ys[a]) / (xs[b] - xs[a])


def _at(rates: tuple[float, ...], values: tuple[float, ...], rate_rps: float, idle_s: float) -> float:
    if rate_rps <= rates[1]:
        return idle_s
    right = next((at for at, rate in enumerate(rates) if rate >= rate_rps), len(rates) - 1)
    share = min(1.0, (rate_rps - rates[right - 1]) / (rates[right] - rates[right - 1]))
    return (values[right - 1] + share * (values[right] - values[right - 1])) / min(rate_rps, rates[-1])
