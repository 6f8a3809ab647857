"""What stands beside what would be decided now. Pure."""

from __future__ import annotations

from typing import Any

from servingplan.offline import words
from servingplan.offline.table import columns
from servingplan.planning.problem import PlanDecision
from servingplan.plugin.view import PlanView


def to_text(view: PlanView, decision: PlanDecision) -> list[str]:
    """Replicas, shares, quality and cost, each as it stands and as it would be."""
    if not view.setups and not view.history:
        return [f"Nothing of {view.key} stands yet."]
    lines = [f"What stands of {view.key}, and what would be:", ""]
    if replicas := _replicas(view, decision):
        lines += [*columns(("MODEL", "SETUP", "READY", "STANDS", "WOULD BE", "CHANGE"), replicas, "llrrrr"), ""]
    lines += columns(("CLASS", "GOES TO", "NOW", "WOULD BE"), _shares(view, decision), "llrr")
    lines += ["", *columns(("", "STANDS", "WOULD BE"), _outlook(view, decision), "lrr")]
    return lines


def to_document(view: PlanView) -> dict[str, Any]:
    """What stands, in the shape of the planner's own document."""
    return {
        "mode": view.mode,
        "generation": view.generation,
        "observedGeneration": view.observed_generation,
        "objective": {"quality": view.quality, "costPerHour": view.cost_per_hour},
        "allocations": [
            {
                "model": each.model,
                "setup": each.setup,
                "accelerator": each.accelerator,
                "replicas": each.replicas,
                "ready": each.ready,
                "units": each.units,
                "rate": each.rate_rps,
                "utilization": each.utilization,
            }
            for each in view.setups
        ],
        "routes": [
            {"class": each.name, "weights": dict(sorted(each.weights.items())), "shed": each.shed}
            for each in view.classes
            if not each.by_name
        ],
    }


def _replicas(view: PlanView, decision: PlanDecision) -> list[tuple[str, ...]]:
    stands = {(each.model, each.setup): each for each in view.setups}
    wanted = {(each.model, each.setup): each.replicas for each in decision.allocations}
    rows: list[tuple[str, ...]] = []
    for model, setup in sorted(stands.keys() | wanted.keys()):
        now, then = stands.get((model, setup)), wanted.get((model, setup), 0)
        before, ready = (now.replicas, now.ready) if now else (0, 0)
        if before or then or ready:
            rows.append((model, setup, str(ready), str(before), str(then), f"{then - before:+d}" if then != before else "-"))
    return rows


def _shares(view: PlanView, decision: PlanDecision) -> list[tuple[str, ...]]:
    now = {each.name: each for each in view.classes if not each.by_name}
    rows: list[tuple[str, ...]] = []
    for route in decision.routes:
        before = now[route.request_class].weights if route.request_class in now else {}
        after = {model: share for model, share in route.by_model().items() if share > 0}
        refused = (now[route.request_class].shed if route.request_class in now else 0.0, route.shed)
        cells = [(model, before.get(model, 0.0), after.get(model, 0.0)) for model in sorted(before.keys() | after.keys())]
        cells += [("(refused)", *refused)] if max(refused) > 0 else []
        rows += [
            (route.request_class if index == 0 else "", name, _percent(was), _percent(then))
            for index, (name, was, then) in enumerate(cells)
        ]
    return rows


def _percent(share: float) -> str:
    return words.percent(share) if share > 0 else "-"


def _outlook(view: PlanView, decision: PlanDecision) -> list[tuple[str, str, str]]:
    def known(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:,.{digits}f}"

    return [
        ("quality", known(view.quality, 4), known(decision.quality, 4)),
        ("cost per hour", known(view.cost_per_hour, 2), known(decision.cost_per_hour, 2)),
    ]
