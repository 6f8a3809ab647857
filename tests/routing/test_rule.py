"""The score of one endpoint, term by term."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from routing_fleets import BALANCED, LARGE, MIDDLE, SMALL, endpoints

from servingplan.routing import rule
from servingplan.routing.fleet import fleet_of
from servingplan.routing.preset import Preset, Prices

FLEET = fleet_of(endpoints(SMALL, MIDDLE, LARGE))
ONE = np.ones(3)
PLAIN = rule.Factors(ONE, ONE, ONE)


def load(in_flight=0.0, held=0.0, waiting=0.0, usual=200.0) -> rule.Load:
    return rule.Load(in_flight * ONE, held * ONE, waiting * ONE, usual * ONE)


def need(prompt=200.0, output=200.0, hits=0.0, quality=(0.4, 0.55, 0.65)) -> rule.Need:
    return rule.Need(prompt, output * ONE, np.array(quality), hits * ONE)


def test_the_formula_written_out():
    """The rule by hand, for 20 requests in flight that hold 8,000 tokens and 500 that wait."""
    got = rule.latency(FLEET, load(20, 8000, 500, 100), need(), PLAIN)
    alpha, beta, gamma = 0.0096, 55e-6, 6e-8
    step = alpha + beta * 21 + gamma * (8000 + 200 + 100)
    ttft = 1.5 * step + beta * (200 + 500)
    added = 20 * (200 * (beta + gamma * (200 + 100)) + beta * 200)
    assert got.step_s[0] == pytest.approx(step)
    assert got.ttft_s[0] == pytest.approx(ttft)
    assert got.e2e_s[0] == pytest.approx(ttft + 200 * step)
    assert got.added_s[0] == pytest.approx(added)
    scored = rule.score(FLEET, need(), got, 0 * ONE, BALANCED)
    total = ttft + 200 * step
    by_hand = 0.4 - 1500 * 400 * 0.06e-6 - 0.02 * 10 * (total / 10) ** 2 - 0.02 * 2 * (total / 10) * added
    assert scored.utility[0] == pytest.approx(by_hand)


def test_more_requests_than_slots_wait():
    fleet = fleet_of(endpoints(replace(SMALL, max_num_seqs=32)))
    one = np.ones(1)
    full, over = (
        rule.latency(
            fleet,
            rule.Load(n * one, 8000 * one, 0 * one, 100 * one),
            rule.Need(200, 200 * one, one, 0 * one),
            rule.Factors(one, one, one),
        )
        for n in (31, 63)
    )
    assert over.ttft_s[0] - full.ttft_s[0] == pytest.approx(32 * 100 * over.step_s[0] / 32)


def test_the_wait_is_spread_as_a_sum_of_gaps():
    queued = fleet_of(endpoints(replace(SMALL, max_num_seqs=1)))
    one = np.ones(1)
    for ahead in (1.0, 4.0, 25.0):
        held = rule.Load(ahead * one, 0 * one, 0 * one, 100 * one)
        got = rule.latency(queued, held, rule.Need(200, 200 * one, one, 0 * one), rule.Factors(one, one, one))
        assert (got.high_ttft_s - got.ttft_s)[0] == pytest.approx(2.33 * got.wait_s[0] / ahead**0.5)
    free = rule.latency(
        queued, rule.Load(0 * one, 0 * one, 0 * one, one), rule.Need(200, one, one, 0 * one), rule.Factors(one, one, one)
    )
    assert free.high_ttft_s == free.ttft_s


def test_a_full_cache_makes_requests_wait_for_slots_that_it_does_not_have():
    fleet = fleet_of(endpoints(replace(SMALL, kv_tokens=10_000)))
    one = np.ones(1)
    got = rule.latency(
        fleet,
        rule.Load(40 * one, 12_000 * one, 0 * one, 100 * one),
        rule.Need(200, 200 * one, one, 0 * one),
        rule.Factors(one, one, one),
    )
    assert got.slots[0] == pytest.approx(41 * 10_000 / 12_300)
    wait = (41 - got.slots[0]) * 100 * got.step_s[0] / got.slots[0]
    assert got.ttft_s[0] == pytest.approx(1.5 * got.step_s[0] + 200 * 55e-6 + wait)


def test_a_step_is_no_shorter_than_its_floor():
    fleet = fleet_of(endpoints(replace(SMALL, floor_s=0.005)))
    one = np.ones(1)
    few, many = (
        rule.latency(
            fleet, rule.Load(n * one, 0 * one, 0 * one, one), rule.Need(1, one, one, 0 * one), rule.Factors(one, one, one)
        )
        for n in (0, 80)
    )
    assert few.step_s[0] == pytest.approx(0.0096 + 0.005 + 1.5 * 6e-8)
    # Under the floor one more token costs others no compute.
    assert few.added_s[0] == 0
    assert many.step_s[0] == pytest.approx(few.step_s[0])


def test_long_prompts_are_computed_in_chunks():
    short, long = (rule.latency(FLEET, load(), need(prompt=tokens, output=1.0), PLAIN) for tokens in (2000.0, 6500.0))
    extra = long.ttft_s[0] - short.ttft_s[0]
    assert extra == pytest.approx(4500 * 55e-6 + 3 * long.step_s[0], rel=0.01)


def test_prefix_hits_lower_the_prefill_and_nothing_else():
    cold, warm = (rule.latency(FLEET, load(5, 2000, 0, 100), need(1000, 200, hits), PLAIN) for hits in (0.0, 800.0))
    assert cold.ttft_s[0] - warm.ttft_s[0] == pytest.approx(800 * 55e-6)
    assert np.array_equal(cold.step_s, warm.step_s)


def test_factors_slow_everything_or_the_first_token():
    slow = rule.latency(FLEET, load(5, 2000), need(), rule.Factors(2 * ONE, ONE, ONE))
    late = rule.latency(FLEET, load(5, 2000), need(), rule.Factors(ONE, 2 * ONE, 2 * ONE))
    plain = rule.latency(FLEET, load(5, 2000), need(), PLAIN)
    np.testing.assert_allclose(slow.e2e_s, 2 * plain.e2e_s)
    np.testing.assert_allclose(late.ttft_s, 2 * plain.ttft_s)
    np.testing.assert_allclose(late.prefill_s + late.wait_s, plain.ttft_s)


LOADS = st.builds(load, st.floats(0, 400), st.floats(0, 150_000), st.floats(0, 20_000), st.floats(1, 800))
NEEDS = st.builds(need, st.floats(0, 8000), st.floats(1, 2000))
PRICES = st.builds(
    Prices, st.floats(0, 1e4), st.floats(0, 1), st.floats(1, 60), st.floats(1, 3), st.floats(0, 3), st.floats(0, 5)
)


@given(
    LOADS, NEEDS, PRICES, st.sampled_from(["per_dollar", "per_second", "externality", "first_token_share"]), st.floats(1, 10)
)
def test_a_higher_price_never_helps(held, wanted, prices, which, factor):
    dearer = replace(prices, **{which: getattr(prices, which) * factor})
    times = rule.latency(FLEET, held, wanted, PLAIN)
    low, high = (rule.score(FLEET, wanted, times, 0.01 * ONE, each).utility for each in (prices, dearer))
    assert np.all(high <= low + 1e-9 * np.abs(low))


@given(LOADS, NEEDS, PRICES, st.floats(0, 200))
def test_more_load_is_never_better(held, wanted, prices, more):
    heavier = replace(held, in_flight=held.in_flight + more, waiting_tokens=held.waiting_tokens + 10 * more)
    now, then = (rule.latency(FLEET, each, wanted, PLAIN) for each in (held, heavier))
    assert np.all(then.ttft_s >= now.ttft_s - 1e-9)
    low = rule.score(FLEET, wanted, then, 0 * ONE, replace(prices, externality=0.0)).utility
    high = rule.score(FLEET, wanted, now, 0 * ONE, replace(prices, externality=0.0)).utility
    assert np.all(low <= high + 1e-9 * np.abs(high))


@given(LOADS, NEEDS, PRICES, st.floats(0, 1))
def test_congestion_is_charged_once(held, wanted, prices, dual):
    times = rule.latency(FLEET, held, wanted, PLAIN)
    scored = rule.score(FLEET, wanted, times, dual * ONE, prices)
    np.testing.assert_allclose(scored.congestion, np.maximum(scored.externality, dual))
    whole = wanted.quality - scored.money - scored.latency - scored.first_token - scored.congestion
    np.testing.assert_allclose(scored.utility, whole)


@given(LOADS, NEEDS, PRICES)
def test_every_figure_is_finite_and_no_time_negative(held, wanted, prices):
    times = rule.latency(FLEET, held, wanted, PLAIN)
    for each in (times.ttft_s, times.step_s, times.e2e_s, times.added_s):
        assert np.all(np.isfinite(each))
        assert np.all(each >= 0)
    assert np.all(np.isfinite(rule.score(FLEET, wanted, times, 0 * ONE, prices).utility))


@pytest.mark.parametrize(
    "wrong", [{"per_dollar": -1.0}, {"per_second": -1.0}, {"scale_s": 0.0}, {"power": 0.5}, {"first_token_share": -1.0}]
)
def test_prices_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=r"price|scale"):
        replace(BALANCED, **wrong)


def test_presets_weigh_what_they_are_named_after():
    assert max(Preset, key=lambda each: each.prices.per_dollar) is Preset.COST
    assert max(Preset, key=lambda each: each.prices.per_second) is Preset.LATENCY
    assert min(Preset, key=lambda each: each.prices.per_second) is Preset.QUALITY
