"""Which model each request goes to, for the routers that choose it without a look at the load."""

from __future__ import annotations

import numpy as np

from virtualfleet import predictors
from virtualfleet.prompts import Prompts
from virtualfleet.tiers import by_tier, cost
from virtualfleet.workload import Workload

SCORER_S = 0.07
"""Of the BEST-Route scorer per request; found from the collapse that the paper reports."""


def best_route(work: Workload, threshold: float) -> np.ndarray:
    """(n,) BEST-Route-like: the cheapest model predicted to reach a share of the best model's score; 1 is the argmax."""
    enough = work.predicted_quality >= threshold * work.predicted_quality.max(1, keepdims=True) - 1e-12
    return np.argmin(np.where(enough, by_tier("output_price"), np.inf), axis=1)


def avengers(prompts: Prompts, performance: float, clusters: int = 32) -> np.ndarray:
    """(prompts,) Avengers-Pro-like: per cluster of prompts, the model with the best mix of mean score and mean cost.

    Both are scaled to 0..1 over the models of the cluster; scores, costs and clusters come from the other folds.
    ``performance`` is the weight of the score, the cost has the rest; ``clusters`` are those of k-means.
    """
    dollars = cost(prompts.prompt_tokens, prompts.output_tokens)
    chosen = np.empty(len(prompts.fold), dtype=np.int64)
    for fold in range(predictors.FOLDS):
        inside, outside = prompts.fold != fold, prompts.fold == fold
        centres = predictors.clusters(prompts.vector[inside], clusters, np.random.default_rng(fold))
        owner = predictors.nearest_centre(prompts.vector[inside], centres)
        rows = np.flatnonzero(inside)
        best = np.zeros(clusters, dtype=np.int64)
        for one in range(clusters):
            members = rows[owner == one] if (owner == one).any() else rows
            score, price = _unit(prompts.quality[members].mean(0)), _unit(dollars[members].mean(0))
            best[one] = np.argmax(performance * score + (1 - performance) * (1 - price))
        chosen[outside] = best[predictors.nearest_centre(prompts.vector[outside], centres)]
    return chosen


def _unit(values: np.ndarray) -> np.ndarray:
    return (values - values.min()) / max(1e-12, values.max() - values.min())


def split(work: Workload, shares: np.ndarray) -> np.ndarray:
    """(n,) by fixed (tiers,) shares, whatever the prompt: a plan's weights alone."""
    chance = np.random.default_rng([work.seed, 4])
    return np.searchsorted(np.cumsum(shares) / np.sum(shares), chance.random(len(work)), side="right").clip(0, len(shares) - 1)


def splits() -> list[np.ndarray]:
    """Shares that walk from all-smallest to all-largest over neighbouring tiers."""
    tiers = len(by_tier("output_price"))
    found = [np.eye(tiers)[0]]
    for upper in range(1, tiers):
        found += [(1 - part) * np.eye(tiers)[upper - 1] + part * np.eye(tiers)[upper] for part in (1 / 3, 2 / 3, 1.0)]
    return found


def serial_s(arrival_s: np.ndarray, scorer_s: float = SCORER_S) -> np.ndarray:
    """(n,) when a scorer that takes one request at a time is done with each."""
    done = np.empty(len(arrival_s))
    free_s = -np.inf
    for r, at_s in enumerate(arrival_s):
        free_s = max(free_s, at_s) + scorer_s
        done[r] = free_s
    return done
