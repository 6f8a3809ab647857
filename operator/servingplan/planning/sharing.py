"""The program with given replicas: which share of each class goes where. The same routing rows, without an allocation."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import scipy.sparse as sp

from servingplan.planning.compiled import Compiled, Outcome, Terms, negative
from servingplan.planning.problem import Problem
from servingplan.planning.routing import Pairs, Routing
from servingplan.planning.solution import DUST, PIN, Solution
from servingplan.planning.supply import memberships


class SharingProgram:
    """The program for the replicas of ``problem.standing``.

    Args:
        problem: Which replicas stand, and whether what exceeds them is late or refused.
        pairs: What is asked.
    """

    def __init__(self, problem: Problem, pairs: Pairs) -> None:
        assert problem.standing is not None, "there are replicas to share"
        asked, standing = pairs.asked, problem.standing.replicas
        self._problem, self._asked = problem, asked
        self._standing = np.array([standing.get(asked.setup_key(column), 0) for column in asked.columns], dtype=float)
        alternatives = [columns for columns in asked.setups if len(columns) > 1]
        flat = np.array([j for columns in alternatives for j in columns], dtype=int)
        self._chosen = cp.Variable(len(flat), boolean=True)
        rows: list[cp.Constraint] = []
        replicas: cp.Expression = cp.Constant(self._standing)
        if alternatives:
            # What a setup is kept strict for is still open: all its replicas are in one of its columns.
            alone = self._standing.copy()
            alone[flat] = 0.0
            scatter = sp.csr_array((self._standing[flat], (flat, np.arange(len(flat)))), shape=(len(alone), len(flat)))
            replicas = alone + scatter @ self._chosen
            rows.append(memberships(alternatives) @ self._chosen == np.ones(len(alternatives)))
        self._overload = cp.Variable(1, bounds=[0, None])
        slack = cp.multiply(self._standing, self._overload[0])
        self._routing = Routing(pairs, replicas, slack=slack if problem.overload else None)
        variables = [self._overload, self._chosen, *self._routing.variables]
        self._compiled = Compiled([*rows, *self._routing.rows], variables, problem.time_limit_s)

    def solve(self) -> Solution:
        """Least refused or least overload, then most quality."""
        compiled, routing = self._compiled, self._routing
        seconds = 0.0
        best = self._level(compiled, self._problem.relative_gap)
        if self._chosen.size:
            # A search takes 0.999999 for chosen; once chosen, a linear program with prices is left.
            seconds, compiled = compiled.seconds, compiled.anew()
            compiled.fix_whole(like=self._compiled)
            final = self._level(compiled, 0.0)
        else:
            final = best
        share, refused = routing.cleaned(compiled, DUST)
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
            seconds=seconds + compiled.seconds,
        )

    def _level(self, compiled: Compiled, gap: float) -> Outcome:
        routing = self._routing
        least: Terms = routing.refused_weight()
        if self._problem.overload:
            compiled.bound_above(routing.refused, np.where(routing.reachable(self._standing), 0.0, 1.0))
            least = [(self._overload, np.ones(1))]
        found = compiled.minimise(least)
        compiled.at_most(least, found.value + PIN * max(1.0, abs(found.value)))
        return compiled.minimise(negative(routing.quality()), gap=gap)
