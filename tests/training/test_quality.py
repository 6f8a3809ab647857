"""The estimator applied, against plain loops."""

from dataclasses import replace

import numpy as np
import pytest

from servingplan.routing.quality import Shape, nearest_of, shrunk, squared_distances


def test_many_prompts_are_predicted_as_one_by_one(fitted, prompts) -> None:
    together = fitted.predictor.predict(prompts.features[:20])
    for place in range(20):
        alone = fitted.predictor.predict(prompts.features[place : place + 1])
        np.testing.assert_allclose(together.quality[place], alone.quality[0], atol=1e-4)
        np.testing.assert_allclose(together.output_tokens[place], alone.output_tokens[0], rtol=1e-3)


def test_no_prompt_gives_no_prediction(fitted, prompts) -> None:
    assert fitted.predictor.predict(prompts.features[:0]).quality.shape == (0, 3)


@pytest.mark.parametrize("trend", ["mean", "linear", "kernel"])
@pytest.mark.parametrize("mix", [0.0, 0.3])
def test_values_are_those_of_the_formula(fitted, prompts, trend, mix) -> None:
    draw = np.random.default_rng(1)
    kept = fitted.predictor
    base = kept.projection(prompts.features[:40])
    columns = kept.mean.size
    linear, dual = (draw.normal(size=size).astype(np.float32) * 0.05 for size in ((base.shape[1], columns), (40, columns)))
    targets = draw.random((40, columns)).astype(np.float32)
    targets[::7, 1] = np.nan
    shape = Shape(trend, gamma=0.7, ridge=2.0, neighbours=9, width=0.4, mix=mix, shrink=5.0)
    predictor = replace(
        kept, shape=shape, base=base, linear=linear, dual=dual, targets=targets, reach=0.2,
        trends=draw.random((40, 3)).astype(np.float32), spread=np.array([0.1, 0.2, 0.3], np.float32),
    )  # fmt: skip
    points = kept.projection(prompts.features[38:50])
    np.testing.assert_allclose(predictor.values(points), [formula(predictor, point) for point in points], atol=2e-4)


def formula(predictor, point):
    shape = predictor.shape
    plain = np.array([((point - other) ** 2).sum() for other in predictor.base])
    trend = predictor.mean.astype(float)
    if shape.trend == "linear":
        trend = trend + point @ predictor.linear
    if shape.trend == "kernel":
        trend = trend + sum(np.exp(-shape.gamma * far) * dual for far, dual in zip(plain, predictor.dual, strict=True))
    apart = np.array([(((trend[:3] - other) / predictor.spread) ** 2).sum() for other in predictor.trends])
    far = plain + shape.mix**2 * apart
    nearest = sorted(range(len(far)), key=far.__getitem__)[: shape.neighbours]
    weights = np.exp((far.min() - far[nearest]) / shape.width)
    reliance = np.exp(-max(0.0, plain.min() - predictor.reach) / shape.width)
    result = []
    for column, base in enumerate(trend):
        pairs = [
            (weight, predictor.targets[place, column])
            for weight, place in zip(weights, nearest, strict=True)
            if not np.isnan(predictor.targets[place, column])
        ]
        total = sum(weight for weight, _ in pairs)
        effective = total**2 / sum(weight**2 for weight, _ in pairs)
        near = sum(weight * target for weight, target in pairs) / total
        result.append(base + reliance * effective / (effective + shape.shrink) * (near - base))
    return result


def test_where_no_neighbour_is_known_the_trend_holds() -> None:
    trend = np.array([[0.3, 0.4]], dtype=np.float32)
    targets = np.array([[[np.nan, 1.0], [np.nan, 1.0]]], dtype=np.float32)
    found = shrunk(trend, np.zeros((1, 2), np.float32), targets, Shape(neighbours=2, shrink=2.0), np.ones(1, np.float32))
    np.testing.assert_allclose(found, [[0.3, 0.7]], atol=1e-6)


def test_a_prompt_unlike_any_other_is_predicted_by_the_trend(fitted, prompts) -> None:
    shape = Shape("mean", neighbours=20, width=0.25, shrink=5.0)
    predictor = replace(fitted.predictor, shape=shape, trends=fitted.predictor.trends[:0])
    inside = predictor.projection(prompts.features[:5])
    far = predictor.values(inside + 10.0)
    np.testing.assert_allclose(far, np.broadcast_to(predictor.mean, far.shape), atol=1e-5)
    assert np.abs(predictor.values(inside) - predictor.mean).max() > 0.1


def test_distances_and_the_nearest_are_right() -> None:
    draw = np.random.default_rng(0)
    left, right = draw.normal(size=(4, 6)).astype(np.float32), draw.normal(size=(30, 6)).astype(np.float32)
    squared = squared_distances(left, right)
    np.testing.assert_allclose(squared, ((left[:, None] - right) ** 2).sum(axis=2), atol=1e-4)
    assert [set(row) for row in nearest_of(squared, 7)] == [set(row) for row in np.argsort(squared, axis=1)[:, :7]]
    assert nearest_of(squared, 30).shape == (4, 30)
