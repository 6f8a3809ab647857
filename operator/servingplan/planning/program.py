"""The mixed-integer linear program of ``planning.solve``: its variables, its rows, and the solves over them."""

from __future__ import annotations

from dataclasses import dataclass, field

import cvxpy as cp
import numpy as np
import scipy.sparse as sp

from servingplan.planning.compiled import Compiled, Outcome, SolverFailed, Terms, Vector
from servingplan.planning.problem import Binding, Problem
from servingplan.planning.routing import Pairs, Routing
from servingplan.planning.supply import Supply

_PIN = 1e-7
_TIDY_NODES = 64
"""Branch-and-bound nodes spent on a cheaper plan of equal quality: worth some search, not a proof."""
_TIDY_GAP = 1e-3
_SMALL = 500
"""(class, column) pairs up to which the cheapest of equal plans is searched for among all."""
_DUST = 1e-7
"""A share of a class below it is the solver's tolerance, not a decision."""


@dataclass(frozen=True, slots=True)
class Solution:
    """Values of the variables, and what the quality solve proved.

    Attributes:
        share: (pairs,) fraction of its class that goes to a column.
        replicas: (columns,).
        refused: (classes,) fraction of each class.
        refused_after_loss: (classes,) the worst fraction over the nodes that may be lost.
        unmet: (setups,) replicas of the minimum that do not fit.
        column_price: (columns,) quality that one more replica's worth of load would add.
        class_value: (classes,) quality that one more request per second would add.
        quality: Weighted requests per second times score.
        bound: Proven upper bound on it.
        bindings: By plan index.
    """

    share: Vector
    replicas: Vector
    refused: Vector
    refused_after_loss: Vector
    unmet: Vector
    column_price: Vector
    class_value: Vector
    quality: float
    bound: float
    status: str
    seconds: float
    bindings: dict[int, tuple[Binding, ...]] = field(default_factory=dict)


