"""What a plan is told about itself.

Conditions follow kstatus (Ready, Reconciling, Stalled) and add Feasible, RoutingSynced, MetricsAvailable and SLOMet. A reason
is one word for programs, a message one sentence for people. The time of a transition is kept while its status stays, and a
measured figure while it moves little, so that a quiet plan is not written at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from servingplan.api import plan_status
from servingplan.api import v1alpha1 as api
from servingplan.controller.decide import Decision, held_because
from servingplan.controller.world import Measured, PlanObject, Pod, World
from servingplan.planning.build import service_level
from servingplan.planning.problem import Allocation, PlanDecision, Prediction
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
    now: Callable[[], str],
    *,
    refused: str = "",
) -> dict[str, Any]:
    """The status of a plan.

    Args:
        plan: The plan.
        decision: What was decided; None for a plan that is held.
        world: What was seen before it was carried out.
        stamp: Digest and revision of the routing table that was published; None where nothing was.
        now: Says the time, as RFC 3339.
        refused: Why the decision could not be carried out; empty where it was.
    """
    findings = _findings(plan, decision, world, stamp, refused)
    found: dict[str, Any] = {"observedGeneration": plan.generation, "conditions": _conditions(plan, findings, now)}
    if decision is None:
        kept = {key: value for key, value in plan.status.items() if key not in found}
        return kept | found
    measured = world.measured.get(plan.key, Measured())
    found |= {
        "allocations": _allocations(plan, decision, measured),
        "routes": _routes(decision),
        "objective": _objective(decision),
        "router": _router(plan, world),
        "accelerators": _units(decision.planned.allocations),
        "summary": _summary(plan, decision),
        "history": _history(plan, decision, now),
    }
    return plan_status.ModelServingPlanStatus.model_validate(found).model_dump(mode="json", by_alias=True, exclude_none=True)


def _findings(plan: PlanObject, decision: Decision | None, world: World, stamp: str | None, refused: str) -> list[_Finding]:
    held = held_because(plan)
    if decision is None:
        return _held(plan, held)
    pending = _pending(plan, world)
    feasible = _feasible(decision)
    synced = _synced(plan, world, stamp)
    ready = _Finding("Ready", "False", "ApplyRefused", refused) if refused else _ready(decision, pending, feasible, synced)
    moving = ready.status != "True" and ready.reason in {"Progressing", "RoutingNotSynced", "RouterNotReady"}
    stalled = ready.reason in {"ApplyRefused", "Infeasible", "NoMatchingNodes", "PodsNotStarting"}
    measured = world.measured.get(plan.key)
    return [
        ready,
        _Finding("Reconciling", str(moving), "Progressing" if moving else "Settled", ready.message if moving else ""),
        _Finding("Stalled", str(stalled), ready.reason if stalled else "NotStalled", ready.message if stalled else ""),
        feasible,
        synced,
        *_measured(plan, decision, measured),
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
    if answer.feasible:
        return _Finding("Feasible", "True", "Optimal" if decision.solver_status == "optimal" else "Feasible", "")
    if decision.unmatched:
        message = "no schedulable node offers " + ", ".join(_where(decision, name) for name in decision.unmatched)
        return _Finding("Feasible", "False", "NoMatchingNodes", f"{message}; {answer.reason}")
    return _Finding("Feasible", "False", "Infeasible", answer.reason)


def _where(decision: Decision, accelerator: str) -> str:
    assert decision.plan.spec is not None, "a decision is made of a plan that could be read"
    kind = next(kind for kind in decision.plan.spec.accelerators if kind.name == accelerator)
    labels = ",".join(f"{key}={value}" for key, value in sorted(kind.node_selector.items()))
    return f"accelerator {accelerator} ({kind.resource}{' with ' + labels if labels else ''})"


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
    if feasible.status == "False":
        return _Finding("Ready", "False", feasible.reason, feasible.message)
    if pending:
        return _Finding("Ready", "False", "PodsNotStarting", pending)
    if starting:
        listed = ", ".join(f"{setup} {count} ready" for setup, count in starting.items())
        return _Finding("Ready", "False", "Progressing", f"waiting for replicas: {listed}")
    if synced.status == "Unknown":
        return _Finding("Ready", "False", "RouterNotReady", synced.message)
    if synced.status == "False":
        return _Finding("Ready", "False", "RoutingNotSynced", synced.message)
    return _Finding("Ready", "True", "Serving", "")


def _measured(plan: PlanObject, decision: Decision, measured: Measured | None) -> list[_Finding]:
    if measured is None:
        return [
            _Finding("MetricsAvailable", "Unknown", "NotConfigured", "the operator was started without --prometheus-url"),
            _Finding("SLOMet", "Unknown", "NoMetrics", ""),
        ]
    if measured.awaited:
        return [_as_before(plan, "MetricsAvailable"), _as_before(plan, "SLOMet")]
    if measured.error:
        return [
            _Finding("MetricsAvailable", "False", "PrometheusUnreachable", measured.error),
            _Finding("SLOMet", "Unknown", "NoMetrics", ""),
        ]
    if not measured.found:
        return [
            _Finding("MetricsAvailable", "False", "MetricsMissing", "Prometheus has no vLLM series of this plan"),
            _Finding("SLOMet", "Unknown", "NoMetrics", ""),
        ]
    return [_Finding("MetricsAvailable", "True", "MetricsFound", ""), _slo_met(plan, decision, measured)]


def _as_before(plan: PlanObject, kind: str) -> _Finding:
    """What was last found: a start of the operator is no news about the plan."""
    for entry in plan.status.get("conditions", []):
        if entry["type"] == kind:
            return _Finding(kind, entry["status"], entry["reason"], entry.get("message", ""))
    return _Finding(kind, "Unknown", "NotMeasuredYet", "")


def _slo_met(plan: PlanObject, decision: Decision, measured: Measured) -> _Finding:
    """Whether the time to first token of every pool keeps the bound of every class that goes there."""
    assert plan.spec is not None, "a decision is made of a plan that could be read"
    late = []
    bounds = {entry.name: service_level(entry.slo or plan.spec.slo).ttft for entry in plan.spec.request_classes}
    for entry in decision.table.classes:
        bound = bounds[entry.name]
        for pool in entry.weights:
            observed = (measured.ttft_mean_s if bound and bound.percentile is None else measured.ttft_p95_s).get(pool)
            if bound and observed is not None and observed > bound.seconds:
                late.append(f"{entry.name} on {pool}: TTFT {observed:.2f} s, bound {bound.seconds:g} s")
    if late:
        return _Finding("SLOMet", "False", "Late", "; ".join(late))
    if not measured.ttft_p95_s:
        return _Finding("SLOMet", "Unknown", "NoTraffic", "no request was measured in the last minutes")
    return _Finding("SLOMet", "True", "Kept", "")


def _conditions(plan: PlanObject, findings: list[_Finding], now: Callable[[], str]) -> list[dict[str, Any]]:
    before = {entry["type"]: entry for entry in plan.status.get("conditions", [])}
    found = []
    for finding in findings:
        old = before.get(finding.type, {})
        found.append(
            {
                "type": finding.type,
                "status": finding.status,
                "observedGeneration": plan.generation,
                "lastTransitionTime": old["lastTransitionTime"] if old.get("status") == finding.status else now(),
                "reason": finding.reason,
                # A message that quotes a measured figure would be written at every look.
                "message": old["message"]
                if finding.reason == "Late" and old.get("reason") == "Late" and "message" in old
                else finding.message[:1000],
            }
        )
    return found


def _allocations(plan: PlanObject, decision: Decision, measured: Measured) -> list[dict[str, Any]]:
    before = {(entry["model"], entry["setup"]): entry for entry in plan.status.get("allocations", [])}
    found = []
    for allocation in decision.planned.allocations:
        key = (allocation.model, allocation.setup)
        if not (allocation.replicas or decision.asked[key] or decision.ready[key]):
            continue
        pool = names.pool_name(plan.owner.name, *key)
        entry = {
            "model": allocation.model,
            "setup": allocation.setup,
            "accelerator": allocation.accelerator,
            "deployment": pool,
            "replicas": allocation.replicas,
            "ready": decision.ready[key],
            "units": allocation.units,
            "rate": _text(allocation.rate_rps),
            "utilization": _text(allocation.utilization),
            "predicted": _predicted(allocation.predicted),
            "observed": _observed(measured, pool, before.get(key, {}).get("observed")),
        }
        found.append({name: value for name, value in entry.items() if value is not None})
    return found


def _predicted(prediction: Prediction | None) -> dict[str, str] | None:
    return _latencies(prediction.ttft_mean_s, prediction.ttft_p95_s, prediction.inter_token_s) if prediction else None


def _latencies(ttft_mean_s: float | None, ttft_p95_s: float | None, inter_token_s: float | None) -> dict[str, str] | None:
    given = {"ttftMean": ttft_mean_s, "ttftP95": ttft_p95_s, "interTokenMean": inter_token_s}
    return {name: _text(value) for name, value in given.items() if value is not None} or None


def _observed(measured: Measured, pool: str, before: dict[str, str] | None) -> dict[str, str] | None:
    if measured.awaited:
        return before
    found = _latencies(measured.ttft_mean_s.get(pool), measured.ttft_p95_s.get(pool), measured.inter_token_mean_s.get(pool))
    return _calm(found, before)


def _calm(found: dict[str, str] | None, before: dict[str, str] | None) -> dict[str, str] | None:
    """The earlier figures where the new ones are about the same."""
    if not found or not before or found.keys() != before.keys():
        return found
    moved = any(not math.isclose(float(found[name]), float(before[name]), rel_tol=_CALM) for name in found)
    return found if moved else before


def _routes(decision: Decision) -> list[dict[str, Any]]:
    return [
        {
            "class": entry.name,
            "weights": {name: _text(share) for name, share in sorted(entry.shares.items())},
            "shed": _text(entry.shed),
        }
        for entry in decision.table.classes
    ]


def _objective(decision: Decision) -> dict[str, str]:
    answer = decision.planned
    return {
        "quality": _text(answer.quality),
        "costPerHour": _text(answer.cost_per_hour),
        "bound": _text(answer.quality * (1 + decision.gap)),
        "gap": _text(decision.gap),
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


def _units(allocations: tuple[Allocation, ...]) -> dict[str, int]:
    found: dict[str, int] = {}
    for allocation in allocations:
        found[allocation.accelerator] = found.get(allocation.accelerator, 0) + allocation.units
    return dict(sorted(found.items()))


def _summary(plan: PlanObject, decision: Decision) -> dict[str, str]:
    assert plan.spec is not None, "a decision is made of a plan that could be read"
    units = _units(decision.planned.allocations)
    return {
        plan_status.SUMMARY_QUALITY: _text(decision.planned.quality),
        plan_status.SUMMARY_SLO: _slo_text(plan.spec.slo),
        plan_status.SUMMARY_GPUS: str(sum(units.values())),
        plan_status.SUMMARY_ACCELERATORS: ",".join(f"{count} {name}" for name, count in units.items() if count),
        plan_status.SUMMARY_COST_PER_HOUR: _text(decision.planned.cost_per_hour),
    }


def _slo_text(slo: api.ServiceLevelObjective) -> str:
    level = service_level(slo)
    bounds = (("TTFT", level.ttft), ("ITL", level.inter_token), ("e2e", level.e2e))
    return ", ".join(
        f"{name} {'mean' if bound.percentile is None else f'p{bound.percentile:g}'}<={bound.seconds:g}s"
        for name, bound in bounds
        if bound
    )


def _history(plan: PlanObject, decision: Decision, now: Callable[[], str]) -> list[dict[str, Any]]:
    """Newest first; a decision is new when its replicas differ from the last one's."""
    history: list[dict[str, Any]] = list(plan.status.get("history", []))
    replicas = {f"{model}/{setup}": count for (model, setup), count in sorted(decision.target.items()) if count}
    if history and history[0].get("replicas", {}) == replicas:
        return history
    entry = {
        "time": now(),
        "generation": plan.generation,
        "reason": _why(plan, history, decision.planned),
        "replicas": replicas,
    }
    return [entry, *history][:HISTORY]


def _why(plan: PlanObject, history: list[dict[str, Any]], answer: PlanDecision) -> str:
    if not history:
        cause = "first plan"
    elif history[0]["generation"] != plan.generation:
        cause = f"generation {plan.generation} of the spec"
    else:
        cause = "nodes or other plans changed"
    return f"{cause}; {answer.reason}" if answer.reason else cause


def _text(value: float) -> str:
    """Four significant digits, without an exponent or trailing zeros."""
    text = f"{value:.4g}"
    return f"{value:.6f}".rstrip("0").rstrip(".") if "e" in text else text
