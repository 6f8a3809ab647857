"""The latency of a replica under load, and the load it takes within its SLO."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servingplan.latency.capacity import MAX_UTILIZATION, attains, capacity_rps, latency, margin, stable_rate_rps, utilization
from servingplan.latency.profile import Bound, EngineProfile, Slo, StepTime, TokenMix, blend

H100_TP2 = EngineProfile(step=StepTime(0.0137, 57e-6, 60e-9), max_num_seqs=256, kv_tokens=400_000)
MIX = TokenMix(prompt_tokens=1500, output_tokens=300)
SHORT = TokenMix(prompt_tokens=200, output_tokens=300)
LOOSE = Slo(ttft=Bound(60))


def test_an_idle_replica_answers_after_the_steps_of_the_prompt():
    mix = TokenMix(3000, 300, prompt_cv=0.0)
    step = H100_TP2.step
    found = latency(H100_TP2, mix, 0.0)
    assert found.ttft_mean_s == pytest.approx(2 * step.alpha_s + (step.beta_s + step.gamma_s) * 3000, rel=1e-6)
    assert found.inter_token_s == pytest.approx(step.alpha_s, rel=0.02)
    assert found.e2e_mean_s == pytest.approx(found.ttft_mean_s + 299 * found.inter_token_s)


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
    assert found.ttft_s(1.0) < found.ttft_s(None) <= found.ttft_s(90.0) < found.ttft_s(95.0) < found.ttft_s(99.0)


@given(st.floats(0.05, 5.0), st.floats(1.0, 3.0))
def test_a_looser_bound_never_lowers_capacity(seconds, factor):
    tight, loose = Slo(ttft=Bound(seconds)), Slo(ttft=Bound(seconds * factor))
    assert capacity_rps(H100_TP2, MIX, loose) >= capacity_rps(H100_TP2, MIX, tight)


@pytest.mark.parametrize(
    ("slo", "kept_s"),
    [
        (Slo(ttft=Bound(0.6)), lambda found: found.ttft_s(95.0)),
        (Slo(ttft=Bound(0.2, None)), lambda found: found.ttft_mean_s),
    ],
    ids=["p95", "mean"],
)
@pytest.mark.parametrize("background", [None, blend([(1.0, MIX), (3.0, SHORT)])], ids=["alone", "among others"])
def test_at_its_utilization_a_replica_just_keeps_its_bound_with_the_margin(slo, kept_s, background):
    found = utilization(H100_TP2, MIX, slo, background)
    assert 0 < found < MAX_UTILIZATION
    kept = kept_s(latency(H100_TP2, MIX, found * stable_rate_rps(H100_TP2, background or MIX), background))
    bound = slo.ttft.seconds * (1 - margin(H100_TP2, background or MIX, found))
    assert kept == pytest.approx(bound, rel=1e-5)


@pytest.mark.parametrize("slo", [Slo(inter_token=Bound(0.03)), Slo(e2e=Bound(9.0, 95.0))], ids=["inter-token", "e2e"])
def test_bounds_on_tokens_and_on_the_whole_are_kept_too(slo):
    found = utilization(H100_TP2, MIX, slo)
    assert 0 < found < MAX_UTILIZATION
    kept, beyond = (latency(H100_TP2, MIX, load * stable_rate_rps(H100_TP2, MIX)) for load in (found, 1.25 * found))
    for bound, seconds in ((slo.inter_token, lambda at: at.inter_token_s), (slo.e2e, lambda at: at.e2e_s(95.0))):
        if bound:
            assert 0.8 * bound.seconds < seconds(kept) < bound.seconds
            assert seconds(beyond) > seconds(kept)


def test_a_class_among_shorter_requests_waits_less_than_alone_at_the_same_load():
    others = blend([(1.0, MIX), (9.0, SHORT)])
    alone, among = (latency(H100_TP2, MIX, 0.7 * stable_rate_rps(H100_TP2, mix), mix).ttft_s(95.0) for mix in (MIX, others))
    assert among < alone


def test_the_background_is_what_a_short_class_waits_for():
    others = blend([(1.0, MIX), (1.0, SHORT)])
    rate_rps = 0.7 * stable_rate_rps(H100_TP2, others)
    short, long = (latency(H100_TP2, mix, rate_rps, others).ttft_s(95.0) for mix in (SHORT, MIX))
    assert latency(H100_TP2, SHORT, rate_rps).ttft_s(95.0) < short < long


def test_bursts_take_from_the_utilization():
    slo = Slo(ttft=Bound(0.6))
    assert utilization(H100_TP2, MIX, slo, None, 2.0) < 0.9 * utilization(H100_TP2, MIX, slo)
    assert utilization(H100_TP2, MIX, slo, None, 0.5) == utilization(H100_TP2, MIX, slo)


def test_the_margin_grows_with_the_load_and_where_slots_bind():
    few = replace(H100_TP2, max_num_seqs=48)
    loads = (0.3, 0.5, 0.7, 0.85)
    plain, bound = ([margin(profile, MIX, load) for load in loads] for profile in (H100_TP2, few))
    assert plain == sorted(plain)
    assert plain[0] > 0
    assert bound[-1] > plain[-1] + 0.1


def test_attaining_is_having_any_utilization():
    for seconds in (0.02, 0.1, 0.25, 0.27, 0.3, 0.5):
        slo = Slo(ttft=Bound(seconds))
        assert attains(H100_TP2, MIX, slo) == (utilization(H100_TP2, MIX, slo) > 0)


def test_a_bound_below_the_unloaded_latency_leaves_no_capacity():
    assert capacity_rps(H100_TP2, MIX, Slo(ttft=Bound(0.05))) == 0.0


def test_a_loose_bound_stops_where_the_closed_form_is_trusted():
    assert utilization(H100_TP2, MIX, LOOSE) == utilization(H100_TP2, MIX, Slo()) == MAX_UTILIZATION
    assert capacity_rps(H100_TP2, MIX, LOOSE) == MAX_UTILIZATION * stable_rate_rps(H100_TP2, MIX)


def test_a_request_that_does_not_fit_the_kv_cache_cannot_be_served():
    small = replace(H100_TP2, kv_tokens=1000)
    assert stable_rate_rps(small, MIX) == utilization(small, MIX, LOOSE) == capacity_rps(small, MIX, LOOSE) == 0.0
    assert not attains(small, MIX, LOOSE)
    with pytest.raises(ValueError, match="KV"):
        latency(small, MIX, 1.0)


def test_a_smaller_kv_cache_or_batch_takes_less():
    full = stable_rate_rps(H100_TP2, MIX)
    assert stable_rate_rps(replace(H100_TP2, kv_tokens=50_000), MIX) < full
    assert stable_rate_rps(replace(H100_TP2, max_num_seqs=32), MIX) < full


def test_a_small_token_budget_binds_before_the_slots():
    prompts = TokenMix(2000, 10, output_cv=0.0)
    small, large = (replace(H100_TP2, max_num_batched_tokens=budget) for budget in (512, 8192))
    step = H100_TP2.step
    expected = 2010 * (step.alpha_s / 512 + step.beta_s) + step.gamma_s * (prompts.held_token_steps + 2000)
    assert 1 / stable_rate_rps(small, prompts) == pytest.approx(expected)
    assert stable_rate_rps(large, prompts) > 1.2 * stable_rate_rps(small, prompts)


def test_variable_outputs_take_more_than_constant_ones():
    assert stable_rate_rps(H100_TP2, replace(MIX, output_cv=1.0)) < stable_rate_rps(H100_TP2, replace(MIX, output_cv=0.0))


def test_the_weight_read_floor_hides_small_batches():
    floored = replace(H100_TP2, step=replace(H100_TP2.step, floor_s=0.005))
    assert latency(floored, MIX, 0.0).inter_token_s - latency(H100_TP2, MIX, 0.0).inter_token_s == pytest.approx(
        0.005, rel=0.02
    )
    assert latency(floored, MIX, 5.0).inter_token_s > latency(H100_TP2, MIX, 5.0).inter_token_s


def test_equal_questions_have_equal_answers_to_the_bit():
    parts = [(1.0, MIX), (3.0, SHORT), (0.5, TokenMix(5000, 20))]
    one, other = (latency(H100_TP2, SHORT, 4.0, blend(each)) for each in (parts, parts[::-1]))
    assert one.ttft_s(95.0) == other.ttft_s(95.0)
    assert utilization(H100_TP2, MIX, LOOSE, blend(parts)) == utilization(H100_TP2, MIX, LOOSE, blend(parts[::-1]))
