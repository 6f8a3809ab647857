"""From what is seen to what is wanted: replicas to ask for, and weights for the replicas that stand.

1. Every plan that can be read becomes a demand; one that cannot, is paused, or lacks something it names is *held*: its replicas
   stay, and the units that its pods request are not for others.
2. One solve over all plans chooses the target replicas (``planning.solve``).
3. One step towards the targets (``planning.transition``).
4. One solve per plan with the replicas that are ready, and will not be taken away by the step, gives its weights.

Pure: equal worlds give equal decisions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from servingplan.api import v1alpha1
from servingplan.api.routing_table import ClassEntry, ModelEntry, Pool, RoutingTable, whole_weights
from servingplan.controller.world import PlanObject, World
from servingplan.planning.build import plan_demand, service_level
from servingplan.planning.prices import TEMPERATURE
from servingplan.planning.problem import Plan, PlanDecision, PlanDemand, Problem, Standing
from servingplan.planning.solve import solve
from servingplan.planning.transition import SetupState, step
from servingplan.render import names
from servingplan.render.vllm import COMPONENT as MODEL_SERVER

SetupKey = tuple[str, str]
_IDLE_RPS = 1e-3


@dataclass(frozen=True, slots=True)
class Decision:
    """What is wanted of one plan.

    Attributes:
        target: Replicas by (model, setup) that the plan ends at.
        asked: Replicas by (model, setup) to ask for now.
        ready: Replicas by (model, setup) that are ready now.
        planned: The answer for the targets.
        table: The routing table for the replicas that stand now.
        unmatched: Accelerators that no node matches.
        surge: Setups whose pods may be renewed one up before one down, because their nodes have room.
        solver_status: How the solve ended.
        gap: Relative distance between what was found and the proven bound.
    """

    plan: PlanObject
    target: dict[SetupKey, int]
    asked: dict[SetupKey, int]
    ready: dict[SetupKey, int]
    planned: PlanDecision
    table: RoutingTable
    unmatched: tuple[str, ...]
    surge: frozenset[SetupKey]
    solver_status: str
    gap: float


Solver = Callable[[Problem], Plan]


def decide(world: World, solver: Solver = solve) -> dict[str, Decision]:
    """Decisions by plan key; plans that are held have none.

    Args:
        world: What is seen.
        solver: ``planning.solve.solve``, or one that remembers its answers.
    """
    active = tuple(plan for plan in sorted(world.plans, key=lambda plan: plan.key) if held_because(plan) == "")
    if not active:
        return {}
    free = {plan.key: _free_units(plan, active, world) for plan in active}
    demands = tuple(plan_demand(plan.key, _spec(plan), plan.profiles, free[plan.key], _running(world, plan)) for plan in active)
    planned = solver(Problem(demands))
    targets = {(plan.key, a.model, a.setup): a.replicas for plan in active for a in planned.of(plan.key).allocations}
    ready = _ready(world, active)
    asked = _next_step(active, world, targets, ready, free)
    standing = {key: min(ready[key], asked[key]) for key in targets}
    found = {}
    for plan, demand in zip(active, demands, strict=True):
        served = _served_part(demand, planned.of(plan.key))
        sharing = solver(Problem((served,), standing=Standing(standing, _strictest(plan, planned)))).of(plan.key)

        def mine(by_setup: dict[tuple[str, str, str], int], key: str = plan.key) -> dict[SetupKey, int]:
            return {(model, setup): count for (owner, model, setup), count in by_setup.items() if owner == key}

        found[plan.key] = Decision(
            plan=plan,
            target=mine(targets),
            asked=mine(asked),
            ready=mine(ready),
            planned=planned.of(plan.key),
            table=_table(plan, planned.of(plan.key), sharing),
            unmatched=tuple(name for name, units in sorted(free[plan.key].items()) if not units),
            surge=_with_room(plan, planned.of(plan.key), free[plan.key]),
            solver_status=planned.status,
            gap=planned.gap,
        )
    return found


def _strictest(plan: PlanObject, planned: Plan) -> dict[tuple[str, str, str], str]:
    """The class that the plan keeps each setup strict for: who may share a queue while replicas start and stop."""
    return {(plan.key, a.model, a.setup): a.strictest for a in planned.of(plan.key).allocations if a.strictest}


def held_because(plan: PlanObject) -> str:
    """Why a plan's replicas and weights are left as they are; empty where they are not."""
    if plan.spec is None:
        return "InvalidPlan"
    if plan.missing:
        return "ReferenceNotFound"
    if plan.spec.mode == "Paused":
        return "Paused"
    return ""


