"""Latency and capacity with a correction."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servingplan.latency import levels
from servingplan.latency.capacity import attains, capacity_rps, latency, margin, stable_rate_rps, utilization
from servingplan.latency.correction import LOAD_BINS, Correction, bound_key
from servingplan.latency.profile import Bound, EngineProfile, Point, Slo, StepTime, TokenMix, uncorrected

PROFILE = EngineProfile(step=StepTime(0.0137, 57e-6, 60e-9, 0.002), max_num_seqs=256, kv_tokens=400_000)
MEASURED = EngineProfile(
    points=tuple(Point(c, 1000, 200, 0.1 + 0.01 * c, 0.01 + 0.0005 * c) for c in (1, 8, 32, 64)), max_num_seqs=64
)
MIX = TokenMix(1500, 300)
SLO = Slo(ttft=Bound(0.6))


def corrected(profile: EngineProfile = PROFILE, **fields) -> EngineProfile:
    return replace(profile, correction=Correction(**fields))


@pytest.mark.parametrize("profile", [PROFILE, MEASURED], ids=["coefficients", "points"])
def test_an_empty_correction_changes_nothing(profile):
    empty = corrected(profile)
    for load in (0.1, 0.55, 0.8):
        rate = load * stable_rate_rps(profile, MIX)
        plain, same = latency(profile, MIX, rate), latency(empty, MIX, rate)
        for said in (lambda each: each.ttft_mean_s, lambda each: each.ttft_s(95.0), lambda each: each.e2e_s(95.0)):
            assert said(same) == said(plain)
    assert utilization(profile, MIX, SLO) == utilization(empty, MIX, SLO)


@pytest.mark.parametrize("factors", [(1.3, 1.3, 1.3), (0.8, 0.8, 0.8), (1.0, 1.3, 1.0), (1.2, 1.0, 0.7)])
def test_a_corrected_step_is_the_profile_with_that_step(factors):
    alpha, beta, gamma = factors
    step = PROFILE.step
    truth = replace(
        PROFILE, step=StepTime(step.alpha_s * alpha, step.beta_s * beta, step.gamma_s * gamma, step.floor_s * alpha)
    )
    found = corrected(step=factors)
    assert stable_rate_rps(found, MIX) == pytest.approx(stable_rate_rps(truth, MIX), rel=2e-3)
    for rate in (1.0, 3.0, 4.0):
        ours, theirs = latency(found, MIX, rate), latency(truth, MIX, rate)
        for percentile in (None, 95.0):
            assert ours.ttft_s(percentile) == pytest.approx(theirs.ttft_s(percentile), rel=0.01)
            assert ours.e2e_s(percentile) == pytest.approx(theirs.e2e_s(percentile), rel=0.01)
    assert capacity_rps(found, MIX, SLO) == pytest.approx(capacity_rps(truth, MIX, SLO), rel=0.01)


def test_a_common_factor_makes_no_curves_of_its_own():
    capacity_rps(PROFILE, MIX, SLO)
    latency(PROFILE, MIX, 3.0)
    solved = levels._queue.cache_info().misses
    for common in (0.83, 1.11, 1.37):
        latency(corrected(step=(common,) * 3), MIX, 3.0 / common)
        margin(corrected(step=(common,) * 3), MIX, 0.6)
    assert levels._queue.cache_info().misses == solved


def test_a_factor_read_back_from_decimals_meets_the_same_curves():
    exact = tuple(2.718281828459045**each for each in (0.26, 0.14, 0.32))
    written = tuple(float(f"{each:.5g}") for each in exact)
    assert written != exact
    assert uncorrected(corrected(step=exact))[0] == uncorrected(corrected(step=written))[0]


def test_measured_points_are_slower_as_a_whole():
    slower = corrected(MEASURED, step=(1.25, 1.0, 1.0))
    assert stable_rate_rps(slower, MIX) == pytest.approx(stable_rate_rps(MEASURED, MIX) / 1.25)
    for load in (0.2, 0.7):
        rate = load * stable_rate_rps(MEASURED, MIX)
        plain, found = latency(MEASURED, MIX, rate), latency(slower, MIX, rate / 1.25)
        assert found.ttft_mean_s == pytest.approx(1.25 * plain.ttft_mean_s)
        assert found.decode_s == pytest.approx(1.25 * plain.decode_s)


def test_ttft_factors_are_of_their_load_and_leave_decoding_alone():
    found = corrected(ttft=(1.0, 1.2, 1.2, 1.5))
    stable = stable_rate_rps(PROFILE, MIX)
    for load, factor in ((0.12, 1.0), (0.5, 1.2), (0.78, 1.5)):
        plain, ours = latency(PROFILE, MIX, load * stable), latency(found, MIX, load * stable)
        assert ours.ttft_s(95.0) == pytest.approx(factor * plain.ttft_s(95.0))
        assert ours.ttft_mean_s == pytest.approx(factor * plain.ttft_mean_s)
        assert (ours.inter_token_s, ours.decode_s) == (plain.inter_token_s, plain.decode_s)


@settings(max_examples=40, deadline=None)
@given(st.tuples(*[st.floats(0.5, 2.0)] * 4), st.floats(0.01, 0.95), st.floats(0.01, 0.95))
@pytest.mark.parametrize("profile", [PROFILE, MEASURED], ids=["coefficients", "points"])
def test_a_busier_replica_is_never_faster_whatever_the_factors(profile, factors, one, other):
    found = corrected(profile, ttft=factors)
    stable = stable_rate_rps(found, MIX)
    slower, faster = (latency(found, MIX, load * stable) for load in (max(one, other), min(one, other)))
    for percentile in (None, 50.0, 95.0, 99.0):
        assert slower.ttft_s(percentile) >= faster.ttft_s(percentile) * (1 - 1e-9)


@pytest.mark.parametrize("profile", [PROFILE, MEASURED], ids=["coefficients", "points"])
def test_at_its_utilization_a_corrected_replica_just_keeps_its_bound_with_the_learnt_margin(profile):
    found = corrected(profile, step=(1.1, 1.1, 1.1), ttft=(1.0, 1.0, 1.1, 1.2), margin=(("ttft.p95", 0.1),))
    slo = Slo(ttft=Bound(2.0 if profile is MEASURED else 0.8))
    load = utilization(found, MIX, slo)
    assert 0 < load < 0.85
    kept = latency(found, MIX, load * stable_rate_rps(found, MIX)).ttft_s(95.0)
    assert kept == pytest.approx(slo.ttft.seconds * (1 - margin(found, MIX, load, key="ttft.p95")), rel=1e-4)
    assert utilization(found, MIX, slo) < utilization(corrected(profile, step=(1.1, 1.1, 1.1)), MIX, slo)


def test_a_margin_is_that_of_its_bound_and_stays_between_its_limits():
    found = corrected(margin=(("e2e.p95", 0.1), ("ttft.mean", -0.5), ("ttft.p95", 2.0)))
    declared = margin(PROFILE, MIX, 0.6)
    assert margin(found, MIX, 0.6, key="e2e.p95") == pytest.approx(declared + 0.1)
    assert margin(found, MIX, 0.6, key="ttft.p99") == declared
    assert margin(found, MIX, 0.6, key="ttft.mean") == 0.02
    assert margin(found, MIX, 0.6, key="ttft.p95") == margin(found, MIX, 0.6) == 0.9


def test_a_learnt_margin_of_one_bound_leaves_the_others_alone():
    found = corrected(margin=(("interToken.p95", 0.1),))
    assert utilization(found, MIX, SLO) == utilization(PROFILE, MIX, SLO)
    pace = Slo(inter_token=Bound(0.03))
    assert 0 < utilization(found, MIX, pace) < utilization(PROFILE, MIX, pace)


def test_a_slow_replica_does_not_attain_what_the_profile_does():
    idle = latency(PROFILE, MIX, 0.0).ttft_s(95.0)
    slo = Slo(ttft=Bound(1.2 * idle))
    assert attains(PROFILE, MIX, slo)
    assert not attains(corrected(step=(1.3, 1.3, 1.3)), MIX, slo)


def test_bounds_have_names():
    assert bound_key("ttft", 95.0) == "ttft.p95"
    assert bound_key("e2e", 99.9) == "e2e.p99.9"
    assert bound_key("interToken", None) == "interToken.mean"
    assert len(LOAD_BINS) + 1 == len(Correction().ttft)
