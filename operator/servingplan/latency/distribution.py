"""Distributions of a time in seconds, by what is known of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from servingplan.latency.grid import Floats


class Distribution(Protocol):
    """Of a time in seconds."""

    @property
    def mean_s(self) -> float:
        """Mean."""

    def percentile_s(self, percent: float) -> float:
        """Percentile between 0 and 100."""


@dataclass(frozen=True, slots=True)
class Gridded:
    """A distribution on a grid.

    Attributes:
        masses: (n,) at multiples of `cell_s`.
        tail: Probability of what lies beyond the grid, exponentially distributed there.
        tail_s: Mean of that above the last cell.
    """

    masses: Floats
    cell_s: float
    tail: float = 0.0
    tail_s: float = 0.0

    @property
    def mean_s(self) -> float:
        """Mean."""
        cells = np.arange(len(self.masses))
        return float(self.masses @ cells) * self.cell_s + self.tail * ((len(cells) - 1) * self.cell_s + self.tail_s)

    def percentile_s(self, percent: float) -> float:
        """Percentile between 0 and 100."""
        above = 1 - percent / 100
        if above < self.tail:
            return (len(self.masses) - 1) * self.cell_s + self.tail_s * math.log(self.tail / above)
        return _cell_below(self.masses, percent / 100) * self.cell_s

    def delayed(self, probability: float, mean_s: float) -> Gridded:
        """The sum with an independent delay that is exponential with this probability, and else zero."""
        decay = self.cell_s / mean_s if probability > 0 and mean_s > 0 else math.inf
        if probability < 1e-6 or decay * len(self.masses) > 500:
            return self
        powers = np.exp(decay * np.arange(len(self.masses)))
        late = np.cumsum(self.masses * powers) / powers * -math.expm1(-decay)
        masses = (1 - probability) * self.masses + probability * late
        return Gridded(masses, self.cell_s, max(0.0, 1 - float(masses.sum())), mean_s)


@dataclass(frozen=True, slots=True)
class Weighted:
    """A distribution of values.

    Attributes:
        values_s: (n,) seconds, ascending.
        weights: (n,) summing to 1.
    """

    values_s: Floats
    weights: Floats

    @property
    def mean_s(self) -> float:
        """Mean."""
        return float(self.values_s @ self.weights)

    def percentile_s(self, percent: float) -> float:
        """Percentile between 0 and 100."""
        at = int(np.searchsorted(np.cumsum(self.weights), percent / 100 - 1e-9))
        return float(self.values_s[min(at, len(self.values_s) - 1)])


@dataclass(frozen=True, slots=True)
class Exponential:
    """An exponential distribution whose percentiles below its mean are taken for the mean."""

    mean_s: float

    def percentile_s(self, percent: float) -> float:
        """Percentile between 0 and 100."""
        return self.mean_s * max(1.0, math.log(100 / (100 - percent)))


@dataclass(frozen=True, slots=True)
class Between:
    """A distribution between two, percentile by percentile.

    Attributes:
        share: How far from `low` to `high`.
    """

    low: Distribution
    high: Distribution
    share: float

    @property
    def mean_s(self) -> float:
        """Mean."""
        return mixed(self.low.mean_s, self.high.mean_s, self.share)

    def percentile_s(self, percent: float) -> float:
        """Percentile between 0 and 100."""
        return mixed(self.low.percentile_s(percent), self.high.percentile_s(percent), self.share)


def mixed(low: float, high: float, share: float) -> float:
    """A value a share of the way from low to high, which may be infinite."""
    return low + share * (high - low) if share > 0 else low


def _cell_below(masses: Floats, share: float) -> float:
    """Below which cell `share` of all lies, where the masses sum to no less than that."""
    reached = np.cumsum(masses)
    return float(np.interp(share, reached - masses / 2, np.arange(len(masses))))
