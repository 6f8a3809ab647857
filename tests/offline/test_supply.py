"""GPUs as they are counted, from nodes and from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from servingplan.api.load import Rejected, parse
from servingplan.offline.documents import Found
from servingplan.offline.plans import GivenPlan
from servingplan.offline.supply import units_by_count, units_on_nodes, units_within_limits

Edit = Callable[..., dict[str, Any]]


def given(plan: dict[str, Any], name: str = "chat") -> GivenPlan:
    parsed = parse(plan)
    assert not isinstance(parsed, Rejected), parsed
    return GivenPlan("default", name, parsed.spec, {})


def node(name: str, gpu: str, units: int, *, ready: str = "True", **spec: Any) -> Found:
    body = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"gpu": gpu}},
        "spec": spec,
        "status": {
            "allocatable": {"cpu": "64", "nvidia.com/gpu": str(units)},
            "conditions": [{"type": "Ready", "status": ready}],
        },
    }
    return Found(name, body)


def pod(name: str, node_name: str, units: int, **labels: str) -> Found:
    container = {"name": "c", "resources": {"limits": {"nvidia.com/gpu": str(units)}}}
    metadata = {"name": name, "namespace": "default", "labels": labels}
    body = {"kind": "Pod", "metadata": metadata, "spec": {"nodeName": node_name, "containers": [container]}}
    return Found(name, body)


def test_nodes_count_by_their_labels_if_they_are_ready_and_not_cordoned(plan_with: Edit) -> None:
    nodes = [
        node("b", "h100", 8),
        node("a", "h100", 4),
        node("c", "l40s", 4),
        node("down", "h100", 8, ready="Unknown"),
        node("cordoned", "h100", 8, unschedulable=True),
    ]
    free = units_on_nodes([given(plan_with({}))], nodes)
    assert free == {"default/chat": {"h100": {"a": 4, "b": 8}, "l40s": {"c": 4}}}


def test_pods_of_others_are_counted_off_and_the_plans_own_are_not(plan_with: Edit) -> None:
    mine = {"app.kubernetes.io/managed-by": "servingplan", "servingplan.io/plan": "chat"}
    objects = [node("a", "h100", 8), pod("batch", "a", 3), pod("pending", "", 8), pod("mine", "a", 4, **mine)]
    assert units_on_nodes([given(plan_with({}))], objects)["default/chat"]["h100"] == {"a": 5}


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("h100=16", {"h100-0": 8, "h100-1": 8}),
        ("h100=11", {"h100-0": 8, "h100-1": 3}),
        ("h100=3x2", {"h100-0": 2, "h100-1": 2, "h100-2": 2}),
        ("h100=0", {}),
    ],
)
def test_a_count_stands_for_nodes(text: str, nodes: dict[str, int], plan_with: Edit) -> None:
    assert units_by_count([given(plan_with({}))], [text])["default/chat"] == {"h100": nodes, "l40s": {}}


def test_plans_that_mean_the_same_gpus_share_them_whatever_they_call_them(plan_with: Edit) -> None:
    other = plan_with({"spec.accelerators.0.name": "hopper", "spec.models.0.setups.0.accelerator": "hopper"})
    free = units_by_count([given(plan_with({})), given(other, "search")], ["h100=8"])
    assert free["default/search"]["hopper"] == free["default/chat"]["h100"] == {"h100-0": 8}


def test_limits_stand_for_gpus_where_nothing_else_is_said(plan_with: Edit) -> None:
    assert units_within_limits([given(plan_with({}))]) == {"default/chat": {"h100": {"h100": 8}, "l40s": {"l40s": 4}}}


def test_a_list_of_kubectl_is_read_as_yaml_and_as_json(desk: Any, plan_with: Edit) -> None:
    desk.write("plan.yaml", plan_with({}))
    listed = {"apiVersion": "v1", "kind": "List", "items": [node("a", "h100", 8).body, node("b", "l40s", 4).body]}
    desk.write("nodes.yaml", yaml.safe_dump(listed))
    desk.write("nodes.json", json.dumps(listed))
    counted = desk.run("plan", "-f", "plan.yaml", "--gpus", "h100=8", "--gpus", "l40s=4", "-o", "json")
    for name in ("nodes.yaml", "nodes.json"):
        ended = desk.run("plan", "-f", "plan.yaml", "--nodes", name, "-o", "json")
        assert (ended.status, ended.err) == (0, "")
        assert json.loads(ended.out)["allocations"] == json.loads(counted.out)["allocations"]


def test_an_accelerator_of_which_there_is_none_is_noted(desk: Any, plan_with: Edit) -> None:
    desk.write("plan.yaml", plan_with({}))
    ended = desk.run("plan", "-f", "plan.yaml", "--gpus", "h100=8")
    assert ended.err == "note: plan default/chat: there is no l40s, so nothing can run on it\n"
