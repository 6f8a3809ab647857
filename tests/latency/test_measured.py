"""Replicas that are known by measured points alone."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servingplan.latency.capacity import MAX_UTILIZATION, capacity_rps, latency, stable_rate_rps, utilization
from servingplan.latency.measured import ladder
from servingplan.latency.profile import Bound, EngineProfile, Point, Slo, TokenMix

MIX = TokenMix(1024, 256)
LADDER = EngineProfile(
    points=(Point(8, 1024, 256, 0.15, 0.015), Point(32, 1024, 256, 0.24, 0.020), Point(128, 1024, 256, 0.68, 0.045))
)
RATES = [8 / (0.15 + 255 * 0.015), 32 / (0.24 + 255 * 0.020), 128 / (0.68 + 255 * 0.045)]


def test_points_on_a_convex_curve_are_met_exactly():
    for rate, point in zip(RATES[:2], LADDER.points, strict=False):
        found = latency(LADDER, MIX, rate)
        assert (found.ttft_mean_s, found.inter_token_s) == pytest.approx((point.ttft_s, point.tpot_s))


def test_the_last_point_is_a_hard_cap():
    assert stable_rate_rps(LADDER, MIX) == pytest.approx(RATES[2])
    assert capacity_rps(LADDER, MIX, Slo(ttft=Bound(60))) == pytest.approx(MAX_UTILIZATION * RATES[2])


def test_a_point_that_does_not_raise_the_rate_is_saturated():
    more = replace(LADDER, points=(*LADDER.points, Point(512, 1024, 256, 10.0, 0.2)))
    assert ladder(more.points, MIX) == ladder(LADDER.points, MIX)


def test_the_ladder_nearest_to_the_mix_counts():
    other = Point(8, 128, 128, 0.05, 0.01), Point(64, 128, 128, 0.08, 0.015)
    both = replace(LADDER, points=LADDER.points + other)
    assert latency(both, TokenMix(150, 100), 0.1).ttft_mean_s < 0.06
    assert latency(both, TokenMix(1000, 300), 0.1).ttft_mean_s > 0.14


def test_one_point_alone_is_a_flat_curve_up_to_it():
    alone = EngineProfile(points=LADDER.points[:1])
    assert latency(alone, MIX, 0.1).ttft_mean_s == latency(alone, MIX, RATES[0]).ttft_mean_s == pytest.approx(0.15)


def test_bounds_are_kept_with_the_margin_at_the_utilization():
    slo = Slo(ttft=Bound(0.30, None))
    found = utilization(LADDER, MIX, slo)
    assert 0 < found < MAX_UTILIZATION
    assert latency(LADDER, MIX, found * RATES[2]).ttft_mean_s == pytest.approx(0.9 * 0.30, rel=1e-5)
    assert utilization(LADDER, MIX, Slo(ttft=Bound(0.15, None))) == 0.0


noisy = st.lists(st.tuples(st.integers(1, 256), st.floats(0.01, 5), st.floats(0.005, 0.2)), min_size=1, max_size=8)


@given(noisy)
def test_any_ladder_gives_a_convex_majorant(points):
    profile = tuple(Point(concurrency, 1024, 256, ttft_s, tpot_s) for concurrency, ttft_s, tpot_s in points)
    found = ladder(profile, MIX)
    slopes = [
        (found.ttft[k + 1] - found.ttft[k]) / (found.rates_rps[k + 1] - found.rates_rps[k]) for k in range(len(found.ttft) - 1)
    ]
    assert all(after >= before * (1 - 1e-9) for before, after in pairwise(slopes))
    for point in profile:
        rate = point.concurrency / (point.ttft_s + 255 * point.tpot_s)
        if rate in found.rates_rps:
            assert found.ttft_s(rate) >= point.ttft_s * (1 - 1e-9)
    waits = [found.ttft_s(found.rates_rps[-1] * k / 20) for k in range(21)]
    assert all(after >= before * (1 - 1e-9) for before, after in pairwise(waits))
