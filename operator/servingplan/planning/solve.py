"""Allocation and routing in one mixed-integer linear program.

Variables: x[k, s], requests per second of class k on setup s; n[s, g], replicas of setup s on the nodes of group g; d[k], what
of class k is refused; o[s], minimum replicas that do not fit.

    sum_s x[k,s] + d[k] = rate_k                      every class is served or refused
    sum_k x[k,s] / U[k,s] <= n[s]                     load in units of a replica's capacity at the SLO
    sum_s floor(units_s / a) n[s,g] <= sum_node floor(free_node / a)    for every replica size a in a group of nodes
    units per accelerator <= limit,  cost <= budget,  min_s - o[s] <= n[s] <= max_s

U is the capacity of one replica for the class's own token mix and SLO. A setup serves all its classes from one queue, so the
class whose SLO allows it the least utilisation sets the utilisation for all of them. The rows by replica size are exact when
sizes divide one another (1, 2, 4, 8), as they do for tensor parallel sizes, and valid in general. Nodes are grouped by the
accelerators that match them, so accelerators of several plans may overlap.

Three solves, each with the optimum of the one before it as a constraint: least unmet minimum and refused weight; most quality;
least cost and units. A class whose SLO no setup keeps at any load is planned for the least relaxed SLO that one does, and the
plan says that it is infeasible: a number that is too small must not turn into an outage.

With replicas given the same program shares out what stands. Then nothing is refused beyond what the plan itself refuses; the
largest overload of any setup is made least instead, since a replica that is late beats an error while others start.

RouterWise (arXiv 2604.10907) is the source of the joint problem; replicas, percentile capacities and exactness are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import cvxpy as cp
import numpy as np

from servingplan.latency.capacity import capacity_rps, latency, stable_rate_rps
from servingplan.latency.profile import Bound, Slo, TokenMix
from servingplan.planning.problem import (
    Allocation,
    ClassDemand,
    ModelOption,
    Plan,
    PlanDecision,
    PlanDemand,
    Problem,
    Route,
    SetupOption,
    Shortage,
)

_RELAXATIONS = (1.0, 1.25, 1.5, 2.0, 4.0, 8.0, 16.0, 64.0)
_PIN_TOLERANCE = 1e-6
_ZERO_SHARE = 1e-4
"""A share of a class below it is the solver's tolerance, not a decision."""
_LAST_RESORT = 0.1
"""Fraction of its stable rate that a setup is credited with when it must serve although it keeps no SLO."""


@dataclass(frozen=True, slots=True)
class _Column:
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
        return self.model.name, self.setup.name


@dataclass(frozen=True, slots=True)
class _Group:
    """Nodes that the same accelerators match.

    Attributes:
        free: Units free on each node.
        matched: The accelerators, as (plan index, name).
    """

    free: tuple[int, ...]
    matched: frozenset[tuple[int, str]]


@dataclass(frozen=True, slots=True)
class _Solution:
    """Values of the variables, and what the quality solve proved.

    Attributes:
        gap: Relative distance between the quality found and the solver's upper bound on it.
    """

    flow: np.ndarray[Any, Any]
    replicas: np.ndarray[Any, Any]
    refused: np.ndarray[Any, Any]
    unmet: np.ndarray[Any, Any]
    price: np.ndarray[Any, Any]
    status: str
    gap: float


def solve(problem: Problem) -> Plan:
    """The best plan that the SLOs and the accelerators allow; with its proof, and never empty.

    Args:
        problem: All plans that share the cluster, in any order.

    Returns:
        A decision per plan in the order of their keys. Equal problems give equal plans.
    """
    plans = tuple(_canonical(plan) for plan in sorted(problem.plans, key=lambda plan: plan.key))
    relaxed = tuple(_attainable(plan) for plan in plans)
    groups = _groups(plans)
    columns = _columns(tuple(demand for demand, _ in relaxed), groups, last_resort=problem.fixed_replicas is not None)
    classes = tuple((index, entry) for index, plan in enumerate(plans) for entry in plan.classes)
    if not columns:
        return _assemble(plans, relaxed, columns, classes, _nothing(classes), {})
    program = _Program(problem, plans, columns, classes, groups)
    solution = program.solve()
    short: dict[tuple[int, str], int] = {}
    if problem.fixed_replicas is None and (solution.refused.sum() > 0 or solution.unmet.sum() > 0.5):
        short = program.shortages()
    return _assemble(plans, relaxed, columns, classes, solution, short)


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


