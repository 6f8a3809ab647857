"""How estimators are fitted and chosen."""

from dataclasses import replace

import numpy as np
import pytest

from servingplan.routing.predictor_file import MOST_BYTES, base_scale, pack
from servingplan.routing.quality import VECTOR, VECTORS, Shape
from servingplan.training import fit as fitting
from servingplan.training.fit import Fitted, fit, most_base

MODELS = ("a", "b", "c")


def data_of(prompts, count=60):
    projection = fitting.project(prompts.features[:count])
    return fitting._data(projection(prompts.features[:count]), prompts.scores[:count].astype(np.float32), 3)


def test_it_tells_the_kinds_of_prompts_apart_on_prompts_it_has_not_seen(fitted, make) -> None:
    unseen = make(200, 1)
    quality = fitted.predictor.predict(unseen.features).quality
    assert np.mean(np.argmax(quality[:, :2], axis=1) == unseen.kind) > 0.95
    assert np.abs(quality[unseen.kind == 0].mean(axis=0) - [0.9, 0.2, 0.5]).max() < 0.1


def test_lengths_follow_the_prompt_and_are_right_on_average(fitted, make) -> None:
    unseen = make(400, 1)
    lengths = fitted.predictor.predict(unseen.features).output_tokens
    for kind in (0, 1):
        real, predicted = (each[unseen.kind == kind].mean(axis=0) for each in (unseen.lengths, lengths))
        assert np.abs(predicted / real - 1.0).max() < 0.25
    assert np.abs(lengths.mean(axis=0) / unseen.lengths.mean(axis=0) - 1.0).max() < 0.1


def test_the_estimator_with_the_least_loss_is_kept(fitted: Fitted) -> None:
    losses = dict(fitted.losses)
    assert losses[fitted.predictor.shape] == min(losses.values())
    assert losses[Shape()] > 1.3 * losses[fitted.predictor.shape]
    assert {shape.trend for shape in losses} == {"mean", "linear", "kernel"}


def test_scores_that_do_not_hang_on_the_prompt_are_predicted_by_their_means(prompts) -> None:
    scores = np.random.default_rng(5).permutation(prompts.scores)
    quality = fit(prompts.features, scores, None, MODELS, "made up").predictor.predict(prompts.features).quality
    assert np.abs(quality - scores.mean(axis=0)).mean() < 0.06


def test_the_same_prompts_give_the_same_predictor(prompts, fitted) -> None:
    again = fit(prompts.features, prompts.scores, prompts.lengths, MODELS, "made up")
    assert pack(again.predictor) == pack(fitted.predictor)


@pytest.mark.parametrize("place", [0, 17, 59])
def test_leaving_one_out_of_a_linear_trend_is_as_fitting_without_it(prompts, place) -> None:
    data = data_of(prompts)
    trend = next(one for one in fitting._trends(data) if one.shape.trend == "linear")
    others = np.arange(60) != place
    # The means are those of all prompts, as in the shortcut.
    base, residuals = data.base[others].astype(float), data.residuals[others].astype(float)
    weights = np.linalg.solve(base.T @ base + trend.shape.ridge * np.eye(base.shape[1]), base.T @ residuals)
    np.testing.assert_allclose(trend.left_out[place], data.mean + data.base[place] @ weights, atol=2e-3)


@pytest.mark.parametrize("place", [0, 17, 59])
def test_leaving_one_out_of_a_kernel_trend_is_as_fitting_without_it(prompts, place) -> None:
    data = data_of(prompts)
    trend = next(one for one in fitting._trends(data) if one.shape.trend == "kernel")
    others = np.arange(60) != place
    kernel = np.exp(-trend.shape.gamma * data.squared.astype(float))
    dual = np.linalg.solve(kernel[np.ix_(others, others)] + trend.shape.ridge * np.eye(59), data.residuals[others])
    np.testing.assert_allclose(trend.left_out[place], data.mean + kernel[place, others] @ dual, atol=2e-3)


def test_leaving_one_out_of_the_means_is_the_mean_of_the_others(prompts) -> None:
    data = data_of(prompts)
    first = next(fitting._trends(data))
    np.testing.assert_allclose(first.left_out[3], np.delete(data.targets, 3, axis=0).mean(axis=0), atol=1e-6)


def test_a_prompt_is_no_neighbour_of_its_own(prompts) -> None:
    data = data_of(prompts)
    mean = next(fitting._trends(data))
    shape, left_out = next(fitting._neighbours(data, mean, 0.0))
    flipped = replace(data, targets=data.targets.copy())
    flipped.targets[9] = 1.0 - flipped.targets[9]
    _, with_flipped = next(fitting._neighbours(flipped, mean, 0.0))
    assert shape.neighbours == 50
    np.testing.assert_array_equal(left_out[9], with_flipped[9])
    assert np.abs(left_out - with_flipped).max() > 0.0


def test_scores_that_are_missing_are_left_out(prompts, make) -> None:
    scores = prompts.scores.copy()
    scores[np.random.default_rng(3).random(scores.shape) < 0.5] = np.nan
    unseen = make(200, 1)
    quality = fit(prompts.features, scores, None, MODELS, "made up").predictor.predict(unseen.features).quality
    assert np.isfinite(quality).all()
    assert np.mean(np.argmax(quality[:, :2], axis=1) == unseen.kind) > 0.9


@pytest.mark.parametrize("models", [1, 9, 64])
def test_as_many_prompts_are_kept_as_fit_in_a_config_map(models) -> None:
    features = VECTORS * VECTOR + 50
    draw, dimensions = np.random.default_rng(0), fitting.DIMENSIONS
    count = most_base(models, 2 * models, features)
    assert 1000 < count <= fitting.MOST_BASE
    # Random numbers do not compress.
    shape = Shape("kernel", 0.7, 2.0, 50, 0.5, 0.2, 5.0)

    def noise(*size):
        return draw.normal(size=size).astype(np.float32)

    projection = replace(fitting.project(noise(80, features)), rotation=noise(features, dimensions), offset=noise(dimensions))
    names = tuple(f"model-of-an-ordinary-name-{number}" for number in range(models))
    base = np.round(noise(count, dimensions) / base_scale(noise(count, dimensions)))
    predictor = fitting.Predictor(
        names, "made up", shape, projection, noise(2 * models), noise(0, 2 * models), base, noise(count, 2 * models),
        noise(count, models), np.ones(models, np.float32), noise(count, 2 * models), 0.1, noise(2, models), noise(models),
    )  # fmt: skip
    assert len(pack(predictor)) <= MOST_BYTES


def test_of_too_many_prompts_some_are_drawn(prompts, monkeypatch) -> None:
    monkeypatch.setattr(fitting, "MOST_BASE", 100)
    kept = fit(prompts.features, prompts.scores, None, MODELS, "made up", seed=4).kept
    assert len(kept) == 100
    assert list(kept) != list(range(100))
    assert list(kept) == sorted(set(kept))
