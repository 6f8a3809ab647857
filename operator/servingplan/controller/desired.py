"""From a decision to the objects that should exist."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from servingplan.api.routing_table import RoutingTable, read_table
from servingplan.controller.decide import Decision
from servingplan.controller.settings import Settings
from servingplan.controller.world import ChildKey, World
from servingplan.planning.build import engine_profile
from servingplan.render import envoy, names, router, vllm
from servingplan.render.picker import PickerSettings

_CURRENT, _PREVIOUS = "table.json", "previous.json"


@dataclass(frozen=True, slots=True)
class Desired:
    """The objects of one plan.

    Attributes:
        pools: Deployments and Services of the model servers, by key.
        router: The router's Deployment, Service and what goes with them, by key, in the order in which they are needed.
        table: The ConfigMap with the routing table.
        stamp: What the router pods are annotated with once the table is written.
    """

    pools: dict[ChildKey, dict[str, Any]]
    router: dict[ChildKey, dict[str, Any]]
    table: dict[str, Any]
    stamp: str

    @property
    def objects(self) -> dict[ChildKey, dict[str, Any]]:
        """Everything that should exist."""
        return self.pools | self.router | {key_of(self.table): self.table}


def key_of(body: dict[str, Any]) -> ChildKey:
    """Kind, namespace and name of an object."""
    return body["kind"], body["metadata"]["namespace"], body["metadata"]["name"]


def desired(decision: Decision, world: World, settings: Settings, revision: int) -> Desired:
    """The objects that carry out a decision.

    Args:
        decision: What is wanted.
        world: What is seen; a setup that is given up keeps its objects until its last pod has ended.
        settings: Images.
        revision: Which publication of an unchanged table this is.
    """
    plan, spec = decision.plan, decision.plan.spec
    assert spec is not None, "a decision is made of a plan that could be read"
    busy = {pod.pool for pod in world.pods_of(plan.key, vllm.COMPONENT)}
    kinds = {kind.name: kind for kind in spec.accelerators}
    pools: list[dict[str, Any]] = []
    for model in spec.models:
        for setup in model.setups:
            replicas = decision.asked.get((model.name, setup.name), 0)
            pool = vllm.Pool(
                owner=plan.owner,
                model=model,
                setup=setup,
                accelerator=kinds[setup.accelerator],
                profile=engine_profile(plan.profiles[model.name, setup.name]),
                spread=spec.tolerate_nodes > 0,
            )
            if replicas > 0 or pool.name in busy:
                surge = (model.name, setup.name) in decision.surge
                pools.append(vllm.deployment(pool, replicas, vllm.VllmSettings(image=settings.vllm_image), surge=surge))
                pools.append(vllm.service(pool))
    stamp = names.table_stamp(decision.table.digest, revision)
    name = names.table_name(plan.owner.name)
    published = world.children_of(plan).get(("ConfigMap", plan.owner.namespace, name), {})
    previous = _previous(decision.table, published.get("data", {}))
    table = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": names.metadata(plan.owner, name, router.COMPONENT) | {"annotations": {names.ANNOTATION_TABLE: stamp}},
        "data": envoy.files(decision.table, revision, previous)
        | ({_PREVIOUS: previous.model_dump_json(by_alias=True) + "\n"} if previous else {}),
    }
    beside = PickerSettings(settings.picker_image, settings.picker_role) if settings.picker_image else None
    front = router.router(plan.owner, spec.router, settings.router_image, beside)
    return Desired(
        pools={key_of(body): body for body in pools},
        router={key_of(body): body for body in front},
        table=table,
        stamp=stamp,
    )


def _previous(table: RoutingTable, published: dict[str, str]) -> RoutingTable | None:
    """The table that routers may still serve, where it has pools that the new one lacks.

    It is kept in the ConfigMap, so that publishing the same table again writes the same bytes.
    """
    current = read_table(published.get(_CURRENT))
    before = read_table(published.get(_PREVIOUS)) if current and current.digest == table.digest else current
    pools = {pool.name for model in table.models for pool in model.pools}
    if before and any(pool.name not in pools for model in before.models for pool in model.pools):
        return before
    return None
