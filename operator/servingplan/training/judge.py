"""How good the estimator is on prompts kept out of everything: the fit, the choice of the estimator, and its calibration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from servingplan.routing.quality import Array
from servingplan.training.calibrate import Bin, expected_error, reliability
from servingplan.training.fit import fit
from servingplan.training.scores import Scores

Figures = NDArray[np.float64]

_RESAMPLES = 1000


@dataclass(frozen=True, slots=True, eq=False)
class OutOfFold:
    """Predictions for every prompt by estimators that have not seen it.

    Attributes:
        quality: (prompts, models).
        output_tokens: (prompts, models); None without lengths.
        class_quality: (prompts, models) means of the prompt's class over the same prompts that the estimator was fitted to.
        class_tokens: (prompts, models), likewise.
        chosen: The estimator of each fold, in words.
    """

    quality: Figures
    output_tokens: Figures | None
    class_quality: Figures
    class_tokens: Figures
    chosen: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """Of one model, on prompts kept out.

    Attributes:
        model: Name.
        prompts: How many prompts have a score.
        score: Mean score.
        r2: Share of the scores' variance around the class means that the estimator explains.
        auc: Chance that of a prompt scoring over one half and another the first is predicted to score more; NaN when all do, or
            none.
        ece: Expected calibration error.
        length_gain: By how much the mean error of the predicted length, as a factor, is smaller than the class mean's; NaN
            without lengths.
        bins: The reliability of the predictions.
    """

    model: str
    prompts: int
    score: float
    r2: float
    auc: float
    ece: float
    length_gain: float
    bins: tuple[Bin, ...]


@dataclass(frozen=True, slots=True)
class Judged:
    """All figures.

    Attributes:
        models: Of each model.
        gain: Mean score when each prompt goes to the model predicted best, less that when it goes to the best of its class.
        gain_interval: 95 % of it, by resampling prompts.
        prompts: How many the gain is taken over: those with a score of every model.
        chosen: The estimator of each fold, in words.
    """

    models: tuple[ModelFigures, ...]
    gain: float
    gain_interval: tuple[float, float]
    prompts: int
    chosen: tuple[str, ...]


def out_of_fold(scores: Scores, features: Array, layout: str, folds: int = 5, seed: int = 0) -> OutOfFold:
    """Predictions for each fold from a fit to the others."""
    count = len(scores.prompts)
    fold = np.empty(count, dtype=int)
    fold[np.random.default_rng(seed).permutation(count)] = np.arange(count) % folds
    quality, tokens = np.empty_like(scores.quality), np.empty_like(scores.quality)
    class_quality, class_tokens = np.empty_like(quality), np.empty_like(quality)
    chosen = []
    for out in range(folds):
        inside, outside = np.flatnonzero(fold != out), np.flatnonzero(fold == out)
        lengths = scores.output_tokens[inside] if scores.has_lengths else None
        fitted = fit(features[inside], scores.quality[inside], lengths, scores.models, layout, seed)
        predicted = fitted.predictor.predict(features[outside])
        quality[outside] = predicted.quality
        tokens[outside] = np.nan if predicted.output_tokens is None else predicted.output_tokens
        class_quality[outside] = _class_means(scores, scores.quality, inside, outside)
        class_tokens[outside] = _class_means(scores, scores.output_tokens, inside, outside)
        chosen.append(str(fitted.predictor.shape))
    return OutOfFold(quality, tokens if scores.has_lengths else None, class_quality, class_tokens, tuple(chosen))


def judge(scores: Scores, found: OutOfFold, seed: int = 0) -> Judged:
    """Figures of predictions made out of fold."""
    full = np.isfinite(scores.quality).all(axis=1)
    rows = np.flatnonzero(full)
    ours = scores.quality[rows, np.argmax(found.quality[rows], axis=1)]
    theirs = scores.quality[rows, np.argmax(found.class_quality[rows], axis=1)]
    gains = ours - theirs
    gain, interval = float("nan"), (float("nan"), float("nan"))
    if len(rows):
        drawn = np.random.default_rng(seed).integers(0, len(rows), size=(_RESAMPLES, len(rows)))
        low, high = np.quantile(gains[drawn].mean(axis=1), (0.025, 0.975))
        gain, interval = float(gains.mean()), (float(low), float(high))
    models = tuple(_figures(scores, found, column) for column in range(len(scores.models)))
    return Judged(models, gain, interval, len(rows), found.chosen)


def auc(predicted: Figures, positive: NDArray[np.bool_]) -> float:
    """Area under the ROC curve, ties counted half (Mann and Whitney 1947); NaN when all are of one kind."""
    ranks = np.empty(len(predicted))
    ordered, place, count = np.unique(predicted, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    ranks = (last - (count - 1) / 2.0)[place] if len(ordered) else ranks
    some, others = int(positive.sum()), int((~positive).sum())
    if not some or not others:
        return float("nan")
    return float((ranks[positive].sum() - some * (some + 1) / 2.0) / (some * others))


def _figures(scores: Scores, found: OutOfFold, column: int) -> ModelFigures:
    known = np.isfinite(scores.quality[:, column])
    real, predicted = scores.quality[known, column], found.quality[known, column]
    around_class = float(((real - found.class_quality[known, column]) ** 2).sum())
    bins = reliability(predicted, real)
    return ModelFigures(
        model=scores.models[column],
        prompts=int(known.sum()),
        score=float(real.mean()),
        r2=1.0 - float(((real - predicted) ** 2).sum()) / around_class if around_class > 0 else float("nan"),
        auc=auc(predicted, real > 0.5),
        ece=expected_error(bins),
        length_gain=_length_gain(scores, found, column),
        bins=bins,
    )


def _length_gain(scores: Scores, found: OutOfFold, column: int) -> float:
    if found.output_tokens is None:
        return float("nan")
    known = np.isfinite(scores.output_tokens[:, column])

    def error(predicted: Figures) -> float:
        ratio = np.log1p(scores.output_tokens[known, column]) - np.log1p(predicted[known, column])
        return float(np.abs(ratio).mean())

    base = error(found.class_tokens)
    return 1.0 - error(found.output_tokens) / base if base > 0 else float("nan")


def _class_means(scores: Scores, values: Figures, inside: NDArray[np.intp], outside: NDArray[np.intp]) -> Figures:
    """(outside, models) means over the prompts inside that are of the same class, or over all where the class has none."""
    overall = _means(values[inside], np.full(values.shape[1], np.nan))
    classes = np.array(scores.classes)
    result = np.empty((len(outside), values.shape[1]))
    for name in np.unique(classes[outside]):
        same = inside[classes[inside] == name]
        result[classes[outside] == name] = _means(values[same], overall)
    return result


def _means(values: Figures, otherwise: Figures) -> Figures:
    known = np.isfinite(values)
    count = known.sum(axis=0)
    return np.where(count > 0, np.where(known, values, 0.0).sum(axis=0) / np.maximum(count, 1), otherwise)
