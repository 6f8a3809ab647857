"""How many accelerators there are: from nodes as kubectl prints them, from a count, or from the plans' own limits.

The answer has the shape that the controller makes from what it watches: units by accelerator and node, for every plan. Two
plans that mean the same GPUs (same resource, same node selector) get the same nodes and so compete for them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from servingplan.api import v1alpha1
from servingplan.controller.world import Node, node_of, pod_of
from servingplan.offline.documents import Found
from servingplan.offline.errors import InputError
from servingplan.offline.plans import GivenPlan, Pool, pool_of

GPUS_PER_NODE = 8
MOST_GPUS = 1_000_000

FreeUnits = dict[str, dict[str, int]]
"""Units by accelerator name and node name."""


def units_on_nodes(plans: Sequence[GivenPlan], objects: Sequence[Found]) -> dict[str, FreeUnits]:
    """Units free by plan key, from what ``kubectl get nodes -o yaml`` prints; pods that are there too are counted off.

    Raises:
        InputError: There is no node, one cannot be read, or none has what the plans ask for.
    """
    nodes = [_node(found) for found in objects if found.kind == "Node"]
    if not nodes:
        kinds = sorted({found.kind or "an object without a kind" for found in objects})
        raise InputError(f"{objects[0].source}: holds no Node, but {', '.join(kinds)}: print it with kubectl get nodes -o yaml")
    taken = _taken(objects, {plan.key for plan in plans})
    free = {plan.key: {kind.name: _matching(kind, nodes, taken) for kind in plan.spec.accelerators} for plan in plans}
    if not any(units for kinds in free.values() for units in kinds.values()):
        kind = plans[0].spec.accelerators[0]
        selector = ", ".join(f"{key}={value}" for key, value in sorted(kind.node_selector.items())) or "no labels asked for"
        raise InputError(
            f"{objects[0].source}: no node that is ready offers {kind.resource} ({selector}), as accelerator {kind.name} of"
            f" plan {plans[0].key} wants: correct its resource or nodeSelector, or give the GPUs with --gpus"
        )
    return free


def units_by_count(plans: Sequence[GivenPlan], counts: Sequence[str]) -> dict[str, FreeUnits]:
    """Units free by plan key, from ``KIND=16`` (on nodes of 8) or ``KIND=2x4`` (two nodes of four).

    Raises:
        InputError: One cannot be read, or names a kind that no plan or more than one kind of GPU has.
    """
    by_pool: dict[Pool, dict[str, int]] = {}
    for text in counts:
        name, units = _count(text)
        pools = {pool_of(kind): kind for plan in plans for kind in plan.spec.accelerators if kind.name == name}
        if not pools:
            listed = sorted({kind.name for plan in plans for kind in plan.spec.accelerators})
            raise InputError(f"--gpus {text}: no plan has an accelerator {name}, choose from {', '.join(listed)}")
        if len(pools) > 1:
            raise InputError(f"--gpus {text}: {name} means other GPUs in one plan than in another, give --nodes instead")
        (pool,) = pools
        if pool in by_pool:
            raise InputError(f"--gpus {text}: these GPUs are counted twice, give each kind once")
        by_pool[pool] = units
    return {plan.key: {kind.name: by_pool.get(pool_of(kind), {}) for kind in plan.spec.accelerators} for plan in plans}


def units_within_limits(plans: Sequence[GivenPlan]) -> dict[str, FreeUnits]:
    """Units free by plan key, where nothing is said but the plans' own limits: one pool for each accelerator.

    Raises:
        InputError: An accelerator has no limit, or plans share one.
    """
    owners: dict[Pool, str] = {}
    for plan in plans:
        for index, kind in enumerate(plan.spec.accelerators):
            if kind.limit is None:
                raise InputError(
                    f"say how many GPUs there are, with --nodes FILE or --gpus {kind.name}=N:"
                    f" plan {plan.key} sets no limit for them (spec.accelerators[{index}].limit)"
                )
            other = owners.setdefault(pool_of(kind), plan.key)
            if other != plan.key:
                raise InputError(
                    f"say how many GPUs there are, with --nodes FILE or --gpus {kind.name}=N:"
                    f" the plans {other} and {plan.key} share them, so that their limits do not tell"
                )
    return {plan.key: {kind.name: {kind.name: kind.limit or 0} for kind in plan.spec.accelerators} for plan in plans}


def check_nodes_to_lose(plans: Iterable[GivenPlan], free: dict[str, FreeUnits], source: str) -> None:
    """Refuses ``tolerateNodes`` where no node is left when one is lost.

    Raises:
        InputError: A plan that is to survive a node has no second one.
    """
    for plan in plans:
        nodes = {node for units in free[plan.key].values() for node, count in units.items() if count}
        if plan.spec.tolerate_nodes and len(nodes) < 2:
            raise InputError(
                f"spec.tolerateNodes: plan {plan.key} is to survive the loss of a node, but {source}"
                f" {'has one' if nodes else 'has none'}: give two or more, or set it to 0"
            )


def nodes_of(units: int, size: int) -> list[int]:
    """Units in nodes of one size, the last of which may have fewer."""
    whole, rest = divmod(units, size)
    return [size] * whole + ([rest] if rest else [])


def _node(found: Found) -> Node:
    body = found.body
    if not isinstance(body.get("status"), dict) or "conditions" not in body["status"]:
        # Written by hand rather than printed by kubectl: it is meant to be there.
        body = body | {"status": (body.get("status") or {}) | {"conditions": [{"type": "Ready", "status": "True"}]}}
    try:
        return node_of(body)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{found.source}: is no Node that can be read ({error!r}): print it with kubectl get nodes -o yaml"
        ) from error


def _taken(objects: Iterable[Found], planned: set[str]) -> dict[tuple[str, str], int]:
    """Units by node and resource that pods of others request; those of the plans themselves are what is being planned."""
    taken: dict[tuple[str, str], int] = {}
    for found in objects:
        if found.kind != "Pod":
            continue
        try:
            pod = pod_of(found.body)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{found.source}: is no Pod that can be read ({error!r}): print it with kubectl get pods -A -o yaml"
            ) from error
        if pod and pod.node and not pod.finished and pod.plan_key not in planned:
            for resource, units in pod.requests.items():
                taken[pod.node, resource] = taken.get((pod.node, resource), 0) + units
    return taken


def _matching(kind: v1alpha1.Accelerator, nodes: Iterable[Node], taken: dict[tuple[str, str], int]) -> dict[str, int]:
    return {
        node.name: max(0, node.allocatable[kind.resource] - taken.get((node.name, kind.resource), 0))
        for node in sorted(nodes, key=lambda node: node.name)
        if node.schedulable and kind.resource in node.allocatable and kind.node_selector.items() <= node.labels.items()
    }


def _count(text: str) -> tuple[str, dict[str, int]]:
    found = re.fullmatch(r"(?P<kind>[^=]+)=(?:(?P<nodes>\d{1,7})x)?(?P<units>\d{1,7})", text.strip())
    if not found:
        raise InputError(f"--gpus {text}: write KIND=N, such as h100=16, or KIND=NODESxGPUS, such as h100=2x8")
    name, units = found["kind"], int(found["units"])
    sizes = [units] * int(found["nodes"]) if found["nodes"] else nodes_of(units, GPUS_PER_NODE)
    if sum(sizes) > MOST_GPUS or len(sizes) > MOST_GPUS:
        raise InputError(f"--gpus {text}: give at most {MOST_GPUS} GPUs")
    return name, {f"{name}-{index}": size for index, size in enumerate(sizes) if size}
