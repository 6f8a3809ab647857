"""Calibration and the figures that judge it."""

import numpy as np
import pytest

from servingplan.routing.quality import calibrated
from servingplan.training.calibrate import expected_error, platt, reliability
from servingplan.training.judge import auc


def scored(count: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Predictions that are too sure of themselves and too high, and scores."""
    draw = np.random.default_rng(0)
    truth = draw.normal(size=(count, 1))
    scores = (draw.random((count, 1)) < 1 / (1 + np.exp(-truth))).astype(np.float32)
    return (1 / (1 + np.exp(-(1.5 * truth + 0.6)))).astype(np.float32), scores


def test_calibration_undoes_what_was_done_to_the_logit() -> None:
    values, scores = scored()
    slope, intercept = platt(values, scores)[:, 0]
    assert slope == pytest.approx(1 / 1.5, abs=0.05)
    assert intercept == pytest.approx(-0.4, abs=0.05)


def test_calibration_lowers_the_expected_error() -> None:
    values, scores = scored()
    before = expected_error(reliability(values[:, 0], scores[:, 0]))
    after = expected_error(reliability(calibrated(values, platt(values, scores))[:, 0], scores[:, 0]))
    assert before > 0.08
    assert after < 0.02


def test_predictions_that_are_wrong_in_order_are_replaced_by_the_mean() -> None:
    values, scores = scored(500)
    found = calibrated(values, platt(values, 1 - scores))
    np.testing.assert_allclose(found, np.full_like(found, (1 - scores).mean()), atol=0.01)


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_scores_that_are_all_alike_give_finite_predictions(score: float) -> None:
    values = np.linspace(0.0, 1.0, 60, dtype=np.float32)[:, None]
    found = calibrated(values, platt(values, np.full_like(values, score)))
    assert np.isfinite(found).all()
    assert np.abs(found - score).mean() < 0.2


def test_the_expected_error_weighs_bins_by_their_prompts() -> None:
    predicted, scores = np.array([0.1, 0.1, 0.1, 0.9]), np.array([0.0, 0.0, 0.0, np.nan])
    assert expected_error(reliability(predicted, scores, bins=2)) == pytest.approx(0.1)
    bins = reliability(np.array([0.2, 0.8, 0.4]), np.array([0.0, 1.0, 1.0]), bins=2)
    assert [one.count for one in bins] == [2, 1]
    assert expected_error(bins) == pytest.approx((2 * abs(0.3 - 0.5) + 0.2) / 3)


def test_the_area_counts_pairs() -> None:
    draw = np.random.default_rng(2)
    predicted, positive = draw.integers(0, 6, 80) / 6, draw.random(80) < 0.4
    pairs = [(left > right) + 0.5 * (left == right) for left in predicted[positive] for right in predicted[~positive]]
    assert auc(predicted, positive) == pytest.approx(np.mean(pairs))


def test_the_area_of_one_kind_alone_is_not_known() -> None:
    assert np.isnan(auc(np.array([0.1, 0.2]), np.array([True, True])))
