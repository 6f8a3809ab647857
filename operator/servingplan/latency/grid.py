"""Distributions on an evenly spaced grid, as masses at 0, 1, 2 ... cells.

A value between two cells is split between them, which keeps its mean. A mass at a cell therefore stands for values around it,
and a percentile is read from the middle of each mass.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def split(values: Floats, weights: Floats, cells: int) -> Floats:
    """(cells,) masses of weighted values, in cells; what lies beyond the grid is put on its last cell."""
    values = np.minimum(values, cells - 1.0)
    below = np.minimum(values.astype(np.intp), cells - 2)
    upper = weights * (values - below)
    return np.asarray(np.bincount(below, weights - upper, cells) + np.bincount(below + 1, upper, cells), dtype=np.float64)


def uniform(lengths: Floats, cells: int) -> Floats:
    """(n, cells) masses of the uniform distributions between 0 and each of (n,) lengths, in cells."""
    edge = np.arange(-1.0, cells + 1.0)
    length = lengths[:, None]
    # Twice integrated density; its second difference is the mass that splitting gives.
    twice = np.where(edge < length, np.maximum(edge, 0.0) ** 2 / (2 * length), edge - length / 2)
    masses: Floats = np.diff(twice, 2, axis=1)
    return masses


def shifted(masses: Floats, count: int) -> Floats:
    """(count, n) masses moved up by 0, 1 ... count - 1 cells; what leaves the grid is put on its last cell."""
    n = len(masses)
    from_cell = np.arange(n)[None, :] - np.arange(count)[:, None]
    moved = np.where(from_cell >= 0, masses[np.maximum(from_cell, 0)], 0.0)
    moved[:, -1] += masses.sum() - moved.sum(axis=1)
    return moved
