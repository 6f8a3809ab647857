"""The planner's question as columns and rows: what a replica of every setup takes of every class, and where it may sit.

A setup serves all its classes from one queue, so the class that bears the least waiting there sets how far it may be loaded.
How strict a setup is kept is therefore a choice: strict enough for every class, or only for those that bear more. Each choice
is a *column*, named by the strictest class that it serves; of one setup's columns a plan uses one.

How long a request waits depends on what it shares the queue with: long prompts make others wait. In a queue with Poisson
arrivals the mean wait stays below a bound exactly when a weighted sum of the classes' rates does (Pollaczek-Khinchine: both
the load and its second moment are sums over the classes). So a replica's capacity is taken to be linear between its *pure*
capacities: how much of each class alone keeps the strictest class's SLO. ``planning.settle`` corrects what that leaves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from servingplan.latency.capacity import stable_rate_rps, utilization
from servingplan.latency.profile import TokenMix, blend
from servingplan.planning.attainable import attainable
from servingplan.planning.means import Means, mean_lines
from servingplan.planning.problem import ClassDemand, ModelOption, PlanDemand, Problem, Scope, SetupOption

SetupKey = tuple[str, str, str]
"""Plan key, model, setup."""

_LEVELS = 4
"""Columns per setup at most; more levels than that are merged, always downwards."""
_ALIKE = 1e-6
_LAST_RESORT = 0.1
"""Fraction of its stable rate that a setup is credited with when it must serve although it keeps no SLO."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What an answer has shown of a setup.

    Attributes:
        mix: Requests that it was sent.
        factor: What it takes of them within the SLOs, as a fraction of what the linear form says.
    """

    mix: TokenMix
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class Column:
    """One setup of one model of one plan, as strict as one class needs it.

    Attributes:
        strictest: Name of that class; empty where the column serves nobody.
        capacity: Requests per second of each class alone that one replica takes, by class name; only the classes that the
            column may serve.
        stable: The same without any SLO: before the queue grows without end.
        groups: Indices of the node groups on which a replica may sit.
        means: Latency as functions of the load, for plans whose SLO is a mean over all requests.
    """

    plan: int
    model: ModelOption
    setup: SetupOption
    strictest: str
    capacity: dict[str, float]
    stable: dict[str, float]
    groups: tuple[int, ...]
    cost: float
    means: Means | None = None

    @property
    def key(self) -> tuple[str, str]:
        """Names of the model and the setup."""
        return self.model.name, self.setup.name


@dataclass(frozen=True, slots=True)
class Group:
    """Nodes that the same accelerators match.

    Attributes:
        free: Units free on each node, those with none left out.
        matched: The accelerators, as (plan index, name).
    """

    free: tuple[int, ...]
    matched: frozenset[tuple[int, str]]


@dataclass(frozen=True, slots=True)
class Frame:
    """Everything that the program is made of, in the order of the names.

    Attributes:
        plans: The plans, with SLOs that no setup keeps relaxed.
        relaxed: By plan, the factor on each relaxed class's SLO.
        unattainable: By plan, the sentence on SLOs that no setup keeps; empty where there is none.
        classes: Every class that has requests, with the index of its plan.
        setups: By setup, the indices of its columns.
    """

    plans: tuple[PlanDemand, ...]
    relaxed: tuple[dict[str, float], ...]
    unattainable: tuple[str, ...]
    classes: tuple[tuple[int, ClassDemand], ...]
    groups: tuple[Group, ...]
    columns: tuple[Column, ...]
    setups: tuple[tuple[int, ...], ...]

    def setup_key(self, column: Column) -> SetupKey:
        """What names a column's setup in the whole problem."""
        return (self.plans[column.plan].key, *column.key)


def frame(problem: Problem, seen: Mapping[SetupKey, Seen]) -> Frame:
    """The frame of a problem whose plans may stand in any order.

    Args:
        problem: The question.
        seen: What answers have shown of some setups.
    """
    ordered = tuple(_canonical(plan) for plan in sorted(problem.plans, key=lambda plan: plan.key))
    relaxed = tuple(attainable(plan) for plan in ordered)
    plans = tuple(found.plan for found in relaxed)
    groups = _groups(plans)
    columns: list[Column] = []
    setups = []
    for index, plan in enumerate(plans):
        for model in plan.models:
            for setup in model.setups:
                known = seen.get((plan.key, model.name, setup.name))
                found = _columns(problem, index, plan, model, setup, known, groups)
                setups.append(tuple(range(len(columns), len(columns) + len(found))))
                columns += found
    made = tuple(columns)
    if problem.standing is not None and problem.overload:
        made = _with_last_resort(plans, made, problem.standing.replicas)
    return Frame(
        plans=plans,
        relaxed=tuple(found.factors for found in relaxed),
        unattainable=tuple(found.sentence for found in relaxed),
        classes=tuple((index, entry) for index, plan in enumerate(plans) for entry in plan.classes if entry.rate_rps > 0),
        groups=groups,
        columns=made,
        setups=tuple(setups),
    )


def _canonical(plan: PlanDemand) -> PlanDemand:
    """The plan with everything in the order of the names: the solver's answer depends on the order of its columns and rows."""
    models = (replace(m, setups=tuple(sorted(m.setups, key=lambda setup: setup.name))) for m in plan.models)
    return replace(
        plan,
        models=tuple(sorted(models, key=lambda model: model.name)),
        classes=tuple(sorted(plan.classes, key=lambda entry: entry.name)),
        accelerators=tuple(sorted(plan.accelerators, key=lambda supply: supply.name)),
    )


