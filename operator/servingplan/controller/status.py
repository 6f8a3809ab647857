"""What a plan is told about itself.

Its conditions stand in ``controller.conditions``. The time of a transition is kept while its status stays, and a measured
figure while it moves little, so that a quiet plan is not written at all.

What is remembered from one pass to the next stands here too (``controller.memory`` reads it back).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from servingplan.api import plan_status
from servingplan.api import v1alpha1 as api
from servingplan.calibration import choices, demand, written
from servingplan.calibration.readings import Chosen, Found, Readings
from servingplan.controller.choose import Cause
from servingplan.controller.conditions import Finding, findings
from servingplan.controller.decide import Decision
from servingplan.controller.figures import shown
from servingplan.controller.memory import SetupKey
from servingplan.controller.times import text_of
from servingplan.controller.world import PlanObject, World
from servingplan.planning.build import service_level
from servingplan.planning.problem import Prediction
from servingplan.render import names

HISTORY = 10
_NEAR_SHARE = 0.02
_CALM = 0.2
"""A measured latency is written anew when it has moved by more than this fraction."""


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
    now = text_of(world.now_s)
    conditions = _conditions(plan, findings(plan, decision, world, stamp, refused), now)
    found: dict[str, Any] = {"observedGeneration": plan.generation, "conditions": conditions}
    if decision is None:
        kept = {key: value for key, value in plan.status.items() if key not in found}
        return kept | found
    readings = world.readings_of(plan.key)
    found |= {
        "allocations": _allocations(plan, decision, readings),
        "routes": _routes(plan, decision, readings),
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


def _conditions(plan: PlanObject, found_now: list[Finding], now: str) -> list[dict[str, Any]]:
    before = {entry["type"]: entry for entry in plan.status.get("conditions", [])}
    found = []
    for finding in found_now:
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


def _routes(plan: PlanObject, decision: Decision, readings: Readings) -> list[dict[str, Any]]:
    before = {entry["class"]: entry.get("distance") for entry in plan.status.get("routes", [])}
    found = []
    for entry in decision.table.classes:
        held = decision.memory.choices.get(entry.name)
        route: dict[str, Any] = {
            "class": entry.name,
            "weights": {name: shown(share) for name, share in sorted(entry.shares.items())},
            "shed": shown(entry.shed),
        }
        if held is not None:
            route["picked"] = choices.to_status(held, text_of(held.moved_s))
            route["distance"] = _distance(readings.chosen.get(entry.name), entry.shares, before.get(entry.name))
        found.append(route)
    return found


def _distance(chosen: Chosen | None, planned: Mapping[str, float], before: str | None) -> str | None:
    """The share of a class that pickers sent to other models than planned; as before while that moves little."""
    served = sum(planned.values())
    if chosen is None or chosen.requests < choices.ENOUGH_REQUESTS or served <= 0:
        return before
    models = chosen.shares.keys() | planned.keys()
    apart = sum(abs(chosen.shares.get(model, 0.0) - planned.get(model, 0.0) / served) for model in models) / 2
    return before if before is not None and abs(apart - float(before)) <= _NEAR_SHARE else f"{apart:.2f}"


def _objective(plan: PlanObject, decision: Decision) -> dict[str, str]:
    answer = decision.planned
    if answer is None:
        kept: dict[str, str] = plan.status.get("objective") or {"quality": "0", "costPerHour": "0"}
        return kept
    choice = {"choice": shown(answer.choice)} if decision.memory.choices else {}
    return choice | {
        "quality": shown(answer.quality),
        "costPerHour": shown(answer.cost_per_hour),
        "bound": shown((answer.quality + answer.choice) * (1 + decision.gap)),
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
