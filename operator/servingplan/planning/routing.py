"""The routing part of the program: which share of a class goes to which column, within what the replicas can take.

    sum_j x[k,j] + d[k] = 1                                     every request is served or refused
    sum_k rate_k x[k,j] / capacity[k,j] <= n[j]                 no replica is loaded beyond what its classes' SLOs allow
    w[j] >= slope v[j] + intercept n[j]                         chords of the waiting, v the utilisation
    sum_j (sum_k own rate_k x[k,j] + w[j]) <= T sum_k rate_k (1 - d[k])     mean over all requests of a plan
    c[k,m] <= sum_{j of m} x[k,j],  c[k,m] <= share[k,m]        what the shares keep of the choices by the request

A request that was chosen for a model is worth more there than the class's score says, and only as many are as were chosen:
the worth of a share is concave. So the plan follows what pickers do as far as that costs less in the class's scores than the
choice is worth.

Written once for the plan itself, once more for every node that may be lost, and for replicas that are given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.sparse as sp

from servingplan.planning.columns import Column, Frame
from servingplan.planning.compiled import Compiled, Terms, Vector
from servingplan.planning.means import METRICS
from servingplan.planning.problem import Scope

Matrix = Any  # scipy's sparse arrays have no type to name


@dataclass(frozen=True, slots=True)
class Pairs:
    """The (class, column) pairs that are open, and what one whole class on one column means.

    Attributes:
        classes: (pairs,) index of the class.
        columns: (pairs,) index of the column.
        load: (pairs,) replicas that the whole class would fill.
        value: (pairs,) weighted quality per second of the whole class.
        rate: (classes,) requests per second.
        weight: (classes,).
    """

    asked: Frame
    classes: Vector
    columns: Vector
    load: Vector
    value: Vector
    rate: Vector
    weight: Vector

    @classmethod
    def of(cls, asked: Frame) -> Pairs:
        """All pairs of a frame."""
        found = [
            (
                k,
                j,
                entry.rate_rps / column.capacity[entry.name],
                entry.weight * entry.rate_rps * column.model.quality[entry.name],
            )
            for k, (plan, entry) in enumerate(asked.classes)
            for j, column in enumerate(asked.columns)
            if column.plan == plan and entry.name in column.capacity
        ]
        k, j, load, value = (np.array(values) for values in zip(*found, strict=True)) if found else (np.zeros(0),) * 4
        return cls(
            asked=asked,
            classes=k.astype(int),
            columns=j.astype(int),
            load=load,
            value=value,
            rate=np.array([entry.rate_rps for _, entry in asked.classes]),
            weight=np.array([entry.weight for _, entry in asked.classes]),
        )

    def by_class(self) -> Matrix:
        """(classes, pairs) incidence."""
        return _incidence(self.classes, np.ones(len(self.classes)), len(self.rate))

    def by_column(self, values: Vector) -> Matrix:
        """(columns, pairs) incidence with some values."""
        return _incidence(self.columns, values, len(self.asked.columns))


class Routing:
    """One copy of the routing variables and rows.

    Args:
        pairs: What is open.
        replicas: (columns,) affine expression.
        only_plan: Index of the plan whose classes have to be served; the others ask for nothing. None for all.
        slack: (columns,) replicas' worth of load that may be exceeded, where that is allowed.
    """

    def __init__(
        self, pairs: Pairs, replicas: cp.Expression, *, only_plan: int | None = None, slack: cp.Expression | None = None
    ) -> None:
        self._pairs = pairs
        asked = pairs.asked
        wanted = np.array([1.0 if only_plan in {None, plan} else 0.0 for plan, _ in asked.classes])
        self._wanted = wanted
        self.share = cp.Variable(len(pairs.classes), bounds=[0, None])
        self.refused = cp.Variable(len(pairs.rate), bounds=[0, None])
        self.variables: list[cp.Variable] = [self.share, self.refused]
        self.rows: list[cp.Constraint] = []
        load: cp.Expression = pairs.by_column(pairs.load) @ self.share
        if any(plan.scope is Scope.PLAN for plan in asked.plans):
            # A column of its own keeps the rows of the chords short.
            named = cp.Variable(len(asked.columns), bounds=[0, None])
            self.variables.append(named)
            self.rows.append(named == load)
            load = named
        self.served_row = pairs.by_class() @ self.share + self.refused == wanted
        self.load_row = load <= (replicas if slack is None else replicas + slack)
        self.rows += [self.served_row, self.load_row]
        # What is served after a loss has no worth in any objective.
        self._kept = _Kept.of(pairs, self.share) if only_plan is None else None
        if self._kept:
            self.variables.append(self._kept.part)
            self.rows += [self._kept.chosen_row, self._kept.share_row]
        self.mean_rows: list[tuple[int, str, cp.Constraint]] = []
        for index, plan in enumerate(asked.plans):
            if plan.scope is Scope.PLAN and only_plan in {None, index}:
                self._add_means(index, load, replicas)

    def _add_means(self, index: int, load: cp.Expression, replicas: cp.Expression) -> None:
        """The plan-wide means of one plan: a row by metric that has a bound."""
        pairs, asked = self._pairs, self._pairs.asked
        mine = [j for j, column in enumerate(asked.columns) if column.plan == index and column.means]
        entries = [(k, entry) for k, (plan, entry) in enumerate(asked.classes) if plan == index]
        if not mine or not entries:
            return
        slo = entries[0][1].slo
        for metric in METRICS:
            bound = getattr(slo, metric)
            if bound is None:
                continue
            waiting = cp.Variable(len(mine), bounds=[0, None])
            lines = [
                # The load is in replicas; the chords are of the utilisation.
                (at, j, a * means.utilization, b)
                for at, j in enumerate(mine)
                if (means := asked.columns[j].means) is not None
                for a, b in means.lines[metric]
            ]
            at, j, slope, intercept = (np.array(values) for values in zip(*lines, strict=True))
            columns = len(asked.columns)
            self.rows.append(
                _pick(at, np.ones(len(at)), len(mine)) @ waiting
                >= _pick(j, slope, columns) @ load + _pick(j, intercept, columns) @ replicas
            )
            where = np.flatnonzero(np.isin(pairs.columns, mine))
            open_pairs = zip(pairs.classes[where], pairs.columns[where], strict=True)
            own = np.array([_own(asked.columns[j], metric, asked.classes[k][1].name) for k, j in open_pairs])
            cost = np.zeros(len(pairs.classes))
            cost[where] = pairs.rate[pairs.classes[where]] * (own - bound.seconds)
            # Scaled to one request: the row then has the size of the bound, whatever the rate.
            total = sum(entry.rate_rps for _, entry in entries)
            row = (cost / total) @ self.share + cp.sum(waiting) / total <= 0
            self.variables.append(waiting)
            self.rows.append(row)
            self.mean_rows.append((index, metric, row))

    def quality(self) -> Terms:
        """Weighted quality per second, with what choosing by the request adds to it."""
        kept = [(self._kept.part, self._kept.value)] if self._kept else []
        return [(self.share, self._pairs.value), *kept]

    def refused_weight(self) -> Terms:
        """Weighted requests per second that are refused."""
        return [(self.refused, self._pairs.weight * self._pairs.rate)]

    def class_value(self, compiled: Compiled) -> Vector:
        """(classes,) quality that one more request per second would add, of the last solve of a linear program for quality."""
        value = compiled.prices(self.served_row)
        if self._kept:
            # One more request brings its part of the choices along.
            more = self._kept.most * compiled.prices(self._kept.chosen_row)
            value = value + np.bincount(self._kept.classes, weights=more, minlength=len(value))
        return np.asarray(value / self._pairs.rate)

    def reachable(self, standing: Vector) -> Vector:
        """(classes,) whether any replica is open to the class."""
        found = np.zeros(len(self._pairs.rate), dtype=bool)
        found[self._pairs.classes[standing[self._pairs.columns] > 0]] = True
        return found

    def used_columns(self, share: Vector) -> Vector:
        """(columns,) whether anything is sent there."""
        return np.bincount(self._pairs.columns, weights=share, minlength=len(self._pairs.asked.columns)) > 0

    def cleaned(self, compiled: Compiled, dust: float) -> tuple[Vector, Vector]:
        """Shares and refusals without the solver's dust, summing to 1 by class."""
        share, refused = compiled.value(self.share), compiled.value(self.refused)
        share, refused = np.where(share > dust, share, 0.0), np.where(refused > dust, refused, 0.0)
        total = np.bincount(self._pairs.classes, weights=share, minlength=len(refused)) + refused
        total = np.where(total > 0, total, 1.0)
        return share / total[self._pairs.classes] if len(share) else share, refused / total


