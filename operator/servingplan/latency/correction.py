"""What live measurements change in a profile, as a form that costs few new latency curves.

A replica that is uniformly slower by a factor f takes f times as long for everything and is stable up to 1/f of the rate: at an
equal fraction of its stable rate every latency is f times that of the profile. So the factor on alpha is taken for the common
one, and only the ratios of the other factors to it make curves of their own (``latency.profile.uncorrected``).

What is left of the time to first token is a factor by load, interpolated between the middles of a few bins. A factor that falls
faster than latency rises would make a busier replica look faster; there the latency of the lesser load is kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from servingplan.latency.distribution import Distribution

LOAD_BINS = (0.3, 0.5, 0.7)
"""Edges between the load bins, as fractions of the corrected stable rate: four bins."""

BIN_MIDDLES = (0.15, 0.4, 0.6, 0.78)
"""Loads at which the factor of a bin holds; the last is the middle of what plans make use of."""

LEAST_MARGIN, LARGEST_MARGIN = 0.02, 0.9
"""Between which every margin stays, whatever was learnt."""


@dataclass(frozen=True, slots=True)
class Correction:
    """What live measurements change in a profile.

    Attributes:
        step: (3,) factors on alpha and floor, on beta and on gamma. Measured points have the first alone.
        ttft: (4,) further factors on the time to first token, by load bin.
        margin: (key, further margin) of bounds, as ``bound_key`` names them; it adds to the declared margin.
    """

    step: tuple[float, float, float] = (1.0, 1.0, 1.0)
    ttft: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    margin: tuple[tuple[str, float], ...] = ()

    def further_margin(self, key: str | None) -> float:
        """What is added to the declared margin of a bound; the largest of all for None."""
        if key is None:
            return max((value for _, value in self.margin), default=0.0)
        return dict(self.margin).get(key, 0.0)

    @property
    def _plain(self) -> bool:
        return self.ttft.count(1.0) == len(self.ttft)

    def ttft_factor(self, load: float) -> float:
        """The factor on the time to first token at a fraction of the stable rate."""
        if self._plain:
            return 1.0
        return math.exp(float(np.interp(load, BIN_MIDDLES, np.log(self.ttft))))

    def rising_factor(self, load: float) -> float:
        """The largest factor up to a load."""
        return max(self.ttft_factor(load), *(self.ttft_factor(middle) for middle in BIN_MIDDLES if middle <= load), 0.0)

    def reaching(self, loads: tuple[float, ...]) -> list[int]:
        """Which of (n,) ascending loads may have the largest corrected latency of all of them; always the last one."""
        if self._plain:
            return [len(loads) - 1]
        factors = [self.ttft_factor(load) for load in loads]
        found = [len(loads) - 1]
        for at in range(len(loads) - 2, -1, -1):
            if factors[at] > factors[found[-1]]:
                found.append(at)
        return found


@dataclass(frozen=True, slots=True)
class Scaled:
    """A distribution of times that are all longer by a factor."""

    plain: Distribution
    factor: float

    @property
    def mean_s(self) -> float:
        """Mean."""
        return self.factor * self.plain.mean_s

    def percentile_s(self, percent: float) -> float:
        """Percentile between 0 and 100."""
        return self.factor * self.plain.percentile_s(percent)


@dataclass(frozen=True, slots=True)
class Highest:
    """The largest of some distributions, percentile by percentile."""

    parts: tuple[Distribution, ...]

    @property
    def mean_s(self) -> float:
        """Mean."""
        return max(part.mean_s for part in self.parts)

    def percentile_s(self, percent: float) -> float:
        """Percentile between 0 and 100."""
        return max(part.percentile_s(percent) for part in self.parts)


def bound_key(metric: str, percentile: float | None) -> str:
    """The name of a bound, such as ``ttft.p95`` or ``interToken.mean``.

    Args:
        metric: ``ttft``, ``interToken`` or ``e2e``.
        percentile: Between 0 and 100; None for the mean.
    """
    return f"{metric}.mean" if percentile is None else f"{metric}.p{percentile:g}"


def total_margin(declared: float, further: float) -> float:
    """The declared margin with a further one, within what a margin may be."""
    return declared if further == 0 else min(LARGEST_MARGIN, max(LEAST_MARGIN, declared + further))