class Program:
    """The program that chooses replicas.

    Args:
        problem: How exactly, and how long.
        pairs: What is asked.
        exclusive: Setups that may use one column only; the others are free to use several, which is a relaxation.
    """

    def __init__(self, problem: Problem, pairs: Pairs, exclusive: frozenset[int]) -> None:
        self._problem, self._asked, self._pairs = problem, pairs.asked, pairs
        self._exclusive = exclusive
        self._supply = Supply(pairs.asked, exclusive)
        self._routing = Routing(pairs, self._supply.replicas)
        self._after_loss = tuple(
            Routing(pairs, self._supply.replicas - lost, only_plan=plan) for plan, lost in self._supply.losses()
        )
        blocks = (self._routing, *self._after_loss)
        rows = [*self._supply.rows, *(row for block in blocks for row in block.rows)]
        variables = [*self._supply.variables, *(variable for block in blocks for variable in block.variables)]
        self._compiled = Compiled(rows, variables, problem.time_limit_s)

    def solve(self) -> Solution:
        """Least refused, then most quality, then least cost and churn; each with what came before it held."""
        refusing = False
        for variable in (self._supply.unmet, *self._refusals()):
            self._compiled.bound_above(variable, 0.0)
        try:
            best = self._best()
        except SolverFailed:
            refusing = True
            self._refuse_least()
            best = self._best()
        self._compiled.at_most(_negative(self._quality()), best.value + _PIN * max(1.0, abs(best.value)))
        self._tidy()
        fixed, quality = self._fixed()
        return self._solution(best, fixed, quality, self._bindings(refusing=refusing))

    def _fixed(self) -> tuple[Compiled, float]:
        """The best shares for the replicas that were found, anew: a search takes 0.999999 for a whole replica."""
        fixed = self._compiled.anew()
        fixed.fix_whole(like=self._compiled)
        for terms in (
            [*self._routing.refused_weight(), *self._supply.unmet_weight(self._pairs)],
            [term for block in self._after_loss for term in block.refused_weight()],
        ):
            least = fixed.minimise(terms).value if terms else 0.0
            if terms:
                fixed.at_most(terms, least + _PIN * max(1.0, abs(least)))
        return fixed, -fixed.minimise(_negative(self._quality())).value

    def _best(self) -> Outcome:
        return self._compiled.minimise(_negative(self._quality()), gap=self._problem.relative_gap)

    def _refuse_least(self) -> None:
        for variable in (self._supply.unmet, *self._refusals()):
            self._compiled.bound_above(variable, np.inf)
        self._hold_least([*self._routing.refused_weight(), *self._supply.unmet_weight(self._pairs)])
        if self._after_loss:
            self._hold_least([term for block in self._after_loss for term in block.refused_weight()])

    def _hold_least(self, terms: Terms) -> None:
        found = self._compiled.minimise(terms, gap=self._problem.relative_gap)
        self._compiled.at_most(terms, found.value + _PIN * max(1.0, abs(found.value)))
        self._compiled.restart()

    def _tidy(self) -> None:
        """Looks for a cheaper plan of equal quality; the one at hand stands where none is found.

        First among the plans with no more replicas of anything, which is a small search. Among all only where the program is
        small: a large fleet that is short of accelerators has none to spare, and the proof would take longer than the plan.
        """
        placed = self._supply.placed
        if not placed.size:
            return
        ample = self._supply.most
        self._compiled.bound_above(placed, np.round(self._compiled.value(placed)))
        self._compiled.restart()
        self._compiled.minimise(self._supply.upkeep(), gap=_TIDY_GAP, nodes=_TIDY_NODES)
        self._compiled.bound_above(placed, ample)
        if len(self._pairs.classes) <= _SMALL:
            self._compiled.restart()
            self._compiled.minimise(self._supply.upkeep(), gap=_TIDY_GAP, nodes=_TIDY_NODES)

    def _refusals(self) -> list[cp.Variable]:
        return [block.refused for block in (self._routing, *self._after_loss)]

    def _quality(self) -> Terms:
        return self._routing.quality()

    def _bindings(self, *, refusing: bool) -> dict[int, tuple[Binding, ...]]:
        """Rows with a price in the linear relaxation of the level that matters."""
        relaxed = self._compiled.anew()
        relaxed.relax()
        # Bounds that say what fits on the nodes would take the price from the rows that say it by name.
        relaxed.bound_above(self._supply.placed, np.inf)
        terms = [*self._routing.refused_weight(), *self._supply.unmet_weight(self._pairs)]
        for block in self._after_loss:
            terms += block.refused_weight()
        found = relaxed.minimise(terms)
        if not refusing:
            relaxed.at_most(terms, found.value + _PIN * max(1.0, abs(found.value)))
            relaxed.minimise(_negative(self._quality()))
        return self._supply.bindings(relaxed, self._routing)

    def _solution(self, best: Outcome, fixed: Compiled, quality: float, bindings: dict[int, tuple[Binding, ...]]) -> Solution:
        routing = self._routing
        share, refused = routing.cleaned(fixed, _DUST)
        worst = np.max([refused, *(fixed.value(block.refused) for block in self._after_loss)], axis=0)
        return Solution(
            share=share,
            replicas=np.round(self._supply.count(fixed)),
            refused=refused,
            refused_after_loss=np.where(worst > _DUST, worst, 0.0),
            unmet=np.round(np.maximum(0.0, fixed.value(self._supply.unmet))),
            column_price=fixed.prices(routing.load_row),
            class_value=routing.class_value(fixed),
            quality=quality,
            bound=max(-best.bound, quality),
            status="optimal" if best.proved else "time_limit",
            seconds=self._compiled.seconds + fixed.seconds,
            bindings=bindings,
        )

    def shortages(self) -> dict[tuple[int, str], int]:
        """Further units by (plan, accelerator) with which every class is served: the cheapest, limits and budget aside."""
        supply = Supply(self._asked, self._exclusive, extra=True)
        routing = Routing(self._pairs, supply.replicas)
        after = [Routing(self._pairs, supply.replicas - lost, only_plan=plan) for plan, lost in supply.losses()]
        blocks = (routing, *after)
        rows = [*supply.rows, *(row for block in blocks for row in block.rows)]
        variables = [*supply.variables, *(variable for block in blocks for variable in block.variables)]
        compiled = Compiled(rows, variables, self._problem.time_limit_s)
        for variable in (supply.unmet, *(block.refused for block in blocks)):
            compiled.bound_above(variable, 0.0)
        try:
            compiled.minimise(supply.extra_cost(), gap=1e-3)
        except SolverFailed:
            return {}
        units = np.round(compiled.value(supply.extra)).astype(int)
        return {name: int(count) for name, count in zip(supply.kinds, units, strict=True) if count > 0}


