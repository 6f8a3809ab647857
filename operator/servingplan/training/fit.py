"""Fits every kind of estimator to scored prompts and keeps the one that does best on prompts left out one at a time.

Leaving one out is exact for the trends, whose residual without a prompt is its residual divided by 1 less its leverage (Allen's
PRESS; for kernel ridge the dual divided by the diagonal of the inverse), and for neighbours, among which a prompt is not its
own. What is chosen is chosen on the prompts given alone: whoever judges the result has to keep others out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack

from servingplan.routing.predictor_file import MOST_BYTES, base_scale
from servingplan.routing.quality import (
    VECTOR,
    VECTORS,
    Array,
    Predictor,
    Projection,
    Shape,
    nearest_of,
    shrunk,
    squared_distances,
)
from servingplan.training.calibrate import platt

DIMENSIONS = 32
"""Coordinates of a prompt. More read no better and cost a byte for each prompt kept."""

MOST_BASE = 5000
"""Prompts kept: their distances are computed for every request, and the fit inverts a matrix of this order."""

Figures = NDArray[np.float64]

_WEIGHTS = (1.0, 0.7)
_LINEAR = (3.0, 30.0)
_KERNEL = ((0.7, 2.0), (0.7, 4.0), (0.35, 2.0))
_NEIGHBOURS = (50, 100)
_WIDTHS = (0.25, 0.5, 1.0)
_SHRINKS = (5.0, 20.0)
_MIXES = (0.0, 0.2, 0.4)
_OTHER_BYTES = 2000
_REACH = 0.99
_LEAST_DEVIATION = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """The best estimator, and how it was chosen.

    Attributes:
        predictor: The best one.
        kept: Places of the prompts that it was fitted to.
        losses: Mean squared error of the scores of left-out prompts, by shape, in the order tried.
    """

    predictor: Predictor
    kept: np.ndarray
    losses: tuple[tuple[Shape, float], ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Trend:
    """A fitted trend; ``left_out`` (prompts, columns) is its value at each prompt without that prompt."""

    shape: Shape
    linear: Array
    dual: Array
    left_out: Array


@dataclass(frozen=True, slots=True, eq=False)
class _Data:
    """What all estimators are fitted to.

    Attributes:
        base: (prompts, dimensions) coordinates.
        squared: (prompts, prompts) squared distances.
        nearest: (prompts,) squared distance to the nearest other prompt.
        targets: (prompts, columns); NaN where unknown.
        mean: (columns,) of the targets.
        models: How many of the columns are scores.
    """

    base: Array
    squared: Array
    nearest: Array
    targets: Array
    mean: Array
    models: int

    @property
    def reach(self) -> float:
        return float(np.quantile(self.nearest, _REACH))

    @property
    def no_rows(self) -> Array:
        return np.zeros((0, self.mean.size), dtype=np.float32)

    @property
    def residuals(self) -> Array:
        return np.where(np.isfinite(self.targets), self.targets - self.mean, np.float32(0.0))

    def loss(self, values: Array) -> float:
        return float(np.nanmean((values[:, : self.models] - self.targets[:, : self.models]) ** 2))


def fit(
    features: Array, quality: Figures, output_tokens: Figures | None, models: tuple[str, ...], layout: str, seed: int = 0
) -> Fitted:
    """The best estimator for these prompts.

    Args:
        features: (prompts, features).
        quality: (prompts, models) in [0, 1]; NaN where unknown.
        output_tokens: (prompts, models), NaN where unknown; None leaves lengths out.
        models: Names; every one needs a score, and a length where there are lengths.
        layout: What the features are.
        seed: Draws the prompts that are kept when there are too many.
    """
    columns = len(models) * (1 if output_tokens is None else 2)
    kept = _kept(len(features), most_base(len(models), columns, features.shape[1]), seed)
    targets = quality[kept] if output_tokens is None else np.hstack((quality[kept], np.log1p(output_tokens[kept])))
    projection = project(features[kept])
    data = _data(projection(features[kept]), targets.astype(np.float32), len(models))
    trends = tuple(_trends(data))
    best = min(trends, key=lambda trend: data.loss(trend.left_out))
    mean = trends[0]
    tried = [(trend.shape, data.loss(trend.left_out)) for trend in trends]
    values = {trend.shape: trend for trend in trends}
    for trend in dict.fromkeys((mean, best)):
        for mix in _MIXES if trend is not mean else (0.0,):
            for shape, left_out in _neighbours(data, trend, mix):
                tried.append((shape, data.loss(left_out)))
                values[shape] = replace(trend, left_out=left_out)
    chosen = min(tried, key=lambda pair: pair[1])[0]
    predictor = _assemble(data, projection, chosen, trends, values[chosen].left_out, models, layout)
    return Fitted(predictor, kept, tuple(tried))


def most_base(models: int, columns: int, features: int) -> int:
    """How many prompts can be kept so that the file fits in a ConfigMap."""
    per_prompt = DIMENSIONS + 2 * (2 * columns + models)
    return max(1, min(MOST_BASE, (MOST_BYTES - _OTHER_BYTES - features * (2 * DIMENSIONS + 8)) // per_prompt))


def project(features: Array) -> Projection:
    """The coordinates in which these prompts differ most."""
    vectors = VECTORS * VECTOR
    plain = features[:, vectors:]
    deviation = plain.std(axis=0)
    scale = np.ones(features.shape[1], dtype=np.float32)
    # What hardly differs between these prompts tells nothing, and would drown the rest where a prompt is another.
    scale[vectors:] = 1.0 / np.maximum(deviation, _LEAST_DEVIATION) / np.sqrt(max(1, plain.shape[1]))
    start = Projection(
        features.mean(axis=0),
        scale,
        np.array(_WEIGHTS, dtype=np.float32),
        np.zeros((0, 0), np.float32),
        np.zeros(0, np.float32),
    )
    normalised = start.normalise(features)
    centre = normalised.mean(axis=0)
    _, directions = np.linalg.eigh(np.cov(normalised, rowvar=False))
    # Kept in two bytes in the file: what is fitted here has to be what is applied there.
    rotation = directions[:, ::-1][:, :DIMENSIONS].astype(np.float16).astype(np.float32)
    return replace(start, rotation=rotation, offset=(centre @ rotation).astype(np.float32))


def _data(coordinates: Array, targets: Array, models: int) -> _Data:
    # Kept in one byte in the file.
    scale = base_scale(coordinates)
    base = np.round(coordinates / scale) * scale
    squared = squared_distances(base, base)
    nearest = (squared + np.diag(np.full(len(squared), np.inf, dtype=np.float32))).min(axis=1)
    return _Data(base, squared, nearest, targets, np.nanmean(targets, axis=0), models)


def _kept(count: int, most: int, seed: int) -> np.ndarray:
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).permutation(count)[:most])


def _trends(data: _Data) -> Iterator[_Trend]:
    yield _means(data)
    for ridge in _LINEAR:
        yield _linear(data, ridge)
    for gamma, ridge in _KERNEL:
        yield _kernel(data, gamma, ridge)


def _means(data: _Data) -> _Trend:
    known = np.isfinite(data.targets)
    count = known.sum(axis=0)
    others = (data.mean * count - np.where(known, data.targets, 0.0)) / np.maximum(count - 1, 1)
    return _Trend(Shape(), data.no_rows, data.no_rows, np.where(known, others, data.mean).astype(np.float32))


def _linear(data: _Data, ridge: float) -> _Trend:
    inverse = np.linalg.inv(data.base.T @ data.base + np.float32(ridge) * np.eye(data.base.shape[1], dtype=np.float32))
    weights = inverse @ (data.base.T @ data.residuals)
    leverage = np.einsum("ij,ij->i", data.base @ inverse, data.base)[:, None]
    wrong = (data.residuals - data.base @ weights) / (1.0 - leverage)
    return _Trend(Shape("linear", ridge=ridge), weights, data.no_rows, data.mean + data.residuals - wrong)


def _kernel(data: _Data, gamma: float, ridge: float) -> _Trend:
    kernel = np.exp(np.float32(-gamma) * data.squared)
    kernel[np.diag_indices_from(kernel)] = 1.0 + ridge
    inverse = _inverse(kernel)
    dual = inverse @ data.residuals
    wrong = dual / np.diag(inverse)[:, None]
    return _Trend(Shape("kernel", gamma=gamma, ridge=ridge), data.no_rows, dual, data.mean + data.residuals - wrong)


def _inverse(matrix: Array) -> Array:
    """Of a symmetric positive definite matrix, which is overwritten."""
    factor, failed = lapack.spotrf(matrix.T, lower=1, overwrite_a=1)
    inverse, singular = lapack.spotri(factor, lower=1, overwrite_c=1)
    assert not failed and not singular, "a kernel with a ridge is positive definite"
    lower = np.tril(inverse)
    return lower + np.tril(inverse, -1).T


def _neighbours(data: _Data, trend: _Trend, mix: float) -> Iterator[tuple[Shape, Array]]:
    """Every shape with this trend and mix, and its values at each prompt without that prompt."""
    squared = data.squared.copy()
    np.fill_diagonal(squared, np.inf)
    novelty = np.maximum(0.0, data.nearest - data.reach)
    if mix:
        scores = trend.left_out[:, : data.models]
        scale = np.float32(mix) / _spread(scores)
        squared += squared_distances(scores * scale, scores * scale)
    most = min(max(_NEIGHBOURS), len(squared) - 1)
    nearest = nearest_of(squared, most)
    order = np.argsort(np.take_along_axis(squared, nearest, axis=1), axis=1)
    nearest = np.take_along_axis(nearest, order, axis=1)
    distances, targets = np.take_along_axis(squared, nearest, axis=1), data.targets[nearest]
    for count in dict.fromkeys(min(count, most) for count in _NEIGHBOURS):
        for width in _WIDTHS:
            reliance = np.exp(-novelty / width)
            for shrink in _SHRINKS:
                shape = replace(trend.shape, neighbours=count, width=width, mix=mix, shrink=shrink)
                yield shape, shrunk(trend.left_out, distances[:, :count], targets[:, :count], shape, reliance)


def _spread(scores: Array) -> Array:
    return np.maximum(scores.std(axis=0), np.float32(1e-3))


def _assemble(
    data: _Data,
    projection: Projection,
    chosen: Shape,
    trends: tuple[_Trend, ...],
    left_out: Array,
    models: tuple[str, ...],
    layout: str,
) -> Predictor:
    key = (chosen.trend, chosen.gamma, chosen.ridge)
    trend = next(one for one in trends if (one.shape.trend, one.shape.gamma, one.shape.ridge) == key)
    columns, count = data.mean.size, len(models)
    uses_base = bool(chosen.neighbours) or chosen.trend == "kernel"
    return Predictor(
        models=models,
        layout=layout,
        shape=chosen,
        projection=projection,
        mean=data.mean.astype(np.float32),
        linear=trend.linear,
        base=data.base if uses_base else data.base[:0],
        dual=trend.dual,
        trends=trend.left_out[:, :count] if chosen.mix else np.zeros((0, count), dtype=np.float32),
        spread=_spread(trend.left_out[:, :count]),
        targets=data.targets if chosen.neighbours else np.zeros((0, columns), dtype=np.float32),
        reach=data.reach,
        calibration=platt(left_out[:, :count], data.targets[:, :count]),
        length_ratio=_length_ratio(left_out[:, count:], data.targets[:, count:]),
    )


def _length_ratio(left_out: Array, targets: Array) -> Array:
    """What brings the mean of predicted lengths to the mean of the real ones: the mean of a logarithm is that of no length."""
    known = np.isfinite(targets)
    real = np.where(known, np.expm1(np.where(known, targets, 0.0)), 0.0).sum(axis=0)
    expected = np.where(known, np.maximum(0.0, np.expm1(left_out)), 0.0).sum(axis=0)
    return np.asarray(real / np.maximum(expected, 1e-9), dtype=np.float32)
