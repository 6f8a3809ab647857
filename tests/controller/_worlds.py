"""Worlds to decide upon."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from servingplan.api.load import Rejected, parse
from servingplan.controller.world import Node, PlanObject, Pod, World
from servingplan.render import names
from servingplan.render.vllm import COMPONENT

NOW_S = 1_800_000_000.0
H100 = "NVIDIA-H100-80GB-HBM3"
L40S = "NVIDIA-L40S"


def manifest(name: str = "chat", namespace: str = "llm", **spec: Any) -> dict[str, Any]:
    """A plan of two models on two accelerator kinds."""

    def setup(name: str, accelerator: str, count: int, alpha: str, beta: str, gamma: str) -> dict[str, Any]:
        coefficients = {"alphaMs": alpha, "betaMs": beta, "gammaMs": gamma}
        return {"name": name, "accelerator": accelerator, "count": count, "profile": {"coefficients": coefficients}}

    base = {
        "slo": {"ttft": {"seconds": "0.8"}},
        "accelerators": [
            {"name": "h100", "nodeSelector": {"nvidia.com/gpu.product": H100}, "costPerHour": 4},
            {"name": "l40s", "nodeSelector": {"nvidia.com/gpu.product": L40S}, "costPerHour": 1},
        ],
        "models": [
            {
                "name": "large",
                "source": "org/large",
                "quality": {"default": "0.7"},
                "setups": [setup("tp2", "h100", 2, "13.7", "0.057", "0.00006")],
            },
            {
                "name": "small",
                "source": "org/small",
                "quality": {"default": "0.5"},
                "setups": [setup("l40s", "l40s", 1, "20", "0.08", "0.0001")],
            },
        ],
        "requestClasses": [{"name": "chat", "rate": 20}],
    }
    return {
        "apiVersion": "servingplan.io/v1alpha1",
        "kind": "ModelServingPlan",
        "metadata": {"name": name, "namespace": namespace, "uid": f"uid-{namespace}-{name}", "generation": 1},
        "spec": base | spec,
    }


def plan(body: dict[str, Any] | None = None, **changes: Any) -> PlanObject:
    """A plan as observed."""
    body = body or manifest()
    parsed = parse(body)
    spec = None if isinstance(parsed, Rejected) else parsed.spec
    metadata = body["metadata"]
    profiles = {(m.name, s.name): s.profile for m in spec.models for s in m.setups if s.profile} if spec else {}
    found = PlanObject(
        owner=names.Owner(metadata["namespace"], metadata["name"], metadata["uid"]),
        generation=metadata["generation"],
        spec=spec,
        rejected=parsed.message if isinstance(parsed, Rejected) else "",
        profiles=profiles,
        missing=(),
        status={},
    )
    return replace(found, **changes)


def node(name: str, product: str, units: int, **changes: Any) -> Node:
    """A node with accelerators."""
    found = Node(name, {"nvidia.com/gpu.product": product}, {"nvidia.com/gpu": units}, schedulable=True)
    return replace(found, **changes)


def pod(of: PlanObject, model: str, setup: str, number: int = 0, **changes: Any) -> Pod:
    """A ready pod of a plan's pool."""
    pool = names.pool_name(of.owner.name, model, setup)
    found = Pod(
        namespace=of.owner.namespace,
        name=f"{pool}-{number}",
        node="n1",
        requests={"nvidia.com/gpu": 2},
        ready=True,
        terminating=False,
        finished=False,
        waiting="",
        plan=of.owner.name,
        component=COMPONENT,
        pool=pool,
        address="10.0.0.1",
        annotations={},
    )
    return replace(found, **changes)


def foreign(name: str, node: str, units: int) -> Pod:
    """A pod of somebody else that holds accelerators."""
    return Pod("other", name, node, {"nvidia.com/gpu": units}, True, False, False, "", "", "", "", "", {})


def world(*plans: PlanObject, **changes: Any) -> World:
    """A world with 8 H100 and 4 L40S."""
    found = World(
        plans=plans or (plan(),),
        nodes=(node("n1", H100, 8), node("n2", L40S, 4)),
        pods=(),
        children={},
        served={},
        now_s=NOW_S,
    )
    return replace(found, **changes)


def deployment(of: PlanObject, model: str, setup: str, replicas: int) -> dict[Any, Any]:
    """A Deployment of the plan as it stands, as an entry of ``World.children``."""
    name = names.pool_name(of.owner.name, model, setup)
    body = {
        "metadata": {"name": name, "namespace": of.owner.namespace, "ownerReferences": [{"uid": of.owner.uid}]},
        "spec": {"replicas": replicas},
    }
    return {("Deployment", of.owner.namespace, name): body}
