"""What each model is likely to score on a prompt, and how long its answer is likely to be, from a vector of features.

A trend, shrunk neighbours, and calibration, in that order:

    z      = the features, centred, normalised block by block, and rotated into the few directions in which prompts differ
    trend  = mean, mean + z W, or mean + exp(-gamma |z - base|^2) A                          (ridge, kernel ridge)
    d^2    = |z - base|^2 + |mix (trend(z) - trend of each base prompt)|^2                    (base prompts: kept ones)
    near   = mean over the k nearest base prompts, weighted by exp(-(d^2 - least d^2) / width)
    value  = trend + n / (n + shrink) * r * (near - trend)        n: effective number of neighbours of the weights
    quality = logistic(slope * logit(value) + intercept)                                        (Platt's scaling)

Neighbours are sought among prompts that read alike and on which the models are expected to do alike: the trend of a base
prompt is the one without the prompt's own scores, so that both sides of the difference are predictions. RouteBalance takes the
plain mean over 10 neighbours by reciprocal distance; few neighbours without shrinkage pick models by noise. ``r`` is 1 for a
prompt that lies among the base prompts, and falls where it is unlike any of them: there the trend holds.

Lengths are predicted as logarithms by the same neighbours, and scaled so that their mean is right.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

VECTOR = 256
"""Dimensions of one embedding."""

VECTORS = 2
"""Embeddings at the beginning of the features: of the whole prompt, and of its first words."""

_MOST_DEVIATIONS = 4.0
_LEAST_SCORE = 0.005
_MOST_LOG_TOKENS = 14.0


@dataclass(frozen=True, slots=True)
class Shape:
    """Which estimator it is.

    Attributes:
        trend: ``mean``, ``linear`` or ``kernel``.
        gamma: Of the kernel.
        ridge: Of the trend.
        neighbours: How many base prompts are averaged; 0 leaves the trend alone.
        width: Of their weights, in units of the squared distance.
        mix: Weight of the difference in trend, in standard deviations of the trend of each model.
        shrink: Neighbours that the trend counts for.
    """

    trend: str = "mean"
    gamma: float = 0.0
    ridge: float = 0.0
    neighbours: int = 0
    width: float = 1.0
    mix: float = 0.0
    shrink: float = 0.0

    def __str__(self) -> str:
        trend = {"mean": "means", "linear": "linear model", "kernel": "kernel regression"}[self.trend]
        if not self.neighbours:
            return trend
        return f"{self.neighbours} neighbours, shrunk to the {trend}" + (", alike in trend too" if self.mix else "")


@dataclass(frozen=True, slots=True, eq=False)
class Projection:
    """How features become coordinates.

    Attributes:
        centre: (features,).
        scale: (features,) what a centred feature is multiplied by; 1 within the embeddings.
        weights: (``VECTORS``,) length of each normalised embedding.
        rotation: (features, dimensions).
        offset: (dimensions,) subtracted last.
    """

    centre: Array
    scale: Array
    weights: Array
    rotation: Array
    offset: Array

    def __call__(self, features: Array) -> Array:
        """(prompts, features) as (prompts, dimensions)."""
        coordinates: Array = self.normalise(features) @ self.rotation - self.offset
        return coordinates

    def normalise(self, features: Array) -> Array:
        """(prompts, features), each embedding of one length and the others within a few standard deviations."""
        centred = (features - self.centre) * self.scale
        for block, weight in enumerate(self.weights):
            part = centred[:, block * VECTOR : (block + 1) * VECTOR]
            part *= weight / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), np.float32(1e-6))
        plain = centred[:, VECTORS * VECTOR :]
        most = np.float32(_MOST_DEVIATIONS) * self.scale_of_plain
        np.clip(plain, -most, most, out=plain)
        return centred

    @property
    def scale_of_plain(self) -> np.float32:
        """What one standard deviation of a feature outside the embeddings comes to."""
        return np.float32(1.0 / np.sqrt(max(1, self.centre.size - VECTORS * VECTOR)))


@dataclass(frozen=True, slots=True)
class Predicted:
    """For each prompt and model.

    Attributes:
        quality: (prompts, models) in [0, 1].
        output_tokens: (prompts, models) above 0; None when lengths were not trained.
    """

    quality: NDArray[np.float64]
    output_tokens: NDArray[np.float64] | None


@dataclass(frozen=True, slots=True, eq=False)
class Predictor:
    """The trained estimator.

    A column is one model's score, or the logarithm of its output tokens; the scores come first.

    Attributes:
        models: Names, in the order of the columns.
        layout: What the features are; whoever computes them has to name the same.
        shape: Which estimator it is.
        projection: How features become coordinates.
        mean: (columns,).
        linear: (dimensions, columns) of a linear trend; (0, columns) without.
        base: (base, dimensions) coordinates of the kept prompts.
        dual: (base, columns) of a kernel trend; (0, columns) without.
        trends: (base, models) trend at each base prompt without its own scores; (0, models) when the shape's mix is 0.
        spread: (models,) standard deviation of the trends.
        targets: (base, columns) scores and logarithms; NaN where unknown.
        reach: Squared distance to the nearest base prompt from which on a prompt is unlike any of them.
        calibration: (2, models) slope and intercept on the scale of the logit.
        length_ratio: (models,) what predicted lengths are multiplied by; (0,) without lengths.
    """

    models: tuple[str, ...]
    layout: str
    shape: Shape
    projection: Projection
    mean: Array
    linear: Array
    base: Array
    dual: Array
    trends: Array
    spread: Array
    targets: Array
    reach: float
    calibration: Array
    length_ratio: Array
    # What every prediction needs and none changes.
    _base_norms: Array = field(init=False)
    _alike: Array = field(init=False)
    _alike_norms: Array = field(init=False)

    def __post_init__(self) -> None:
        alike = self.trends * (np.float32(self.shape.mix) / self.spread)
        object.__setattr__(self, "_base_norms", squared_norms(self.base))
        object.__setattr__(self, "_alike", alike)
        object.__setattr__(self, "_alike_norms", squared_norms(alike))

    def predict(self, features: Array) -> Predicted:
        """(prompts, features) as what every model is expected to score and to write."""
        values = self.values(self.projection(features))
        count = len(self.models)
        quality = calibrated(values[:, :count], self.calibration)
        if not self.length_ratio.size:
            return Predicted(quality, None)
        logs = np.clip(values[:, count:].astype(np.float64), 0.0, _MOST_LOG_TOKENS)
        return Predicted(quality, np.maximum(1.0, np.expm1(logs) * self.length_ratio))

    def values(self, coordinates: Array) -> Array:
        """(prompts, dimensions) as (prompts, columns), before calibration."""
        shape = self.shape
        squared = squared_distances(coordinates, self.base, self._base_norms)
        trend = self._trend(coordinates, squared)
        if not shape.neighbours:
            return trend
        novelty = np.maximum(0.0, squared.min(axis=1) - self.reach)
        if shape.mix:
            expected = trend[:, : len(self.models)] * (np.float32(shape.mix) / self.spread)
            squared += squared_distances(expected, self._alike, self._alike_norms)
        nearest = nearest_of(squared, min(shape.neighbours, len(self.base)))
        distances, targets = np.take_along_axis(squared, nearest, axis=1), self.targets[nearest]
        return shrunk(trend, distances, targets, shape, np.exp(-novelty / shape.width))

    def _trend(self, coordinates: Array, squared: Array) -> Array:
        if self.shape.trend == "linear":
            return np.asarray(self.mean + coordinates @ self.linear, np.float32)
        if self.shape.trend == "kernel":
            return np.asarray(self.mean + np.exp(np.float32(-self.shape.gamma) * squared) @ self.dual, np.float32)
        return np.broadcast_to(self.mean, (len(coordinates), self.mean.size))


def squared_distances(left: Array, right: Array, right_norms: Array | None = None) -> Array:
    """(a, d) and (b, d) as (a, b), never below 0; the (b,) squared lengths of the right ones may be given."""
    squared = left @ right.T
    squared *= np.float32(-2.0)
    squared += squared_norms(left)[:, None]
    squared += squared_norms(right) if right_norms is None else right_norms
    np.maximum(squared, np.float32(0.0), out=squared)
    return squared


def squared_norms(vectors: Array) -> Array:
    """(a, d) as (a,)."""
    norms: Array = np.einsum("ij,ij->i", vectors, vectors)
    return norms


def nearest_of(squared: Array, count: int) -> NDArray[np.intp]:
    """(prompts, base) squared distances as (prompts, count) places of the smallest, in no order."""
    if count >= squared.shape[1]:
        return np.broadcast_to(np.arange(squared.shape[1]), squared.shape)
    return np.argpartition(squared, count - 1, axis=1)[:, :count]


def shrunk(trend: Array, squared: Array, targets: Array, shape: Shape, reliance: Array) -> Array:
    """Neighbours' means, drawn to the trend as far as they are few.

    Args:
        trend: (prompts, columns).
        squared: (prompts, neighbours) squared distances.
        targets: (prompts, neighbours, columns); NaN where unknown.
        shape: Width and shrinkage.
        reliance: (prompts,) in [0, 1], of how much the neighbours are relied on.

    Returns:
        (prompts, columns).
    """
    weights = np.exp((squared.min(axis=1, keepdims=True) - squared) / np.float32(shape.width))
    known = np.isfinite(targets)
    weighted = weights[:, :, None] * known
    total = weighted.sum(axis=1)
    near = np.einsum("pn,pnc->pc", weights, np.where(known, targets, 0.0)) / np.maximum(total, 1e-9)
    effective = total**2 / np.maximum(np.einsum("pnc,pnc->pc", weighted, weighted), 1e-9)
    return np.asarray(trend + reliance[:, None] * effective / (effective + shape.shrink + 1e-9) * (near - trend), np.float32)


def calibrated(values: Array, calibration: Array) -> NDArray[np.float64]:
    """(prompts, models) values as scores that are right on average, in [0, 1]."""
    slope, intercept = calibration.astype(np.float64)
    return np.asarray(1.0 / (1.0 + np.exp(-(slope * logit(values) + intercept))), np.float64)


def logit(values: Array) -> NDArray[np.float64]:
    """The logit of values that may lie a little outside [0, 1]."""
    inside = np.clip(values.astype(np.float64), _LEAST_SCORE, 1.0 - _LEAST_SCORE)
    return np.asarray(np.log(inside / (1.0 - inside)), np.float64)
