"""When requests arrive, in seconds from 0."""

from __future__ import annotations

import numpy as np


def poisson(rate_rps: float, count: int, chance: np.random.Generator) -> np.ndarray:
    """(count,) of a Poisson process."""
    return np.cumsum(chance.exponential(1 / rate_rps, count))


def gamma(rate_rps: float, count: int, chance: np.random.Generator, shape: float = 0.3) -> np.ndarray:
    """(count,) with gamma-distributed gaps; a shape below 1 is burstier than Poisson (variance 1 / shape)."""
    return np.cumsum(chance.gamma(shape, 1 / (shape * rate_rps), count))


def square(high_rps: float, low_rps: float, count: int, chance: np.random.Generator, phase_s: float = 15.0) -> np.ndarray:
    """(count,) of a Poisson process whose rate changes between two values after every phase, the high one first."""
    # A unit-rate process, read through the inverse of the expected number of arrivals by a time.
    expected = np.cumsum(chance.exponential(1, count))
    cycles = int(expected[-1] / ((high_rps + low_rps) * phase_s)) + 1
    edges_s = np.arange(2 * cycles + 1) * phase_s
    by_edge = np.concatenate([[0], np.cumsum(np.tile([high_rps, low_rps], cycles) * phase_s)])
    return np.interp(expected, by_edge, edges_s)
