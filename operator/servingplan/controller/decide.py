"""From what is seen to what is wanted: replicas to ask for, and weights for the replicas that stand.

1. Every plan that can be read becomes a case; one that cannot, is paused, or lacks something it names is *held*: its replicas
   stay, and the units that its pods request are not for others.
2. What was measured is learnt (``controller.learn``), and what does not start is given up (``controller.failing``).
3. One choice over all plans says which replicas are wanted (``controller.choose``).
4. One step towards them (``planning.transition``): growth now, the rest when nothing is sent there any more.
5. One solve per plan with the replicas that are ready, and will not be taken away, gives its weights; the published ones follow
   them step by step (``controller.shift``).

Pure: equal worlds give equal decisions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from servingplan.api import plan_status, v1alpha1
from servingplan.api.routing_table import RoutingTable
from servingplan.controller import demands, recommend
from servingplan.controller.case import Case, case_of
from servingplan.controller.choose import Cause, Chosen, Key, Solver, choose
from servingplan.controller.failing import given_up
from servingplan.controller.learn import Learnt, learnt
from servingplan.controller.memory import Kept, Memory, SetupKey, recall
from servingplan.controller.policy import Policy
from servingplan.controller.shift import stepped
from servingplan.controller.table import full_table
from servingplan.controller.world import PlanObject, World
from servingplan.planning.compiled import SolverFailed
from servingplan.planning.problem import PlanDecision, PlanDemand, Problem, Standing
from servingplan.planning.solve import solve
from servingplan.planning.transition import SetupState, step


@dataclass(frozen=True, slots=True)
class Decision:
    """What is wanted of one plan.

    Attributes:
        target: Replicas by (model, setup) that the plan ends at.
        asked: Replicas by (model, setup) to ask for now.
        ready: Replicas by (model, setup) that are ready now.
        planned: The answer for the targets, at the rates that are planned for; None where no plan was found in time.
        sharing: The answer for what stands, at the rates that are routed.
        table: The routing table to publish now.
        settled: Whether its weights are where they end, and every ready router serves them and knows where to send them.
        unmatched: Accelerators that no node matches.
        surge: Setups whose pods may be renewed one up before one down, because their nodes have room.
        memory: What is to be remembered.
        cause: Why the target is what it is.
        news: What moved enough to plan anew for, one phrase each.
        burning: Bounds that are being missed, one phrase each.
        proved: Whether the last search for replicas ended with its proof.
        gap: Relative distance between what was found and the proven bound.
        proposal: What would be done, in mode Recommend.
        approval: What was approved; None in other modes.
    """

    plan: PlanObject
    target: dict[SetupKey, int]
    asked: dict[SetupKey, int]
    ready: dict[SetupKey, int]
    planned: PlanDecision | None
    sharing: PlanDecision | None
    table: RoutingTable
    settled: bool
    unmatched: tuple[str, ...]
    surge: frozenset[SetupKey]
    memory: Memory
    cause: Cause
    news: tuple[str, ...]
    burning: tuple[str, ...]
    proved: bool
    gap: float
    proposal: plan_status.Proposal | None = None
    approval: plan_status.Approval | None = None


def decide(world: World, policy: Policy, solver: Solver = solve) -> dict[str, Decision]:
    """Decisions by plan key; plans that are held have none.

    Args:
        world: What is seen.
        policy: Periods of the loop.
        solver: ``planning.solve.solve``, or one that remembers its answers.
    """
    active = tuple(plan for plan in sorted(world.plans, key=lambda plan: plan.key) if held_because(plan) == "")
    if not active:
        return {}
    seen = [_case(plan, active, world, policy) for plan in active]
    cases, lessons = tuple(case for case, _ in seen), {case.key: lesson for case, lesson in seen}
    approvals = {case.key: recommend.approved(case) for case in cases if case.waits}
    fixed = {key: stands for key, (stands, _) in approvals.items()}
    chosen = choose(cases, policy, solver, world.now_s, fixed)
    best = choose(cases, policy, solver, world.now_s) if fixed else chosen
    asked = _next_step(cases, chosen.target, world)
    found = {}
    for case in cases:
        stands, approval = approvals.get(case.key, (None, None))
        decision = _decision(case, lessons[case.key], chosen, asked, policy, solver, world.now_s, approval)
        if stands is not None and approval is not None:
            decision = _recommended(case, decision, stands, approval, chosen, best, world.now_s)
        found[case.key] = decision
    return found


def held_because(plan: PlanObject) -> str:
    """Why a plan's replicas and weights are left as they are; empty where they are not."""
    if plan.spec is None:
        return "InvalidPlan"
    if plan.missing:
        return "ReferenceNotFound"
    if plan.spec.mode == "Paused":
        return "Paused"
    return ""


