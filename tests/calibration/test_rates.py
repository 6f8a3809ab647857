"""Forecasts of arrivals, and when what is planned for moves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from servingplan.calibration.rates import HIGHEST_DISPERSION, follow, forecast, on_grid
from servingplan.calibration.readings import RateHistory

COLD_S = 180.0


def history(*rates: float, window_s: float = 30.0) -> RateHistory:
    return RateHistory(window_s, rates)


def of_bins(bins: np.ndarray, until: int) -> RateHistory:
    """Windows of 30 s that end with a bin of 10 s."""
    count = min(until // 3, 120)
    return history(*(bins[until - 3 * count : until].reshape(count, 3).sum(1) / 30).tolist())


def test_nothing_measured_is_what_is_declared():
    found = forecast(history(), 7.0, COLD_S)
    assert (found.level_rps, found.needed_rps, found.routed_rps) == (7.0, 7.0, 7.0)


def test_a_plan_just_applied_is_not_scaled_down_before_its_requests_arrive():
    held = 20.0
    for windows in range(28):
        held = follow(held, forecast(history(*[0.0] * windows), 20.0, COLD_S).needed_rps)
        assert held == 20.0
    assert forecast(history(*[0.0] * 30), 20.0, COLD_S).needed_rps == 0


def test_constant_arrivals_need_what_they_are():
    found = forecast(history(*[10.0] * 120), 3.0, COLD_S)
    assert (found.level_rps, found.trend_rps_per_s, found.dispersion) == pytest.approx((10, 0, 1))
    assert (found.needed_rps, found.routed_rps) == pytest.approx((10, 10))


def test_the_chance_of_poisson_arrivals_is_taken_out():
    chance = np.random.default_rng(1)
    for mean in (0.3, 3.0, 30.0):
        needed = [forecast(of_bins(chance.poisson(mean * 10, 360), 360), mean, COLD_S).needed_rps / mean for _ in range(20)]
        assert np.median(needed) == pytest.approx(1, abs=0.05)


def test_drift_beyond_chance_is_planned_for_by_its_high_quantile():
    chance = np.random.default_rng(2)
    rates = 100 * (1 + 0.2 * chance.standard_normal(120))
    needed = forecast(history(*rates), 100.0, COLD_S).needed_rps
    assert np.quantile(rates, 0.85) < needed < rates.max()


def test_burstiness_that_the_latency_model_knows_is_taken_out():
    chance = np.random.default_rng(3)
    rates = chance.negative_binomial(300 / 8, 1 / 9, 120) / 30  # nine times Poisson's variance, as of a variation of 3
    assert forecast(history(*rates), 10.0, COLD_S, arrival_cv=3.0).needed_rps == pytest.approx(10, rel=0.12)
    assert forecast(history(*rates), 10.0, COLD_S).needed_rps > 11.5


def test_a_step_is_seen_with_the_window_it_comes_in():
    chance = np.random.default_rng(4)
    before = chance.poisson(300, 100) / 30
    first = forecast(history(*before, 30.0), 10.0, COLD_S)
    second = forecast(history(*before, 30.0, 30.0), 10.0, COLD_S)
    assert first.needed_rps > 14
    assert second.needed_rps == pytest.approx(30, rel=0.1)
    assert second.routed_rps == pytest.approx(30, rel=0.1)


def test_a_step_moves_weights_and_replicas_within_twenty_seconds():
    for seed in range(10):
        chance = np.random.default_rng(seed)
        bins = np.concatenate([chance.poisson(100, 360), chance.poisson(300, 6)])
        found = [forecast(of_bins(bins, until), 10.0, COLD_S) for until in range(360, 367)]
        assert follow(10.5, found[2].needed_rps) > 11.5
        assert follow(10.5, found[2].routed_rps) > 11.5
        assert found[-1].routed_rps == pytest.approx(30, rel=0.15)


def test_a_step_is_no_trend():
    chance = np.random.default_rng(5)
    rates = np.concatenate([chance.poisson(300, 60), chance.poisson(900, 20)]) / 30
    peak = max(forecast(history(*rates[:end]), 10.0, COLD_S).needed_rps for end in range(61, 81))
    assert peak < 1.25 * 30


def test_a_ramp_is_planned_for_where_it_will_be():
    at_s = np.arange(0, 3600, 10)
    rate = 5 + 10 * np.clip((at_s - 2400) / 1200, 0, 1)
    ratios = []
    for seed in range(10):
        bins = np.random.default_rng(seed).poisson(rate * 10)
        looks = range(285, 340, 5)
        found = [forecast(of_bins(bins, until), 5.0, COLD_S) for until in looks]
        ratios += [one.needed_rps / rate[until + 18] for one, until in zip(found, looks, strict=True)]
    assert np.median(ratios) > 0.97
    assert np.quantile(ratios, 0.1) > 0.85


def test_one_odd_window_is_no_wave():
    rates = np.random.default_rng(7).poisson(300, 60) / 30
    usual = forecast(history(*rates), 10.0, COLD_S).needed_rps
    for at in range(20, 59):
        odd = rates.copy()
        odd[at] = 100.0
        if at < 58:  # the last two windows are the present
            assert forecast(history(*odd), 10.0, COLD_S).needed_rps < 1.25 * usual
    odd = rates.copy()
    odd[-1] = 100.0
    assert forecast(history(*odd), 10.0, COLD_S).needed_rps < 2 * usual


def test_what_came_within_the_dwell_is_remembered_and_then_forgotten():
    rates = [30.0] * 60 + [10.0] * 20
    assert forecast(history(*rates), 10.0, COLD_S).needed_rps == pytest.approx(30, rel=0.05)
    assert forecast(history(*rates, *[10.0] * 10), 10.0, COLD_S).needed_rps < 13
    assert forecast(history(*rates), 10.0, COLD_S, dwell_s=300).needed_rps < 13


@example([5e-324, 5e-324], 0.0, 60.0, 0.0)
@example([0.0], 5e-324, 15.0, 0.0)
@given(
    st.lists(st.floats(0, 1e4), max_size=130),
    st.floats(0, 1e3),
    st.sampled_from([15.0, 60.0, 400.0]),
    st.sampled_from([0.0, 1.0, 3.0]),
)
def test_forecasts_are_finite_and_in_bounds(rates, declared_rps, window_s, arrival_cv):
    found = forecast(history(*rates, window_s=window_s), declared_rps, COLD_S, arrival_cv=arrival_cv)
    most = max([declared_rps, *rates])
    assert 1 <= found.dispersion <= HIGHEST_DISPERSION
    assert 0 <= found.routed_rps <= 4.5 * most
    assert found.level_rps * found.dispersion <= found.needed_rps * (1 + 1e-9) <= 4.5 * most + 1e-9


@pytest.mark.parametrize(
    ("needed", "stays"), [(9.0, True), (10.9, True), (8.1, True), (11.2, False), (7.9, False), (0.0, False), (30.0, False)]
)
def test_what_is_planned_for_moves_by_enough_or_not_at_all(needed, stays):
    moved = follow(10.0, needed)
    assert (moved == 10.0) is stays
    if not stays:
        assert needed <= moved <= 1.0251 * needed
        assert follow(moved, needed) == moved


@given(st.floats(1e-4, 1e5))
def test_the_grid_is_written_exactly(value):
    assert on_grid(value) == pytest.approx(value, rel=0.0126)
    assert float(f"{on_grid(value):.5g}") == on_grid(value)


@pytest.mark.parametrize("seed", range(12))
def test_load_noise_moves_nothing_twice(seed):
    """Ten per cent of noise for an hour, after half an hour to settle: at most one move, upwards by little, and never back."""
    chance = np.random.default_rng(seed)
    bins = chance.poisson(200 * np.repeat(chance.uniform(0.9, 1.1, 90), 6))
    held, planned = 20.0, []
    for until in range(0, len(bins), 3):
        held = follow(held, forecast(of_bins(bins, until), held, COLD_S).needed_rps)
        planned.append(held)
    settled = planned[60:]
    assert settled == sorted(settled)
    assert len(set(settled)) <= 2
    assert settled[-1] < 1.25 * 20
