"""The latency of a replica under load, and the load it takes within its SLO."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servingplan.latency.capacity import MAX_UTILIZATION, capacity_rps, latency, stable_rate_rps
from servingplan.latency.profile import Bound, EngineProfile, Point, Slo, StepTime, TokenMix

H100_TP2 = EngineProfile(step=StepTime(0.0137, 57e-6, 60e-9), max_num_seqs=256, kv_tokens=400_000)
MIX = TokenMix(prompt_tokens=1500, output_tokens=300)
LADDER = EngineProfile(
    points=(Point(8, 1024, 256, 0.15, 0.015), Point(32, 1024, 256, 0.24, 0.020), Point(128, 1024, 256, 0.68, 0.045))
)


def test_an_idle_replica_answers_after_its_own_prompt_and_the_steps_of_an_asynchronous_engine():
    step = H100_TP2.step
    found = latency(H100_TP2, MIX, 1e-9)
    own_s = step.beta_s * MIX.prompt_tokens + step.alpha_s
    assert found.ttft_mean_s == pytest.approx(own_s + 1.5 * step.alpha_s, rel=1e-3)
    assert found.inter_token_s == pytest.approx(step.alpha_s, rel=1e-3)


@given(st.floats(0.01, 0.9), st.floats(0.01, 0.9))
def test_more_load_is_never_faster(one, other):
    stable = stable_rate_rps(H100_TP2, MIX)
    low, high = sorted((one, other))
    slower, faster = latency(H100_TP2, MIX, high * stable), latency(H100_TP2, MIX, low * stable)
    for percentile in (None, 50.0, 95.0, 99.0):
        assert slower.ttft_s(percentile) >= faster.ttft_s(percentile) - 1e-9
    assert slower.inter_token_s >= faster.inter_token_s - 1e-12


def test_percentiles_rise_from_the_mean():
    found = latency(H100_TP2, MIX, 3.0)
    assert found.ttft_s(None) <= found.ttft_s(90.0) < found.ttft_s(95.0) < found.ttft_s(99.0)


@given(st.floats(0.05, 5.0), st.floats(1.0, 3.0))
def test_a_looser_bound_never_lowers_capacity(seconds, factor):
    tight, loose = Slo(ttft=Bound(seconds)), Slo(ttft=Bound(seconds * factor))
    assert capacity_rps(H100_TP2, MIX, loose) >= capacity_rps(H100_TP2, MIX, tight)


@pytest.mark.parametrize(
    "slo",
    [Slo(ttft=Bound(0.4)), Slo(ttft=Bound(0.3, None)), Slo(inter_token=Bound(0.03)), Slo(e2e=Bound(9.0, 95.0))],
    ids=["ttft p95", "ttft mean", "inter-token", "e2e p95"],
)
def test_at_its_capacity_a_replica_just_keeps_its_bound(slo):
    capacity = capacity_rps(H100_TP2, MIX, slo)
    assert 0 < capacity < MAX_UTILIZATION * stable_rate_rps(H100_TP2, MIX)
    found = latency(H100_TP2, MIX, capacity)
    bound, value = next(
        (bound, value)
        for bound, value in (
            (slo.ttft, found.ttft_s(slo.ttft.percentile if slo.ttft else None)),
            (slo.inter_token, found.inter_token_s),
            (slo.e2e, found.e2e_s(slo.e2e.percentile if slo.e2e else None)),
        )
        if bound
    )
    assert value == pytest.approx(bound.seconds, rel=1e-6)


def test_a_bound_below_the_unloaded_latency_leaves_no_capacity():
    assert capacity_rps(H100_TP2, MIX, Slo(ttft=Bound(0.05))) == 0.0


def test_a_loose_bound_stops_where_the_closed_form_is_trusted():
    assert capacity_rps(H100_TP2, MIX, Slo(ttft=Bound(60))) == MAX_UTILIZATION * stable_rate_rps(H100_TP2, MIX)


def test_a_request_that_does_not_fit_the_kv_cache_cannot_be_served():
    assert stable_rate_rps(replace(H100_TP2, kv_tokens=1000), MIX) == 0.0


def test_a_smaller_kv_cache_or_batch_takes_less():
    full = stable_rate_rps(H100_TP2, MIX)
    assert stable_rate_rps(replace(H100_TP2, kv_tokens=50_000), MIX) < full
    assert stable_rate_rps(replace(H100_TP2, max_num_seqs=32), MIX) < full


def test_variable_outputs_take_more_than_constant_ones():
    assert stable_rate_rps(H100_TP2, replace(MIX, output_cv=1.0)) < stable_rate_rps(H100_TP2, replace(MIX, output_cv=0.0))


def test_the_weight_read_floor_hides_small_batches():
    floored = replace(H100_TP2, step=replace(H100_TP2.step, floor_s=0.005))
    assert latency(floored, MIX, 1e-9).inter_token_s == pytest.approx(0.0187, rel=1e-3)
    assert latency(floored, MIX, 5.0).inter_token_s > latency(H100_TP2, MIX, 5.0).inter_token_s


def test_points_are_met_exactly_and_never_extrapolated():
    mix = TokenMix(1024, 256)
    rates = [8 / (0.15 + 255 * 0.015), 32 / (0.24 + 255 * 0.020), 128 / (0.68 + 255 * 0.045)]
    assert latency(LADDER, mix, rates[1]).ttft_mean_s == pytest.approx(0.24)
    assert latency(LADDER, mix, rates[1]).inter_token_s == pytest.approx(0.020)
    assert stable_rate_rps(LADDER, mix) == pytest.approx(rates[2])


def test_points_take_the_ladder_nearest_to_the_mix():
    other = Point(8, 128, 128, 0.05, 0.01), Point(64, 128, 128, 0.08, 0.015)
    both = replace(LADDER, points=LADDER.points + other)
    assert latency(both, TokenMix(150, 100), 0.1).ttft_mean_s < 0.06
    assert latency(both, TokenMix(1000, 300), 0.1).ttft_mean_s > 0.14
