"""What the joint optimum is compared with: the paper's three allocations, and allocation before routing.

The paper's three fix the setup and then route as well as that setup allows; here by the exact LP, which favours them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations

import numpy as np

from routerwise.cells import Cell, Curve
from routerwise.setups import Setup

Scored = Mapping[Setup, float | None]
"""Best score of every retained setup; None where no routing keeps the bound."""


def equal_split(cell: Cell, scored: Scored) -> float | None:
    """Every model gets G / M GPUs."""
    return _nearest(cell, scored, np.full(len(cell.space.sizes_b), 1.0))


def size_proportional(cell: Cell, scored: Scored) -> float | None:
    """Every model gets GPUs in proportion to its parameters."""
    return _nearest(cell, scored, np.array(cell.space.sizes_b, dtype=float))


def isolated(cell: Cell, scored: Scored) -> float | None:
    """No GPU is shared; the best of the retained setups of whole GPUs."""
    del cell
    return _best(score for setup, score in scored.items() if all(part.tenths == 10 for part in setup))


def sequential(cell: Cell) -> float | None:
    """Allocation for a split that is fixed before, as by an allocator that knows no routing (Melange, arXiv 2404.14527).

    The split: some of the models are in use; a fraction t of each class goes to the one that scores it best (of equals the one
    with most capacity per GPU), the rest to one model. For it each model alone gets the fewest whole GPUs, in replicas, that
    serve its part with a mean TTFT within the bound. Of all such splits that fit, the best score counts: a favour, since it
    tries what a sequential method would have to guess. Requests then go to the replica of their model with the fewest
    outstanding, which shares a model's load as its allocation assumed.
    """
    models, gpus, scores = len(cell.scores.models), cell.space.gpus, cell.scores
    capacity = np.array([_capacities(cell, model) for model in range(models)])
    order = np.argsort(-(capacity[:, 1:] / np.arange(1, gpus + 1)).max(axis=1), kind="stable")
    t = np.linspace(0.0, 1.0, 1001)
    best = None
    for used in (
        order[[m in chosen for m in order]] for size in range(models) for chosen in combinations(range(models), size + 1)
    ):
        wanted = used[scores.matrix[:, used].argmax(axis=1)]
        split = np.bincount(wanted, weights=scores.shares, minlength=models)
        score = float(scores.shares @ scores.matrix[np.arange(len(wanted)), wanted])
        for rest in used:
            loads = cell.rate_rps * (np.outer(t, split) + np.outer(1 - t, np.arange(models) == rest))
            enough = capacity >= loads[..., None] - 1e-9
            fits = enough.any(axis=2).all(axis=1) & (enough.argmax(axis=2).sum(axis=1) <= gpus)
            best = _best([best, *(t[fits] * score + (1 - t[fits]) * scores.means[rest]).tolist()])
    return best


def _nearest(cell: Cell, scored: Scored, weights: np.ndarray) -> float | None:
    """The retained setup nearest to a split of all compute in proportion to the weights; of equally near ones the best."""
    target = 10 * cell.space.gpus * weights / weights.sum()
    setups = list(scored)
    apart = np.array([np.abs(target - [part.compute_tenths for part in setup]).sum() for setup in setups])
    return _best(scored[setup] for setup, value in zip(setups, apart, strict=True) if value <= apart.min() + 1e-9)


def _best(scores: Iterable[float | None]) -> float | None:
    return max((score for score in scores if score is not None), default=None)


def _capacities(cell: Cell, model: int) -> np.ndarray:
    """(G + 1,) largest rate within the bound that 0 to G whole GPUs give a model, over all choices of replicas."""
    most = np.zeros(cell.space.gpus + 1)
    sizes = {
        part.tp: _rate_within(curve, cell.ttft_s)
        for (m, part), curve in cell.curves.items()
        if m == model and part.tenths == 10
    }
    for gpus in range(1, cell.space.gpus + 1):
        most[gpus] = max([most[gpus - 1], *(most[gpus - tp] + rate for tp, rate in sizes.items() if tp <= gpus)])
    return most


def _rate_within(curve: Curve, ttft_s: float) -> float:
    """The largest profiled rate at which the mean keeps a bound; 0 where an idle replica does not."""
    if curve.ttft_s[0] > ttft_s:
        return 0.0
    return float(np.interp(ttft_s, curve.ttft_s, curve.rates_rps))
