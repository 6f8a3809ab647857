"""What predicting quality from the prompt is worth, on real scores of nine models.

Every prompt is predicted by estimators that have not seen it (5 folds; the estimator, its settings and its calibration are
chosen inside the fit), and goes to the model with the most predicted score less price times a factor. At equal price, the score
reached is compared with

    mixing     the best random split between single models, by their real means: no estimator at all;
    k = 10     RouteBalance's estimator, the mean over 10 neighbours by reciprocal cosine distance: on the same embeddings, and
               on all of our features, which tell how a prompt looks too;

at eight prices between the cheapest and the dearest model worth paying. Prices are the list's, of a million tokens. Intervals
are of 95 %, by resampling prompts; folds are drawn anew for each repeat. The features and the kinds of estimators were designed
on these prompts; their settings were not. Needs the scores (``SERVINGPLAN_DATA``).

    python bench/picker/bench_quality.py [OUT_FOLDER] [REPEATS]
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from servingplan.picker.embed import LAYOUT, Embedder
from servingplan.routing.predictor_file import pack, unpack
from servingplan.routing.quality import VECTOR, VECTORS, squared_norms
from servingplan.training.calibrate import expected_error, reliability
from servingplan.training.fit import fit, project
from servingplan.training.judge import auc

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

DATA = Path(os.environ.get("SERVINGPLAN_DATA", Path(__file__).parents[3] / "shared/data")) / "quality"
FACTORS = np.concatenate(([0.0], np.geomspace(0.003, 10.0, 120)))
POINTS, FOLDS, RESAMPLES = 8, 5, 1000
OURS, PLAIN, K10, K10_ALL = "ours", "ours, embeddings alone", "k = 10", "k = 10, all our features"
TASKS = "means of the task, if it were told"
COLOURS = {OURS: "#0072B2", PLAIN: "#56B4E9", K10: "#D55E00", K10_ALL: "#E69F00", TASKS: "#8C8C8C"}
INK, MUTED = "#2B2B2B", "#6E6E6E"

Array = np.ndarray
Estimator = Callable[[Array, Array], Array]


@dataclass(frozen=True)
class Data:
    """Prompts' features and tasks, (prompts, models) scores, and each model's price."""

    features: Array
    scores: Array
    tasks: Array
    models: tuple[str, ...]
    prices: Array


def main() -> None:
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
    repeats = int(sys.argv[2]) if len(sys.argv) > 2 else 4
    if not DATA.is_dir():
        print(f"no scores under {DATA}: nothing to show")
        return
    data = read()
    embeddings = data.features.copy()
    embeddings[:, VECTORS * VECTOR :] = 0.0
    estimators: dict[str, Estimator] = {
        OURS: lambda fold, out_of: ours(data, data.features, fold, out_of),
        PLAIN: lambda fold, out_of: ours(data, embeddings, fold, out_of),
        K10: lambda fold, out_of: nearest_ten(data.features[:, :VECTOR], data.scores, fold, out_of),
        K10_ALL: lambda fold, out_of: nearest_ten(projected(data, fold), data.scores, fold, out_of),
        TASKS: lambda fold, out_of: task_means(data, fold, out_of),
    }
    predicted = {name: [predict(data, estimator, seed) for seed in range(repeats)] for name, estimator in estimators.items()}
    show(data, predicted, repeats)
    draw(data, predicted, out)
    speed(data)


def read_rows() -> list[dict[str, Any]]:
    with (DATA / "llmrouter_scores.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def read() -> Data:
    rows = read_rows()
    candidates = json.loads((DATA / "llmrouter_llm_candidates.json").read_text())
    models = tuple(sorted(rows[0]["scores"]))
    return Data(
        features=Embedder().features([row["prompt"] for row in rows]),
        scores=np.array([[row["scores"][model] for model in models] for row in rows]),
        tasks=np.array([row["task"] for row in rows]),
        models=models,
        prices=np.array([candidates[model]["input_price"] for model in models]),
    )


def predict(data: Data, estimator: Estimator, seed: int) -> Array:
    """(prompts, models), each fold from the others."""
    fold = np.empty(len(data.scores), dtype=int)
    fold[np.random.default_rng(seed).permutation(len(fold))] = np.arange(len(fold)) % FOLDS
    result = np.empty_like(data.scores)
    for number in range(FOLDS):
        inside, outside = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        result[outside] = estimator(inside, outside)
    return result


def ours(data: Data, features: Array, inside: Array, outside: Array) -> Array:
    fitted = fit(features[inside], data.scores[inside], None, data.models, LAYOUT)
    # Through the file, as the picker gets it.
    return unpack(pack(fitted.predictor)).predict(features[outside]).quality


def projected(data: Data, inside: Array) -> Array:
    return project(data.features[inside])(data.features)


def nearest_ten(vectors: Array, scores: Array, inside: Array, outside: Array) -> Array:
    """Ten neighbours by cosine, weighted by 1 / (1 - cosine + 1e-6)."""
    unit = vectors / np.sqrt(squared_norms(vectors))[:, None]
    cosine = unit[outside] @ unit[inside].T
    nearest = np.argpartition(-cosine, 9, axis=1)[:, :10]
    weights = 1.0 / (np.maximum(0.0, 1.0 - np.take_along_axis(cosine, nearest, axis=1)) + 1e-6)
    return np.einsum("pn,pnm->pm", weights, scores[inside][nearest]) / weights.sum(axis=1, keepdims=True)


def task_means(data: Data, inside: Array, outside: Array) -> Array:
    result = np.empty((len(outside), len(data.models)))
    for task in np.unique(data.tasks):
        result[data.tasks[outside] == task] = data.scores[inside][data.tasks[inside] == task].mean(axis=0)
    return result


def routed(data: Data, predicted: Array) -> tuple[Array, Array]:
    """(factors, prompts) price and score of the model that each prompt goes to."""
    chosen = np.stack([np.argmax(predicted - factor * data.prices, axis=1) for factor in FACTORS])
    return data.prices[chosen], data.scores[np.arange(len(predicted)), chosen]


def reached(price: Array, score: Array, points: Array) -> Array:
    """(points,) best score at no more than each price; between two factors, prompts are split at random."""
    order = np.argsort(price, kind="stable")
    return np.interp(points, price[order], np.maximum.accumulate(score[order]))


def mixing(data: Data, means: Array) -> Array:
    """(corners, 2) prices and mean scores of the single models between which mixing pays."""
    corners: list[tuple[float, float]] = []
    for price, score in sorted(zip(data.prices, means, strict=True), key=lambda pair: (pair[0], -pair[1])):
        if corners and score <= corners[-1][1]:
            continue
        while len(corners) >= 2 and _slope(corners[-2], corners[-1]) <= _slope(corners[-1], (price, score)):
            corners.pop()
        corners.append((float(price), float(score)))
    return np.array(corners)


def _slope(left: tuple[float, float], right: tuple[float, float]) -> float:
    return (right[1] - left[1]) / (right[0] - left[0])


def gains(data: Data, predictions: list[Array], weights: Array) -> Array:
    """(resamples, points) over mixing, averaged over repeats; (resamples, prompts) weights count how often each was drawn."""
    points = price_points(data)
    means = weights @ data.scores / weights.sum(axis=1, keepdims=True)
    hulls = [mixing(data, mean) for mean in means]
    base = np.stack([np.interp(points, *hull.T) for hull in hulls])
    total = np.zeros_like(base)
    for predicted in predictions:
        price, score = routed(data, predicted)
        prices, scores = (weights @ each.T / weights.sum(axis=1, keepdims=True) for each in (price, score))
        total += np.stack([reached(*pair, points) for pair in zip(prices, scores, strict=True)])
    return total / len(predictions) - base


def price_points(data: Data) -> Array:
    corners = mixing(data, data.scores.mean(axis=0))
    return np.linspace(corners[0, 0], corners[-1, 0], POINTS + 2)[1:-1]


def resamples(count: int) -> Array:
    draws = np.random.default_rng(0)
    return np.stack([np.bincount(draws.integers(0, count, count), minlength=count) for _ in range(RESAMPLES)]).astype(float)


def show(data: Data, predicted: dict[str, list[Array]], repeats: int) -> None:
    count = len(data.scores)
    plain, weights = np.ones((1, count)), resamples(count)
    over = {name: gains(data, predictions, plain)[0] for name, predictions in predicted.items()}
    drawn = {name: gains(data, predictions, weights).mean(axis=1) for name, predictions in predicted.items()}
    print(f"{count:,} prompts, {len(data.models)} models, {FOLDS} folds, {repeats} repeats; intervals of 95 %\n")
    print(f"{'':36s}{'over mixing':>26s}{'best model only':>17s}{'R2':>7s}{'AUC':>7s}{'ECE':>7s}")
    errors = {}
    for name, predictions in predicted.items():
        best = np.mean([data.scores[np.arange(count), np.argmax(one, axis=1)].mean() for one in predictions])
        r2, area, errors[name] = np.mean([figures(data, one) for one in predictions], axis=0)
        print(
            f"{name:36s}{over[name].mean():+10.4f} {interval(drawn[name])}{best:17.4f}{r2:7.3f}{area:7.3f}{errors[name]:7.3f}"
        )
    print(f"{'best single model':36s}{'':26s}{data.scores.mean(axis=0).max():17.4f}\n")
    for one, other in ((OURS, K10), (OURS, K10_ALL), (PLAIN, K10)):
        difference = over[one].mean() - over[other].mean()
        print(f"{one + ' over ' + other:44s}{difference:+10.4f} {interval(drawn[one] - drawn[other])}")
    print(f"\n{'price':>36s}" + "".join(f"{price:9.2f}" for price in price_points(data)))
    for name, gain in over.items():
        print(f"{name:>36s}" + "".join(f"{one:+9.4f}" for one in gain))
    judge_all(over, drawn, errors[OURS])


def judge_all(over: dict[str, Array], drawn: dict[str, Array], error: float) -> None:
    """Says of each target whether it is met."""
    mean, apart = over[OURS].mean(), over[OURS].mean() - over[K10].mean()
    sure, sure_apart = np.quantile(drawn[OURS], 0.025) > 0, np.quantile(drawn[OURS] - drawn[K10], 0.025) > 0
    print()
    for what, met in (
        ("+0.02 over mixing, with its interval above 0", mean >= 0.02 and sure),
        ("+0.03 over k = 10, with its interval above 0", apart >= 0.03 and sure_apart),
        ("expected calibration error at most 0.05", error <= 0.05),
    ):
        print(f"{'met' if met else 'MISSED':8s}{what}")


def interval(drawn: Array) -> str:
    low, high = np.quantile(drawn, (0.025, 0.975))
    return f"[{low:+.3f}, {high:+.3f}]"


def figures(data: Data, predicted: Array) -> tuple[float, float, float]:
    """Mean over the models of R2, AUC of a score over one half, and expected calibration error."""
    apart = ((data.scores - predicted) ** 2).sum(axis=0) / ((data.scores - data.scores.mean(axis=0)) ** 2).sum(axis=0)
    each = [
        (
            auc(predicted[:, model], data.scores[:, model] > 0.5),
            expected_error(reliability(predicted[:, model], data.scores[:, model])),
        )
        for model in range(len(data.models))
    ]
    return float(1.0 - apart.mean()), float(np.mean([one[0] for one in each])), float(np.mean([one[1] for one in each]))


def speed(data: Data) -> None:
    """Processor time of one prompt, against a matrix product of known size in the same run."""
    fitted = fit(data.features, data.scores, None, data.models, LAYOUT)
    file = pack(fitted.predictor)
    print(f"\nchosen on all prompts: {fitted.predictor.shape}; file of {len(file) / 1000:.0f} kB")
    prompts = [row["prompt"] for row in read_rows()]
    long = [" ".join(prompts[start : start + 40])[:4096] for start in range(0, 3600, 40)]
    embedder, predictor = Embedder(), unpack(file)
    embedder.features(prompts)
    square = np.ones((256, 256), dtype=np.float32)
    unit = processor_us(lambda _: square @ square, range(500))
    cases = (
        ("features, prompts as they are", lambda row: embedder.features([prompts[row]]), range(500)),
        ("features, 4 kB prompts", lambda row: embedder.features([long[row]]), range(len(long))),
        ("prediction", lambda row: predictor.predict(data.features[row : row + 1]), range(500)),
    )
    print(f"\nprocessor time of a prompt (a product of two 256 x 256 matrices takes {unit:.0f} us here)")
    for name, work, places in cases:
        taken = processor_us(work, places)
        print(f"{name:32s}{taken:8.0f} us{taken / unit:8.2f} products")


def processor_us(work: Callable[[int], object], places: range) -> float:
    taken = []
    for place in places:
        start = time.perf_counter_ns()
        work(place)
        taken.append((time.perf_counter_ns() - start) / 1000.0)
    return float(np.median(taken))


def draw(data: Data, predicted: dict[str, list[Array]], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#888888"})
    plt.rcParams.update({"axes.grid": True, "grid.color": "#E4E4E0", "axes.axisbelow": True, "text.color": INK})
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15.5, 4.9), layout="constrained", width_ratios=(1.25, 1, 1.05))
    _frontier(left, data, predicted)
    _gains(middle, data, predicted)
    _reliability(right, data, predicted[OURS])
    path = out / "quality.png"
    figure.savefig(path, dpi=150)
    print(f"\nwrote {path}")


def _frontier(axes: Axes, data: Data, predicted: dict[str, list[Array]]) -> None:
    means = data.scores.mean(axis=0)
    corners = mixing(data, means)
    axes.plot(corners[:, 0], corners[:, 1], color=INK, lw=1.4, ls=(0, (4, 3)), label="mixing single models")
    axes.plot(data.prices, means, "o", color=INK, ms=5)
    for model, price, score in zip(data.models, data.prices, means, strict=True):
        if score > 0.53:
            side = (6, -11) if price < 0.5 else (-6, 6 if score > 0.64 else -13)
            axes.annotate(
                model,
                (price, score),
                xytext=side,
                textcoords="offset points",
                fontsize=8,
                color=MUTED,
                ha="left" if price < 0.5 else "right",
            )
    for name in (TASKS, K10, OURS):
        paths = [[each.mean(axis=1) for each in routed(data, one)] for one in predicted[name]]
        grid = np.linspace(data.prices.min(), 0.9, 120)
        score = np.mean([reached(price, score, grid) for price, score in paths], axis=0)
        dearest = np.mean([price.max() for price, _ in paths])
        axes.plot(
            grid[grid <= dearest], score[grid <= dearest], color=COLOURS[name], lw=2.2 if name == OURS else 1.5, label=name
        )
    axes.set(xlim=(0.05, 0.95), ylim=(0.53, None), xlabel="mean price, $ of a million tokens", ylabel="mean score")
    axes.set_title("Score at each price, on prompts kept out", loc="left", fontweight="bold", fontsize=10.5)
    axes.legend(frameon=False, fontsize=8.5, loc="lower right")


def _gains(axes: Axes, data: Data, predicted: dict[str, list[Array]]) -> None:
    points, weights = price_points(data), resamples(len(data.scores))
    for place, name in enumerate((K10, K10_ALL, PLAIN, OURS)):
        mean = gains(data, predicted[name], np.ones((1, len(data.scores))))[0]
        low, high = np.quantile(gains(data, predicted[name], weights), (0.025, 0.975), axis=0)
        at = points + (place - 1.5) * 0.013
        axes.errorbar(at, mean, yerr=(mean - low, high - mean), fmt="o", ms=5, color=COLOURS[name], elinewidth=1.6, label=name)
    axes.axhline(0, color=INK, lw=1.0)
    axes.set_ylim(-0.025, None)
    axes.set(xlabel="mean price, $ of a million tokens", ylabel="score over mixing at equal price")
    axes.set_title("Gain over mixing, 95 % intervals", loc="left", fontweight="bold", fontsize=10.5)
    axes.legend(frameon=False, fontsize=8.5, loc="lower left")


def _reliability(axes: Axes, data: Data, predictions: list[Array]) -> None:
    axes.plot([0, 1], [0, 1], color=MUTED, lw=1, ls=(0, (4, 3)))
    for model, name in enumerate(data.models):
        bins = reliability(predictions[0][:, model], data.scores[:, model])
        axes.plot([one.predicted for one in bins], [one.scored for one in bins], "o-", ms=3, lw=0.9, alpha=0.75, label=name)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="predicted score", ylabel="mean score", aspect="equal")
    axes.set_title("Reliability, prompts kept out", loc="left", fontweight="bold", fontsize=10.5)
    axes.legend(frameon=False, fontsize=6.8, loc="upper left")


if __name__ == "__main__":
    main()