def _case(plan: PlanObject, active: tuple[PlanObject, ...], world: World, policy: Policy) -> tuple[Case, Learnt]:
    """A plan with what is remembered of it, after this look at the world."""
    case = case_of(plan, active, world, recall(plan))
    lesson = learnt(case, policy, world.now_s)
    case = replace(case, memory=lesson.memory)
    lost = given_up(case, world.nodes, world.now_s)
    setups = {
        key: replace(case.memory.kept(key), given_up=lost.get(key)) for key in case.pools if case.memory.setups or key in lost
    }
    return replace(case, memory=replace(case.memory, setups=setups)), lesson


def _decision(
    case: Case,
    lesson: Learnt,
    chosen: Chosen,
    asked: dict[Key, int],
    policy: Policy,
    solver: Solver,
    now_s: float,
    approval: plan_status.Approval | None,
) -> Decision:
    target = {key: chosen.target[case.key, *key] for key in case.pools}
    ask = {key: asked[case.key, *key] for key in case.pools}
    planned = chosen.planned.of(case.key) if chosen.planned else None
    strictest = {(case.key, a.model, a.setup): a.strictest for a in planned.allocations if a.strictest} if planned else {}
    sharing, shed = _shares(case, target, ask, strictest, solver)
    wanted = full_table(case, sharing, shed)
    if approval is not None:
        wanted = recommend.as_approved(case, wanted, approval)
    ready = frozenset(pool for key, pool in case.pools.items() if case.ready[key] > 0)
    table, arrived = stepped(case.published, wanted, ready, _unseen(case, policy, now_s), case.unreached, synced=case.synced)
    settled = arrived and case.synced and _same_weights(case.published, table) and not table.weighted & case.unreached
    objective = chosen.planned.objective if chosen.planned else 0.0
    return Decision(
        plan=case.plan,
        target=target,
        # What is still sent requests stays until no router sends any.
        asked=ask if settled else {key: max(ask[key], min(case.running[key], case.ready[key])) for key in ask},
        ready=case.ready,
        planned=planned,
        sharing=sharing,
        table=table,
        settled=settled,
        unmatched=tuple(name for name, units in sorted(case.free.items()) if not units),
        surge=_with_room(case, target),
        memory=_remembered(case, target, now_s),
        cause=chosen.causes[case.key],
        news=lesson.news,
        burning=lesson.burning,
        proved=chosen.proved,
        gap=max(0.0, chosen.bound - objective) / abs(objective) if objective else 0.0,
    )


def _shares(
    case: Case, target: dict[SetupKey, int], asked: dict[SetupKey, int], strictest: dict[Key, str], solver: Solver
) -> tuple[PlanDecision | None, dict[str, float]]:
    """How what stands is shared out, and which part of each class even the targets could not serve in time."""
    demand = demands.routed(case)
    whole = {(case.key, *key): count for key, count in target.items()}
    standing = {(case.key, *key): min(case.ready[key], asked[key]) for key in asked}
    try:
        # A load a little above the planned one is served a little late: that is what the margins are for.
        ending = solver(Problem((demands.refusing(case),), standing=Standing(whole, strictest), overload=False)).of(case.key)
        shed = {route.request_class: route.shed for route in ending.routes}
        served = _less(demand, shed)
        return solver(Problem((served,), standing=Standing(standing, strictest))).of(case.key), shed
    except SolverFailed:
        return None, {}


def _less(demand: PlanDemand, shed: dict[str, float]) -> PlanDemand:
    """The demand less what is refused: sharing out what stands must not refuse more."""
    return replace(
        demand,
        classes=tuple(
            replace(entry, rate_rps=entry.rate_rps * max(demands.IDLE_RPS, 1 - shed.get(entry.name, 0.0)))
            for entry in demand.classes
        ),
    )


def _unseen(case: Case, policy: Policy, now_s: float) -> frozenset[str]:
    """Pools that nobody has measured and that are in their first cycle; none where no metrics are read."""
    if not any(kept.calibration for kept in case.memory.setups.values()):
        return frozenset()
    found = set()
    for key, pool in case.pools.items():
        since = [pod.ready_changed_s for pod in case.pods[pool] if pod.serves]
        if since and case.memory.kept(key).calibration is None and now_s - min(since) < policy.cycle_s:
            found.add(pool)
    return frozenset(found)


