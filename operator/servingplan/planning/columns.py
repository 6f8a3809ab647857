"""The planner's question as columns and rows: what a replica of every setup takes of every class, and where it may sit."""

from __future__ import annotations

from dataclasses import dataclass, replace

from servingplan.latency.capacity import capacity_rps, latency, stable_rate_rps
from servingplan.latency.profile import Bound, Slo
from servingplan.planning.problem import ClassDemand, ModelOption, PlanDemand, SetupOption

_RELAXATIONS = (1.0, 1.25, 1.5, 2.0, 4.0, 8.0, 16.0, 64.0)
_LAST_RESORT = 0.1
"""Fraction of its stable rate that a setup is credited with when it must serve although it keeps no SLO."""


@dataclass(frozen=True, slots=True)
class Column:
    """One setup of one model of one plan.

    Attributes:
        capacity: Requests per second per replica by class name.
        groups: Indices of the node groups on which a replica may sit.
    """

    plan: int
    model: ModelOption
    setup: SetupOption
    capacity: dict[str, float]
    groups: tuple[int, ...]
    cost: float

    @property
    def key(self) -> tuple[str, str]:
        """Names of the model and the setup."""
        return self.model.name, self.setup.name


@dataclass(frozen=True, slots=True)
class Group:
    """Nodes that the same accelerators match.

    Attributes:
        free: Units free on each node.
        matched: The accelerators, as (plan index, name).
    """

    free: tuple[int, ...]
    matched: frozenset[tuple[int, str]]


@dataclass(frozen=True, slots=True)
class Frame:
    """Everything that the program is made of, in the order of the names.

    Attributes:
        plans: The plans as they were asked.
        unattainable: By plan, the sentence on SLOs that no setup keeps; empty where there is none.
        classes: Every class with the index of its plan; SLOs that no setup keeps are relaxed.
    """

    plans: tuple[PlanDemand, ...]
    unattainable: tuple[str, ...]
    classes: tuple[tuple[int, ClassDemand], ...]
    groups: tuple[Group, ...]
    columns: tuple[Column, ...]


def frame(plans: tuple[PlanDemand, ...], *, last_resort: bool) -> Frame:
    """The frame of some plans in any order.

    Args:
        plans: The plans.
        last_resort: Whether a setup that keeps no SLO may serve all the same.
    """
    ordered = tuple(_canonical(plan) for plan in sorted(plans, key=lambda plan: plan.key))
    relaxed = tuple(_attainable(plan) for plan in ordered)
    groups = _groups(ordered)
    demands = tuple(demand for demand, _ in relaxed)
    return Frame(
        plans=ordered,
        unattainable=tuple(sentence for _, sentence in relaxed),
        classes=tuple((index, entry) for index, demand in enumerate(demands) for entry in demand.classes),
        groups=groups,
        columns=_columns(demands, groups, last_resort=last_resort),
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


def _attainable(plan: PlanDemand) -> tuple[PlanDemand, str]:
    """The plan with every SLO relaxed that no setup keeps at any load, and the sentence that says so."""
    setups = [setup for model in plan.models for setup in model.setups]
    classes, sentences = [], []
    for entry in plan.classes:
        factor = next(
            (f for f in _RELAXATIONS if any(capacity_rps(s.profile, entry.mix, _scaled(entry.slo, f)) > 0 for s in setups)),
            None,
        )
        if factor is None:
            sentences.append(f"no setup can hold a request of class {entry.name}: check kvTokens against its token lengths")
            classes.append(entry)
            continue
        if factor > 1:
            sentences.append(_too_strict(entry, setups))
        classes.append(replace(entry, slo=_scaled(entry.slo, factor)))
    return replace(plan, classes=tuple(classes)), "; ".join(sentences)


def _too_strict(entry: ClassDemand, setups: list[SetupOption]) -> str:
    fitting = [setup for setup in setups if stable_rate_rps(setup.profile, entry.mix) > 0]
    unloaded = [latency(setup.profile, entry.mix, 1e-9) for setup in fitting]
    wants = []
    if entry.slo.ttft:
        fastest = min(found.ttft_s(entry.slo.ttft.percentile) for found in unloaded)
        wants.append(f"TTFT {entry.slo.ttft.seconds:g} s (the fastest setup takes {fastest:.3g} s unloaded)")
    if entry.slo.inter_token:
        fastest = min(found.inter_token_s for found in unloaded)
        wants.append(f"inter-token latency {entry.slo.inter_token.seconds:g} s (the fastest takes {fastest:.3g} s)")
    if entry.slo.e2e:
        fastest = min(found.e2e_s(entry.slo.e2e.percentile) for found in unloaded)
        wants.append(f"e2e {entry.slo.e2e.seconds:g} s (the fastest takes {fastest:.3g} s)")
    return f"no setup keeps the SLO of class {entry.name} even unloaded: {', '.join(wants)}"


def _scaled(slo: Slo, factor: float) -> Slo:
    def scale(bound: Bound | None) -> Bound | None:
        return replace(bound, seconds=bound.seconds * factor) if bound else None

    return Slo(scale(slo.ttft), scale(slo.inter_token), scale(slo.e2e)) if factor > 1 else slo


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
    return tuple(Group(tuple(sorted(units)), frozenset(who)) for (_, who), units in sorted(by_match.items()))


def _columns(plans: tuple[PlanDemand, ...], groups: tuple[Group, ...], *, last_resort: bool) -> tuple[Column, ...]:
    found = []
    for index, plan in enumerate(plans):
        supplies = {supply.name: supply for supply in plan.accelerators}
        for model in plan.models:
            for setup in model.setups:
                capacity = _capacities(setup, plan.classes, last_resort=last_resort)
                found.append(
                    Column(
                        plan=index,
                        model=model,
                        setup=setup,
                        capacity=capacity,
                        groups=tuple(g for g, group in enumerate(groups) if (index, setup.accelerator) in group.matched),
                        cost=setup.units * supplies[setup.accelerator].cost_per_hour,
                    )
                )
    return tuple(found)


def _capacities(setup: SetupOption, classes: tuple[ClassDemand, ...], *, last_resort: bool) -> dict[str, float]:
    """Requests per second of each class that one replica takes, by class name; 0 forbids the route."""
    kept = {entry.name: capacity_rps(setup.profile, entry.mix, entry.slo) for entry in classes}
    stable = {entry.name: stable_rate_rps(setup.profile, entry.mix) for entry in classes}
    shared = min(
        (kept[entry.name] / stable[entry.name] for entry in classes if entry.rate_rps > 0 and kept[entry.name] > 0),
        default=1.0,
    )
    found = {name: min(rate, shared * stable[name]) for name, rate in kept.items()}
    if last_resort:
        found = {name: rate or _LAST_RESORT * stable[name] for name, rate in found.items()}
    return found
