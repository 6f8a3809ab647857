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

import math
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
_SAMPLED = 8
_ZERO = np.float32(0.0)


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
        centred = features - self.centre
        centred *= self.scale
        weights, most = self.weights.tolist(), _MOST_DEVIATIONS * self.scale_of_plain
        for row in centred:
            for block, weight in enumerate(weights):
                part = row[block * VECTOR : (block + 1) * VECTOR]
                part *= weight / max(math.sqrt(part.dot(part)), 1e-6)
            plain = row[VECTORS * VECTOR :]
            np.maximum(plain, -most, out=plain)
            np.minimum(plain, most, out=plain)
        return centred

    @property
    def scale_of_plain(self) -> float:
        """What one standard deviation of a feature outside the embeddings comes to."""
        return 1.0 / math.sqrt(max(1, self.centre.size - VECTORS * VECTOR))


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
    _from_base: Array = field(init=False)
    _from_trends: Array = field(init=False)
    _mixed: Array = field(init=False)
    _complete: bool = field(init=False)

    def __post_init__(self) -> None:
        mixed = np.asarray(np.float32(self.shape.mix) / self.spread, np.float32)
        object.__setattr__(self, "_from_base", _distances_from(self.base))
        object.__setattr__(self, "_from_trends", _distances_from(self.trends * mixed))
        object.__setattr__(self, "_mixed", mixed)
        object.__setattr__(self, "_complete", bool(np.isfinite(self.targets).all()))

    def predict(self, features: Array) -> Predicted:
        """(prompts, features) as what every model is expected to score and to write."""
        values = self.values(self.projection(features))
        count = len(self.models)
        quality = calibrated(values[:, :count], self.calibration)
        if not self.length_ratio.size:
            return Predicted(quality, None)
        logs = np.minimum(np.maximum(values[:, count:].astype(np.float64), 0.0), _MOST_LOG_TOKENS)
        return Predicted(quality, np.maximum(1.0, np.expm1(logs) * self.length_ratio))

    def values(self, coordinates: Array) -> Array:
        """(prompts, dimensions) as (prompts, columns), before calibration."""
        found = np.empty((len(coordinates), self.mean.size), np.float32)
        for row, point in zip(found, coordinates, strict=True):
            row[:] = self._value(point)
        return found

    def _value(self, point: Array) -> Array:
        """(dimensions,) as (columns,). One prompt at a time: serving has one, and many together are hardly faster."""
        shape = self.shape
        squared = _squared(point, self._from_base)
        trend = self._trend(point, squared)
        if not shape.neighbours:
            return trend
        novelty = max(0.0, squared.item(squared.argmin()) - self.reach)
        if shape.mix:
            squared += _squared(trend[: len(self.models)] * self._mixed, self._from_trends)
        nearest = _nearest(squared, min(shape.neighbours, len(self.base)))
        reliance = math.exp(-novelty / shape.width)
        distances, targets = squared[nearest], self.targets.take(nearest, axis=0)
        if not self._complete:
            near: Array = shrunk(trend[None], distances[None], targets[None], shape, np.full(1, reliance, np.float32))[0]
            return near
        weights = np.exp((distances.item(distances.argmin()) - distances) / np.float32(shape.width))
        total = float(np.add.reduce(weights))
        effective = total * total / float(weights.dot(weights))
        trust = np.float32(reliance * effective / (effective + shape.shrink + 1e-9))
        return np.asarray(trend + trust * (weights @ targets / np.float32(total) - trend), np.float32)

    def _trend(self, point: Array, squared: Array) -> Array:
        if self.shape.trend == "linear":
            return np.asarray(self.mean + point @ self.linear, np.float32)
        if self.shape.trend == "kernel":
            return np.asarray(self.mean + np.exp(np.float32(-self.shape.gamma) * squared) @ self.dual, np.float32)
        return self.mean


def _distances_from(others: Array) -> Array:
    """(b, d) points as what ``_squared`` multiplies by, (d + 1, b): one product gives all but the point's own length."""
    return np.ascontiguousarray(np.vstack((others.T * np.float32(-2.0), squared_norms(others))), np.float32)


def _squared(point: Array, distances_from: Array) -> Array:
    """(d,) as its (b,) squared distances, never below 0."""
    extended = np.empty(len(distances_from), np.float32)
    extended[:-1], extended[-1] = point, 1.0
    squared: Array = extended @ distances_from
    squared += point.dot(point)
    return np.maximum(squared, _ZERO, out=squared)


def _nearest(squared: Array, count: int) -> NDArray[np.intp]:
    """(base,) squared distances as (count,) places of the smallest, in no order.

    The distances of a part tell a bound that about twice as many lie below as are wanted; only those are looked at.
    """
    sample = squared[::_SAMPLED]
    rank = 2 * count // _SAMPLED + 1
    if rank < sample.size:
        below = (squared <= np.partition(sample, rank)[rank]).nonzero()[0]
        if below.size >= count:
            return np.asarray(below[squared[below].argpartition(count - 1)[:count]], np.intp)
    return np.asarray(nearest_of(squared[None], count)[0], np.intp)


def squared_distances(left: Array, right: Array) -> Array:
    """(a, d) and (b, d) as (a, b), never below 0."""
    squared = left @ right.T
    squared *= np.float32(-2.0)
    squared += squared_norms(left)[:, None]
    squared += squared_norms(right)
    np.maximum(squared, _ZERO, out=squared)
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
    inside = np.minimum(np.maximum(values.astype(np.float64), _LEAST_SCORE), 1.0 - _LEAST_SCORE)
    return np.asarray(np.log(inside / (1.0 - inside)), np.float64)
