"""What a plan is told about itself.

Conditions follow kstatus (Ready, Reconciling, Stalled) and add Feasible, RoutingSynced, MetricsAvailable, SLOMet and
Calibrated. A reason is one word for programs, a message one sentence for people. The time of a transition is kept while its
status stays, and a measured figure while it moves little, so that a quiet plan is not written at all.

What is remembered from one pass to the next stands here too (``controller.memory`` reads it back).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from servingplan.api import plan_status
from servingplan.api import v1alpha1 as api
from servingplan.calibration import demand, written
from servingplan.calibration.readings import Found, PoolReading, Readings
from servingplan.controller.choose import Cause
from servingplan.controller.decide import Decision, held_because
from servingplan.controller.memory import SetupKey
from servingplan.controller.times import text_of
from servingplan.controller.world import PlanObject, Pod, World
from servingplan.controller.written import shown
from servingplan.latency.profile import Bound
from servingplan.planning.build import service_level
from servingplan.planning.problem import Prediction
from servingplan.render import names, router
from servingplan.render.vllm import COMPONENT as MODEL_SERVER

HISTORY = 10
_CALM = 0.2
"""A measured latency is written anew when it has moved by more than this fraction."""


@dataclass(frozen=True, slots=True)
class _Finding:
    """A condition without its times."""

    type: str
    status: str
    reason: str
    message: str


def status(
    plan: PlanObject,
    decision: Decision | None,
    world: World,
    stamp: str | None,
    *,
    refused: str = "",
) -> dict[str, Any]:
    """The status of a plan.

    Args:
        plan: The plan.
        decision: What was decided; None for a plan that is held.
        world: What was seen before it was carried out.
        stamp: Digest and revision of the routing table that was published; None where nothing was.
        refused: Why the decision could not be carried out; empty where it was.
    """
    findings = _findings(plan, decision, world, stamp, refused)
    now = text_of(world.now_s)
    found: dict[str, Any] = {"observedGeneration": plan.generation, "conditions": _conditions(plan, findings, now)}
    if decision is None:
        kept = {key: value for key, value in plan.status.items() if key not in found}
        return kept | found
    readings = world.readings_of(plan.key)
    found |= {
        "allocations": _allocations(plan, decision, readings),
        "routes": _routes(decision),
        "objective": _objective(plan, decision),
        "demand": demand.to_status(decision.memory.demand),
        "metrics": _metrics(plan, decision, readings),
        "proposal": decision.proposal,
        "approval": decision.approval,
        "router": _router(plan, world),
        "accelerators": _units(plan, decision),
        "summary": _summary(plan, decision),
        "history": _history(plan, decision, now),
    }
    return plan_status.ModelServingPlanStatus.model_validate(found).model_dump(mode="json", by_alias=True, exclude_none=True)


def _findings(plan: PlanObject, decision: Decision | None, world: World, stamp: str | None, refused: str) -> list[_Finding]:
    held = held_because(plan)
    if decision is None:
        return _held(plan, held)
    pending = "; ".join(filter(None, [_abandoned(decision), _pending(plan, world)]))
    feasible = _feasible(decision)
    synced = _synced(plan, world, stamp)
    ready = _Finding("Ready", "False", "ApplyRefused", refused) if refused else _ready(decision, pending, feasible, synced)
    moving = ready.status != "True" and ready.reason in {"Progressing", "RoutingNotSynced", "RouterNotReady"}
    stalled = ready.reason in {"ApplyRefused", "Infeasible", "NoMatchingNodes", "PodsNotStarting"}
    return [
        ready,
        _Finding("Reconciling", str(moving), "Progressing" if moving else "Settled", ready.message if moving else ""),
        _Finding("Stalled", str(stalled), ready.reason if stalled else "NotStalled", ready.message if stalled else ""),
        feasible,
        synced,
        *_measured(plan, decision, world.readings_of(plan.key)),
        _calibrated(plan, decision),
    ]


def _held(plan: PlanObject, reason: str) -> list[_Finding]:
    if reason == "Paused":
        message = "spec.mode is Paused: replicas and routing weights are held; set it to Auto to go on"
        return [
            _Finding("Ready", "Unknown", reason, message),
            _Finding("Reconciling", "False", reason, message),
            _Finding("Stalled", "False", reason, ""),
        ]
    message = plan.rejected or "; ".join(plan.missing)
    return [
        _Finding("Ready", "False", reason, message),
        _Finding("Reconciling", "False", reason, ""),
        _Finding("Stalled", "True", reason, f"{message}; what runs is left as it is"),
    ]


def _feasible(decision: Decision) -> _Finding:
    answer = decision.planned
    if _awaits(decision):
        return _Finding("Feasible", "Unknown", "AwaitingApproval", "")
    if answer is None:
        return _Finding("Feasible", "Unknown", "SolverTimeLimit", "no plan was found in time; what was wanted before is held")
    if answer.feasible:
        if decision.proved:
            return _Finding("Feasible", "True", "Optimal", "")
        message = f"the search was cut short {decision.gap:.2%} below its bound; the best plan found so far is in place"
        return _Finding("Feasible", "Unknown", "SolverTimeLimit", message)
    reason, message = "Infeasible", answer.reason
    if decision.unmatched:
        reason = "NoMatchingNodes"
        message = (
            "no schedulable node offers " + ", ".join(_where(decision, name) for name in decision.unmatched) + f"; {message}"
        )
    elif decision.proposal is not None and decision.proposal.after.shed == "0":
        message = f"what is approved cannot carry the load: {message}; proposal {decision.proposal.id} would"
    return _Finding("Feasible", "False", reason, message)


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


def _synced(plan: PlanObject, world: World, stamp: str | None) -> _Finding:
    """Whether every ready router pod serves the table that is published."""
    if not world.served.get(plan.key):
        return _Finding("RoutingSynced", "Unknown", "RouterNotReady", "no router pod is ready")
    if silent := world.silent(plan.key):
        return _Finding("RoutingSynced", "Unknown", "RouterSilent", f"no answer from {', '.join(silent)}")
    if behind := world.behind(plan.key, stamp):
        return _Finding(
            "RoutingSynced", "False", "TableNotServed", f"an earlier routing table is still served by {', '.join(behind)}"
        )
    return _Finding("RoutingSynced", "True", "TableServed", "")


def _ready(decision: Decision, pending: str, feasible: _Finding, synced: _Finding) -> _Finding:
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
    return _Finding("Ready", "False", *found[0]) if found else _Finding("Ready", "True", "Serving", "")


def _measured(plan: PlanObject, decision: Decision, readings: Readings) -> list[_Finding]:
    found, kind = readings.found, "MetricsAvailable"
    nothing = _Finding("SLOMet", "Unknown", "NoMetrics", "")
    if found is Found.NOT_CONFIGURED:
        message = "the operator was started without --prometheus-url, and spec.metrics.prometheusUrl is not set"
        return [_Finding(kind, "Unknown", found.value, message), nothing]
    if found is Found.AWAITED:
        return [_as_before(plan, kind), _as_before(plan, "SLOMet")]
    if found is not Found.FOUND:
        held = "replicas and planned rates are held"
        return [_Finding(kind, "False", found.value, f"{readings.error}; {held}" if readings.error else held), nothing]
    dark = {pool: reading.dark for pool, reading in sorted(readings.pools.items()) if reading.dark}
    if dark:
        listed = "; ".join(f"{pool}: {', '.join(pods[:3])}" for pool, pods in dark.items())
        message = f"no fresh vLLM series from {listed}; these setups are held"
        return [_Finding(kind, "False", "SetupDark", message), _slo_met(plan, decision, readings)]
    return [_Finding(kind, "True", found.value, ""), _slo_met(plan, decision, readings)]


def _as_before(plan: PlanObject, kind: str) -> _Finding:
    """What was last found: a start of the operator is no news about the plan."""
    for entry in plan.status.get("conditions", []):
        if entry["type"] == kind:
            return _Finding(kind, entry["status"], entry["reason"], entry.get("message", ""))
    return _Finding(kind, "Unknown", "NotMeasuredYet", "")


def _slo_met(plan: PlanObject, decision: Decision, readings: Readings) -> _Finding:
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
            if said := _late(reading, bound):
                late.append(f"{entry.name} on {pool}: {said}")
    if late:
        return _Finding("SLOMet", "False", "Late", "; ".join(late))
    if not measured:
        return _Finding("SLOMet", "Unknown", "NoTraffic", "no request was measured in the last minutes")
    return _Finding("SLOMet", "True", "Kept", "")


def _late(reading: PoolReading, bound: Bound) -> str:
    """By how much a bound is missed; empty where it is kept."""
    assert reading.ttft is not None, "the caller has looked"
    if bound.percentile is None:
        mean = reading.ttft.mean
        return f"mean TTFT {mean:.2f} s, bound {bound.seconds:g} s" if mean and mean > bound.seconds else ""
    within = reading.ttft.share_within(bound.seconds)
    if within is None or within.value >= bound.percentile / 100:
        return ""
    return f"TTFT within {bound.seconds:g} s for {within.value:.1%} of the requests, {bound.percentile:g} % are promised"


def _calibrated(plan: PlanObject, decision: Decision) -> _Finding:
    assert plan.spec is not None, "a decision is made of a plan that could be read"
    learnt = {key: kept.calibration for key, kept in decision.memory.setups.items() if kept.calibration is not None}
    if plan.spec.metrics.calibration == "Disabled":
        return _Finding("Calibrated", "Unknown", "Disabled", "")
    drifting = ["/".join(key) for key, memory in sorted(learnt.items()) if memory.drifting]
    if drifting:
        message = f"latency of {', '.join(drifting)} is no longer as it was learnt; margins are wider until it is learnt anew"
        return _Finding("Calibrated", "False", "Drifting", message)
    if not any(memory.samples for memory in learnt.values()):
        return _Finding("Calibrated", "Unknown", "NothingLearnt", "")
    return _Finding("Calibrated", "True", "Learnt", "")


def _conditions(plan: PlanObject, findings: list[_Finding], now: str) -> list[dict[str, Any]]:
    before = {entry["type"]: entry for entry in plan.status.get("conditions", [])}
    found = []
    for finding in findings:
        old = before.get(finding.type, {})
        found.append(
            {
                "type": finding.type,
                "status": finding.status,
                "observedGeneration": plan.generation,
                "lastTransitionTime": old["lastTransitionTime"] if old.get("status") == finding.status else now,
                "reason": finding.reason,
                # A message that quotes a measured figure would be written at every look.
                "message": old["message"]
                if finding.reason == "Late" and old.get("reason") == "Late" and "message" in old
                else finding.message[:1000],
            }
        )
    return found


def _allocations(plan: PlanObject, decision: Decision, readings: Readings) -> list[dict[str, Any]]:
    before = {(entry["model"], entry["setup"]): entry for entry in plan.status.get("allocations", [])}
    planned = {(a.model, a.setup): a for a in decision.planned.allocations} if decision.planned else {}
    units = _units_of(plan)
    found = []
    for key, count in decision.target.items():
        kept = decision.memory.setups[key]
        used = count or decision.asked[key] or decision.ready[key]
        if not (used or kept.changed_s or kept.given_up or kept.calibration):
            continue
        pool = names.pool_name(plan.owner.name, *key)
        answer = planned.get(key)
        entry = {
            "model": key[0],
            "setup": key[1],
            "accelerator": units[key][0],
            "deployment": pool,
            "replicas": count,
            "ready": decision.ready[key],
            "units": count * units[key][1],
            "rate": shown(answer.rate_rps if answer else 0.0),
            "utilization": shown(answer.utilization if answer else 0.0),
            "predicted": _predicted(answer.predicted) if answer else None,
            "observed": _observed(readings, pool, before.get(key, {}).get("observed")),
            "changed": text_of(kept.changed_s) if kept.changed_s else None,
            "grew": kept.grew if kept.changed_s else None,
            "givenUp": {
                "reason": kept.given_up.reason,
                "attempts": kept.given_up.attempts,
                "retry": text_of(kept.given_up.retry_s),
            }
            if kept.given_up
            else None,
            "calibration": written.to_status(kept.calibration) if kept.calibration else None,
        }
        found.append({name: value for name, value in entry.items() if value is not None})
    return found


def _units_of(plan: PlanObject) -> dict[SetupKey, tuple[str, int]]:
    """Accelerator, and units of it that a replica takes, by (model, setup)."""
    assert plan.spec is not None, "a decision is made of a plan that could be read"
    return {(model.name, s.name): (s.accelerator, s.count) for model in plan.spec.models for s in model.setups}


def _predicted(prediction: Prediction | None) -> dict[str, str] | None:
    return _latencies(prediction.ttft_mean_s, prediction.ttft_p95_s, prediction.inter_token_s) if prediction else None


def _latencies(ttft_mean_s: float | None, ttft_p95_s: float | None, inter_token_s: float | None) -> dict[str, str] | None:
    given = {"ttftMean": ttft_mean_s, "ttftP95": ttft_p95_s, "interTokenMean": inter_token_s}
    return {name: shown(value) for name, value in given.items() if value is not None} or None


def _observed(readings: Readings, pool: str, before: dict[str, str] | None) -> dict[str, str] | None:
    """What was measured, with its time; the last that was, where nothing is known now."""
    if readings.found is not Found.FOUND:
        return before
    reading = readings.pools.get(pool)
    if reading is None or reading.dark:
        return before
    p95 = reading.ttft.quantile(95.0) if reading.ttft else None
    found = _latencies(
        reading.ttft.mean if reading.ttft else None,
        p95.value if p95 else None,
        reading.inter_token.mean if reading.inter_token else None,
    )
    return _calm(found, before, text_of(readings.taken_s))


def _metrics(plan: PlanObject, decision: Decision, readings: Readings) -> dict[str, Any] | None:
    series = readings.aliases if readings.found is Found.FOUND else plan.status.get("metrics", {}).get("series", {})
    learnt_s = decision.memory.learnt_s
    memory = decision.memory
    found = {
        "series": dict(sorted(series.items())),
        "time": text_of(learnt_s) if learnt_s else None,
        "judged": text_of(memory.judged_s) if memory.judged_s else None,
        "headroom": f"{memory.headroom:.4f}" if memory.headroom > 1 else None,
    }
    return {name: value for name, value in found.items() if value} or None


def _calm(found: dict[str, str] | None, before: dict[str, str] | None, time: str) -> dict[str, str] | None:
    """The earlier figures, with their time, where the new ones are about the same."""
    if not found:
        return None
    old = {name: value for name, value in (before or {}).items() if name != "time"}
    moved = found.keys() != old.keys() or any(
        not math.isclose(float(found[name]), float(old[name]), rel_tol=_CALM) for name in found
    )
    return found | {"time": time} if moved else before


def _routes(decision: Decision) -> list[dict[str, Any]]:
    return [
        {
            "class": entry.name,
            "weights": {name: shown(share) for name, share in sorted(entry.shares.items())},
            "shed": shown(entry.shed),
        }
        for entry in decision.table.classes
    ]


def _objective(plan: PlanObject, decision: Decision) -> dict[str, str]:
    answer = decision.planned
    if answer is None:
        kept: dict[str, str] = plan.status.get("objective") or {"quality": "0", "costPerHour": "0"}
        return kept
    return {
        "quality": shown(answer.quality),
        "costPerHour": shown(answer.cost_per_hour),
        "bound": shown(answer.quality * (1 + decision.gap)),
        "gap": shown(decision.gap),
    }


def _router(plan: PlanObject, world: World) -> dict[str, Any]:
    assert plan.spec is not None, "a decision is made of a plan that could be read"
    served = world.served.get(plan.key, {})
    found: dict[str, Any] = {
        "address": f"{names.router_name(plan.owner.name)}.{plan.owner.namespace}.svc:{plan.spec.router.service.port}",
        "ready": len(served),
    }
    tables = set(served.values())
    if len(tables) == 1 and (table := tables.pop()):
        found |= {"generation": table.generation, "table": table.stamp}
    return found


def _units(plan: PlanObject, decision: Decision) -> dict[str, int]:
    found: dict[str, int] = {}
    units = _units_of(plan)
    for key, count in decision.target.items():
        name, each = units[key]
        found[name] = found.get(name, 0) + count * each
    return dict(sorted(found.items()))


def _summary(plan: PlanObject, decision: Decision) -> dict[str, str]:
    assert plan.spec is not None, "a decision is made of a plan that could be read"
    units = _units(plan, decision)
    objective = _objective(plan, decision)
    return {
        plan_status.SUMMARY_QUALITY: objective["quality"],
        plan_status.SUMMARY_SLO: _slo_text(plan.spec.slo),
        plan_status.SUMMARY_GPUS: str(sum(units.values())),
        plan_status.SUMMARY_ACCELERATORS: ",".join(f"{count} {name}" for name, count in units.items() if count),
        plan_status.SUMMARY_COST_PER_HOUR: objective["costPerHour"],
    }


def _slo_text(slo: api.ServiceLevelObjective) -> str:
    level = service_level(slo)
    bounds = (("TTFT", level.ttft), ("ITL", level.inter_token), ("e2e", level.e2e))
    return ", ".join(
        f"{name} {'mean' if bound.percentile is None else f'p{bound.percentile:g}'}<={bound.seconds:g}s"
        for name, bound in bounds
        if bound
    )


_WORDS = {
    Cause.HELD: "as before",
    Cause.FIRST_PLAN: "first plan",
    Cause.SHORT_OF_CAPACITY: "what ran could not carry the load within the SLO",
    Cause.BETTER_QUALITY: "better answers are worth the move",
    Cause.LOWER_COST: "fewer accelerators do",
    Cause.OTHER_PLANS: "another plan changed",
    Cause.SOLVER_TIME_LIMIT: "no plan was found in time",
}


def _history(plan: PlanObject, decision: Decision, now: str) -> list[dict[str, Any]]:
    """Newest first; a decision is new when its replicas differ from the last one's."""
    history: list[dict[str, Any]] = list(plan.status.get("history", []))
    replicas = {f"{model}/{setup}": count for (model, setup), count in sorted(decision.target.items()) if count}
    if (history and history[0].get("replicas", {}) == replicas) or (not history and decision.cause is Cause.HELD):
        return history
    entry = {"time": now, "generation": plan.generation, "reason": _why(decision), "replicas": replicas}
    return [entry, *history][:HISTORY]


def _why(decision: Decision) -> str:
    if decision.cause is Cause.SPEC_CHANGED:
        cause = f"generation {decision.plan.generation} of the spec"
    elif decision.cause is Cause.APPROVED and decision.approval is not None:
        cause = f"proposal {decision.approval.id} was approved"
    else:
        cause = _WORDS.get(decision.cause, decision.cause.value)
    said = decision.planned.reason if decision.planned else ""
    return "; ".join(filter(None, [cause, *decision.news, *decision.burning, said]))[:500]
