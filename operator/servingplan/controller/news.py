"""What people and Prometheus hear of a plan, besides its status."""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any

from servingplan.api import v1alpha1
from servingplan.api.routing_table import WEIGHT_TOTAL
from servingplan.controller.decide import Decision
from servingplan.controller.times import text_of
from servingplan.controller.world import PlanObject
from servingplan.latency.correction import bound_key
from servingplan.planning.build import service_level
from servingplan.render import names

_CALM = frozenset({"Progressing", "RouterNotReady", "RoutingNotSynced", "Paused", "AwaitingApproval"})
_TOLD = ("Ready", "Feasible", "MetricsAvailable", "SLOMet", "Calibrated")
"""Conditions whose changes are told as Events; the others follow from these."""


def news(plan: PlanObject, found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What a person should hear of: decisions, proposals, and conditions that changed; (type, reason, message)."""
    told = []
    history = found.get("history", [])
    if history and history[:1] != plan.status.get("history", [])[:1]:
        replicas = ", ".join(f"{setup}={count}" for setup, count in history[0]["replicas"].items()) or "none"
        told.append(("Normal", "Planned", f"{history[0]['reason']}: {replicas}"))
    proposal, old = found.get("proposal"), plan.status.get("proposal") or {}
    if proposal and proposal["id"] != old.get("id"):
        told.append(("Normal", "Proposed", f"proposal {proposal['id']} waits for approval: {proposal['reason']}"))
    refused = (found.get("approval") or {}).get("refused")
    if refused and refused != (plan.status.get("approval") or {}).get("refused"):
        told.append(("Warning", "ApprovalRefused", refused))
    before = {entry["type"]: entry for entry in plan.status.get("conditions", [])}
    for entry in found["conditions"]:
        kind, reason = entry["type"], entry["reason"]
        old = before.get(kind, {})
        if kind not in _TOLD or old.get("reason") == reason:
            continue
        if kind == "Ready":
            calm = entry["status"] == "True" or reason in _CALM
            told.append(("Normal" if calm else "Warning", reason, entry["message"] or "the plan is in place"))
        elif entry["status"] == "False" or reason == "SolverTimeLimit":
            told.append(("Warning", reason, f"{kind}: {entry['message']}"))
        elif old.get("status") == "False":
            told.append(("Normal", reason, f"{kind} again"))
    return told


def shown_of(decision: Decision) -> tuple[dict[tuple[str, str, str], float], dict[tuple[str, str], float]]:
    """Weights by class, model and setup, and latency targets by class and bound."""
    where = {pool.name: (model.name, pool.setup) for model in decision.table.models for pool in model.pools}
    weights = {
        (entry.name, *where[pool]): (1 - entry.shed) * weight / WEIGHT_TOTAL
        for entry in decision.table.classes
        for pool, weight in entry.weights.items()
    }
    assert decision.plan.spec is not None, "a decision is made of a plan that could be read"
    spec, bounds = decision.plan.spec, {}
    for one in spec.request_classes:
        level = service_level(one.slo or spec.slo)
        for metric, bound in (("ttft", level.ttft), ("interToken", level.inter_token), ("e2e", level.e2e)):
            if bound is not None:
                bounds[one.name, bound_key(metric, bound.percentile)] = bound.seconds
    return weights, bounds


def event(plan: PlanObject, kind: str, reason: str, message: str, *, once: bool = False) -> dict[str, Any]:
    """An Event about a plan, of type Normal or Warning.

    Args:
        plan: What it is about.
        kind: ``Normal`` or ``Warning``.
        reason: One word.
        message: One sentence.
        once: Whether its name is made of what it says and of the status that it follows: an operator that dies before it has
            written the next status tells it anew, and the API server then has it already.
    """
    now = text_of(time.time())
    said = json.dumps([plan.owner.uid, reason, message, plan.status], sort_keys=True)
    name = {"name": f"{plan.owner.name}.{hashlib.sha256(said.encode()).hexdigest()[:16]}"}
    return {
        "metadata": (name if once else {"generateName": f"{plan.owner.name}-"}) | {"namespace": plan.owner.namespace},
        "involvedObject": {
            "apiVersion": v1alpha1.API_VERSION,
            "kind": v1alpha1.KIND,
            "namespace": plan.owner.namespace,
            "name": plan.owner.name,
            "uid": plan.owner.uid,
        },
        "type": kind,
        "reason": reason,
        "message": message[:1024],
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
        "source": {"component": names.FIELD_MANAGER},
        "reportingComponent": f"{v1alpha1.GROUP}/{names.FIELD_MANAGER}",
    }