def _spec(plan: PlanObject) -> v1alpha1.ModelServingPlanSpec:
    assert plan.spec is not None, "only plans that are not held get here"
    return plan.spec


def _ready(world: World, active: tuple[PlanObject, ...]) -> dict[tuple[str, str, str], int]:
    """Replicas that are ready and stay, by plan key, model and setup."""
    pods = Counter(
        (pod.plan_key, pod.pool)
        for pod in world.pods
        if pod.component == MODEL_SERVER and pod.ready and not pod.terminating and not pod.finished
    )
    return {
        (plan.key, model.name, setup.name): pods[plan.key, names.pool_name(plan.owner.name, model.name, setup.name)]
        for plan in active
        for model in _spec(plan).models
        for setup in model.setups
    }


def _free_units(plan: PlanObject, active: tuple[PlanObject, ...], world: World) -> dict[str, dict[str, int]]:
    """Units by accelerator and node that are allocatable and not requested by pods that no active plan owns."""
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
        for kind in _spec(plan).accelerators
    }


def _next_step(
    active: tuple[PlanObject, ...],
    world: World,
    targets: dict[tuple[str, str, str], int],
    ready: dict[tuple[str, str, str], int],
    free: dict[str, dict[str, dict[str, int]]],
) -> dict[tuple[str, str, str], int]:
    states, capacity = [], {}
    for plan in active:
        spec, running = _spec(plan), _running(world, plan)
        for model in spec.models:
            for setup in model.setups:
                key = (plan.key, model.name, setup.name)
                states.append(
                    SetupState(
                        key=key,
                        pool=f"{plan.key}/{setup.accelerator}",
                        units=setup.count,
                        current=running[model.name, setup.name],
                        ready=ready[key],
                        target=targets[key],
                    )
                )
        for kind in spec.accelerators:
            allowed = _allowed_units(kind, free[plan.key])
            capacity[f"{plan.key}/{kind.name}"] = allowed - _leaving_units(plan, kind.name, world)
    for plan in active:
        _leave_to_others(plan, active, states, capacity, free)
    return step(tuple(states), capacity)


def _leaving_units(plan: PlanObject, accelerator: str, world: World) -> int:
    """Units that pods on their way out still hold; on a node that is lost they may stay for ever, and so do not count."""
    up = {node.name for node in world.nodes if node.schedulable}
    spec = _spec(plan)
    pools = {
        names.pool_name(plan.owner.name, model.name, setup.name): setup.count
        for model in spec.models
        for setup in model.setups
        if setup.accelerator == accelerator
    }
    pods = world.pods_of(plan.key, MODEL_SERVER)
    return sum(pools.get(pod.pool, 0) for pod in pods if pod.terminating and pod.node in up)


def _leave_to_others(
    plan: PlanObject,
    active: tuple[PlanObject, ...],
    states: list[SetupState],
    capacity: dict[str, int],
    free: dict[str, dict[str, dict[str, int]]],
) -> None:
    """Takes from a plan's room what the targets of other plans need on the same nodes."""
    for kind in _spec(plan).accelerators:
        nodes = set(free[plan.key][kind.name])
        for other in active:
            for theirs in _spec(other).accelerators:
                if other.key == plan.key or theirs.resource != kind.resource or not nodes & set(free[other.key][theirs.name]):
                    continue
                pool = f"{other.key}/{theirs.name}"
                capacity[f"{plan.key}/{kind.name}"] -= sum(s.units * s.target for s in states if s.pool == pool)


def _running(world: World, plan: PlanObject) -> dict[SetupKey, int]:
    """Replicas that the plan's Deployments ask for now, by model and setup."""
    children = world.children_of(plan).items()
    current = {name: int(body["spec"].get("replicas", 0)) for (kind, _, name), body in children if kind == "Deployment"}
    return {
        (model.name, setup.name): current.get(names.pool_name(plan.owner.name, model.name, setup.name), 0)
        for model in _spec(plan).models
        for setup in model.setups
    }


