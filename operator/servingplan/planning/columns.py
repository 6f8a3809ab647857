"""The planner's question as columns and rows: what a replica of every setup takes of every class, and where it may sit.

A setup serves all its classes from one queue, so the class whose SLO allows it the least utilisation sets it for all. How far
to load a setup is therefore a choice: a strict level that every class may use, or a higher one that only lax classes may. Each
choice is a *column*; of one setup's columns a plan uses one.

Latency on a setup depends on the lengths of all requests there, and where they go is what is being decided. So a frame is made
for assumed backgrounds, and ``planning.solve`` makes a new one from what the answer sends where.
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
Backgrounds = Mapping[SetupKey, tuple[TokenMix, ...]]
"""Mixes of requests that a setup may have to serve at once; a column keeps the SLOs under each."""

_LEVELS = 4
"""Columns per setup at most; more levels than that are merged, always downwards."""
_LAST_RESORT = 0.1
"""Fraction of its stable rate that a setup is credited with when it must serve although it keeps no SLO."""


@dataclass(frozen=True, slots=True)
class Column:
    """One setup of one model of one plan at one utilisation.

    Attributes:
        utilization: Fraction of the stable rate up to which a replica is loaded.
        stable: Requests per second of each class that a replica could take before its queue grows without end, by class name;
            only the classes that the column may serve.
        groups: Indices of the node groups on which a replica may sit.
        means: Latency as functions of the load, for plans whose SLO is a mean over all requests.
    """

    plan: int
    model: ModelOption
    setup: SetupOption
    utilization: float
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


def frame(problem: Problem, backgrounds: Backgrounds) -> Frame:
    """The frame of a problem whose plans may stand in any order.

    Args:
        problem: The question.
        backgrounds: Mixes by setup; the plan's whole demand where a setup is not named.
    """
    ordered = tuple(_canonical(plan) for plan in sorted(problem.plans, key=lambda plan: plan.key))
    relaxed = tuple(attainable(plan) for plan in ordered)
    plans = tuple(found.plan for found in relaxed)
    groups = _groups(plans)
    columns: list[Column] = []
    setups = []
    for index, plan in enumerate(plans):
        whole = demand_mix(plan)
        for model in plan.models:
            for setup in model.setups:
                mixes = backgrounds.get((plan.key, model.name, setup.name), (whole,) if whole else ())
                found = _columns(problem, index, plan, model, setup, mixes, groups)
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


def demand_mix(plan: PlanDemand) -> TokenMix | None:
    """Lengths of all requests of a plan; None where nobody asks for anything."""
    parts = [(entry.rate_rps, entry.mix) for entry in plan.classes if entry.rate_rps > 0]
    return blend(parts) if parts else None


def kept_utilization(entry: ClassDemand, setup: SetupOption, mixes: tuple[TokenMix, ...]) -> float:
    """The utilisation up to which a setup keeps a class's SLO among any of some backgrounds."""
    return min(utilization(setup.profile, entry.mix, entry.slo, mix, entry.arrival_cv) for mix in mixes)


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
    mixes: tuple[TokenMix, ...],
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
        utilization=0.0,
        stable={},
        groups=tuple(g for g, group in enumerate(groups) if (index, setup.accelerator) in group.matched),
        cost=setup.units * supply.cost_per_hour,
    )
    if plan.scope is Scope.PLAN and wanted:
        means = mean_lines(setup.profile, wanted, mixes)
        return [replace(base, utilization=means.utilization, stable={e.name: stable[e.name] for e in wanted}, means=means)]
    kept = {entry.name: kept_utilization(entry, setup, mixes) for entry in wanted}
    levels = _levels([value for value in kept.values() if value > 0])
    key = (plan.key, model.name, setup.name)
    if problem.standing is not None and levels:
        given = problem.standing.utilizations.get(key)
        if given:
            levels = [given]
        elif problem.overload:
            # Nothing is known of who it was for: at the strictest level it may serve everyone.
            levels = [min(levels)]
    columns = [
        replace(
            base, utilization=level, stable={name: stable[name] for name, value in kept.items() if value >= level * (1 - 1e-6)}
        )
        for level in levels
    ]
    # A setup that keeps no SLO may still have replicas that have to run.
    return [column for column in columns if column.stable] or [base]


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
            if entry.rate_rps <= 0 or any(entry.name in columns[s].stable for s in mine):
                continue
            for s in mine:
                stable = stable_rate_rps(columns[s].setup.profile, entry.mix)
                if stable > 0:
                    level = found[s].utilization or _LAST_RESORT
                    found[s] = replace(found[s], utilization=level, stable=found[s].stable | {entry.name: stable})
    return tuple(found)


def _levels(kept: list[float]) -> list[float]:
    """Utilisations worth telling apart, highest first; the nearest ones are merged into the lower while they are too many."""
    levels = sorted(set(kept), reverse=True)
    while len(levels) > _LEVELS:
        _, worst = min((levels[i] / levels[i + 1], i) for i in range(len(levels) - 1))
        del levels[worst]
    return levels
