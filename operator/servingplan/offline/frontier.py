"""What a looser latency target or a larger budget buys: the same plan solved for many values of one of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from servingplan.offline import whatif, words
from servingplan.offline.errors import InputError
from servingplan.offline.question import Question
from servingplan.offline.table import columns
from servingplan.planning.problem import Plan, PlanDecision, PlanDemand, Problem

Axis = Literal["slo", "cost"]

POINTS = 25
TIGHTEST, LOOSEST = 0.4, 2.5
"""Factors on the plan's own latency target between which the frontier is solved."""
STEPS = 40
"""Steps in which the budget goes down from the cost of the best plan to nothing; plans closer than one step are skipped."""


@dataclass(frozen=True, slots=True)
class Point:
    """One solve.

    Attributes:
        value: The latency target in seconds, or the cost per hour.
        shed: Fraction of all requests that is refused.
    """

    value: float
    decision: PlanDecision
    shed: float

    @property
    def replicas(self) -> dict[str, int]:
        """Replicas by model/setup, of those in use."""
        return {f"{each.model}/{each.setup}": each.replicas for each in self.decision.allocations if each.replicas}


@dataclass(frozen=True, slots=True)
class Frontier:
    """Points in the order of their values.

    Attributes:
        label: What their values are.
        note: What else changes with them; empty where nothing does.
        chosen: The plan as it is asked for.
    """

    axis: Axis
    label: str
    note: str
    demand: PlanDemand
    points: tuple[Point, ...]
    chosen: Point


def frontier(question: Question, plan: Plan, axis: Axis) -> Frontier:
    """Solves along one axis.

    Raises:
        InputError: There are several plans, or nothing that costs can change.
        SolveError: There was no time for a solve.
    """
    if len(question.plans) > 1:
        raise InputError("--frontier: it is drawn for one plan at a time, give one")
    return _by_slo(question.problem, plan) if axis == "slo" else _by_cost(question.problem, plan)


def to_document(found: Frontier) -> dict[str, Any]:
    """The frontier as plain data."""
    return {
        "axis": found.axis,
        "points": [
            {
                **({"target": float(f"{point.value:.9g}")} if found.axis == "slo" else {}),
                "feasible": point.decision.feasible,
                "quality": float(f"{point.decision.quality:.9g}"),
                "costPerHour": float(f"{point.decision.cost_per_hour:.9g}"),
                "shed": float(f"{point.shed:.9g}"),
                "replicas": point.replicas,
            }
            for point in found.points
        ],
    }


def to_text(found: Frontier) -> str:
    """The frontier as a table; the plan's own line is marked."""
    by_slo = found.axis == "slo"
    rows = [
        (
            "*" if point is found.chosen else "",
            *([words.seconds(point.value)] if by_slo else []),
            f"{point.decision.cost_per_hour:,.2f}",
            f"{point.decision.quality:.4f}",
            "yes" if point.decision.feasible else "no",
            words.percent(point.shed) if point.shed else "-",
            ", ".join(f"{count} {name}" for name, count in point.replicas.items()) or "-",
        )
        for point in found.points
    ]
    header = ("", *([found.label.upper()] if by_slo else []), "COST/H", "QUALITY", "FEASIBLE", "REFUSED", "REPLICAS")
    lines = columns(header, rows, "lrrrlrl" if by_slo else "lrrlrl")
    return "\n".join([*lines, *([f"({found.note})"] if found.note else []), ""])


def _point(value: float, plan: Plan, demand: PlanDemand) -> Point:
    decision = plan.of(demand.key)
    rates = {entry.name: entry.rate_rps for entry in demand.classes}
    refused = sum(rates[route.request_class] * route.shed for route in decision.routes)
    return Point(value, decision, refused / sum(rates.values()) if refused else 0.0)


def _by_slo(problem: Problem, plan: Plan) -> Frontier:
    (demand,) = problem.plans
    slos = [entry.slo for entry in demand.classes]
    name, bound = next((name, bound) for name, field in words.LATENCIES if (bound := getattr(slos[0], field)))
    chosen = _point(bound.seconds, plan, demand)
    factors = [TIGHTEST * (LOOSEST / TIGHTEST) ** (index / (POINTS - 1)) for index in range(POINTS)]
    solved = (
        _point(factor * bound.seconds, whatif.answer(whatif.with_slo(problem, factor)), demand)
        for factor in factors
        if abs(factor - 1) > 0.005
    )
    several = len(set(slos)) > 1 or sum(each is not None for each in (slos[0].ttft, slos[0].inter_token, slos[0].e2e)) > 1
    return Frontier(
        axis="slo",
        label=f"{name} {words.statistic(bound)} target",
        note="all other bounds are scaled alike" if several else "",
        demand=demand,
        points=tuple(sorted([*solved, chosen], key=lambda point: point.value)),
        chosen=chosen,
    )


def _by_cost(problem: Problem, plan: Plan) -> Frontier:
    (demand,) = problem.plans
    if problem.standing is not None:
        raise InputError("--frontier cost: --replicas has settled the cost, leave it out")
    if not any(kind.cost_per_hour for kind in demand.accelerators):
        raise InputError("--frontier cost: no accelerator has a cost, set spec.accelerators[].costPerHour")
    free = whatif.with_budget(problem, demand.key, None)
    points = [_cost_point(whatif.answer(free), demand)]
    step = max(points[0].value, plan.of(demand.key).cost_per_hour) / STEPS
    while points[-1].value >= step:
        # All budgets down to the cost of the plan that was found give that plan: the next question is below it.
        cheaper = whatif.answer(whatif.with_budget(problem, demand.key, points[-1].value - step))
        points.append(_cost_point(cheaper, demand))
    chosen = _cost_point(plan, demand)
    others = [point for point in _worth_it(points) if abs(point.value - chosen.value) > step / 2]
    return Frontier(
        axis="cost",
        label="cost per hour",
        note=f"in steps of {words.money(step)}",
        demand=demand,
        points=tuple(sorted([*others, chosen], key=lambda point: point.value)),
        chosen=chosen,
    )


def _worth_it(points: list[Point]) -> list[Point]:
    """The points, dearest first, without those that a cheaper one equals: optima are found to within a gap."""
    kept: list[Point] = []
    for point in reversed(points):
        if not kept or (point.shed, -point.decision.quality) < (kept[-1].shed, -kept[-1].decision.quality):
            kept.append(point)
    return kept


def _cost_point(plan: Plan, demand: PlanDemand) -> Point:
    return _point(plan.of(demand.key).cost_per_hour, plan, demand)
