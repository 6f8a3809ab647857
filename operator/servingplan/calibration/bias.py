"""What is left of the time to first token when the factors on the step are settled, by load.

The filter never sees the bias, so that the two cannot trade one against the other: the bias is what the filter leaves. A bin is
believed the more the more it has seen, and a bin that saw nothing takes a part of what its neighbours learnt.
"""

from __future__ import annotations

import math

import numpy as np

from servingplan.latency.correction import BIN_MIDDLES

_DOUBT_SD = 0.1
"""How large a bias is, before one is seen."""
_LARGEST_WEIGHT = 20.0
_LARGEST_BIAS = 0.7
_NEIGHBOURS = (1.0, 0.3, 0.1, 0.03)
"""How much a bin says of others, by how far they are."""

Bins = tuple[float, ...]


def learnt(log_bias: Bins, weight: Bins, load: float, left: float, variance: float) -> tuple[Bins, Bins]:
    """Biases and weights after a residual of the logarithm of the mean time to first token, with its variance, at a load."""
    shares = _shares(load)
    missed = left - float(shares @ np.array(log_bias))
    gained = shares * _DOUBT_SD**2 / variance
    held = np.array(weight)
    moved = np.array(log_bias) + gained / (1 + held + gained) * missed
    return (
        tuple(np.clip(moved, -_LARGEST_BIAS, _LARGEST_BIAS).tolist()),
        tuple(np.minimum(_LARGEST_WEIGHT, held + gained).tolist()),
    )


def believed(log_bias: Bins, weight: Bins) -> Bins:
    """Biases of all bins, those that saw little filled from their neighbours."""
    bins = len(log_bias)
    reach = np.array([[_NEIGHBOURS[abs(i - j)] * weight[j] for j in range(bins)] for i in range(bins)])
    # Where a bin saw enough, its neighbours have no say.
    reach *= np.where(np.eye(bins) > 0, 1.0, 1 / (1 + np.array(weight))[:, None])
    of_own = np.diag(reach) + 1e-9
    filled = (reach @ np.array(log_bias)) / (reach.sum(axis=1) + np.where(of_own > 1e-3, 0.0, 1.0))
    return tuple(filled.tolist())


def at(biases: Bins, load: float) -> float:
    """The bias at a load."""
    return float(_shares(load) @ np.array(biases))


def forgotten(weight: Bins, share: float) -> Bins:
    """Weights after a share of what was learnt was lost."""
    return tuple((1 - share) * each for each in weight)


def factors(biases: Bins) -> Bins:
    """As factors on the time to first token."""
    return tuple(math.exp(each) for each in biases)


def _shares(load: float) -> np.ndarray:
    """(bins,) how much of a load is each bin's, as the correction interpolates."""
    return np.array([np.interp(load, BIN_MIDDLES, row) for row in np.eye(len(BIN_MIDDLES))])
