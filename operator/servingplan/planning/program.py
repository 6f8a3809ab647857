"""The program that chooses replicas (``planning.solve`` has its rows): one level after the other, and what it proved."""

from __future__ import annotations

import cvxpy as cp
import numpy as np

from servingplan.planning.compiled import Compiled, Outcome, SolverFailed, Terms, negative
from servingplan.planning.problem import Binding, Problem
from servingplan.planning.routing import Pairs, Routing
from servingplan.planning.solution import DUST, PIN, Solution
from servingplan.planning.supply import Supply

_TIDY_NODES = 64
"""Branch-and-bound nodes spent on a cheaper plan of equal quality: worth some search, not a proof."""
_TIDY_GAP = 1e-3
_SMALL = 500
"""(class, column) pairs up to which the cheapest of equal plans is searched for among all."""


class Program:
    """The program that chooses replicas.

    Args:
        problem: How exactly, and how long.
        pairs: What is asked.
        exclusive: Setups that may use one column only; the others are free to use several, which is a relaxation.
    """

    def __init__(self, problem: Problem, pairs: Pairs, exclusive: frozenset[int]) -> None:
        self._problem, self._pairs, self._exclusive = problem, pairs, exclusive
        stated = _state(problem, pairs, exclusive)
        self._supply, self._routing, self._after_loss, self._compiled = stated

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
        spare = max(PIN * max(1.0, abs(best.value)), self._problem.slack * abs(best.value))
        self._compiled.at_most(negative(self._quality()), best.value + spare)
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
                fixed.at_most(terms, least + PIN * max(1.0, abs(least)))
        return fixed, -fixed.minimise(negative(self._quality())).value

    def _best(self) -> Outcome:
        return self._compiled.minimise(negative(self._quality()), gap=self._problem.relative_gap)

    def _refuse_least(self) -> None:
        for variable in (self._supply.unmet, *self._refusals()):
            self._compiled.bound_above(variable, np.inf)
        self._hold_least([*self._routing.refused_weight(), *self._supply.unmet_weight(self._pairs)])
        if self._after_loss:
            self._hold_least([term for block in self._after_loss for term in block.refused_weight()])

    def _hold_least(self, terms: Terms) -> None:
        found = self._compiled.minimise(terms, gap=self._problem.relative_gap)
        self._compiled.at_most(terms, found.value + PIN * max(1.0, abs(found.value)))
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
            relaxed.at_most(terms, found.value + PIN * max(1.0, abs(found.value)))
            relaxed.minimise(negative(self._quality()))
        return self._supply.bindings(relaxed, self._routing)

    def _solution(self, best: Outcome, fixed: Compiled, quality: float, bindings: dict[int, tuple[Binding, ...]]) -> Solution:
        routing = self._routing
        share, refused = routing.cleaned(fixed, DUST)
        worst = np.max([refused, *(fixed.value(block.refused) for block in self._after_loss)], axis=0)
        return Solution(
            share=share,
            replicas=np.round(self._supply.count(fixed)),
            refused=refused,
            refused_after_loss=np.where(worst > DUST, worst, 0.0),
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
        supply, routing, after, compiled = _state(self._problem, self._pairs, self._exclusive, extra=True)
        for variable in (supply.unmet, *(block.refused for block in (routing, *after))):
            compiled.bound_above(variable, 0.0)
        try:
            compiled.minimise(supply.extra_cost(), gap=1e-3)
        except SolverFailed:
            return {}
        units = np.round(compiled.value(supply.extra)).astype(int)
        return {name: int(count) for name, count in zip(supply.kinds, units, strict=True) if count > 0}


def _state(
    problem: Problem, pairs: Pairs, exclusive: frozenset[int], *, extra: bool = False
) -> tuple[Supply, Routing, tuple[Routing, ...], Compiled]:
    """The rows of the whole program: the allocation, the routing, and the routing after each loss."""
    supply = Supply(pairs.asked, exclusive, extra=extra)
    routing = Routing(pairs, supply.replicas)
    after = tuple(Routing(pairs, supply.replicas - lost, only_plan=plan) for plan, lost in supply.losses())
    blocks = (routing, *after)
    rows = [*supply.rows, *(row for block in blocks for row in block.rows)]
    variables = [*supply.variables, *(variable for block in blocks for variable in block.variables)]
    return supply, routing, after, Compiled(rows, variables, problem.time_limit_s)
