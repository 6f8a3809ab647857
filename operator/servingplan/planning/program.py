"""The mixed-integer linear program of ``planning.solve``: its variables, its constraints, and the solves over them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np

from servingplan.planning.columns import Frame
from servingplan.planning.problem import Problem

_PIN_TOLERANCE = 1e-6
_ZERO_SHARE = 1e-4
"""A share of a class below it is the solver's tolerance, not a decision."""


@dataclass(frozen=True, slots=True)
class Solution:
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


class Program:
    """The program for one problem."""

    def __init__(self, problem: Problem, asked: Frame) -> None:
        self._problem, self._plans, self._columns = problem, asked.plans, asked.columns
        self._classes, self._groups = asked.classes, asked.groups
        columns, classes, plans = asked.columns, asked.classes, asked.plans
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

    def solve(self) -> Solution:
        """Lexicographic optimum; of the standing replicas when they are given."""
        return self._share() if self._fixed is not None else self._allocate()

    def _allocate(self) -> Solution:
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

    def _share(self) -> Solution:
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

    def _solution(self, replicas: np.ndarray[Any, Any], gap: float, price: np.ndarray[Any, Any] | None = None) -> Solution:
        flow, refused = self._cleaned()
        unmet = np.maximum(0.0, np.asarray(self._unmet.value))
        return Solution(
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