def _same_weights(published: RoutingTable | None, table: RoutingTable) -> bool:
    if published is None:
        return False
    return _weights(published) == _weights(table)


def _weights(table: RoutingTable) -> tuple[dict[str, dict[str, int]], dict[str, dict[str, int]]]:
    return {entry.name: entry.weights for entry in table.models}, {entry.name: entry.weights for entry in table.classes}


def _remembered(case: Case, target: dict[SetupKey, int], now_s: float) -> Memory:
    """The memory with the targets in it."""
    setups: dict[SetupKey, Kept] = {}
    for key, count in target.items():
        kept = case.memory.kept(key)
        if count != kept.replicas:
            kept = replace(kept, replicas=count, changed_s=now_s, grew=count > kept.replicas)
        setups[key] = kept
    return replace(case.memory, setups=setups, generation=case.plan.generation)


def _recommended(
    case: Case,
    decision: Decision,
    stands: dict[SetupKey, int],
    approval: plan_status.Approval,
    chosen: Chosen,
    best: Chosen,
    now_s: float,
) -> Decision:
    """The decision for a plan that waits for approvals: what was approved stands, what would be done is shown."""
    cause = best.causes[case.key]
    reason = "; ".join((*decision.news, cause.value)) if decision.news else cause.value
    proposal = recommend.proposed(case, stands, chosen.planned, best, reason, now_s)
    adopted = approval.id != (case.memory.approval.id if case.memory.approval else "")
    return replace(
        decision,
        cause=Cause.APPROVED if adopted else Cause.HELD,
        proposal=proposal,
        approval=recommend.stamped(approval, now_s) if adopted else approval,
    )


def _next_step(cases: tuple[Case, ...], targets: dict[Key, int], world: World) -> dict[Key, int]:
    states, capacity = [], {}
    for case in cases:
        for key, setup in case.setups.items():
            states.append(
                SetupState(
                    key=(case.key, *key),
                    pool=f"{case.key}/{setup.accelerator}",
                    units=setup.count,
                    current=case.running[key],
                    ready=case.ready[key],
                    target=targets[case.key, *key],
                )
            )
        for kind in case.spec.accelerators:
            allowed = _allowed_units(kind, case.free)
            capacity[f"{case.key}/{kind.name}"] = allowed - _leaving_units(case, kind.name, world)
    for case in cases:
        _leave_to_others(case, cases, states, capacity)
    return step(tuple(states), capacity)


def _leaving_units(case: Case, accelerator: str, world: World) -> int:
    """Units that pods on their way out still hold; on a node that is lost they may stay for ever, and so do not count."""
    up = {node.name for node in world.nodes if node.schedulable}
    return sum(
        setup.count
        for key, setup in case.setups.items()
        if setup.accelerator == accelerator
        for pod in case.pods[case.pools[key]]
        if pod.terminating and pod.node in up
    )


def _leave_to_others(case: Case, cases: tuple[Case, ...], states: list[SetupState], capacity: dict[str, int]) -> None:
    """Takes from a plan's room what the targets of other plans need on the same nodes."""
    for kind in case.spec.accelerators:
        nodes = set(case.free[kind.name])
        for other in cases:
            for theirs in other.spec.accelerators:
                if other.key == case.key or theirs.resource != kind.resource or not nodes & set(other.free[theirs.name]):
                    continue
                pool = f"{other.key}/{theirs.name}"
                capacity[f"{case.key}/{kind.name}"] -= sum(s.units * s.target for s in states if s.pool == pool)


def _allowed_units(kind: v1alpha1.Accelerator, free: dict[str, dict[str, int]]) -> int:
    """Units of an accelerator that the plan may take: what is free, within its limit."""
    total = sum(free[kind.name].values())
    return total if kind.limit is None else min(total, kind.limit)


def _with_room(case: Case, target: dict[SetupKey, int]) -> frozenset[SetupKey]:
    """Setups for one more replica of which the accelerator has room beside all the plan's targets."""
    used: dict[str, int] = {}
    for key, setup in case.setups.items():
        used[setup.accelerator] = used.get(setup.accelerator, 0) + setup.count * target[key]
    room = {kind.name: _allowed_units(kind, case.free) - used.get(kind.name, 0) for kind in case.spec.accelerators}
    return frozenset(key for key, setup in case.setups.items() if room[setup.accelerator] >= setup.count)