@dataclass(frozen=True, slots=True)
class _Kept:
    """The choices by the request that the shares keep, by class and model.

    Attributes:
        part: (choices,) fraction of the class that goes where it was chosen to go.
        classes: (choices,) index of the class.
        most: (choices,) fraction of the class that was chosen to go there.
        value: (choices,) weighted worth per second if it were the whole class.
    """

    part: cp.Variable
    classes: Vector
    most: Vector
    value: Vector
    chosen_row: cp.Constraint
    share_row: cp.Constraint

    @classmethod
    def of(cls, pairs: Pairs, share: cp.Variable) -> _Kept | None:
        """Those of all classes for the models that are open to them; None where there are none."""
        columns = pairs.asked.columns
        at: dict[tuple[int, str], list[int]] = {}
        for pair, (k, j) in enumerate(zip(pairs.classes, pairs.columns, strict=True)):
            name = columns[j].model.name
            choice = pairs.asked.classes[k][1].chosen.get(name)
            if choice is not None and choice.share > 0 and choice.worth > 0:
                at.setdefault((int(k), name), []).append(pair)
        if not at:
            return None
        entries = [(k, pairs.asked.classes[k][1], name) for k, name in at]
        places = [(row, pair) for row, members in enumerate(at.values()) for pair in members]
        rows, members = (np.array(values) for values in zip(*places, strict=True))
        part = cp.Variable(len(at), bounds=[0, None])
        most = np.array([entry.chosen[name].share for _, entry, name in entries])
        of_model = sp.csr_array((np.ones(len(rows)), (rows, members)), shape=(len(at), len(pairs.classes)))
        return cls(
            part=part,
            classes=np.array([k for k, _, _ in entries]),
            most=most,
            value=np.array([entry.weight * entry.rate_rps * entry.chosen[name].worth for _, entry, name in entries]),
            chosen_row=part <= most,
            share_row=part <= of_model @ share,
        )


def _own(column: Column, metric: str, name: str) -> float:
    assert column.means is not None
    return column.means.own_s[metric][name]


def _incidence(rows: Vector, values: Vector, count: int) -> Matrix:
    return sp.csr_array((values, (rows, np.arange(len(rows)))), shape=(count, len(rows)))


def _pick(columns: Vector, values: Vector, count: int) -> Matrix:
    """(rows, count) with one value per row."""
    return sp.csr_array((values, (np.arange(len(columns)), columns.astype(int))), shape=(len(columns), count))
