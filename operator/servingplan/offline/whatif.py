"""The same question with one thing changed, and the least change that makes everything served.

Nothing is read off duals: a price is the slope of the linear relaxation and holds for a vanishing step, where one more replica
is a whole step. Every answer here is a plan that was solved.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from servingplan.offline.errors import SolveError
from servingplan.offline.plans import Pool
from servingplan.offline.question import Question
from servingplan.offline.supply import GPUS_PER_NODE, nodes_of
from servingplan.planning.attainable import scaled
from servingplan.planning.compiled import SolverFailed
from servingplan.planning.problem import ClassDemand, Infeasible, Plan, PlanDemand, Problem
from servingplan.planning.solve import solve

_TOLERANCE = 0.01


@dataclass(frozen=True, slots=True)
class Turned:
    """A change by a factor, and the plan that it gives."""

    factor: float
    plan: Plan


def answer(problem: Problem) -> Plan:
    """The plan.

    Raises:
        SolveError: There was no time for any.
    """
    try:
        return solve(problem, time.perf_counter)
    except SolverFailed as error:
        raise SolveError(f"{error}: raise --time-limit or --gap") from error


def served(problem: Problem) -> Plan | None:
    """The plan, if it serves everything within its SLO; None where it does not, or none was found in time."""
    try:
        plan = answer(problem)
    except SolveError:
        return None
    return None if isinstance(plan, Infeasible) else plan


def with_units(question: Question, more: Mapping[Pool, int]) -> Problem:
    """Further nodes with so many units of each pool, and limits that allow them."""
    numbers = {pool: number for number, pool in enumerate(sorted(more))}

    def grown(demand: PlanDemand) -> PlanDemand:
        largest = max((setup.units for model in demand.models for setup in model.setups), default=1)
        kinds = []
        for kind in demand.accelerators:
            pool = question.pool(demand.key, kind.name)
            units, number = more.get(pool, 0), numbers.get(pool)
            # As large as any replica needs. A name of its own for each pool: accelerators share a node of one name.
            nodes = {f"more-{number}-{i}": size for i, size in enumerate(nodes_of(units, max(GPUS_PER_NODE, largest)))}
            limit = None if kind.limit is None else kind.limit + units
            kinds.append(replace(kind, free_units=kind.free_units | nodes, limit=limit))
        return replace(demand, accelerators=tuple(kinds))

    return replace(question.problem, plans=tuple(map(grown, question.problem.plans)))


def with_slo(problem: Problem, factor: float, keys: Iterable[str] | None = None) -> Problem:
    """Every bound of the named plans, or of all, times a factor."""
    return _each_class(problem, lambda entry: replace(entry, slo=scaled(entry.slo, factor)), keys)


def with_rate(problem: Problem, factor: float, keys: Iterable[str] | None = None) -> Problem:
    """Every rate of the named plans, or of all, times a factor."""
    return _each_class(problem, lambda entry: replace(entry, rate_rps=entry.rate_rps * factor), keys)


def with_budget(problem: Problem, key: str, budget_per_hour: float | None) -> Problem:
    """Another budget for one plan; None for none."""
    plans = (replace(plan, budget_per_hour=budget_per_hour) if plan.key == key else plan for plan in problem.plans)
    return replace(problem, plans=tuple(plans))


def regardless_of_quality(problem: Problem) -> Problem:
    """The same with every model that a class may go to as good as any other: the answer is the cheapest that serves all."""

    def level(demand: PlanDemand) -> PlanDemand:
        least = {entry.name: entry.min_quality for entry in demand.classes}
        return replace(
            demand,
            classes=tuple(replace(entry, min_quality=float(entry.min_quality > 0)) for entry in demand.classes),
            models=tuple(
                replace(model, quality={name: float(score >= least[name]) for name, score in model.quality.items()})
                for model in demand.models
            ),
        )

    return replace(problem, plans=tuple(map(level, problem.plans)))


def least_factor(change: Callable[[float], Problem], most: float) -> Turned | None:
    """The least factor above 1, within 1 %, that makes everything served; None where not even ``most`` does."""
    if (plan := served(change(most))) is None:
        return None
    low, found = 1.0, Turned(most, plan)
    while found.factor / low > 1 + _TOLERANCE:
        middle = (low * found.factor) ** 0.5
        if plan := served(change(middle)):
            found = Turned(middle, plan)
        else:
            low = middle
    return found


def largest_factor(change: Callable[[float], Problem]) -> Turned | None:
    """The largest factor below 1, within 1 %, with which everything is served; None where nothing worth a plan is."""
    low, high, found = 0.0, 1.0, None
    while high - low > _TOLERANCE:
        middle = (low + high) / 2
        if plan := served(change(middle)):
            low, found = middle, Turned(middle, plan)
        else:
            high = middle
    return found


def _each_class(problem: Problem, change: Callable[[ClassDemand], ClassDemand], keys: Iterable[str] | None) -> Problem:
    named = None if keys is None else set(keys)
    plans = (
        replace(plan, classes=tuple(map(change, plan.classes))) if named is None or plan.key in named else plan
        for plan in problem.plans
    )
    return replace(problem, plans=tuple(plans))
