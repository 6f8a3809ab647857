"""The allocation part of the program: replicas, and what they take of the nodes, the limits and the budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cvxpy as cp
import numpy as np
import scipy.sparse as sp

from servingplan.planning.columns import Frame, Group
from servingplan.planning.compiled import Compiled, Terms, Vector
from servingplan.planning.packing import blocks, divisible, fillings
from servingplan.planning.problem import Binding
from servingplan.planning.routing import Pairs, Routing

_NEGLIGIBLE_PRICE = 1e-9
_DWELL_S = 900.0
"""How long a plan is expected to stand: what starting a replica costs is spread over it."""


@dataclass(frozen=True, slots=True)
class _Named:
    """A row that a person has a name for.

    Attributes:
        at: Which of the constraint's rows.
        blocks_per_unit: How much of the row's right side one unit is.
    """

    plan: int
    kind: str
    name: str
    row: cp.Constraint
    at: int = 0
    blocks_per_unit: float = 1.0

    @property
    def key(self) -> tuple[int, str, str]:
        return self.plan, self.kind, self.name


class Supply:
    """Variables and rows of the allocation.

    Args:
        asked: What is asked.
        exclusive: Setups that are kept strict for one class; the others may have replicas for several.
        extra: Whether further accelerators may be had, beyond limits and budgets: the question what would do.

    Attributes:
        replicas: (columns,) affine expression.
        placed: Integer, replicas by column and group of nodes.
        most: (places,) upper bounds of ``placed``.
        unmet: (setups,) replicas of the minimum that do not fit.
        started: (setups,) replicas beyond those that run.
        kinds: (plan index, accelerator) of the entries of ``extra``.
    """

    def __init__(self, asked: Frame, exclusive: frozenset[int] = frozenset(), *, extra: bool = False) -> None:
        self._asked = asked
        columns = asked.columns
        self._places = tuple((j, g) for j, column in enumerate(columns) for g in column.groups)
        self._units = np.array([columns[j].setup.units for j, _ in self._places], dtype=float)
        self.kinds = tuple((index, supply.name) for index, plan in enumerate(asked.plans) for supply in plan.accelerators)
        self.most = most = np.array([self._most(j, g) for j, g in self._places], dtype=float)
        self.placed = cp.Variable(len(most), integer=True, bounds=[0, None if extra else most])
        self.unmet = cp.Variable(len(asked.setups), bounds=[0, None])
        self.extra = cp.Variable(len(self.kinds), integer=True, bounds=[0, None if extra else 0])
        self.started = cp.Variable(len(asked.setups), bounds=[0, None])
        self.variables: list[cp.Variable] = [self.placed, self.unmet, self.started, self.extra]
        self.replicas: cp.Expression = (
            self._matrix([(j, p, 1.0) for p, (j, _) in enumerate(self._places)], len(columns)) @ self.placed
        )
        self.rows: list[cp.Constraint] = []
        self._named: list[_Named] = []
        self._add_bounds(extra=extra)
        self._add_levels(most, exclusive, extra=extra)
        for g, group in enumerate(asked.groups):
            self._add_packing(g, group, extra=extra)
        if not extra:
            self._add_limits()

    def _most(self, j: int, g: int) -> int:
        setup = self._asked.columns[j].setup
        fits = blocks(self._asked.groups[g].free, setup.units)
        return fits if setup.max_replicas is None else min(fits, setup.max_replicas)

    def _matrix(self, entries: list[tuple[int, int, float]], rows: int) -> sp.csr_array:
        """(rows, places) from (row, place, value)."""
        r, p, v = (np.array(values) for values in zip(*entries, strict=True)) if entries else (np.zeros(0),) * 3
        return sp.csr_array((v, (r.astype(int), p.astype(int))), shape=(rows, len(self._places)))

    def _by_setup(self) -> list[tuple[int, int, float]]:
        of = {j: s for s, columns in enumerate(self._asked.setups) for j in columns}
        return [(of[j], p, 1.0) for p, (j, _) in enumerate(self._places)]

    def _add_bounds(self, *, extra: bool) -> None:
        setups = [self._asked.columns[columns[0]].setup for columns in self._asked.setups]
        total = self._matrix(self._by_setup(), len(setups)) @ self.placed
        self.rows.append(total - self.started <= np.array([setup.current_replicas for setup in setups], dtype=float))
        least = np.array([setup.min_replicas for setup in setups], dtype=float)
        if least.any():
            self.rows.append(total + self.unmet >= least)
        capped = [s for s, setup in enumerate(setups) if setup.max_replicas is not None]
        if capped:
            most = np.array([setups[s].max_replicas for s in capped], dtype=float)
            row = total[capped] <= most
            self.rows.append(row)
            if not extra:
                for at, s in enumerate(capped):
                    column = self._asked.columns[self._asked.setups[s][0]]
                    self._named.append(_Named(column.plan, "maxReplicas", "/".join(column.key), row, at=at))

    def _add_levels(self, most: Vector, exclusive: frozenset[int], *, extra: bool) -> None:
        """One column per setup: its replicas share one queue."""
        alternatives = [columns for s, columns in enumerate(self._asked.setups) if s in exclusive and len(columns) > 1]
        if not alternatives:
            return
        flat = [j for columns in alternatives for j in columns]
        chosen = cp.Variable(len(flat), boolean=True)
        cap = np.zeros(len(self._asked.columns))
        for p, (j, _) in enumerate(self._places):
            # Enough to serve everything is enough, however many accelerators further ones would take.
            cap[j] += most[p] if not extra else 1e4
        self.variables.append(chosen)
        self.rows.append(memberships(alternatives) @ chosen <= np.ones(len(alternatives)))
        self.rows.append(self.replicas[flat] <= cp.multiply(cap[flat], chosen))

    def _add_packing(self, g: int, group: Group, *, extra: bool) -> None:
        here = [p for p, (_, where) in enumerate(self._places) if where == g]
        sizes = tuple(sorted({int(self._units[p]) for p in here}))
        if not here:
            return
        more = [e for e, name in enumerate(self.kinds) if name in group.matched] if extra else []
        if divisible(sizes):
            for size in sizes:
                taken = self._matrix([(0, p, float(self._units[p] // size)) for p in here], 1) @ self.placed
                room = blocks(group.free, size) + (cp.sum(self.extra[more]) / size if more else 0.0)
                row = taken <= room
                self.rows.append(row)
                self._name_group(group, row, blocks_per_unit=1.0 / size)
            return
        self._add_patterns(group, here, sizes, more)

    def _add_patterns(self, group: Group, here: list[int], sizes: tuple[int, ...], more: list[int]) -> None:
        filled = fillings(group.free, sizes)
        patterns = [pattern for _, found in filled for pattern in found]
        count = cp.Variable(len(patterns), integer=True, bounds=[0, None])
        self.variables.append(count)
        start = 0
        for nodes, found in filled:
            self.rows.append(cp.sum(count[start : start + len(found)]) <= nodes)
            start += len(found)
        offered = np.array(patterns, dtype=float).T if patterns else np.zeros((len(sizes), 0))
        at = {size: row for row, size in enumerate(sizes)}
        taken = self._matrix([(at[int(self._units[p])], p, 1.0) for p in here], len(sizes)) @ self.placed
        if more:
            # Further units come as they are needed: a replica on units of its own.
            own = cp.Variable(len(sizes), integer=True, bounds=[0, None])
            self.variables.append(own)
            self.rows.append(taken <= offered @ count + own)
            self.rows.append(np.array(sizes, dtype=float) @ own <= cp.sum(self.extra[more]))
            return
        self.rows.append(taken <= offered @ count)
        # Implied for whole replicas; in the relaxation it is the row that has the price of a unit.
        row = self._matrix([(0, p, float(self._units[p])) for p in here], 1) @ self.placed <= float(sum(group.free))
        self.rows.append(row)
        self._name_group(group, row, blocks_per_unit=1.0)

    def _name_group(self, group: Group, row: cp.Constraint, *, blocks_per_unit: float) -> None:
        for index, name in sorted(group.matched):
            self._named.append(_Named(index, "accelerator", name, row, blocks_per_unit=blocks_per_unit))

    def _add_limits(self) -> None:
        columns = self._asked.columns
        for index, plan in enumerate(self._asked.plans):
            mine = [(p, columns[j]) for p, (j, _) in enumerate(self._places) if columns[j].plan == index]
            if plan.budget_per_hour is not None and mine:
                row = self._matrix([(0, p, column.cost) for p, column in mine], 1) @ self.placed <= plan.budget_per_hour + 1e-9
                self.rows.append(row)
                self._named.append(_Named(index, "budget", "costPerHour", row))
            if plan.max_started_units is not None and mine:
                units = [
                    float(columns[of[0]].setup.units) if columns[of[0]].plan == index else 0.0 for of in self._asked.setups
                ]
                self.rows.append(np.array(units) @ self.started <= float(plan.max_started_units))
            for supply in plan.accelerators:
                used = [(0, p, float(c.setup.units)) for p, c in mine if c.setup.accelerator == supply.name]
                if supply.limit is not None and used:
                    row = self._matrix(used, 1) @ self.placed <= float(supply.limit)
                    self.rows.append(row)
                    self._named.append(_Named(index, "limit", supply.name, row))

    def losses(self) -> Iterator[tuple[int, cp.Expression]]:
        """(plan index, replicas by column that are lost with one node), for every kind of node that a plan wants to survive."""
        for index, plan in enumerate(self._asked.plans):
            if not plan.tolerate_nodes:
                continue
            for g, group in enumerate(self._asked.groups):
                here = [
                    (p, j) for p, (j, where) in enumerate(self._places) if where == g and self._asked.columns[j].plan == index
                ]
                if not here or not group.free:
                    continue
                lost = cp.Variable(len(here), integer=True, bounds=[0, None])
                self.variables.append(lost)
                # Spread evenly, a node holds its share rounded up.
                self.rows.append(len(group.free) * lost >= self.placed[[p for p, _ in here]])
                spread = sp.csr_array(
                    (np.ones(len(here)), ([j for _, j in here], np.arange(len(here)))),
                    shape=(len(self._asked.columns), len(here)),
                )
                yield index, spread @ lost

    def upkeep(self) -> Terms:
        """Cost, then units, then replicas that would have to start, then a preference that breaks the last ties."""
        columns = self._asked.columns
        dearest = max((column.cost for column in columns), default=0.0) or 1.0
        price = np.array([column.cost / dearest + 1e-3 * column.setup.units for column in columns])
        per_place = np.array([price[j] + 1e-6 * p / len(self._places) for p, (j, _) in enumerate(self._places)])
        # A replica that starts holds its accelerators for nothing until it answers.
        idle = [columns[of[0]].setup.cold_start_s / _DWELL_S * price[of[0]] for of in self._asked.setups]
        return [(self.placed, per_place), (self.started, np.array(idle))]

    def unmet_weight(self, pairs: Pairs) -> Terms:
        """Minimum replicas come before any request."""
        return [(self.unmet, np.full(len(self._asked.setups), 1.0 + float(pairs.weight @ pairs.rate)))]

    def extra_cost(self) -> Terms:
        """Cost of further accelerators; their number where they cost nothing."""
        costs = {
            (index, supply.name): supply.cost_per_hour
            for index, plan in enumerate(self._asked.plans)
            for supply in plan.accelerators
        }
        dearest = max(costs.values(), default=0.0) or 1.0
        return [
            (self.extra, np.array([costs[kind] / dearest + 1e-3 for kind in self.kinds])),
            (self.placed, 1e-6 * self._units),
        ]

    def count(self, compiled: Compiled) -> Vector:
        """(columns,) replicas in the last solution."""
        found = np.zeros(len(self._asked.columns))
        for (j, _), value in zip(self._places, compiled.value(self.placed), strict=True):
            found[j] += value
        return found

    def bindings(self, compiled: Compiled, routing: Routing) -> dict[int, tuple[Binding, ...]]:
        """Rows with a price in the last solve of a relaxation, by plan index, dearest first."""
        prices: dict[tuple[int, str, str], float] = {}
        for named in self._named:
            # A unit counts for every block size that it helps to fill.
            price = float(compiled.prices(named.row)[named.at]) * named.blocks_per_unit
            prices[named.key] = prices.get(named.key, 0.0) + price
        for index, metric, row in routing.mean_rows:
            prices[index, "slo", metric] = float(compiled.prices(row)[0])
        by_plan: dict[int, list[Binding]] = {}
        for (index, kind, name), price in prices.items():
            if price > _NEGLIGIBLE_PRICE:
                by_plan.setdefault(index, []).append(Binding(kind, name, price))
        return {
            index: tuple(sorted(found, key=lambda binding: (-binding.price, binding.kind, binding.name)))
            for index, found in by_plan.items()
        }


def memberships(sets: Sequence[Sequence[int]]) -> sp.csr_array:
    """(sets, members) incidence of disjoint sets with their members side by side."""
    of = np.repeat(np.arange(len(sets)), [len(members) for members in sets])
    return sp.csr_array((np.ones(len(of)), (of, np.arange(len(of)))), shape=(len(sets), len(of)))