def _groups(plans: tuple[PlanDemand, ...]) -> tuple[Group, ...]:
    matched: dict[tuple[str, str], set[tuple[int, str]]] = {}
    free: dict[tuple[str, str], int] = {}
    for index, plan in enumerate(plans):
        for supply in plan.accelerators:
            for node, units in supply.free_units.items():
                matched.setdefault((supply.resource, node), set()).add((index, supply.name))
                free[supply.resource, node] = units
    by_match: dict[tuple[str, tuple[tuple[int, str], ...]], list[int]] = {}
    for (resource, node), who in sorted(matched.items()):
        by_match.setdefault((resource, tuple(sorted(who))), []).append(free[resource, node])
    return tuple(
        Group(tuple(sorted(count for count in units if count > 0)), frozenset(who))
        for (_, who), units in sorted(by_match.items())
    )


def _columns(
    problem: Problem,
    index: int,
    plan: PlanDemand,
    model: ModelOption,
    setup: SetupOption,
    known: Seen | None,
    groups: tuple[Group, ...],
) -> list[Column]:
    entries = [entry for entry in plan.classes if entry.rate_rps > 0]
    stable = {entry.name: stable_rate_rps(setup.profile, entry.mix) for entry in entries}
    wanted = [e for e in entries if stable[e.name] > 0 and model.quality[e.name] >= e.min_quality]
    supply = next(supply for supply in plan.accelerators if supply.name == setup.accelerator)
    base = Column(
        plan=index,
        model=model,
        setup=setup,
        strictest="",
        capacity={},
        stable=stable,
        groups=tuple(g for g, group in enumerate(groups) if (index, setup.accelerator) in group.matched),
        cost=setup.units * supply.cost_per_hour,
    )
    if not wanted:
        return [base]
    whole = blend([(entry.rate_rps, entry.mix) for entry in entries])
    if plan.scope is Scope.PLAN:
        means = mean_lines(setup.profile, wanted, known.mix if known else whole)
        capacity = {entry.name: means.utilization * stable[entry.name] for entry in wanted}
        return [replace(base, strictest=wanted[0].name, capacity=capacity, means=means)]
    kept = {e.name: utilization(setup.profile, e.mix, e.slo, whole, e.arrival_cv) for e in wanted}
    factor = known.factor if known else 1.0
    columns = []
    for name in _strictest(problem, (plan.key, model.name, setup.name), kept):
        bounds = [entry for entry in wanted if kept[entry.name] >= kept[name] * (1 - _ALIKE)]
        strictest = next(entry for entry in wanted if entry.name == name)
        capacity = {e.name: factor * stable[e.name] * _pure(setup, e, strictest) for e in bounds}
        capacity = {name: rate for name, rate in capacity.items() if rate > 0}
        if capacity:
            columns.append(replace(base, strictest=name, capacity=capacity))
    # A setup that keeps no SLO may still have replicas that have to run.
    return columns or [base]


def _pure(setup: SetupOption, entry: ClassDemand, strictest: ClassDemand) -> float:
    """Utilisation by requests of one class alone at which it keeps its own SLO, and a strict one among them would."""
    own, others = (utilization(setup.profile, e.mix, e.slo, entry.mix, e.arrival_cv) for e in (entry, strictest))
    return min(own, others)


def _strictest(problem: Problem, key: SetupKey, kept: dict[str, float]) -> list[str]:
    """The classes that set how strict a setup may be kept, laxest first; at most some, of each kind of strictness one."""
    by_level = {level: name for name, level in sorted(kept.items(), reverse=True) if level > 0}
    levels = _levels(list(by_level))
    if problem.standing is not None and levels:
        given = problem.standing.strictest.get(key)
        if given and kept.get(given, 0.0) > 0:
            return [given]
        if problem.overload:
            # Nothing is known of who it was for: at its strictest it may serve everyone.
            levels = [min(levels)]
    return [by_level[level] for level in levels]


def _with_last_resort(
    plans: tuple[PlanDemand, ...], columns: tuple[Column, ...], standing: Mapping[SetupKey, int]
) -> tuple[Column, ...]:
    """The columns, those that stand opened to classes that would have no way: a late answer is better than none."""

    def stands(column: Column) -> bool:
        return standing.get((plans[column.plan].key, *column.key), 0) > 0

    found = list(columns)
    for index, plan in enumerate(plans):
        for entry in plan.classes:
            mine = [s for s, column in enumerate(columns) if column.plan == index and stands(column)]
            if entry.rate_rps <= 0 or any(entry.name in columns[s].capacity for s in mine):
                continue
            for s in mine:
                late = _LAST_RESORT * columns[s].stable[entry.name]
                if late > 0:
                    found[s] = replace(found[s], capacity=found[s].capacity | {entry.name: late})
    return tuple(found)


def _levels(kept: list[float]) -> list[float]:
    """Utilisations worth telling apart, highest first; the nearest ones are merged into the lower while they are too many."""
    levels = sorted(set(kept), reverse=True)
    while len(levels) > _LEVELS:
        _, worst = min((levels[i] / levels[i + 1], i) for i in range(len(levels) - 1))
        del levels[worst]
    return levels
