"""Factors on token lengths, from what pools count."""

from __future__ import annotations

import numpy as np
import pytest

from servingplan.calibration.lengths import (
    LengthFactors,
    MeasuredFactors,
    as_measured,
    follow_factors,
    measured_factors,
    scaled,
    spread,
)
from servingplan.calibration.readings import Histogram, PoolReading
from servingplan.latency.mix import TokenMix, blend

EDGES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0, 20000.0, float("inf"))
CHAT, CODE = TokenMix(500, 200), TokenMix(2000, 50)


def counted(lengths: np.ndarray) -> Histogram:
    below = [float((lengths <= edge).sum()) for edge in EDGES]
    return Histogram(EDGES, tuple(np.diff(below, prepend=0.0).tolist()), float(lengths.sum()))


def drawn(mean: float, cv: float = 1.0, count: int = 4000, seed: int = 1) -> np.ndarray:
    sigma = np.log(1 + cv**2) ** 0.5
    values = np.random.default_rng(seed).lognormal(-(sigma**2) / 2, sigma, count)
    return np.maximum(1.0, values * mean / values.mean())


def reading(prompt: np.ndarray, output: np.ndarray | None = None, rate_rps: float | None = None) -> PoolReading:
    return PoolReading(
        1, rate_rps=rate_rps, prompt_tokens=counted(prompt), output_tokens=None if output is None else counted(output)
    )


def test_one_class_on_one_pool_is_as_long_as_it_is_measured():
    pools = {"a": reading(drawn(650), drawn(100))}
    found = measured_factors(pools, {"chat": {"a": 5.0}}, {"chat": CHAT})["chat"]
    assert (found.factors.prompt, found.factors.output) == pytest.approx((1.3, 0.5), rel=0.02)
    assert found.deviation.prompt == pytest.approx(4000**-0.5, rel=0.2)


def test_classes_on_pools_of_their_own_are_told_apart():
    pools = {"a": reading(drawn(650)), "b": reading(drawn(1600, seed=2))}
    found = measured_factors(pools, {"chat": {"a": 5.0}, "code": {"b": 2.0}}, {"chat": CHAT, "code": CODE})
    assert (found["chat"].factors.prompt, found["code"].factors.prompt) == pytest.approx((1.3, 0.8), rel=0.02)


def test_classes_mixed_differently_are_told_apart_by_the_difference():
    flows = {"chat": {"a": 8.0, "b": 2.0}, "code": {"a": 1.0, "b": 4.0}}
    means = {"a": (8 * 650 + 1 * 2000) / 9, "b": (2 * 650 + 4 * 2000) / 6}
    pools = {name: reading(drawn(mean)) for name, mean in means.items()}
    found = measured_factors(pools, flows, {"chat": CHAT, "code": CODE})
    assert found["chat"].factors.prompt == pytest.approx(1.3, abs=0.05)
    assert found["code"].factors.prompt == pytest.approx(1.0, abs=0.05)


def test_classes_that_share_a_pool_are_corrected_together():
    flows = {"chat": {"a": 4.0}, "code": {"a": 1.0}}
    pools = {"a": reading(drawn(1.3 * (4 * 500 + 2000) / 5))}
    found = measured_factors(pools, flows, {"chat": CHAT, "code": CODE})
    assert found["chat"].factors.prompt == pytest.approx(1.3, rel=0.02)
    assert found["code"].factors.prompt == pytest.approx(1.3, rel=0.02)


def test_what_is_not_measured_stays_and_is_not_followed():
    pools = {"a": reading(drawn(650)), "few": reading(drawn(9000, count=20)), "none": PoolReading(1)}
    flows = {"chat": {"a": 5.0}, "code": {"few": 1.0, "none": 3.0}}
    found = measured_factors(pools, flows, {"chat": CHAT, "code": CODE})
    assert (found["code"].factors.prompt, found["chat"].factors.output) == (1.0, 1.0)
    held = LengthFactors(1.5, 1.5)
    assert follow_factors(held, found["code"]) == held
    assert follow_factors(held, found["chat"]).output == 1.5


def test_strangers_in_a_pool_make_its_mean_count_for_less():
    flows = {"chat": {"a": 5.0}}
    alone = measured_factors({"a": reading(drawn(1000), rate_rps=5.0)}, flows, {"chat": CHAT})["chat"].factors.prompt
    among = measured_factors({"a": reading(drawn(1000), rate_rps=20.0)}, flows, {"chat": CHAT})["chat"].factors.prompt
    assert 1.2 < among < 1.8 < alone


def test_factors_follow_by_enough_and_beyond_chance():
    def found(factor: float, deviation: float) -> MeasuredFactors:
        return MeasuredFactors(LengthFactors(factor, 1.0), LengthFactors(deviation, deviation))

    held = LengthFactors()
    assert follow_factors(held, found(1.04, 0.001)) == held
    assert follow_factors(held, found(1.2, 0.06)) == held
    assert follow_factors(held, found(1.2, 0.01)).prompt == pytest.approx(1.2, rel=0.013)


def test_factors_do_not_flicker_with_chance():
    held = LengthFactors()
    moves = 0
    for seed in range(200):
        lengths = np.random.default_rng(seed).lognormal(0, 0.83, 300)  # a variation of 1
        lengths *= 500 / np.exp(0.83**2 / 2)
        found = measured_factors({"a": reading(lengths)}, {"chat": {"a": 5.0}}, {"chat": CHAT})["chat"]
        moved = follow_factors(held, found)
        moves += moved != held
        held = moved
    assert moves <= 2


def test_scaled_keeps_shape_and_moves_the_means():
    sample = TokenMix.of([(100.0, 10.0), (300.0, 30.0), (200.0, 90.0)])
    blended = blend([(1.0, CHAT), (2.0, sample)])
    for mix in (CHAT, sample, blended):
        moved = scaled(mix, LengthFactors(1.5, 0.5))
        assert (moved.prompt_tokens, moved.output_tokens) == pytest.approx((1.5 * mix.prompt_tokens, 0.5 * mix.output_tokens))
        if mix.sample:
            assert moved.sample.columns[2].tolist() == mix.sample.columns[2].tolist()
    assert scaled(sample, LengthFactors(1.5, 0.5)).correlation == pytest.approx(sample.correlation)
    assert scaled(sample, LengthFactors()) is sample
    assert scaled(TokenMix.of([(1.0, 2.0), (5.0, 8.0)]), LengthFactors(0.1, 0.1)).sample.columns[:2].tolist() == [
        [1, 1],
        [1, 1],
    ]


@pytest.mark.parametrize(("mean", "cv"), [(200, 0.8), (1200, 1.0), (30, 2.0), (4000, 1.0)])
def test_the_spread_is_read_off_the_buckets(mean, cv):
    lengths = drawn(mean, cv, count=20_000)
    assert spread(counted(lengths)) == pytest.approx(lengths.std() / lengths.mean(), rel=0.15)


def test_the_spread_of_too_few_is_unknown():
    assert spread(counted(drawn(200, count=20))) is None


def test_a_pool_was_sent_what_it_measured():
    sample = TokenMix.of([(a, b) for a, b in zip(drawn(400, 1.0, 300), drawn(100, 0.5, 300, seed=2), strict=True)])
    for believed in (CHAT, sample):
        found = as_measured(believed, reading(drawn(1000, 0.7), drawn(100, 2.0)))
        assert (found.prompt_tokens, found.output_tokens) == pytest.approx((1000, 100), rel=0.03)
        assert (found.prompt_cv, found.output_cv) == pytest.approx((0.7, 2.0), rel=0.25)
    assert as_measured(sample, PoolReading(1)) is sample
