"""One plan as decisions are made of it: what is asked, what stands, what is remembered."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from servingplan.api import v1alpha1
from servingplan.api.routing_table import RoutingTable
from servingplan.calibration.readings import Readings
from servingplan.controller.memory import Memory, SetupKey
from servingplan.controller.world import PlanObject, Pod, World
from servingplan.render import names
from servingplan.render.vllm import COMPONENT as MODEL_SERVER


@dataclass(frozen=True, slots=True)
class Case:
    """A plan that is decided upon, with what is known of it.

    Attributes:
        pools: Pool name by (model, setup), in the order of the spec.
        ready: Replicas that are ready and stay.
        running: Replicas that the Deployments ask for.
        denied: Why pods of a setup are not even created, as quotas and admission say it; empty where they are.
        free: Units by accelerator and node that the plan's pods may take.
        published: The routing table that stands; None where there is none.
        synced: Whether every ready router serves it.
        unreached: Pools with a ready replica of which some router knows none yet.
    """

    plan: PlanObject
    memory: Memory
    readings: Readings
    pools: dict[SetupKey, str]
    pods: dict[str, tuple[Pod, ...]]
    ready: dict[SetupKey, int]
    running: dict[SetupKey, int]
    denied: dict[SetupKey, str]
    free: dict[str, dict[str, int]]
    published: RoutingTable | None
    synced: bool
    unreached: frozenset[str]

    @property
    def key(self) -> str:
        """``namespace/name``."""
        return self.plan.key

    @property
    def spec(self) -> v1alpha1.ModelServingPlanSpec:
        """The spec, which every plan that is decided upon has."""
        assert self.plan.spec is not None, "only plans that can be read are decided upon"
        return self.plan.spec

    @property
    def setups(self) -> dict[SetupKey, v1alpha1.Setup]:
        """Every setup."""
        return {(model.name, setup.name): setup for model in self.spec.models for setup in model.setups}

    @property
    def waits(self) -> bool:
        """Whether changes wait for an approval."""
        return self.spec.mode == "Recommend"

    @property
    def fresh(self) -> bool:
        """Whether the spec has not been decided upon yet."""
        if self.waits:
            approval = self.memory.approval
            return approval is None or approval.generation != self.plan.generation
        return self.memory.generation != self.plan.generation


def case_of(plan: PlanObject, active: tuple[PlanObject, ...], world: World, memory: Memory) -> Case:
    """The case of a plan among all that are decided upon."""
    assert plan.spec is not None, "only plans that can be read are decided upon"
    pools = {
        (model.name, setup.name): names.pool_name(plan.owner.name, model.name, setup.name)
        for model in plan.spec.models
        for setup in model.setups
    }
    pods: dict[str, list[Pod]] = {name: [] for name in pools.values()}
    for pod in world.pods_of(plan.key, MODEL_SERVER):
        pods.setdefault(pod.pool, []).append(pod)
    serving = Counter(pod.pool for members in pods.values() for pod in members if pod.serves)
    deployments = {name: body for (kind, _, name), body in world.children_of(plan).items() if kind == "Deployment"}
    published, stamp = world.published(plan)
    return Case(
        plan=plan,
        memory=memory,
        readings=world.readings_of(plan.key),
        pools=pools,
        pods={name: tuple(members) for name, members in pods.items()},
        ready={key: serving[name] for key, name in pools.items()},
        running={
            key: int(deployments[name]["spec"].get("replicas", 0)) if name in deployments else 0 for key, name in pools.items()
        },
        denied={key: _denied(deployments.get(name)) for key, name in pools.items()},
        free=_free_units(plan, active, world),
        published=published,
        synced=not world.behind(plan.key, stamp) and not world.silent(plan.key),
        unreached=frozenset(world.unreached(plan.key)),
    )


def _denied(deployment: dict[str, Any] | None) -> str:
    conditions = deployment.get("status", {}).get("conditions", []) if deployment else []
    return str(conditions[0]["message"]) if conditions else ""


def _free_units(plan: PlanObject, active: tuple[PlanObject, ...], world: World) -> dict[str, dict[str, int]]:
    """Units by accelerator and node that are allocatable and not requested by pods that no active plan owns."""
    assert plan.spec is not None, "only plans that can be read are decided upon"
    owners = {other.key for other in active}
    taken: dict[tuple[str, str], int] = {}
    for pod in world.pods:
        if pod.finished or not pod.node or (pod.plan_key in owners and pod.component == MODEL_SERVER):
            continue
        for resource, units in pod.requests.items():
            taken[pod.node, resource] = taken.get((pod.node, resource), 0) + units
    return {
        kind.name: {
            node.name: max(0, node.allocatable[kind.resource] - taken.get((node.name, kind.resource), 0))
            for node in sorted(world.nodes, key=lambda node: node.name)
            if node.schedulable and kind.resource in node.allocatable and kind.node_selector.items() <= node.labels.items()
        }
        for kind in plan.spec.accelerators
    }
