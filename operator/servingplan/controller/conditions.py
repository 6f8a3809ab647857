"""The conditions of a plan: what is found of it, as one word for programs and one sentence for people.

They follow kstatus (Ready, Reconciling, Stalled) and add Feasible, RoutingSynced, MetricsAvailable, SLOMet and Calibrated.
"""

from __future__ import annotations

from dataclasses import dataclass

from servingplan.calibration.readings import Found, Readings
from servingplan.controller.decide import Decision, held_because
from servingplan.controller.slo import missed
from servingplan.controller.times import text_of
from servingplan.controller.world import PlanObject, Pod, World
from servingplan.planning.build import service_level
from servingplan.render import router
from servingplan.render.vllm import COMPONENT as MODEL_SERVER


@dataclass(frozen=True, slots=True)
class Finding:
    """A condition without its times."""

    type: str
    status: str
    reason: str
    message: str


def findings(plan: PlanObject, decision: Decision | None, world: World, stamp: str | None, refused: str) -> list[Finding]:
    """Every condition of a plan, without its times; the arguments are those of ``status.status``."""
    held = held_because(plan)
    if decision is None:
        return _held(plan, held)
    pending = "; ".join(filter(None, [_abandoned(decision), _pending(plan, world)]))
    feasible = _feasible(decision)
    synced = _synced(plan, decision, world, stamp)
    ready = Finding("Ready", "False", "ApplyRefused", refused) if refused else _ready(decision, pending, feasible, synced)
    moving = ready.status != "True" and ready.reason in {"Progressing", "RoutingNotSynced", "RouterNotReady"}
    stalled = ready.reason in {"ApplyRefused", "Infeasible", "NoMatchingNodes", "PodsNotStarting"}
    return [
        ready,
        Finding("Reconciling", str(moving), "Progressing" if moving else "Settled", ready.message if moving else ""),
        Finding("Stalled", str(stalled), ready.reason if stalled else "NotStalled", ready.message if stalled else ""),
        feasible,
        synced,
        *_measured(plan, decision, world.readings_of(plan.key)),
        _calibrated(plan, decision),
    ]


def _held(plan: PlanObject, reason: str) -> list[Finding]:
    if reason == "Paused":
        message = "spec.mode is Paused: replicas and routing weights are held; set it to Auto to go on"
        return [
            Finding("Ready", "Unknown", reason, message),
            Finding("Reconciling", "False", reason, message),
            Finding("Stalled", "False", reason, ""),
        ]
    message = plan.rejected or "; ".join(plan.missing)
    return [
        Finding("Ready", "False", reason, message),
        Finding("Reconciling", "False", reason, ""),
        Finding("Stalled", "True", reason, f"{message}; what runs is left as it is"),
    ]


def _feasible(decision: Decision) -> Finding:
    answer = decision.planned
    if _awaits(decision):
        return Finding("Feasible", "Unknown", "AwaitingApproval", "")
    if answer is None:
        return Finding("Feasible", "Unknown", "SolverTimeLimit", "no plan was found in time; what was wanted before is held")
    if answer.feasible:
        if decision.proved:
            return Finding("Feasible", "True", "Optimal", "")
        message = f"the search was cut short {decision.gap:.2%} below its bound; the best plan found so far is in place"
        return Finding("Feasible", "Unknown", "SolverTimeLimit", message)
    reason, message = "Infeasible", answer.reason
    if decision.unmatched:
        reason = "NoMatchingNodes"
        message = (
            "no schedulable node offers " + ", ".join(_where(decision, name) for name in decision.unmatched) + f"; {message}"
        )
    elif decision.proposal is not None and decision.proposal.after.shed == "0":
        message = f"what is approved cannot carry the load: {message}; proposal {decision.proposal.id} would"
    return Finding("Feasible", "False", reason, message)


def _awaits(decision: Decision) -> bool:
    """Whether nothing has been approved yet."""
    return decision.approval is not None and not decision.approval.id and not any(decision.target.values())


def _where(decision: Decision, accelerator: str) -> str:
    assert decision.plan.spec is not None, "a decision is made of a plan that could be read"
    kind = next(kind for kind in decision.plan.spec.accelerators if kind.name == accelerator)
    labels = ",".join(f"{key}={value}" for key, value in sorted(kind.node_selector.items()))
    return f"accelerator {accelerator} ({kind.resource}{' with ' + labels if labels else ''})"


def _abandoned(decision: Decision) -> str:
    """Setups that are given up for now."""
    return "; ".join(
        f"{'/'.join(key)} is given up until {text_of(kept.given_up.retry_s)} after {kept.given_up.attempts}"
        f" attempt{'s' if kept.given_up.attempts > 1 else ''}: {kept.given_up.reason}"
        for key, kept in sorted(decision.memory.setups.items())
        if kept.given_up is not None
    )


def _pending(plan: PlanObject, world: World) -> str:
    """Pods that cannot start, with what the scheduler or kubelet says of the first."""
    stuck = [pod for pod in world.pods_of(plan.key, MODEL_SERVER) if pod.waiting and not pod.terminating]
    stuck += [pod for pod in world.pods_of(plan.key, router.COMPONENT) if pod.waiting and not pod.terminating]
    failing = [
        f"Deployment {key[2]} cannot create pods: {condition['message']}"
        for key, body in sorted(world.children_of(plan).items())
        if key[0] == "Deployment"
        for condition in body.get("status", {}).get("conditions", [])
    ]
    return "; ".join(filter(None, [_named(stuck), *failing]))


def _named(stuck: list[Pod]) -> str:
    if not stuck:
        return ""
    listed = ", ".join(pod.name for pod in stuck[:5]) + (f" and {len(stuck) - 5} more" if len(stuck) > 5 else "")
    return f"{len(stuck)} pod{'s' if len(stuck) > 1 else ''} cannot start: {listed}: {stuck[0].waiting}"


