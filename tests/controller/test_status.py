"""What a plan is told about itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
from worlds import H100, NOW_S, deployment, manifest, node, plan, pod, world

from servingplan.calibration.readings import Found, Histogram, PoolReading, Readings
from servingplan.controller.decide import decide
from servingplan.controller.policy import Policy
from servingplan.controller.status import status
from servingplan.controller.times import text_of
from servingplan.controller.world import Pod, Served
from servingplan.render import names

LARGE = ("large", "tp2")
KEY = "llm/chat"
NOW = text_of(NOW_S)


def reported(seen, stamp="abc.0"):
    (target,) = [each for each in seen.plans if each.key == KEY]
    return status(target, decide(seen, Policy()).get(KEY), seen, stamp)


def condition(found, kind):
    return next(entry for entry in found["conditions"] if entry["type"] == kind)


def serving(**changes):
    """A world in which the plan is in place."""
    seen = plan()
    target = decide(world(seen), Policy())[KEY].target[LARGE]
    pods = tuple(pod(seen, *LARGE, number) for number in range(target))
    base = world(
        seen,
        pods=pods,
        children=deployment(seen, *LARGE, target),
        served={KEY: {"router-1": Served("abc", 0, 1), "router-2": Served("abc", 0, 1)}},
    )
    return replace(base, **changes)


def test_a_plan_in_place_is_ready_and_says_what_it_is():
    found = reported(serving())
    assert condition(found, "Ready") == {
        "type": "Ready",
        "status": "True",
        "observedGeneration": 1,
        "lastTransitionTime": NOW,
        "reason": "Serving",
        "message": "",
    }
    assert condition(found, "Reconciling")["status"] == "False"
    assert condition(found, "Stalled")["status"] == "False"
    assert found["router"] == {"address": "chat-router.llm.svc:80", "ready": 2, "generation": 1, "table": "abc.0"}
    assert found["summary"]["slo"] == "TTFT p95<=0.8s"
    assert found["routes"] == [{"class": "chat", "weights": {"large": "1"}, "shed": "0"}]
    (allocation,) = found["allocations"]
    assert allocation["replicas"] == allocation["ready"] > 0


@pytest.mark.parametrize(
    ("served", "reason"),
    [
        ({}, "RouterNotReady"),
        ({KEY: {"router-1": None}}, "RouterNotReady"),
        ({KEY: {"router-1": Served("old", 0, 1), "router-2": Served("abc", 0, 1)}}, "RoutingNotSynced"),
        ({KEY: {"router-1": Served("abc", 1, 1)}}, "RoutingNotSynced"),
        ({KEY: {"router-1": Served("abc", 0, 1, frozenset({"another"}))}}, "RoutingNotSynced"),
    ],
    ids=["no router", "silent router", "an old table", "another revision", "no pod found"],
)
def test_a_plan_whose_routers_serve_another_table_is_not_ready(served, reason):
    found = reported(serving(served=served))
    assert condition(found, "Ready")["status"] == "False"
    assert condition(found, "Ready")["reason"] == reason
    assert condition(found, "Reconciling")["status"] == "True"


def test_replicas_that_start_are_waited_for_by_name():
    seen = serving()
    found = reported(replace(seen, pods=seen.pods[1:]))
    assert condition(found, "Ready")["reason"] == "Progressing"
    assert "large/tp2" in condition(found, "Ready")["message"]


def test_a_pod_that_cannot_start_is_named_with_what_the_scheduler_says():
    seen = serving()
    stuck = replace(seen.pods[0], ready=False, node="", waiting="Unschedulable: 0/2 nodes are available")
    found = reported(replace(seen, pods=(stuck, *seen.pods[1:])))
    ready = condition(found, "Ready")
    assert ready["reason"] == "PodsNotStarting"
    assert stuck.name in ready["message"]
    assert "0/2 nodes are available" in ready["message"]
    assert condition(found, "Stalled")["status"] == "True"


def test_an_infeasible_plan_is_never_ready():
    heavy = plan(manifest(requestClasses=[{"name": "chat", "rate": 9000}]))
    found = reported(world(heavy))
    assert condition(found, "Ready")["status"] == "False"
    assert condition(found, "Feasible")["reason"] == "Infeasible"
    assert "GPUs short" in condition(found, "Feasible")["message"]


def test_an_accelerator_without_a_node_is_named_with_its_labels():
    found = reported(world(nodes=()))
    assert condition(found, "Feasible")["reason"] == "NoMatchingNodes"
    assert f"accelerator h100 (nvidia.com/gpu with nvidia.com/gpu.product={H100})" in condition(found, "Feasible")["message"]


@pytest.mark.parametrize(
    ("held", "reason", "words"),
    [
        (
            plan(missing=("models[a].setups[b].profileFrom: create the ConfigMap p",)),
            "ReferenceNotFound",
            "create the ConfigMap p",
        ),
        (plan(spec=None, rejected="spec.slo: give it"), "InvalidPlan", "spec.slo: give it"),
    ],
    ids=["reference", "invalid"],
)
def test_a_plan_that_cannot_be_followed_says_why_and_keeps_its_last_state(held, reason, words):
    before = {"allocations": [{"model": "large"}], "conditions": []}
    found = reported(world(replace(held, status=before)))
    assert condition(found, "Ready")["reason"] == reason
    assert words in condition(found, "Stalled")["message"]
    assert found["allocations"] == before["allocations"]


def test_a_paused_plan_is_neither_ready_nor_stalled():
    found = reported(world(plan(manifest(mode="Paused"))))
    assert condition(found, "Ready")["status"] == "Unknown"
    assert condition(found, "Ready")["reason"] == "Paused"


def test_the_same_world_later_changes_nothing():
    seen = serving()
    first = reported(seen)
    (target,) = seen.plans
    again = replace(seen, plans=(replace(target, status=first),), now_s=NOW_S + 3600)
    assert reported(again) == first


def test_a_decision_with_other_replicas_opens_the_history():
    seen = serving()
    first = reported(seen)
    assert [entry["reason"] for entry in first["history"]] == ["first plan"]
    more = plan(manifest(requestClasses=[{"name": "chat", "rate": 60}]), status=first, generation=2)
    found = reported(replace(seen, plans=(more,)))
    assert [entry["reason"] for entry in found["history"]] == ["generation 2 of the spec", "first plan"]
    assert found["history"][0]["replicas"] != found["history"][1]["replicas"]


def measured(slow: float, found: Found = Found.FOUND) -> dict[str, Readings]:
    """A thousand requests, of which a fraction took between 0.8 and 1.2 s and the rest less."""
    ttft = Histogram((0.4, 0.8, 1.2, float("inf")), (500.0, 500.0 - 1000 * slow, 1000 * slow, 0.0), 400.0)
    reading = PoolReading(replicas=2, rate_rps=10.0, ttft=ttft, age_s=3.0)
    return {KEY: Readings(found, pools={names.pool_name("chat", *LARGE): reading}, taken_s=NOW_S)}


def test_measured_latency_is_held_against_the_slo():
    assert condition(reported(serving(readings=measured(0.02))), "SLOMet")["status"] == "True"
    late = condition(reported(serving(readings=measured(0.1))), "SLOMet")
    assert late["status"] == "False"
    assert "TTFT within 0.8 s for 90.0% of the requests, 95 % are promised" in late["message"]


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (Readings(Found.UNREACHABLE, error="refused"), "PrometheusUnreachable"),
        (Readings(Found.MISSING), "MetricsMissing"),
        (Readings(Found.STALE), "MetricsStale"),
    ],
    ids=["away", "empty", "old"],
)
def test_missing_metrics_are_said_and_not_taken_for_good_latency(seen, reason):
    found = reported(serving(readings={KEY: seen}))
    assert condition(found, "MetricsAvailable")["reason"] == reason
    assert condition(found, "SLOMet")["status"] == "Unknown"
    assert condition(found, "Ready")["status"] == "True"


def test_a_measured_figure_that_moves_little_is_not_written_again():
    seen = serving(readings=measured(0.02))
    first = reported(seen)
    assert first["allocations"][0]["observed"] == {"ttftMean": "0.4", "ttftP95": "0.775", "time": NOW}
    known = (replace(seen.plans[0], status=first),)
    assert reported(replace(seen, plans=known, readings=measured(0.03))) == first
    moved = reported(replace(seen, plans=known, readings=measured(0.2)))
    assert moved["allocations"][0]["observed"]["ttftP95"] == "1.1"


def test_router_pods_that_cannot_start_are_named_too():
    router = Pod(
        "llm", "chat-router-x", "", {}, False, False, False, "ErrImagePull: no such image", "chat", "router", "", "", {}
    )
    seen = serving()
    found = reported(replace(seen, pods=(*seen.pods, router)))
    assert "chat-router-x" in condition(found, "Ready")["message"]


def test_nodes_of_one_kind_suffice_for_a_plan_that_needs_no_other():
    found = reported(world(nodes=(node("n1", H100, 8),)))
    assert condition(found, "Feasible")["status"] == "True"


def test_a_start_of_the_operator_is_no_news_about_the_metrics():
    first = reported(serving(readings=measured(0.02)))
    known = (replace(serving().plans[0], status=first),)
    assert reported(serving(plans=known, readings={KEY: Readings(Found.AWAITED)})) == first
