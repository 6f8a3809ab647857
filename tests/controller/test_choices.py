"""What pickers choose comes back to the plan: it is followed as far as it is worth it, and remembered."""

from __future__ import annotations

import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
from cluster import Cluster
from worlds import manifest, plan

from servingplan.calibration.readings import Chosen, Found, Readings
from servingplan.controller import demands
from servingplan.controller.learn import sent, weighted
from servingplan.controller.memory import recall
from servingplan.controller.plan_metrics import of_status
from servingplan.controller.policy import Policy
from servingplan.controller.table import full_table
from servingplan.planning.problem import Choice

KEY = "llm/chat"
WINDOW_S = 300.0
NO_MONEY = {"perDollar": 0, "perSecond": "0.01"}


class Picking:
    """Readings of pickers that send fixed shares of a class, as chance will have it in each window."""

    def __init__(self, requests=2000, gain=0.05, **shares):
        self.requests, self.gain, self.shares = requests, gain, shares

    def __call__(self, seen, now_s):
        models = list(self.shares)
        sent = random.Random(now_s // WINDOW_S).choices(models, list(self.shares.values()), k=self.requests)
        shares = {model: sent.count(model) / self.requests for model in models}
        chosen = Chosen("chat", float(self.requests), shares, dict.fromkeys(models, self.gain), WINDOW_S)
        return Readings(Found.FOUND, taken_s=now_s, chosen={"chat": chosen})


def online(picking, small="0.68", policy="Online", prices=None):
    body = manifest(router={"policy": policy} | ({"prices": prices} if prices else {}))
    body["spec"]["models"][1]["quality"]["default"] = small
    return Cluster([plan(body)], readings=picking, policy=Policy(tick_s=5, cycle_s=60))


def run(cluster, seconds, tick_s=20.0):
    for _ in range(int(seconds / tick_s)):
        cluster.look(tick_s)


def route(cluster):
    return cluster.plans[0].status["routes"][0]


def distance(cluster):
    return of_status(cluster.plans[0].status)["servingplan_share_distance"]["chat",]


def test_the_shares_distance_from_the_plan_shrinks_when_it_is_made_anew():
    cluster = online(None, prices=NO_MONEY)
    cluster.rest()
    assert route(cluster)["weights"] == {"large": "1"}
    assert "distance" not in route(cluster)
    cluster.readings = Picking(large=0.6, small=0.4)
    cluster.look()
    assert distance(cluster) == pytest.approx(0.4, abs=0.04)
    run(cluster, 2400)
    assert distance(cluster) <= 0.05
    assert float(route(cluster)["weights"]["small"]) == pytest.approx(0.4, abs=0.05)
    objective = cluster.plans[0].status["objective"]
    assert float(objective["quality"]) == pytest.approx(0.6 * 0.7 + 0.4 * 0.68, abs=0.002)
    assert float(objective["choice"]) == pytest.approx(0.042, abs=0.004)
    assert float(objective["bound"]) >= float(objective["quality"]) + float(objective["choice"]) - 1e-4
    assert any("pickers send of class chat" in said for each in cluster.decisions[KEY] for said in each.news)
    assert {setup["model"] for setup in cluster.plans[0].status["allocations"] if setup["ready"]} == {"large", "small"}


def test_what_costs_more_quality_than_the_choice_is_worth_is_not_followed():
    cluster = online(Picking(large=0.6, small=0.4), small="0.5")
    run(cluster, 1800)
    assert route(cluster)["weights"] == {"large": "1"}
    assert distance(cluster) == pytest.approx(0.4, abs=0.05)


@pytest.mark.parametrize(("prices", "small"), [(NO_MONEY, 0.0), (None, 0.5)])
def test_money_that_pickers_save_is_followed_as_far_as_the_plan_weighs_it(prices, small):
    cluster = online(Picking(gain=0.0, large=0.5, small=0.5), small="0.68", prices=prices)
    run(cluster, 1800)
    assert float(route(cluster)["weights"].get("small", 0)) == pytest.approx(small, abs=0.05)


def test_chance_changes_nothing_for_an_hour():
    cluster = online(Picking(requests=300, large=0.6, small=0.4))
    run(cluster, 2400)
    settled = cluster.plans[0].status
    run(cluster, 3600)
    after = cluster.plans[0].status
    assert (after["history"], after["routes"][0]["picked"]) == (settled["history"], settled["routes"][0]["picked"])


def test_a_restart_or_a_silence_forgets_nothing():
    cluster = online(Picking(large=0.6, small=0.4))
    run(cluster, 2400)
    weights, picked = route(cluster)["weights"], route(cluster)["picked"]
    held = recall(cluster.plans[0]).choices["chat"]
    assert held.shares.keys() == {"large", "small"}
    for silence in (None, lambda seen, now_s: Readings(Found.UNREACHABLE, error="gone")):
        cluster.readings = silence
        run(cluster, 1200)
        assert (route(cluster)["weights"], route(cluster)["picked"]) == (weights, picked)


def test_by_the_weights_nothing_is_remembered_of_any_picker():
    cluster = online(Picking(large=0.6, small=0.4))
    run(cluster, 1200)
    body = manifest(router={"policy": "Weights"})
    cluster.change(body)
    run(cluster, 600)
    assert route(cluster) == {"class": "chat", "weights": {"large": "1"}, "shed": "0"}
    assert "choice" not in cluster.plans[0].status["objective"]


def seen_case(cluster):
    from servingplan.controller.case import case_of

    return case_of(cluster.plans[0], (cluster.plans[0],), cluster.world(), recall(cluster.plans[0]))


def test_the_planner_is_told_shares_and_what_they_are_worth():
    cluster = online(Picking(gain=0.3, large=0.6, small=0.4))
    cluster.look()
    asked = demands.planned(seen_case(cluster)).classes[0]
    assert asked.chosen.keys() == {"large", "small"}
    assert {each.worth for each in asked.chosen.values()} == {0.1}
    assert asked.chosen["small"] == Choice(pytest.approx(0.4, abs=0.04), 0.1)


def test_a_table_of_weights_says_nothing_that_live_metrics_correct():
    (weights, picked) = (online(None, policy=policy) for policy in ("Weights", "Online"))
    for cluster in (weights, picked):
        cluster.look()
    plain, full = (full_table(seen_case(cluster), None, {}) for cluster in (weights, picked))
    assert {pool.engine for model in plain.models for pool in model.pools} == {None}
    assert all(pool.engine for model in full.models for pool in model.pools)
    case = seen_case(weights)
    slower = replace(case, memory=replace(case.memory, demand=_longer(case.memory.demand)))
    assert full_table(slower, None, {}) == plain


def _longer(memory):
    from servingplan.calibration.demand import Held

    return replace(memory, classes={"chat": Held(20.0, 20.0, prompt_factor=2.0, output_factor=3.0)})


def test_lengths_are_learnt_from_where_pickers_really_send_a_class():
    pools = {("large", "a"): "la", ("large", "b"): "lb", ("small", "c"): "sc", ("tiny", "d"): "td"}
    published = SimpleNamespace(
        classes=[
            SimpleNamespace(name="chat", weights={"la": 250_000, "lb": 750_000}),
            SimpleNamespace(name="code", weights={"sc": 1_000_000}),
        ]
    )
    ready = {("large", "a"): 1, ("large", "b"): 1, ("small", "c"): 2, ("tiny", "d"): 0}
    chosen = {"chat": Chosen("chat", 100.0, {"large": 0.4, "small": 0.5, "tiny": 0.1}, {}, WINDOW_S)}
    seen = SimpleNamespace(published=published, pools=pools, ready=ready, readings=Readings(Found.FOUND, chosen=chosen))
    shares = sent(seen)
    assert shares["chat"] == pytest.approx({"la": 0.1, "lb": 0.3, "sc": 0.5})
    assert shares["code"] == {"sc": 1.0}
    assert weighted(seen)["chat"] == {"la": 0.25, "lb": 0.75}
