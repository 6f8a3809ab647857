"""RouterWise's Algorithms 1 to 3 (arXiv 2604.10907) as the paper states them.

1. ``optimize_fractions``: for a price beta on latency, projected gradient ascent on J(w) = S(w) - beta (L(w) - bound). S(w) is
   the best score with fractions w; its gradient is the dual prices alpha of the counts (their Proposition 3). Those come from
   subgradient steps: a prompt goes to argmax_i score_i - alpha_i, and a model that gets too many becomes dearer.
2. ``optimize_beta``: bisection on beta; too slow raises it, fast enough lowers it and keeps w.
3. ``select_setup``: the above for every setup, keeping the best score within the bound.

Where the paper is silent the choice here favours it: prompts with equal scores are taken together (an argmax treats them
alike), prices and fractions start from the last solution, steps fall with the square root and are normalised, the best iterate
is returned, and fractions stay below the last profiled point, past which nothing says what the latency is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from routerwise.cells import Cell, Curve, Scores
from routerwise.setups import Setup


@dataclass(frozen=True, slots=True)
class Effort:
    """How long each loop runs; as given, one setup takes about as long as the paper reports (1 s).

    Attributes:
        beta_limit: Upper end of the bisection, in score per bound: exceeding the bound by 1 % then outweighs any score.
    """

    dual_steps: int = 100
    fraction_steps: int = 60
    beta_steps: int = 20
    dual_step: float = 0.3
    fraction_step: float = 0.3
    beta_limit: float = 100.0


@dataclass(frozen=True, slots=True)
class Found:
    """What the algorithms settle on.

    Attributes:
        fractions: (M,) share of the requests that each model gets.
    """

    fractions: np.ndarray
    ttft_s: float


def assigned(scores: Scores, prices: np.ndarray) -> np.ndarray:
    """(M,) fractions under the rule argmax_i score_i - price_i; ties go to the first model."""
    return np.bincount((scores.matrix - prices).argmax(axis=1), weights=scores.shares, minlength=len(prices))


def dual_value(scores: Scores, prices: np.ndarray, fractions: np.ndarray) -> float:
    """The dual function g(alpha): an upper bound on the best score with these fractions, for any prices."""
    return float(scores.shares @ (scores.matrix - prices).max(axis=1) + prices @ fractions)


def dual_prices(scores: Scores, fractions: np.ndarray, start: np.ndarray, effort: Effort) -> tuple[np.ndarray, float]:
    """Prices (M,) that nearly minimise the dual, and its value: the best of a run of subgradient steps."""
    prices, best, least = start, start, np.inf
    for step in range(1, effort.dual_steps + 1):
        margins = scores.matrix - prices
        choice = margins.argmax(axis=1)
        value = float(scores.shares @ margins[np.arange(len(choice)), choice] + prices @ fractions)
        if value < least:
            best, least = prices, value
        excess = np.bincount(choice, weights=scores.shares, minlength=len(prices)) - fractions
        prices = prices + effort.dual_step / np.sqrt(step) * excess
    return best, least


def project(point: np.ndarray, caps: np.ndarray) -> np.ndarray:
    """The nearest (M,) w with sum 1 and 0 <= w <= caps; with caps of 1 or more, Duchi's projection on the simplex.

    The sum of clip(point - t, 0, caps) falls piecewise linearly in t, so its root lies between two of its kinks.
    """
    kinks = np.sort(np.concatenate([point, point - caps]))
    sums = np.clip(point - kinks[:, None], 0.0, caps).sum(axis=1)
    right = int(np.searchsorted(-sums, -1.0))
    if right == 0:
        return np.clip(point - kinks[0], 0.0, caps)
    right = min(right, len(kinks) - 1)
    (low, high), (above, below) = kinks[right - 1 : right + 1], sums[right - 1 : right + 1]
    shift = low + (high - low) * (above - 1.0) / (above - below) if above > below else low
    return np.clip(point - shift, 0.0, caps)


class _Setup:
    """One setup's latency: the mean over all requests and its gradient in the fractions."""

    def __init__(self, cell: Cell, curves: tuple[Curve, ...]) -> None:
        self.rate_rps, self.curves = cell.rate_rps, curves
        self.caps = np.array([curve.limit_rps for curve in curves]) / cell.rate_rps

    def mean_s(self, fractions: np.ndarray) -> tuple[float, np.ndarray]:
        parts = [curve.at(self.rate_rps * float(w)) for curve, w in zip(self.curves, fractions, strict=True)]
        latency_s, slope = (np.array(values) for values in zip(*parts, strict=True))
        return float(fractions @ latency_s), latency_s + self.rate_rps * fractions * slope


def optimize_fractions(
    cell: Cell, setup: _Setup, beta: float, start: tuple[np.ndarray, np.ndarray], effort: Effort
) -> tuple[np.ndarray, np.ndarray]:
    """Algorithm 1: fractions and prices for one price on latency, in score per second, from earlier fractions and prices."""
    fractions, prices = start
    best, highest = (fractions, prices), -np.inf
    for step in range(1, effort.fraction_steps + 1):
        prices, score = dual_prices(cell.scores, fractions, prices, effort)
        latency_s, slope = setup.mean_s(fractions)
        if (value := score - beta * (latency_s - cell.ttft_s)) > highest:
            best, highest = (fractions, prices), value
        gradient = prices - beta * slope
        # Only differences between models matter on the simplex.
        gradient = gradient - gradient.mean()
        norm = float(np.linalg.norm(gradient))
        if norm == 0:
            break
        fractions = project(fractions + effort.fraction_step / np.sqrt(step) * gradient / norm, setup.caps)
    return best


def optimize_beta(cell: Cell, setup: Setup, effort: Effort) -> Found | None:
    """Algorithm 2: the fractions of the last beta that kept the bound; None where none did."""
    if any((m, part) not in cell.curves for m, part in enumerate(setup)):
        return None
    deployed = _Setup(cell, tuple(cell.curves[m, part] for m, part in enumerate(setup)))
    if deployed.caps.sum() < 1:
        return None
    models = len(setup)
    start = project(np.full(models, 1 / models), deployed.caps), np.zeros(models)
    low, high, kept = 0.0, effort.beta_limit / cell.ttft_s, None
    for _ in range(effort.beta_steps):
        beta = (low + high) / 2
        start = optimize_fractions(cell, deployed, beta, start, effort)
        latency_s, _ = deployed.mean_s(start[0])
        if latency_s > cell.ttft_s:
            low = beta
        else:
            high, kept = beta, Found(start[0], latency_s)
    return kept


def select_setup(cell: Cell, setups: Iterable[Setup], effort: Effort) -> tuple[Setup, Found] | None:
    """Algorithm 3: the setup whose fractions score best within the bound, by the dual's estimate of the score."""
    best, highest = None, -np.inf
    for setup in setups:
        found = optimize_beta(cell, setup, effort)
        if found is None:
            continue
        _, score = dual_prices(cell.scores, found.fractions, np.zeros(len(setup)), effort)
        if score > highest:
            best, highest = (setup, found), score
    return best
