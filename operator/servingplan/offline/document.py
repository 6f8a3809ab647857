"""The answer as a document for programs: the JSON of ``servingplan plan -o json``."""

from __future__ import annotations

import math
from typing import Any

from servingplan.offline.question import Question
from servingplan.planning.problem import Allocation, Plan, PlanDecision, Prediction, Route

_DIGITS = 9


def to_document(question: Question, plan: Plan) -> dict[str, Any]:
    """The document of the only plan, or one of several plans under ``plans``.

    Numbers are in the units of a plan (requests per second, seconds, units per hour) and have nine digits. What is not known is
    null: a latency where nothing is sent, and the bound of one plan among several, which are proved together.
    """
    proof = {"bound": _number(plan.bound), "gap": _number(plan.gap)}
    solver = {"seconds": _number(plan.seconds), "status": plan.status}
    documents = [
        {"name": given.name, "namespace": given.namespace} | _decision(plan, plan.of(given.key)) | {"solver": solver}
        for given in question.plans
    ]
    if len(documents) == 1:
        return documents[0]
    feasible = all(document["feasible"] for document in documents)
    return {
        "feasible": feasible,
        "objective": {"quality": _number(plan.objective)} | proof,
        "plans": documents,
        "solver": solver,
    }


def quality_bound(plan: Plan, decision: PlanDecision) -> float | None:
    """Proven upper bound on the mean quality of the only plan; None for one of several, which are proved together."""
    if len(plan.decisions) > 1:
        return None
    return decision.quality * plan.bound / plan.objective if plan.objective > 0 else decision.quality


def _decision(plan: Plan, decision: PlanDecision) -> dict[str, Any]:
    bound = quality_bound(plan, decision)
    return {
        "feasible": decision.feasible,
        "reason": decision.reason,
        "objective": {
            "quality": _number(decision.quality),
            "costPerHour": _number(decision.cost_per_hour),
            "bound": _number(bound),
            "gap": _number(plan.gap),
        },
        "allocations": [_allocation(allocation) for allocation in decision.allocations],
        "routes": [_route(route) for route in decision.routes],
        "prices": _prices(decision),
        "shortages": [{"accelerator": short.accelerator, "units": short.units} for short in decision.shortages],
        "relaxed": {name: _number(factor) for name, factor in sorted(decision.relaxed.items())},
        "bindings": [{"kind": row.kind, "name": row.name, "price": _number(row.price)} for row in decision.bindings],
    }


def _allocation(allocation: Allocation) -> dict[str, Any]:
    return {
        "model": allocation.model,
        "setup": allocation.setup,
        "accelerator": allocation.accelerator,
        "replicas": allocation.replicas,
        "units": allocation.units,
        "rate": _number(allocation.rate_rps),
        "capacity": _number(allocation.capacity_rps),
        "utilization": _number(allocation.utilization),
        "predicted": _predicted(allocation.predicted),
    }


def _predicted(predicted: Prediction | None) -> dict[str, Any] | None:
    if predicted is None:
        return None
    return {
        "ttft": {
            "mean": _number(predicted.ttft_mean_s),
            "p50": _number(predicted.ttft_p50_s),
            "p95": _number(predicted.ttft_p95_s),
            "p99": _number(predicted.ttft_p99_s),
        },
        "interTokenLatency": _number(predicted.inter_token_s),
        "e2e": _number(predicted.e2e_mean_s),
        "margin": _number(predicted.margin),
    }


def _route(route: Route) -> dict[str, Any]:
    return {
        "class": route.request_class,
        "weights": {model: _number(share) for model, share in route.by_model().items()},
        "shed": _number(route.shed),
    }


def _prices(decision: PlanDecision) -> dict[str, Any]:
    """Prices of the models by class, congestion prices of the setups, and what one more request of a class is worth."""
    return {
        "models": {
            route.request_class: {model: _number(price) for model, price in sorted(route.prices.items())}
            for route in decision.routes
        },
        "setups": {f"{each.model}/{each.setup}": _number(each.price) for each in decision.allocations},
        "classes": {route.request_class: _number(route.value) for route in decision.routes},
    }


def _number(value: float | None) -> float | None:
    """Rounded, because the last digits of a solver's numbers are noise; null for what is not finite, which JSON lacks."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{_DIGITS}g}") + 0.0
