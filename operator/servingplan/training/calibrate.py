"""Calibration: predictions that are right on average at every level, and how far they are from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from servingplan.routing.quality import Array, logit

_STEPS = 25
_PRIOR = 1.0


def platt(values: Array, scores: Array) -> Array:
    """Slope and intercept, on the scale of the logit, that make values right on average (Platt 1999).

    Scores between 0 and 1 count as that share of a success. A weak prior of slope 1 and intercept 0 holds where scores are few
    or all alike.

    Args:
        values: (prompts, models) predictions for prompts kept out of what predicted them.
        scores: (prompts, models); NaN where unknown.

    Returns:
        (2, models).
    """
    found = np.empty((2, values.shape[1]), dtype=np.float32)
    for model in range(values.shape[1]):
        known = np.isfinite(scores[:, model])
        found[:, model] = _fit_one(logit(values[known, model]), scores[known, model].astype(np.float64))
    return found


def _fit_one(logits: NDArray[np.float64], scores: NDArray[np.float64]) -> NDArray[np.float64]:
    design, start = np.stack((logits, np.ones_like(logits)), axis=1), np.array((1.0, 0.0))
    found = start.copy()
    for _ in range(_STEPS):
        expected = 1.0 / (1.0 + np.exp(-design @ found))
        gradient = design.T @ (expected - scores) + _PRIOR * (found - start)
        curvature = design.T @ (design * (expected * (1.0 - expected))[:, None]) + _PRIOR * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        found -= np.clip(step, -1.0, 1.0)
        if np.abs(step).max() < 1e-9:
            break
    # A slope below 0 would turn the order of prompts round.
    return found if found[0] > 0 else np.array((0.0, np.log((scores.mean() + 1e-3) / (1.0 - scores.mean() + 1e-3))))


@dataclass(frozen=True, slots=True)
class Bin:
    """Prompts whose predictions are about the same: their number, mean prediction and mean score."""

    count: int
    predicted: float
    scored: float


def reliability(predicted: NDArray[np.float64], scores: NDArray[np.float64], bins: int = 15) -> tuple[Bin, ...]:
    """Predictions and scores, both (prompts,), in bins of equal numbers of prompts."""
    known = np.isfinite(scores)
    order = np.argsort(predicted[known], kind="stable")
    groups = np.array_split(order, min(bins, len(order)))
    return tuple(
        Bin(len(group), float(predicted[known][group].mean()), float(scores[known][group].mean()))
        for group in groups
        if len(group)
    )


def expected_error(bins: tuple[Bin, ...]) -> float:
    """The expected calibration error: mean distance between prediction and score over bins, by their prompts."""
    total = sum(one.count for one in bins)
    return sum(one.count * abs(one.predicted - one.scored) for one in bins) / total if total else 0.0