def _groups(plans: tuple[PlanDemand, ...]) -> tuple[_Group, ...]:
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
    return tuple(_Group(tuple(sorted(units)), frozenset(who)) for (_, who), units in sorted(by_match.items()))


def _columns(plans: tuple[PlanDemand, ...], groups: tuple[_Group, ...], *, last_resort: bool) -> tuple[_Column, ...]:
    found = []
    for index, plan in enumerate(plans):
        supplies = {supply.name: supply for supply in plan.accelerators}
        for model in plan.models:
            for setup in model.setups:
                capacity = _capacities(setup, plan.classes, last_resort=last_resort)
                found.append(
                    _Column(
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


class _Program:
    """The program for one problem: its variables, its constraints, and the solves over them."""

    def __init__(
        self,
        problem: Problem,
        plans: tuple[PlanDemand, ...],
        columns: tuple[_Column, ...],
        classes: tuple[tuple[int, ClassDemand], ...],
        groups: tuple[_Group, ...],
    ) -> None:
        self._problem, self._plans, self._columns = problem, plans, columns
        self._classes, self._groups = classes, groups
        self._places = tuple((s, g) for s, column in enumerate(columns) for g in column.groups)
        self._rate = np.array([entry.rate_rps for _, entry in classes])
        self._weight = np.array([entry.weight for _, entry in classes])
        self._load, self._quality = self._coefficients()
        self._fixed = self._standing()
        self._flow = cp.Variable(self._load.shape, nonneg=True)
        self._refused = cp.Variable(len(classes), nonneg=True)
        self._placed = cp.Variable(max(1, len(self._places)), integer=True)
        self._unmet = cp.Variable(len(columns), nonneg=True)
        self._overload = cp.Variable(nonneg=True)
        self._timed_out, self._gap = False, 0.0
        self._extra = cp.Variable(max(1, sum(len(plan.accelerators) for plan in plans)), integer=True)

    def _coefficients(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Load of one request per second and its quality, both of shape (classes, columns); NaN load forbids the route."""
        load = np.full((len(self._classes), len(self._columns)), np.nan)
        quality = np.zeros_like(load)
        for k, (plan, entry) in enumerate(self._classes):
            for s, column in enumerate(self._columns):
                if column.plan == plan and column.capacity[entry.name] > 0:
                    load[k, s] = 1.0 / column.capacity[entry.name]
                    quality[k, s] = column.model.quality[entry.name]
        return load, quality

    def _standing(self) -> np.ndarray[Any, Any] | None:
        given = self._problem.fixed_replicas
        if given is None:
            return None
        return np.array(
            [given.get((self._plans[c.plan].key, *c.key), 0) for c in self._columns],
            dtype=float,
        )

    def solve(self) -> _Solution:
        """Lexicographic optimum; of the standing replicas when they are given."""
        return self._share() if self._fixed is not None else self._allocate()

    def _allocate(self) -> _Solution:
        replicas = self._replica_expression()
        rows = [*self._served(self._refused), *self._capacity_rows(replicas), *self._supply_rows(extra=False)]
        quality = cp.sum(cp.multiply(self._value(), self._flow))
        refused = self._weight @ self._refused
        floor = self._minimise(cp.sum(self._unmet) * (1.0 + float(self._weight @ self._rate)) + refused, rows)
        rows.append(cp.sum(self._unmet) * (1.0 + float(self._weight @ self._rate)) + refused <= _pinned(floor))
        best = -self._minimise(-quality, rows)
        rows.append(quality >= best - _PIN_TOLERANCE * max(1.0, abs(best)))
        gap = self._gap
        self._minimise(self._upkeep(), rows)
        return self._solution(np.round(np.asarray(replicas.value)), gap)

    def _share(self) -> _Solution:
        """Weights for the replicas that stand: least overload, then most quality."""
        assert self._fixed is not None
        standing = np.where(self._fixed > 0)[0]
        reachable = np.array([bool(np.isfinite(self._load[k, standing]).any()) for k in range(len(self._classes))])
        refused = np.where(reachable, 0.0, self._rate)
        rows = [*self._served(refused)]
        load = cp.sum(cp.multiply(np.nan_to_num(self._load), self._flow), axis=0)
        capacity_row = load <= self._fixed * (1.0 + self._overload)
        rows += [capacity_row, self._forbidden()]
        worst = self._minimise(self._overload, rows)
        rows.append(self._overload <= _pinned(worst))
        self._minimise(-cp.sum(cp.multiply(self._value(), self._flow)), rows)
        price = np.abs(np.asarray(capacity_row.dual_value)) if capacity_row.dual_value is not None else None
        self._refused.value = refused
        self._unmet.value = np.zeros(len(self._columns))
        return self._solution(self._fixed, 0.0, price)

    def shortages(self) -> dict[tuple[int, str], int]:
        """Further units by (plan, accelerator) with which every class is served: the fewest, limits and budget aside."""
        rows = [
            *self._served(np.zeros(len(self._classes))),
            *self._capacity_rows(self._replica_expression()),
            *self._supply_rows(extra=True),
            self._unmet == 0,
        ]
        names = [(index, supply.name) for index, plan in enumerate(self._plans) for supply in plan.accelerators]
        try:
            self._minimise(cp.sum(self._extra), rows)
        except cp.SolverError:
            return {}
        if self._extra.value is None:
            return {}
        units = np.round(self._extra.value).astype(int)
        return {name: int(count) for name, count in zip(names, units, strict=False) if count > 0}

    def _minimise(self, objective: cp.Expression, rows: list[cp.Constraint]) -> float:
        problem = cp.Problem(cp.Minimize(objective), rows)
        value = problem.solve(
            solver=cp.HIGHS,
            time_limit=self._problem.time_limit_s,
            mip_rel_gap=self._problem.relative_gap,
            # One thread and a fixed seed: equal problems must give equal plans.
            threads=1,
            random_seed=1,
        )
        self._timed_out = self._timed_out or problem.status != cp.OPTIMAL
        # HiGHS says infinity for a program without integers, which it solves exactly.
        proved = float(getattr(problem.solver_stats.extra_stats, "mip_gap", 0.0))
        self._gap = proved if np.isfinite(proved) else 0.0
        if value is None or not np.isfinite(value):
            message = f"the solver ended with {problem.status}"
            raise cp.SolverError(message)
        return float(value)

    def _value(self) -> np.ndarray[Any, Any]:
        value: np.ndarray[Any, Any] = self._quality * self._weight[:, None]
        return value

    def _replica_expression(self) -> cp.Expression:
        """Replicas per column: the sum over the groups where they may sit."""
        incidence = np.zeros((len(self._columns), self._placed.shape[0]))
        for place, (s, _) in enumerate(self._places):
            incidence[s, place] = 1.0
        return incidence @ self._placed

    def _served(self, refused: Any) -> list[cp.Constraint]:
        return [cp.sum(self._flow, axis=1) + refused == self._rate]

    def _forbidden(self) -> cp.Constraint:
        return cp.multiply(np.isnan(self._load).astype(float), self._flow) == 0

    def _capacity_rows(self, replicas: cp.Expression) -> list[cp.Constraint]:
        load = cp.sum(cp.multiply(np.nan_to_num(self._load), self._flow), axis=0)
        least = np.array([column.setup.min_replicas for column in self._columns], dtype=float)
        rows = [load <= replicas, self._forbidden(), replicas + self._unmet >= least, self._placed >= 0]
        for s, column in enumerate(self._columns):
            if column.setup.max_replicas is not None:
                rows.append(replicas[s] <= column.setup.max_replicas)
        return rows

    def _supply_rows(self, *, extra: bool) -> list[cp.Constraint]:
        rows = [self._extra >= 0]
        if not extra:
            rows.append(self._extra == 0)
        rows += self._packing_rows(extra=extra)
        for index, plan in enumerate(self._plans):
            mine = [(p, self._columns[s]) for p, (s, _) in enumerate(self._places) if self._columns[s].plan == index]
            if not mine or extra:
                continue
            if plan.budget_per_hour is not None:
                rows.append(sum(column.cost * self._placed[p] for p, column in mine) <= plan.budget_per_hour + 1e-9)
            for supply in plan.accelerators:
                used = [(p, c.setup.units) for p, c in mine if c.setup.accelerator == supply.name]
                if supply.limit is not None and used:
                    rows.append(sum(units * self._placed[p] for p, units in used) <= supply.limit)
        return rows

    def _packing_rows(self, *, extra: bool) -> list[cp.Constraint]:
        rows = []
        names = [(index, supply.name) for index, plan in enumerate(self._plans) for supply in plan.accelerators]
        for g, group in enumerate(self._groups):
            here = [(p, self._columns[s].setup.units) for p, (s, where) in enumerate(self._places) if where == g]
            for size in sorted({units for _, units in here}):
                blocks = sum((units // size) * self._placed[p] for p, units in here)
                room: Any = sum(free // size for free in group.free)
                if extra:
                    room = room + sum(self._extra[e] / size for e, name in enumerate(names) if name in group.matched)
                rows.append(blocks <= room)
        return rows

    def _upkeep(self) -> cp.Expression:
        """Cost, then units, then a preference that breaks the last ties the same way every time."""
        columns = [self._columns[s] for s, _ in self._places]
        dearest = max((column.cost for column in columns), default=0.0) or 1.0
        per_place = np.array(
            [column.cost / dearest + 1e-3 * column.setup.units + 1e-6 * p for p, column in enumerate(columns)] or [0.0]
        )
        return per_place @ self._placed

    def _solution(self, replicas: np.ndarray[Any, Any], gap: float, price: np.ndarray[Any, Any] | None = None) -> _Solution:
        flow, refused = self._cleaned()
        unmet = np.maximum(0.0, np.asarray(self._unmet.value))
        return _Solution(
            flow=flow,
            replicas=replicas,
            refused=refused,
            unmet=unmet,
            price=np.zeros(len(replicas)) if price is None else price,
            status="time_limit" if self._timed_out else "optimal",
            gap=gap,
        )

    def _cleaned(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Flows and refusals without the solver's dust, summing to the rates again."""
        least = (_ZERO_SHARE * self._rate)[:, None]
        values = np.column_stack([np.asarray(self._flow.value), np.asarray(self._refused.value)])
        values = np.where(values > least, values, 0.0)
        total = values.sum(axis=1, keepdims=True)
        values = np.divide(values * self._rate[:, None], total, out=np.zeros_like(values), where=total > 0)
        return values[:, :-1], values[:, -1]


def _pinned(value: float) -> float:
    return value + _PIN_TOLERANCE * max(1.0, abs(value))


def _nothing(classes: tuple[tuple[int, ClassDemand], ...]) -> _Solution:
    rates = np.array([entry.rate_rps for _, entry in classes])
    empty = np.zeros((len(classes), 0))
    return _Solution(empty, np.zeros(0), rates, np.zeros(0), np.zeros(0), "optimal", 0.0)


def _assemble(
    plans: tuple[PlanDemand, ...],
    relaxed: tuple[tuple[PlanDemand, str], ...],
    columns: tuple[_Column, ...],
    classes: tuple[tuple[int, ClassDemand], ...],
    solution: _Solution,
    short: dict[tuple[int, str], int],
) -> Plan:
    decisions = tuple(
        _decision(index, plan, relaxed[index][1], columns, classes, solution, short) for index, plan in enumerate(plans)
    )
    objective = float(
        sum(
            entry.weight * columns[s].model.quality[entry.name] * solution.flow[k, s]
            for k, (_, entry) in enumerate(classes)
            for s in range(len(columns))
            if solution.flow[k, s] > 0
        )
    )
    return Plan(decisions, solution.status, objective, objective * (1 + solution.gap), solution.gap)


def _decision(
    index: int,
    plan: PlanDemand,
    unattainable: str,
    columns: tuple[_Column, ...],
    classes: tuple[tuple[int, ClassDemand], ...],
    solution: _Solution,
    short: dict[tuple[int, str], int],
) -> PlanDecision:
    mine = [s for s, column in enumerate(columns) if column.plan == index]
    entries = [(k, entry) for k, (owner, entry) in enumerate(classes) if owner == index]
    allocations = tuple(_allocation(columns[s], s, entries, solution) for s in mine)
    routes = tuple(_route(k, entry, [(s, columns[s]) for s in mine], solution) for k, entry in entries)
    shortages = tuple(Shortage(name, units) for (owner, name), units in sorted(short.items()) if owner == index)
    unmet = [columns[s] for s in mine if solution.unmet[s] > 0.5]
    shed = [route for route in routes if route.shed > 0]
    served = sum(entry.weight * solution.flow[k, s] for k, entry in entries for s in mine)
    scored = sum(
        entry.weight * columns[s].model.quality[entry.name] * solution.flow[k, s] for k, entry in entries for s in mine
    )
    return PlanDecision(
        key=plan.key,
        allocations=allocations,
        routes=routes,
        feasible=not unattainable and not shed and not unmet,
        reason=_reason(unattainable, shed, unmet, shortages),
        shortages=shortages,
        quality=float(scored / served) if served > 0 else 0.0,
        cost_per_hour=float(sum(columns[s].cost * solution.replicas[s] for s in mine)),
    )


def _reason(unattainable: str, shed: list[Route], unmet: list[_Column], shortages: tuple[Shortage, ...]) -> str:
    parts = [unattainable] if unattainable else []
    if unmet:
        names = ", ".join("/".join(column.key) for column in unmet)
        parts.append(f"minReplicas of {names} do not fit the free accelerators, limits and budget")
    if shed:
        parts.append(
            "the accelerators allowed cannot carry "
            + ", ".join(f"{route.shed:.1%} of class {route.request_class}" for route in shed)
        )
    if shortages:
        parts.append("GPUs short: " + ", ".join(f"{shortage.units} more {shortage.accelerator}" for shortage in shortages))
    return "; ".join(parts)


def _allocation(column: _Column, s: int, entries: list[tuple[int, ClassDemand]], solution: _Solution) -> Allocation:
    replicas = int(solution.replicas[s])
    rate = float(solution.flow[:, s].sum())
    load = sum(solution.flow[k, s] / column.capacity[e.name] for k, e in entries if solution.flow[k, s] > 0)
    base = Allocation(
        model=column.model.name,
        setup=column.setup.name,
        accelerator=column.setup.accelerator,
        replicas=replicas,
        units=replicas * column.setup.units,
        rate_rps=rate,
        capacity_rps=float(rate / load * replicas) if load > 0 else 0.0,
        price=float(solution.price[s]),
    )
    if rate <= 0 or replicas == 0:
        return base
    found = latency(column.setup.profile, _blend(s, entries, solution), rate / replicas)
    return replace(
        base,
        ttft_mean_s=found.ttft_mean_s,
        ttft_p95_s=found.ttft_s(95.0),
        inter_token_s=found.inter_token_s,
    )


def _blend(s: int, entries: list[tuple[int, ClassDemand]], solution: _Solution) -> TokenMix:
    """The mix that a setup is sent: moments of the classes by their share of its requests."""
    flows = np.array([solution.flow[k, s] for k, _ in entries])
    share = flows / flows.sum()

    def moments(means: list[float], cvs: list[float]) -> tuple[float, float]:
        mean = float(share @ np.array(means))
        second = float(share @ (np.array(means) ** 2 * (1 + np.array(cvs) ** 2)))
        return mean, float(np.sqrt(max(0.0, second / mean**2 - 1)))

    prompt, prompt_cv = moments([e.mix.prompt_tokens for _, e in entries], [e.mix.prompt_cv for _, e in entries])
    output, output_cv = moments([e.mix.output_tokens for _, e in entries], [e.mix.output_cv for _, e in entries])
    return TokenMix(prompt, output, prompt_cv, output_cv)


def _route(k: int, entry: ClassDemand, columns: list[tuple[int, _Column]], solution: _Solution) -> Route:
    if entry.rate_rps <= 0:
        return Route(entry.name)
    shares = {column.key: float(solution.flow[k, s] / entry.rate_rps) for s, column in columns if solution.flow[k, s] > 0}
    return Route(entry.name, shares, float(solution.refused[k] / entry.rate_rps))