def _synced(plan: PlanObject, decision: Decision, world: World, stamp: str | None) -> Finding:
    """Whether every ready router pod serves the table that is published, and knows where to send what it says."""
    if not world.served.get(plan.key):
        return Finding("RoutingSynced", "Unknown", "RouterNotReady", "no router pod is ready")
    if silent := world.silent(plan.key):
        return Finding("RoutingSynced", "Unknown", "RouterSilent", f"no answer from {', '.join(silent)}")
    if behind := world.behind(plan.key, stamp):
        return Finding(
            "RoutingSynced", "False", "TableNotServed", f"an earlier routing table is still served by {', '.join(behind)}"
        )
    unreached = world.unreached(plan.key)
    if lacking := sorted(decision.table.weighted & unreached.keys()):
        said = "; ".join(f"{', '.join(unreached[pool])} of {pool}" for pool in lacking)
        return Finding("RoutingSynced", "False", "PodsNotFound", f"routers have found no pod yet: {said}")
    return Finding("RoutingSynced", "True", "TableServed", "")


def _ready(decision: Decision, pending: str, feasible: Finding, synced: Finding) -> Finding:
    starting = {
        f"{model}/{setup}": f"{decision.ready[model, setup]}/{count}"
        for (model, setup), count in sorted(decision.target.items())
        if decision.ready[model, setup] < count or decision.asked[model, setup] > count
    }
    found = []
    if _awaits(decision):
        said = f"approve proposal {decision.proposal.id} to begin" if decision.proposal else "nothing is proposed yet"
        found.append(("AwaitingApproval", said))
    if feasible.status == "False":
        found.append((feasible.reason, feasible.message))
    if pending:
        found.append(("PodsNotStarting", pending))
    if starting:
        listed = ", ".join(f"{setup} {count} ready" for setup, count in starting.items())
        found.append(("Progressing", f"waiting for replicas: {listed}"))
    if synced.status != "True":
        found.append(("RouterNotReady" if synced.status == "Unknown" else "RoutingNotSynced", synced.message))
    # The first is what the others follow from.
    return Finding("Ready", "False", *found[0]) if found else Finding("Ready", "True", "Serving", "")


def _measured(plan: PlanObject, decision: Decision, readings: Readings) -> list[Finding]:
    found, kind = readings.found, "MetricsAvailable"
    nothing = Finding("SLOMet", "Unknown", "NoMetrics", "")
    if found is Found.NOT_CONFIGURED:
        message = "the operator was started without --prometheus-url, and spec.metrics.prometheusUrl is not set"
        return [Finding(kind, "Unknown", found.value, message), nothing]
    if found is Found.AWAITED:
        return [_as_before(plan, kind), _as_before(plan, "SLOMet")]
    if found is not Found.FOUND:
        held = "replicas and planned rates are held"
        return [Finding(kind, "False", found.value, f"{readings.error}; {held}" if readings.error else held), nothing]
    dark = {pool: reading.dark for pool, reading in sorted(readings.pools.items()) if reading.dark}
    if dark:
        listed = "; ".join(f"{pool}: {', '.join(pods[:3])}" for pool, pods in dark.items())
        message = f"no fresh vLLM series from {listed}; these setups are held"
        return [Finding(kind, "False", "SetupDark", message), _slo_met(plan, decision, readings)]
    return [Finding(kind, "True", found.value, ""), _slo_met(plan, decision, readings)]


def _as_before(plan: PlanObject, kind: str) -> Finding:
    """What was last found: a start of the operator is no news about the plan."""
    for entry in plan.status.get("conditions", []):
        if entry["type"] == kind:
            return Finding(kind, entry["status"], entry["reason"], entry.get("message", ""))
    return Finding(kind, "Unknown", "NotMeasuredYet", "")


def _slo_met(plan: PlanObject, decision: Decision, readings: Readings) -> Finding:
    """Whether the time to first token of every pool keeps the bound of every class that goes there."""
    assert plan.spec is not None, "a decision is made of a plan that could be read"
    late, measured = [], False
    bounds = {entry.name: service_level(entry.slo or plan.spec.slo).ttft for entry in plan.spec.request_classes}
    for entry in decision.table.classes:
        bound = bounds[entry.name]
        for pool in entry.weights:
            reading = readings.pools.get(pool)
            if bound is None or reading is None or reading.ttft is None or not reading.ttft.count:
                continue
            measured = True
            if said := missed(reading.ttft, bound):
                late.append(f"{entry.name} on {pool}: {said}")
    if late:
        return Finding("SLOMet", "False", "Late", "; ".join(late))
    if not measured:
        return Finding("SLOMet", "Unknown", "NoTraffic", "no request was measured in the last minutes")
    return Finding("SLOMet", "True", "Kept", "")


def _calibrated(plan: PlanObject, decision: Decision) -> Finding:
    assert plan.spec is not None, "a decision is made of a plan that could be read"
    learnt = {key: kept.calibration for key, kept in decision.memory.setups.items() if kept.calibration is not None}
    if plan.spec.metrics.calibration == "Disabled":
        return Finding("Calibrated", "Unknown", "Disabled", "")
    drifting = ["/".join(key) for key, memory in sorted(learnt.items()) if memory.drifting]
    if drifting:
        message = f"latency of {', '.join(drifting)} is no longer as it was learnt; margins are wider until it is learnt anew"
        return Finding("Calibrated", "False", "Drifting", message)
    if not any(memory.samples for memory in learnt.values()):
        return Finding("Calibrated", "Unknown", "NothingLearnt", "")
    return Finding("Calibrated", "True", "Learnt", "")
