"""A program stated in cvxpy, held by HiGHS, and solved for one objective after the other.

The rows become a matrix once. A lexicographic solve then changes costs, adds a row and starts from the solution before, which
a new cvxpy problem per level would forget. Deterministic: one thread, a fixed seed, and limits that count nodes where a
search may end early for other reasons than its proof.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import highspy
import numpy as np

Vector = np.ndarray[Any, Any]
Terms = Sequence[tuple[cp.Variable, Vector]]
"""A linear form: coefficients by variable."""


_LEAST_S = 0.5


class SolverFailed(Exception):  # noqa: N818 - it is an outcome that the loop above answers by holding what is
    """HiGHS ended without a solution; the message says how."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one solve ended.

    Attributes:
        value: Of the objective that was minimised.
        bound: Proven lower bound on it.
        proved: Whether the gap that was asked for was reached, not a limit.
    """

    value: float
    bound: float
    proved: bool


class Compiled:
    """Rows over variables, ready to be minimised.

    Args:
        rows: Affine constraints; equalities and inequalities of cvxpy.
        variables: All variables of the rows and of later objectives.
        time_limit_s: Of all solves together; each may take half a second.
    """

    def __init__(self, rows: Sequence[cp.Constraint], variables: Sequence[cp.Variable], time_limit_s: float) -> None:
        # A variable that stands in no row would be dropped, and its column with it.
        idle = sum(cp.sum(0 * variable) for variable in variables if variable.size)
        data = cp.Problem(cp.Minimize(idle), list(rows)).get_problem_data(cp.HIGHS)[0]
        self._offset: dict[int, int] = data["param_prob"].var_id_to_col
        self._row_start = _starts(rows)
        self._whole_at_first = np.array(sorted({*data["int_vars_idx"], *data["bool_vars_idx"]}), dtype=np.int32)
        self._model = _model(data, self._whole_at_first)
        self._columns = self._model.lp_.num_col_
        self._every = np.arange(self._columns, dtype=np.int32)
        self._time_limit_s = time_limit_s
        self._load()

    def _load(self) -> None:
        self._whole = self._whole_at_first
        self._found, self._duals = np.zeros(self._columns), np.zeros(0)
        self._start: highspy.HighsSolution | None = None
        self._highs = highspy.Highs()  # type: ignore[no-untyped-call]
        for option, value in (("output_flag", False), ("threads", 1), ("random_seed", 1), ("mip_allow_restart", False)):
            self._highs.setOptionValue(option, value)
        self._highs.passModel(self._model)

    def anew(self) -> Compiled:
        """The same rows as they were stated, without what was added, bounded or found since."""
        again = copy(self)
        again._load()
        return again

    @property
    def seconds(self) -> float:
        """Time that HiGHS has taken so far."""
        return float(self._highs.getRunTime())

    def minimise(self, terms: Terms, *, gap: float = 0.0, nodes: int | None = None) -> Outcome:
        """Minimises a linear form.

        Args:
            terms: The form.
            gap: Relative distance from the proven bound at which the search may end.
            nodes: Branch-and-bound nodes after which it ends; None for no such limit.

        Raises:
            SolverFailed: Nothing was found: the rows contradict each other, or the time was too short.
        """
        cost = np.zeros(self._columns)
        for variable, coefficients in terms:
            cost[self._places(variable)] = np.ravel(np.broadcast_to(coefficients, variable.shape))
        self._highs.changeColsCost(self._columns, self._every, cost)
        self._highs.setOptionValue("mip_rel_gap", gap)
        self._highs.setOptionValue("mip_max_nodes", 2**31 - 1 if nodes is None else nodes)
        if self._whole.size:
            # What the search before left behind, of other bounds, can end this one without an answer.
            self._highs.clearSolver()
        if self._start is not None:
            self._highs.setSolution(self._start)
            self._start = None
        self._highs.setOptionValue("time_limit", max(_LEAST_S, self._time_limit_s - self.seconds))
        self._highs.run()
        status, info = self._highs.getModelStatus(), self._highs.getInfo()
        if info.primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
            message = f"the solver ended with: {self._highs.modelStatusToString(status)}"
            raise SolverFailed(message)
        solution = self._highs.getSolution()
        self._found, self._duals = np.array(solution.col_value), -np.array(solution.row_dual)
        value = float(info.objective_function_value)
        bound = float(info.mip_dual_bound) if self._whole.size else value
        return Outcome(value, min(value, bound), status == highspy.HighsModelStatus.kOptimal)

    def at_most(self, terms: Terms, upper: float) -> None:
        """Adds a row: the linear form is at most ``upper``."""
        places = np.concatenate([self._places(variable) for variable, _ in terms]).astype(np.int32)
        values = np.concatenate([np.ravel(np.broadcast_to(c, variable.shape)) for variable, c in terms]).astype(float)
        used = values != 0
        self._highs.addRow(-highspy.kHighsInf, upper, int(used.sum()), places[used], values[used])

    def restart(self) -> None:
        """Starts the next search from the solution at hand."""
        self._start = highspy.HighsSolution()
        self._start.col_value = list(self._found)

    def bound_above(self, variable: cp.Variable, upper: Vector | float) -> None:
        """Replaces a variable's upper bounds; the lower ones are 0."""
        places = self._places(variable).astype(np.int32)
        high: list[float] = np.broadcast_to(upper, len(places)).tolist()
        self._highs.changeColsBounds(len(places), places, [0.0] * len(places), high)

    def relax(self) -> None:
        """Lets every variable be fractional from now on."""
        self._set_kinds(highspy.HighsVarType.kContinuous)

    def fix_whole(self, like: Compiled) -> None:
        """Fixes the integers at those of another solution of the same rows, so that a linear program with prices is left."""
        if not self._whole.size:
            return
        values: list[float] = np.round(like._found[self._whole]).tolist()
        self._highs.changeColsBounds(len(self._whole), self._whole, values, values)
        self.relax()

    def value(self, variable: cp.Variable) -> Vector:
        """A variable's values in the last solution."""
        return self._found[self._places(variable)].reshape(variable.shape)

    def prices(self, row: cp.Constraint) -> Vector:
        """How much one more on a row's right side lowers what was minimised; of a program without integers.

        Non-negative for an inequality. For an equality its sign says whether more lowers or raises.
        """
        start = self._row_start[row.id]
        return self._duals[start : start + row.size]

    def _places(self, variable: cp.Variable) -> Vector:
        if not variable.size:
            return np.zeros(0, dtype=int)
        start = self._offset[variable.id]
        return np.arange(start, start + variable.size)

    def _set_kinds(self, kind: highspy.HighsVarType) -> None:
        if self._whole.size:
            kinds = np.full(len(self._whole), kind.value, dtype=np.uint8)
            self._highs.changeColsIntegrality(len(self._whole), self._whole, kinds)
            self._whole = np.zeros(0, dtype=np.int32)


