"""From what is seen to what is wanted."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from cluster import Cluster
from worlds import H100, L40S, deployment, foreign, manifest, node, plan, pod, world

from servingplan.api.routing_table import WEIGHT_TOTAL
from servingplan.controller.decide import decide
from servingplan.controller.policy import Policy
from servingplan.render import names

LARGE, SMALL = ("large", "tp2"), ("small", "l40s")
KEY = "llm/chat"


def decide_of(seen):
    return decide(seen, Policy())


def decision(seen):
    return decide(seen, Policy())[KEY]


def test_a_new_plan_starts_its_replicas_and_routes_nothing_yet():
    found = decision(world())
    assert found.target[LARGE] > 0
    assert found.asked == found.target
    assert found.table.classes[0].weights == {}


def test_a_ready_replica_gets_all_the_weight_while_others_start():
    seen = plan()
    found = decision(world(seen, pods=(pod(seen, *SMALL, node="n2", requests={"nvidia.com/gpu": 1}),)))
    assert found.table.classes[0].weights == {}, "the plan asks for no small replica, so the one that runs is leaving"
    found = decision(world(seen, pods=(pod(seen, *LARGE),), children=deployment(seen, *LARGE, 2)))
    assert found.table.classes[0].weights == {names.pool_name("chat", *LARGE): WEIGHT_TOTAL}


def test_a_terminating_pod_gets_no_weight():
    seen = plan()
    found = decision(world(seen, pods=(pod(seen, *LARGE, terminating=True),), children=deployment(seen, *LARGE, 2)))
    assert found.ready[LARGE] == 0
    assert found.table.classes[0].weights == {}


def test_old_replicas_serve_on_until_the_new_ones_are_ready_and_no_router_sends_there():
    models = manifest()["spec"]["models"]
    models[0]["setups"][0]["maxReplicas"] = 0
    cluster = Cluster([plan(manifest(models=models))])
    assert cluster.rest().ready[SMALL] > 0
    old = cluster.decisions[KEY][-1].ready[SMALL]
    cluster.change(manifest())
    before = len(cluster.decisions[KEY])
    end = cluster.rest()
    assert end.ready[SMALL] == 0
    assert end.table.classes[0].shares == {"large": 1.0}
    large, small = names.pool_name("chat", *LARGE), names.pool_name("chat", *SMALL)
    for step, found in enumerate(cluster.decisions[KEY][before:], before):
        weights = found.table.classes[0].weights
        assert not weights.get(large) or found.ready[LARGE] > 0
        if found.asked[SMALL] < old:
            assert cluster.decisions[KEY][step - 1].table.classes[0].weights.get(small, 0) == 0


def test_a_limit_holds_while_pods_on_their_way_out_still_hold_units():
    accelerators = manifest()["spec"]["accelerators"]
    accelerators[0]["limit"] = 4
    seen = plan(manifest(accelerators=accelerators, requestClasses=[{"name": "chat", "rate": 15}]))
    free = decision(world(seen))
    assert free.asked[LARGE] * 2 <= 4
    leaving = tuple(pod(seen, *LARGE, number, terminating=True) for number in range(2))
    assert decision(world(seen, pods=leaving)).asked[LARGE] == 0
    lost = (node("n1", H100, 8, schedulable=False), node("n3", H100, 8), node("n2", L40S, 4))
    assert decision(world(seen, pods=leaving, nodes=lost)).asked == free.asked


def test_accelerators_of_foreign_pods_are_not_free():
    found = decision(world(pods=(foreign("training", "n1", 7),)))
    assert found.target[LARGE] == 0
    assert found.target[SMALL] > 0


@pytest.mark.parametrize("change", [{"schedulable": False}, {"labels": {}}, {"allocatable": {}}], ids=str)
def test_a_node_that_cannot_take_pods_offers_nothing(change):
    seen = world(nodes=(node("n1", H100, 8, **change), node("n2", L40S, 4)))
    assert decision(seen).target[LARGE] == 0
    assert "h100" in decision(seen).unmatched


def test_the_pods_of_a_held_plan_keep_their_accelerators():
    held = plan(manifest("held", mode="Paused"))
    pods = tuple(pod(held, *LARGE, number) for number in range(4))
    found = decide_of(world(plan(), held, pods=pods))
    assert set(found) == {KEY}
    assert found[KEY].target[LARGE] == 0


def test_two_plans_are_decided_together():
    rate = [{"name": "chat", "rate": 150}]
    one, two = plan(manifest(requestClasses=rate)), plan(manifest("other", requestClasses=rate))
    found = decide_of(world(one, two))
    units = sum(a.units for each in found.values() for a in each.planned.allocations)
    assert 0 < units <= 12


def test_a_request_that_names_a_model_reaches_its_replicas_whatever_the_class_weights():
    seen = plan(manifest(requestClasses=[{"name": "chat", "rate": 1}]))
    pods = (pod(seen, *LARGE), pod(seen, *SMALL, node="n2", requests={"nvidia.com/gpu": 1}))
    models = manifest()["spec"]["models"]
    models[1]["setups"][0]["minReplicas"] = 1
    seen = plan(manifest(requestClasses=[{"name": "chat", "rate": 1}], models=models))
    children = deployment(seen, *LARGE, 1) | deployment(seen, *SMALL, 1)
    table = decision(world(seen, pods=pods, children=children)).table
    assert table.classes[0].shares == {"large": 1.0}
    assert table.models[1].weights == {names.pool_name("chat", *SMALL): WEIGHT_TOTAL}


def test_a_class_without_demand_still_has_a_way():
    seen = plan(
        manifest(
            requestClasses=[{"name": "chat", "rate": 1}, {"name": "rare", "rate": 0, "match": {"headers": {"x-class": "rare"}}}]
        )
    )
    table = decision(world(seen, pods=(pod(seen, *LARGE),), children=deployment(seen, *LARGE, 1))).table
    assert {entry.name: bool(entry.weights) for entry in table.classes} == {"chat": True, "rare": True}


def test_what_the_plan_refuses_is_refused_and_no_more():
    seen = plan(manifest(requestClasses=[{"name": "chat", "rate": 5000}]))
    starting = decision(world(seen, pods=(pod(seen, *LARGE),), children=deployment(seen, *LARGE, 4)))
    assert 0 < starting.table.classes[0].shed < 1
    assert starting.table.classes[0].shed == pytest.approx(starting.planned.routes[0].shed, abs=1e-6)


def test_the_class_without_headers_stands_last():
    classes = [
        {"name": "rest", "rate": 1},
        {"name": "code", "rate": 1, "match": {"headers": {"x-request-class": "code"}}},
    ]
    table = decision(world(plan(manifest(requestClasses=classes)))).table
    assert [entry.name for entry in table.classes] == ["code", "rest"]


def test_equal_worlds_in_any_order_have_equal_decisions():
    plans = [plan(), plan(manifest("other")), plan(manifest("third", "elsewhere"))]
    pods = [pod(plans[0], *LARGE, number) for number in range(3)]
    seen = world(*plans, pods=tuple(pods), nodes=(node("n1", H100, 8), node("n2", L40S, 4), node("n3", H100, 8)))
    expected = decide(seen, Policy())
    chance = random.Random(3)

    def shuffled(items):
        return tuple(chance.sample(items, len(items)))

    for _ in range(3):
        again = replace(seen, plans=shuffled(seen.plans), pods=shuffled(seen.pods), nodes=shuffled(seen.nodes))
        assert decide(again, Policy()) == expected
