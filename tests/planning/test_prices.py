"""Prices that realise shares, where scores tie and where they do not."""

import numpy as np
import pytest

from servingplan.planning.prices import TEMPERATURE, class_prices, soft_prices, soft_shares


def test_tied_scores_are_split_as_the_plan_says():
    shares = np.array([0.5, 0.3, 0.2])
    prices = soft_prices(np.full((50, 3), 0.7), shares)
    assert soft_shares(np.full((1, 3), 0.7), prices)[0] == pytest.approx(shares, abs=1e-6)


def test_scores_that_differ_are_split_on_requests_that_the_prices_have_not_seen():
    source = np.random.default_rng(3)
    scores = (source.uniform(size=(4000, 4)) < [0.4, 0.5, 0.6, 0.7]).astype(float)
    shares = np.array([0.1, 0.2, 0.3, 0.4])
    prices = soft_prices(scores[:2000], shares)
    realised = soft_shares(scores[2000:], prices).mean(axis=0)
    assert np.abs(realised - shares).sum() < 0.05


def test_little_quality_is_given_away():
    source = np.random.default_rng(4)
    scores = source.uniform(size=(3000, 3))
    shares = np.array([0.5, 0.25, 0.25])
    soft = (soft_shares(scores, soft_prices(scores, shares)) * scores).sum(axis=1).mean()
    # The hard split that is best for the same shares gains at most temperature * ln(models) more.
    prices = soft_prices(scores, shares, temperature=1e-4)
    hard = (soft_shares(scores, prices, 1e-4) * scores).sum(axis=1).mean()
    assert hard - soft <= TEMPERATURE * np.log(3)


def test_prices_of_a_class_realise_its_shares_and_speak_of_its_congestion():
    quality = {"large": 0.8, "small": 0.6, "tiny": 0.3}
    congestion = {"large": 0.25, "small": 0.05, "tiny": 0.0}
    prices = class_prices(quality, {"large": 0.4, "small": 0.6}, congestion)
    names = sorted(quality)
    got = soft_shares(np.array([[quality[name] for name in names]]), np.array([prices[name] for name in names]))[0]
    assert dict(zip(names, got, strict=True)) == pytest.approx({"large": 0.4, "small": 0.6, "tiny": 0.0}, abs=2e-4)
    assert 0.4 * prices["large"] + 0.6 * prices["small"] == pytest.approx(0.4 * 0.25 + 0.6 * 0.05)


def test_a_class_that_nobody_serves_is_priced_by_its_congestion():
    assert class_prices({"a": 0.5}, {}, {"a": 0.1}) == {"a": 0.1}