class SharingProgram:
    """The program with given replicas: which share of each class goes where."""

    def __init__(self, problem: Problem, pairs: Pairs) -> None:
        asked = pairs.asked
        self._problem, self._asked = problem, asked
        assert problem.standing is not None
        standing = problem.standing.replicas
        self._standing = np.array([standing.get(asked.setup_key(column), 0) for column in asked.columns], dtype=float)
        self._chosen = cp.Variable(len(asked.columns), boolean=True)
        alternatives = [s for s in asked.setups if len(s) > 1]
        rows: list[cp.Constraint] = []
        if alternatives:
            one = sp.lil_array((len(alternatives), len(asked.columns)))
            alone = np.ones(len(asked.columns))
            for row, columns in enumerate(alternatives):
                one[row, list(columns)] = 1.0
                alone[list(columns)] = 0.0
            rows.append(one.tocsr() @ self._chosen == np.ones(len(alternatives)))
            replicas: cp.Expression = cp.multiply(self._standing, self._chosen + alone)
            rows.append(cp.multiply(alone, self._chosen) == 0)
        else:
            replicas = cp.Constant(self._standing)
        self._overload = cp.Variable(1, bounds=[0, None])
        slack = cp.multiply(self._standing, self._overload[0])
        self._routing = Routing(pairs, replicas, slack=slack if problem.overload else None)
        self._alternatives = bool(alternatives)
        variables = [self._overload, *self._routing.variables, *([self._chosen] if alternatives else [])]
        self._compiled = Compiled([*rows, *self._routing.rows], variables, problem.time_limit_s)

    def solve(self) -> Solution:
        """Least refused or least overload, then most quality."""
        compiled, routing = self._compiled, self._routing
        if self._problem.overload:
            compiled.bound_above(routing.refused, np.where(routing.reachable(self._standing), 0.0, 1.0))
            least: Terms = [(self._overload, np.ones(1))]
        else:
            least = routing.refused_weight()
        found = compiled.minimise(least)
        compiled.at_most(least, found.value + _PIN * max(1.0, abs(found.value)))
        best = compiled.minimise(_negative(routing.quality()), gap=self._problem.relative_gap)
        if self._alternatives:
            compiled = compiled.anew()
            compiled.fix_whole(like=self._compiled)
            if self._problem.overload:
                compiled.bound_above(routing.refused, np.where(routing.reachable(self._standing), 0.0, 1.0))
            compiled.at_most(least, compiled.minimise(least).value + _PIN * max(1.0, abs(found.value)))
        final = compiled.minimise(_negative(routing.quality()))
        share, refused = routing.cleaned(compiled, _DUST)
        used = routing.used_columns(share)
        chosen = [next((j for j in columns if used[j]), columns[0]) for columns in self._asked.setups]
        replicas = np.zeros(len(self._standing))
        replicas[chosen] = self._standing[chosen]
        return Solution(
            share=share,
            replicas=replicas,
            refused=refused,
            refused_after_loss=refused,
            unmet=np.zeros(len(self._asked.setups)),
            column_price=compiled.prices(routing.load_row),
            class_value=routing.class_value(compiled),
            quality=-final.value,
            bound=max(-best.bound, -final.value),
            status="optimal" if best.proved else "time_limit",
            seconds=compiled.seconds,
        )


def _negative(terms: Terms) -> Terms:
    return [(variable, -coefficients) for variable, coefficients in terms]