def _allowed_units(kind: v1alpha1.Accelerator, free: dict[str, dict[str, int]]) -> int:
    """Units of an accelerator that the plan may take: what is free, within its limit."""
    total = sum(free[kind.name].values())
    return total if kind.limit is None else min(total, kind.limit)


def _served_part(demand: PlanDemand, planned: PlanDecision) -> PlanDemand:
    """The demand less what the plan refuses: sharing out what stands must not refuse more."""
    shed = {route.request_class: route.shed for route in planned.routes}
    return replace(
        demand,
        classes=tuple(
            # A class that nobody asks for yet still needs a way: a request without a route would be an error.
            replace(entry, rate_rps=max(entry.rate_rps, _IDLE_RPS) * max(_IDLE_RPS, 1 - shed[entry.name]))
            for entry in demand.classes
        ),
    )


def _with_room(plan: PlanObject, planned: PlanDecision, free: dict[str, dict[str, int]]) -> frozenset[SetupKey]:
    """Setups for one more replica of which the accelerator has room beside all the plan's targets."""
    spec = _spec(plan)
    used: dict[str, int] = {}
    for allocation in planned.allocations:
        used[allocation.accelerator] = used.get(allocation.accelerator, 0) + allocation.units
    room = {kind.name: _allowed_units(kind, free) - used.get(kind.name, 0) for kind in spec.accelerators}
    return frozenset(
        (model.name, setup.name) for model in spec.models for setup in model.setups if room[setup.accelerator] >= setup.count
    )


def _table(plan: PlanObject, planned: PlanDecision, sharing: PlanDecision) -> RoutingTable:
    spec = _spec(plan)
    pools = {
        (model.name, setup.name): names.pool_name(plan.owner.name, model.name, setup.name)
        for model in spec.models
        for setup in model.setups
    }
    prices = {(a.model, a.setup): round(a.price, 6) for a in sharing.allocations}
    shed = {route.request_class: route.shed for route in planned.routes}
    standing = {(a.model, a.setup): a.replicas for a in sharing.allocations}
    routes = {route.request_class: route for route in sharing.routes}
    return RoutingTable(
        namespace=plan.owner.namespace,
        plan=plan.owner.name,
        generation=plan.generation,
        timeout_s=spec.router.timeout_seconds,
        temperature=TEMPERATURE,
        models=tuple(
            ModelEntry(
                name=model.name,
                pools=tuple(
                    Pool(
                        name=pools[model.name, setup.name],
                        setup=setup.name,
                        address=names.pool_address(plan.owner.namespace, pools[model.name, setup.name]),
                        port=names.VLLM_PORT,
                        price=prices.get((model.name, setup.name), 0.0),
                    )
                    for setup in model.setups
                ),
                weights=_model_weights(model, standing, pools),
            )
            for model in spec.models
        ),
        classes=tuple(
            ClassEntry(
                name=entry.name,
                headers=dict(entry.match.headers) if entry.match else {},
                weights=whole_weights({pools[key]: share for key, share in routes[entry.name].shares.items()}),
                shares={name: round(share, 6) for name, share in routes[entry.name].by_model().items()},
                shed=round(shed[entry.name], 6),
                prices={name: round(price, 6) for name, price in routes[entry.name].prices.items()},
                ttft_s=_ttft_s(entry.slo or spec.slo),
            )
            # Only one class may be without headers; last, it takes what no other class matches.
            for entry in sorted(spec.request_classes, key=lambda entry: entry.match is None)
        ),
    )


def _ttft_s(slo: v1alpha1.ServiceLevelObjective) -> float | None:
    bound = service_level(slo).ttft
    return bound.seconds if bound else None


def _model_weights(model: v1alpha1.Model, standing: dict[SetupKey, int], pools: dict[SetupKey, str]) -> dict[str, int]:
    """How requests that name the model are split over its setups: by the accelerators that stand behind each."""
    return whole_weights(
        {
            pools[model.name, setup.name]: float(standing.get((model.name, setup.name), 0) * setup.count)
            for setup in model.setups
        }
    )