def negative(terms: Terms) -> Terms:
    """The form with its sign turned, so that most is least."""
    return [(variable, -coefficients) for variable, coefficients in terms]


def _starts(rows: Sequence[cp.Constraint]) -> dict[int, int]:
    """Where each constraint's rows begin, by its id: cvxpy puts the equalities first."""
    ordered = sorted(rows, key=lambda row: not isinstance(row, cp.Zero | cp.constraints.Equality))
    starts = np.cumsum([0, *(row.size for row in ordered)])
    return {row.id: int(start) for row, start in zip(ordered, starts, strict=False)}


def _model(data: dict[str, Any], whole: Vector) -> highspy.HighsModel:
    matrix = data["A"].tocsc()
    model = highspy.HighsModel()
    lp = model.lp_
    lp.num_col_, lp.num_row_ = matrix.shape[1], matrix.shape[0]
    lp.col_cost_ = np.zeros(matrix.shape[1])
    lp.col_lower_, lp.col_upper_ = _bounds(data, matrix.shape[1])
    lp.row_lower_, lp.row_upper_ = _sides(data)
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_, lp.a_matrix_.index_, lp.a_matrix_.value_ = matrix.indptr, matrix.indices, matrix.data
    if whole.size:
        kinds = np.full(matrix.shape[1], highspy.HighsVarType.kContinuous, dtype=object)
        kinds[whole] = highspy.HighsVarType.kInteger
        lp.integrality_ = list(kinds)
    return model


def _bounds(data: dict[str, Any], columns: int) -> tuple[Vector, Vector]:
    lower, upper = data["lower_bounds"], data["upper_bounds"]
    low = np.full(columns, -highspy.kHighsInf) if lower is None else np.array(lower, dtype=float)
    high = np.full(columns, highspy.kHighsInf) if upper is None else np.array(upper, dtype=float)
    switches = np.array(data["bool_vars_idx"], dtype=int)
    low[switches], high[switches] = 0.0, 1.0
    return low, high


def _sides(data: dict[str, Any]) -> tuple[Vector, Vector]:
    """The form of cvxpy: the first rows are equal to their right side, the others at most that."""
    right: Vector = np.array(data["b"], dtype=float)
    left = right.copy()
    left[int(data["dims"].zero) :] = -highspy.kHighsInf
    return left, right
