"""What live metrics change, and what their absence leaves alone."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from cluster import Cluster
from worlds import NOW_S, manifest, plan

from servingplan.calibration.readings import Found, Histogram, PoolReading, RateHistory, Readings
from servingplan.controller import demands
from servingplan.controller.policy import Policy
from servingplan.latency.capacity import latency
from servingplan.render import names

LARGE, SMALL = ("large", "tp2"), ("small", "l40s")
KEY = "llm/chat"
POOLS = {names.pool_name("chat", *key): key for key in (LARGE, SMALL)}
EDGES_S = (0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, math.inf)
WINDOW_S = 30.0


_PERCENTS = np.linspace(0.5, 99.5, 100)


@cache
def measured(engine, mix, rate):
    """Latency, and its percentiles of the time to first token."""
    found = latency(engine, mix, rate)
    return found, np.array([found.ttft.percentile_s(percent) for percent in _PERCENTS])


def share_below(times_s, bound_s):
    return 1.0 if math.isinf(bound_s) else float(np.interp(bound_s, times_s, _PERCENTS / 100, left=0.0, right=1.0))


class Traffic:
    """Readings of a plan whose requests come at a given rate and take some factor of what its profile says."""

    def __init__(self, rate, slower=1.0):
        self.rate, self.slower = rate, slower
        self.cluster = None

    def __call__(self, seen, now_s):
        ends = [now_s - WINDOW_S * (40 - i) for i in range(41)]
        rates = tuple(self.rate(end) for end in ends)
        pools = {}
        if self.cluster.decisions:
            pools = {pool: self._pool(pool, key, rates[-1]) for pool, key in POOLS.items() if self._ready(pool)}
        classes = {"chat": RateHistory(WINDOW_S, rates, age_s=1.0)}
        return Readings(Found.FOUND, pools=pools, classes=classes, taken_s=now_s)

    def _ready(self, pool):
        return sum(pod.serves for pod in self.cluster.pods if pod.pool == pool)

    def _pool(self, pool, key, rate):
        ready, weights = self._ready(pool), self.cluster.weights("chat")
        mine = rate * weights.get(pool, 0) / max(1, sum(weights.values()))
        case_plan = self.cluster.plans[0]
        profile = demands.plan_demand(KEY, case_plan.spec, case_plan.profiles, {})
        engine = next(s.profile for m in profile.models for s in m.setups if (m.name, s.name) == key)
        mix = profile.classes[0].mix
        if mine <= 0:
            return PoolReading(replicas=ready, rate_rps=0.0)
        found, times_s = measured(engine, mix, mine / ready * self.slower)
        shares = [share_below(times_s, edge / self.slower) for edge in EDGES_S]
        counts = [mine * 60 * (b - a) for a, b in zip([0.0, *shares], shares, strict=False)]
        ttft = Histogram(EDGES_S, tuple(counts), mine * 60 * found.ttft_mean_s * self.slower)
        gap = found.inter_token_s * self.slower
        gaps = Histogram((gap * 0.9, gap * 1.1, math.inf), (0.0, 1e4, 0.0), 1e4 * gap)
        return PoolReading(ready, rate_rps=mine, ttft=ttft, inter_token=gaps, age_s=1.0)


def closed(traffic, **spec):
    cluster = Cluster([plan(manifest(**spec))], readings=traffic, policy=Policy(tick_s=5, cycle_s=60))
    traffic.cluster = cluster
    return cluster


def asked(cluster):
    return sum(cluster.decisions[KEY][-1].asked.values())


def run(cluster, seconds, tick_s=5.0):
    for _ in range(int(seconds / tick_s)):
        cluster.look(tick_s)


def test_a_threefold_load_is_met_within_three_quarters_of_a_minute():
    start = NOW_S + 1800
    cluster = closed(
        Traffic(
            lambda end: (
                36.0 if end > start + WINDOW_S else 12.0 + 24.0 * max(0, end - start) / WINDOW_S if end > start else 12.0
            )
        )
    )
    run(cluster, 1800)
    before = asked(cluster)
    run(cluster, 45)
    assert asked(cluster) > before
    assert "load of class chat" in cluster.plans[0].status["history"][0]["reason"]


def test_noise_of_a_tenth_moves_nothing_for_an_hour():
    chance = random.Random(5)
    noise = {}
    cluster = closed(Traffic(lambda end: noise.setdefault(round(end), 30.0 * chance.uniform(0.9, 1.1))))
    run(cluster, 1800)
    settled = len(cluster.plans[0].status["history"])
    run(cluster, 3600)
    assert len(cluster.plans[0].status["history"]) == settled


def test_replicas_go_only_when_the_load_has_stayed_away_for_a_dwell():
    fall = NOW_S + 1800
    cluster = closed(Traffic(lambda end: 10.0 if end > fall else 40.0))
    run(cluster, 1800)
    high = asked(cluster)
    run(cluster, 800)
    assert asked(cluster) == high
    run(cluster, 1800)
    assert asked(cluster) < high


@pytest.mark.parametrize("slower", [0.8, 1.3])
def test_a_profile_that_is_wrong_is_corrected(slower):
    cluster = closed(Traffic(lambda end: 30.0, slower))
    run(cluster, 900)
    entry = next(e for e in cluster.plans[0].status["allocations"] if e["setup"] == "tp2")
    applied = [float(factor) for factor in entry["calibration"]["applied"]["step"]]
    assert applied[0] == pytest.approx(slower, rel=0.12)
    predicted, observed = (float(entry[name]["ttftMean"]) for name in ("predicted", "observed"))
    assert predicted == pytest.approx(observed, rel=0.25)


def test_with_calibration_disabled_the_profile_stands():
    cluster = closed(Traffic(lambda end: 30.0, 1.3), metrics={"calibration": "Disabled"})
    run(cluster, 900)
    assert all("calibration" not in entry for entry in cluster.plans[0].status["allocations"])


@pytest.mark.parametrize("found", [Found.UNREACHABLE, Found.MISSING, Found.STALE, Found.AWAITED])
def test_without_metrics_everything_is_held(found):
    cluster = closed(Traffic(lambda end: 40.0))
    run(cluster, 1200)
    before = cluster.decisions[KEY][-1]
    demand = cluster.plans[0].status["demand"]
    cluster.readings = lambda seen, now_s: Readings(found, error="gone")
    run(cluster, 1200)
    after = cluster.decisions[KEY][-1]
    assert (after.asked, after.table.classes) == (before.asked, before.table.classes)
    assert cluster.plans[0].status["demand"] == demand


def test_a_class_whose_counter_is_missing_keeps_its_rate():
    cluster = closed(Traffic(lambda end: 40.0))
    run(cluster, 1200)
    before = cluster.decisions[KEY][-1].asked
    real = cluster.readings
    cluster.readings = lambda seen, now_s: replace(real(seen, now_s), classes={})
    run(cluster, 2400)
    assert cluster.decisions[KEY][-1].asked == before


def test_a_setup_that_is_dark_keeps_its_replicas_while_the_load_falls():
    fall = NOW_S + 1200
    cluster = closed(Traffic(lambda end: 8.0 if end > fall else 40.0))
    run(cluster, 1200)
    before = cluster.decisions[KEY][-1].target
    real = cluster.readings

    def dark(seen, now_s):
        readings = real(seen, now_s)
        pools = {pool: replace(r, dark=("pod-1",)) if POOLS[pool] == LARGE else r for pool, r in readings.pools.items()}
        return replace(readings, pools=pools)

    cluster.readings = dark
    run(cluster, 2400)
    assert cluster.decisions[KEY][-1].target[LARGE] == before[LARGE]
    metrics = next(c for c in cluster.plans[0].status["conditions"] if c["type"] == "MetricsAvailable")
    assert metrics["reason"] == "SetupDark"
    assert "pod-1" in metrics["message"]


def test_declared_rates_are_followed_where_the_plan_says_so():
    cluster = closed(Traffic(lambda end: 80.0), metrics={"rates": "Declared"})
    run(cluster, 600)
    assert cluster.plans[0].status["demand"] == []


def test_a_setup_that_nobody_measured_takes_a_small_part_in_its_first_cycle():
    models = manifest()["spec"]["models"]
    models[1]["setups"][0]["maxReplicas"] = 0
    cluster = closed(Traffic(lambda end: 20.0), models=models)
    run(cluster, 600)
    body = manifest(models=manifest()["spec"]["models"])
    body["spec"]["models"][0]["setups"][0]["maxReplicas"] = 0
    cluster.change(body)
    small = next(pool for pool, key in POOLS.items() if key == SMALL)
    early = []
    for _ in range(60):
        cluster.look(5.0)
        weights = cluster.weights("chat")
        share = weights.get(small, 0) / sum(weights.values())
        since = [pod.ready_changed_s for pod in cluster.pods if pod.pool == small and pod.serves]
        if share and cluster.now_s - min(since) < 60:
            early.append(share)
    assert early
    assert max(early) <= 0.2 + 1e-6
    assert share == 1.0


@pytest.mark.parametrize(("times", "raised"), [(1.0, True), (1.05, False)], ids=["at the planned load", "a little beyond it"])
def test_late_answers_raise_the_headroom_only_where_the_load_does_not_explain_them(times, raised):
    """Answers come late for one minute, at the load that is planned for or at a multiple of it."""
    late = [math.inf, 0.0]

    class Late(Traffic):
        def _pool(self, pool, key, rate):
            found = super()._pool(pool, key, rate)
            if found.ttft is None or not late[0] <= self.cluster.now_s < late[1]:
                return found
            return replace(found, ttft=Histogram((0.5, math.inf), (0.0, found.ttft.count), 10 * found.ttft.count))

    traffic = Late(lambda end: 12.0 * (times if late[0] - WINDOW_S <= end < late[1] else 1.0))
    cluster = closed(traffic, metrics={"calibration": "Disabled"})
    run(cluster, 1800)
    before = cluster.decisions[KEY][-1].memory.headroom
    late[:] = [cluster.now_s, cluster.now_s + 70.0]
    run(cluster, 60)
    assert (cluster.decisions[KEY][-1].memory.headroom > before) is raised
