"""Means with intervals of a series whose values depend on their neighbours, and when such a series has settled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, stdev

_BATCHES = 10
_FEWEST_A_BATCH = 3


@dataclass(frozen=True, slots=True)
class Summary:
    """Mean and percentiles of some values.

    Attributes:
        half_width: Of the mean's 95 % interval; infinite where there are too few values to tell.
    """

    count: int
    mean: float
    half_width: float
    p50: float
    p95: float

    @property
    def relative(self) -> float:
        """Half width over mean."""
        return self.half_width / self.mean if self.mean > 0 else math.inf


def summary(values: Sequence[float]) -> Summary:
    """Summarise values in the order they came about.

    The interval is that of the means of ten batches where there are thirty values or more: requests that run together
    are slow together, so that single values would promise too much.

    Raises:
        ValueError: There are none.
    """
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    return Summary(len(values), fmean(values), _half_width(values), percentile(ordered, 50), percentile(ordered, 95))


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Of ascending values, with linear interpolation."""
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def settled(values: Sequence[float], tolerance: float) -> bool:
    """Whether the second half of the values has the mean of the first.

    The two may differ by `tolerance`, relative to the mean, or by twice the standard error of their difference: noise is
    no drift. Fewer than four values never count as settled.
    """
    if len(values) < 4:
        return False
    first, second = values[: len(values) // 2], values[len(values) // 2 :]
    noise = math.hypot(_half_width(first), _half_width(second))
    return abs(fmean(second) - fmean(first)) <= max(tolerance * fmean(values), min(noise, 3 * tolerance * fmean(values)))


def _half_width(values: Sequence[float]) -> float:
    if len(values) >= _BATCHES * _FEWEST_A_BATCH:
        edges = [len(values) * k // _BATCHES for k in range(_BATCHES + 1)]
        values = [fmean(values[start:stop]) for start, stop in pairwise(edges)]
    if len(values) < 2:
        return math.inf
    return _t95(len(values) - 1) * stdev(values) / math.sqrt(len(values))


def _t95(freedom: int) -> float:
    """Student's 97.5 % quantile, by the first terms of its expansion in 1/freedom; within 1 % from four on."""
    return 12.71 if freedom == 1 else 1.960 + 2.372 / freedom + 2.822 / freedom**2 + 2.556 / freedom**3
