"""Mistakes that only the operator can see end in a condition that names the fix."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import yaml

GOOD_PROFILE = yaml.safe_dump({"coefficients": {"alphaMs": 6.4, "betaMs": 0.02, "gammaMs": 0.00004}})


def from_configmap(name: str, key: str = "profile.yaml") -> Callable[[dict[str, Any]], None]:
    def change(spec: dict[str, Any]) -> None:
        setup = spec["models"][0]["setups"][0]
        del setup["profile"]
        setup["profileFrom"] = {"configMapKeyRef": {"name": name, "key": key}}

    return change


def set_at(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(spec: dict[str, Any]) -> None:
        *parents, last = (int(part) if part.isdigit() else part for part in path.split("."))
        for part in parents:
            spec = spec[part]
        spec[last] = value

    return change


def pod_spec(**fields: Any) -> Callable[[dict[str, Any]], None]:
    def change(spec: dict[str, Any]) -> None:
        spec["models"][0]["setups"][0]["minReplicas"] = 1
        spec["models"][0]["template"] = {"spec": fields}

    return change


def only_h100(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    def both(spec: dict[str, Any]) -> None:
        spec["accelerators"] = spec["accelerators"][:1]
        spec["models"] = [model for model in spec["models"] if model["name"] == "qwen3-32b"]
        change(spec)

    return both


@dataclass(frozen=True)
class Case:
    name: str
    change: Callable[[dict[str, Any]], None]
    condition: str
    reason: str
    words: tuple[str, ...]


CASES = [
    Case(
        "a ConfigMap that does not exist",
        from_configmap("nowhere"),
        "Stalled",
        "ReferenceNotFound",
        ("create the ConfigMap nowhere",),
    ),
    Case(
        "a key that does not exist", from_configmap("profiles", "other"), "Stalled", "ReferenceNotFound", ("add the key other",)
    ),
    Case(
        "a profile that is no YAML",
        from_configmap("profiles", "broken"),
        "Stalled",
        "ReferenceNotFound",
        ("broken", "not YAML"),
    ),
    Case(
        "a profile with an unknown field",
        from_configmap("profiles", "wrong"),
        "Stalled",
        "ReferenceNotFound",
        ("wrong", "coefficients.alphaMs"),
    ),
    Case(
        "a quality of a class that is not there",
        set_at("models.0.quality.classes", {"poetry": 0.5}),
        "Stalled",
        "InvalidPlan",
        ("poetry",),
    ),
    Case(
        "no node of that kind",
        only_h100(set_at("accelerators.0.nodeSelector", {"nvidia.com/gpu.product": "NVIDIA-H300"})),
        "Feasible",
        "NoMatchingNodes",
        ("h100", "NVIDIA-H300"),
    ),
    Case(
        "a resource that no node has",
        only_h100(set_at("accelerators.0.resource", "amd.com/gpu")),
        "Feasible",
        "NoMatchingNodes",
        ("amd.com/gpu",),
    ),
    Case(
        "a KV cache that no request fits",
        only_h100(lambda spec: [setup["profile"].update(kvTokens=64) for setup in spec["models"][0]["setups"]]),
        "Feasible",
        "Infeasible",
        ("kvTokens",),
    ),
    Case(
        "an SLO below the unloaded latency",
        set_at("slo", {"ttft": {"seconds": 0.002}}),
        "Feasible",
        "Infeasible",
        ("TTFT 0.002 s", "unloaded"),
    ),
    Case(
        "more replicas at least than there are GPUs",
        only_h100(lambda spec: (spec["accelerators"][0].pop("limit"), spec["models"][0]["setups"][0].update(minReplicas=99))),
        "Feasible",
        "Infeasible",
        ("minReplicas of qwen3-32b/h100-tp2",),
    ),
    Case("a budget that buys nothing", set_at("budget", {"costPerHour": 0.5}), "Feasible", "Infeasible", ("cannot carry",)),
    Case(
        "an image that does not exist",
        pod_spec(containers=[{"name": "vllm", "image": "no/such:image"}]),
        "Ready",
        "PodsNotStarting",
        ("Image",),
    ),
    Case(
        "a pod that fits no node",
        pod_spec(containers=[{"name": "vllm", "resources": {"requests": {"cpu": "4000"}}}]),
        "Ready",
        "PodsNotStarting",
        ("Insufficient cpu",),
    ),
    Case(
        "a template that the API server refuses",
        pod_spec(containers=[{"name": "vllm", "imagePullPolicy": "Sometimes"}]),
        "Ready",
        "ApplyRefused",
        ("imagePullPolicy",),
    ),
    Case("a template that cannot be merged", pod_spec(containers="vllm"), "Ready", "ApplyRefused", ("containers",)),
    Case(
        "pods that admission refuses",
        pod_spec(serviceAccountName="nobody"),
        "Ready",
        "PodsNotStarting",
        ("nobody", "not found"),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_mistake_ends_in_a_condition_that_names_the_fix(case, apply, gentle_plan, operator, namespace):
    operator.apply(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "profiles"},
            "data": {"broken": "{", "wrong": "coefficients: {alphaMsec: 1}", "good": GOOD_PROFILE},
        },
        namespace=namespace,
    )
    body = copy.deepcopy(gentle_plan)
    for entry in body["spec"]["requestClasses"]:
        entry["rate"] = 1
    case.change(body["spec"])
    plan = apply(body)
    found = plan.wait(case.condition, case.reason, "True" if case.condition == "Stalled" else "False", timeout_s=30)
    for word in case.words:
        assert word in found["message"]
    assert plan.condition("Ready")["status"] == "False"


def test_a_mended_mistake_is_followed_by_serving(apply, gentle_plan, operator, namespace):
    body = copy.deepcopy(gentle_plan)
    from_configmap("late", "good")(body["spec"])
    plan = apply(body)
    plan.wait("Stalled", "ReferenceNotFound")
    operator.apply(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "late"}, "data": {"good": GOOD_PROFILE}},
        namespace=namespace,
    )
    plan.wait(timeout_s=90)
