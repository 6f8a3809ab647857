"""Hypervolumes of (quality, dollars, seconds), and intervals over paired seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from virtualfleet.outcome import Point
from virtualfleet.tiers import TIERS
from virtualfleet.workload import Workload

_RESAMPLES = 4000
SLOWEST_TPOT_S = 42.5e-3


@dataclass(frozen=True, slots=True)
class Reference:
    """The corner that volumes are measured from: points that do not better it in all three count nothing.

    Attributes:
        quality: Of the smallest tier alone.
        cost: Of the largest tier alone.
        e2e_p95_s, e2e_mean_s: Of the largest tier's lengths at its usual time per output token.
    """

    quality: float
    cost: float
    e2e_p95_s: float
    e2e_mean_s: float


def reference(work: Workload) -> Reference:
    largest_s = work.output_tokens[:, len(TIERS) - 1] * SLOWEST_TPOT_S
    return Reference(
        float(work.quality[:, 0].mean()),
        float(work.cost[:, -1].mean()),
        float(np.quantile(largest_s, 0.95)),
        float(largest_s.mean()),
    )


def volumes(points: Sequence[Point], corner: Reference) -> tuple[float, float]:
    """Hypervolume with the p95 and with the mean of the end-to-end time, each as a share of (1, corner, corner)."""
    found = []
    for seconds, limit_s in (("e2e_p95_s", corner.e2e_p95_s), ("e2e_mean_s", corner.e2e_mean_s)):
        gains = np.array(
            [
                (
                    (point.quality - corner.quality) / (1 - corner.quality),
                    1 - point.cost / corner.cost,
                    1 - getattr(point, seconds) / limit_s,
                )
                for point in points
            ]
        )
        found.append(hypervolume(gains))
    return found[0], found[1]


def hypervolume(gains: np.ndarray) -> float:
    """Volume of the union of the boxes from 0 to each of (n, 3) points; those with a coordinate below 0 have none."""
    gains = gains[(gains > 0).all(1)]
    if not len(gains):
        return 0.0
    gains = gains[np.argsort(-gains[:, 2])]
    heights = np.append(gains[:, 2], 0.0)
    slabs = heights[:-1] - heights[1:]
    return float(sum(slab * _area(gains[: at + 1, :2]) for at, slab in enumerate(slabs) if slab > 0))


def _area(corners: np.ndarray) -> float:
    """Area of the union of the rectangles from 0 to each corner."""
    corners = corners[np.argsort(-corners[:, 0])]
    tops = np.maximum.accumulate(corners[:, 1])
    widths = corners[:, 0] - np.append(corners[1:, 0], 0.0)
    return float((widths * tops).sum())


def matched(theirs: Sequence[Point], ours: Sequence[Point], slack: float = 0.01) -> float:
    """Share of their points that one of ours equals or betters in quality, cost and p95, but for a relative slack."""
    mine = np.array([(-one.quality, one.cost, one.e2e_p95_s) for one in ours])
    count = 0
    for one in theirs:
        bounds = np.array([-one.quality * (1 - slack), one.cost * (1 + slack), one.e2e_p95_s * (1 + slack)])
        count += bool((mine <= bounds).all(1).any())
    return count / len(theirs)


def interval(values: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """Mean over seeds and its 95 % interval by bootstrap."""
    array = np.asarray(values, dtype=float)
    means = np.random.default_rng(7).choice(array, (_RESAMPLES, len(array))).mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(array.mean()), float(low), float(high)


def spelled(values: Sequence[float] | np.ndarray, digits: int = 3) -> str:
    """``mean [low, high]``."""
    mean, low, high = interval(values)
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
