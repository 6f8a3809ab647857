"""What a plan is told about itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
from worlds import H100, deployment, manifest, node, plan, pod, world

from servingplan.controller.decide import decide
from servingplan.controller.status import status
from servingplan.controller.world import Measured, Pod, Served
from servingplan.render import names

LARGE = ("large", "tp2")
KEY = "llm/chat"
NOW = "2026-01-01T00:00:00Z"


def reported(seen, stamp="abc.0"):
    (target,) = [each for each in seen.plans if each.key == KEY]
    return status(target, decide(seen).get(KEY), seen, stamp, lambda: NOW)


def condition(found, kind):
    return next(entry for entry in found["conditions"] if entry["type"] == kind)


def serving(**changes):
    """A world in which the plan is in place."""
    seen = plan()
    target = decide(world(seen))[KEY].target[LARGE]
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
    ],
    ids=["no router", "silent router", "an old table", "another revision"],
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
    again = replace(seen, plans=(replace(target, status=first),))
    assert status(again.plans[0], decide(again)[KEY], again, "abc.0", lambda: "2027-01-01T00:00:00Z") == first


def test_a_decision_with_other_replicas_opens_the_history():
    seen = serving()
    first = reported(seen)
    assert [entry["reason"] for entry in first["history"]] == ["first plan"]
    more = plan(manifest(requestClasses=[{"name": "chat", "rate": 60}]), status=first, generation=2)
    found = reported(replace(seen, plans=(more,)))
    assert [entry["reason"] for entry in found["history"]] == ["generation 2 of the spec", "first plan"]
    assert found["history"][0]["replicas"] != found["history"][1]["replicas"]


def measured(ttft_p95_s: float) -> Measured:
    pool = names.pool_name("chat", *LARGE)
    return Measured(ttft_mean_s={pool: 0.1}, ttft_p95_s={pool: ttft_p95_s}, inter_token_mean_s={pool: 0.02}, found=True)


def test_measured_latency_is_held_against_the_slo():
    assert condition(reported(serving(measured={KEY: measured(0.5)})), "SLOMet")["status"] == "True"
    late = condition(reported(serving(measured={KEY: measured(0.9)})), "SLOMet")
    assert late["status"] == "False"
    assert "TTFT 0.90 s, bound 0.8 s" in late["message"]


@pytest.mark.parametrize(
    ("seen", "reason"),
    [(Measured(error="refused"), "PrometheusUnreachable"), (Measured(), "MetricsMissing")],
    ids=["away", "empty"],
)
def test_missing_metrics_are_said_and_not_taken_for_good_latency(seen, reason):
    found = reported(serving(measured={KEY: seen}))
    assert condition(found, "MetricsAvailable")["reason"] == reason
    assert condition(found, "SLOMet")["status"] == "Unknown"
    assert condition(found, "Ready")["status"] == "True"


def test_a_measured_figure_that_moves_little_is_not_written_again():
    seen = serving(measured={KEY: measured(0.5)})
    first = reported(seen)
    known = (replace(seen.plans[0], status=first),)
    assert reported(replace(seen, plans=known, measured={KEY: measured(0.52)})) == first
    moved = reported(replace(seen, plans=known, measured={KEY: measured(0.7)}))
    assert moved["allocations"][0]["observed"]["ttftP95"] == "0.7"


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
    first = reported(serving(measured={KEY: measured(0.5)}))
    known = (replace(serving().plans[0], status=first),)
    assert reported(serving(plans=known, measured={KEY: Measured(awaited=True)})) == first
