"""The exact optimum in RouterWise's space: the best routing of one setup (LP), and setup and routing together (MILP).

x[k, m], share of all requests that are of class k and go to model m; for a model's setup s, X[s], its load in requests per
second, y[s], its requests waiting for a first token, and n[s], its replicas (0 or 1 in the paper):

    maximise sum score[k,m] x[k,m]
    sum_m x[k,m] = share_k,      rate sum_k x[k,m] = sum_{s of m} X[s]
    X[s] <= limit_s n[s],        y[s] >= b_j X[s] + a_j n[s]  for every line j under or over f_s(u) = u ttft_s(u)
    sum_s y[s] <= ttft rate      the request-weighted mean

A replica at load u holds f(u) requests and n of them n f(X / n), the perspective of f: linear in (X, n) for a maximum of
lines, so no product of variables and no large constant is needed. With chords the answer keeps the bound under linear
interpolation (safe); with tangents it is an upper bound on every method's score.

In the paper's space each model has one setup, compute sums to the GPUs, and combinations of tensor parallel sizes that
First-Fit-Decreasing cannot place by memory are cut off one by one; compute shares play no part in that filter.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum
from itertools import product

import highspy
import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_array, eye_array, kron, vstack

from routerwise.cells import Cell, Curve, Scores
from routerwise.setups import GPU_GB, TENSOR_PARALLEL, ModelSetup, Setup

INFINITY = highspy.kHighsInf
_OPTIONS = (
    ("output_flag", False),
    ("threads", 1),
    ("random_seed", 0),
    # The search ends after a few nodes; solving smaller programs for a first solution takes longer than that.
    ("mip_heuristic_run_rens", False),
    ("mip_heuristic_run_rins", False),
    ("mip_heuristic_run_root_reduced_cost", False),
)


class Side(Enum):
    """Which lines stand for f: ``INNER`` chords, on or above it, or ``OUTER`` tangents, on or below it."""

    INNER = "chords"
    OUTER = "tangents"


@dataclass(frozen=True, slots=True)
class Answer:
    """An optimum.

    Attributes:
        score: Mean score of all requests.
        fractions: (M,) share of the requests that each model gets.
        replicas: By model index and setup, where not 0.
    """

    score: float
    fractions: np.ndarray
    replicas: dict[tuple[int, ModelSetup], int]

    def setup(self) -> Setup:
        """The one setup of each model, in the order of the models."""
        return tuple(part for _, part in sorted(self.replicas, key=lambda key: key[0]))


Option = tuple[int, ModelSetup, Curve]


def best_routing(cell: Cell, setup: Setup, side: Side = Side.INNER) -> Answer | None:
    """The best routing for one setup per model; None where none keeps the bound."""
    if any((m, part) not in cell.curves for m, part in enumerate(setup)):
        return None
    options = [(m, part, cell.curves[m, part]) for m, part in enumerate(setup)]
    if sum(curve.limit_rps for _, _, curve in options) < cell.rate_rps:
        return None
    program = _Program(cell, options, side)
    program.fix(1.0)
    return program.solve()


def best_setup(cell: Cell, relative_gap: float = 1e-6) -> Answer | None:
    """Setup and routing together, over the retained setups; None where no setup keeps the bound."""
    options = [(m, part, curve) for (m, part), curve in cell.curves.items()]
    program = _Program(cell, options, Side.INNER)
    program.integer(upper=1)
    for model in range(len(cell.scores.models)):
        program.row({s: 1.0 for s, option in enumerate(options) if option[0] == model}, 1.0, 1.0)
    # Follows from the rows of the loads; said outright it shortens the search.
    program.row({s: curve.limit_rps for s, (_, _, curve) in enumerate(options)}, cell.rate_rps, INFINITY)
    total = 10.0 * cell.space.gpus
    program.row({s: float(part.compute_tenths) for s, (_, part, _) in enumerate(options)}, total, total)
    for sizes in product(TENSOR_PARALLEL, repeat=len(cell.scores.models)):
        if not cell.space.fits_first(sizes):
            chosen = {s: 1.0 for s, (m, part, _) in enumerate(options) if part.tp == sizes[m]}
            program.row(chosen, -INFINITY, len(sizes) - 1.0)
    return program.solve(relative_gap)


def best_replicas(
    cell: Cell, shares_tenths: Collection[int] = (10,), *, memory_used: float = 1.0, relative_gap: float = 1e-6
) -> Answer | None:
    """Replicas and routing together; a model may have any number, also none. None where nothing keeps the bound.

    Args:
        cell: The models, the load and the bound.
        shares_tenths: Compute shares that a replica may take; (10,) for whole GPUs only.
        memory_used: Fraction of all memory that may be taken.
        relative_gap: At which the search ends.

    Compute and memory are counted in sum over the GPUs, as the paper counts compute; ``Space.fits_replicas`` tells whether
    First-Fit-Decreasing then places the memory.
    """
    options = [(m, part, curve) for (m, part), curve in cell.curves.items() if part.tenths in shares_tenths]
    program = _Program(cell, options, Side.INNER)
    program.integer(upper=10 * cell.space.gpus)
    program.row({s: float(part.compute_tenths) for s, (_, part, _) in enumerate(options)}, -INFINITY, 10.0 * cell.space.gpus)
    memory_gb = {s: part.tp * cell.space.shard_gb(m, part.tp) for s, (m, part, _) in enumerate(options)}
    program.row(memory_gb, -INFINITY, memory_used * GPU_GB * cell.space.gpus)
    return program.solve(relative_gap)


class _Program:
    """The program of some options, as columns x (class by class), X, y, n."""

    def __init__(self, cell: Cell, options: list[Option], side: Side) -> None:
        self.cell, self.options = cell, options
        classes, models = cell.scores.matrix.shape
        self.flows = classes * models
        self.columns = self.flows + 3 * len(options)
        self.load, self.waiting, self.replicas = (self.flows + i * len(options) for i in range(3))
        self.parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.lower: list[np.ndarray] = []
        self.upper: list[np.ndarray] = []
        self.rows = 0
        self.bounds = np.zeros(self.columns), np.full(self.columns, INFINITY)
        self.whole = np.zeros(self.columns, dtype=bool)
        self._routing(models)
        self._latency(side)

    def _routing(self, models: int) -> None:
        flows = np.arange(self.flows)
        shares = self.cell.scores.shares
        self._add(flows // models, flows, np.ones(self.flows), shares, shares)
        owner = np.array([model for model, _, _ in self.options])
        loads = self.load + np.arange(len(self.options))
        rows = np.concatenate([flows % models, owner])
        values = np.concatenate([np.full(self.flows, self.cell.rate_rps), np.full(len(loads), -1.0)])
        self._add(rows, np.concatenate([flows, loads]), values, np.zeros(models), np.zeros(models))

    def _latency(self, side: Side) -> None:
        every = np.arange(len(self.options))
        limits = np.array([curve.limit_rps for _, _, curve in self.options])
        none, zero = np.full(len(every), -INFINITY), np.zeros(len(every))
        ones = np.ones(len(every))
        pair = np.concatenate([self.load + every, self.replicas + every])
        self._add(np.tile(every, 2), pair, np.concatenate([ones, -limits]), none, zero)
        for s, (_, _, curve) in enumerate(self.options):
            intercepts, slopes = curve.chords if side is Side.INNER else curve.tangents
            lines = np.arange(len(slopes))
            columns = np.repeat([self.waiting + s, self.load + s, self.replicas + s], len(lines))
            values = np.concatenate([np.ones(len(lines)), -slopes, -intercepts])
            self._add(np.tile(lines, 3), columns, values, np.zeros(len(lines)), np.full(len(lines), INFINITY))
        budget = np.array([self.cell.ttft_s * self.cell.rate_rps])
        self._add(np.zeros_like(every), self.waiting + every, ones, np.array([-INFINITY]), budget)

    def _add(self, rows: np.ndarray, columns: np.ndarray, values: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> None:
        self.parts.append((rows + self.rows, columns, values))
        self.lower.append(lower)
        self.upper.append(upper)
        self.rows += len(lower)

    def row(self, replicas: dict[int, float], lower: float, upper: float) -> None:
        """A row over the replicas of some options, by their index."""
        columns = self.replicas + np.array(list(replicas), dtype=int)
        values = np.array(list(replicas.values()))
        self._add(np.zeros(len(columns), dtype=int), columns, values, np.array([lower]), np.array([upper]))

    def fix(self, replicas: float) -> None:
        """Give every option so many replicas."""
        for bound in self.bounds:
            bound[self.replicas :] = replicas

    def integer(self, upper: float) -> None:
        """Ask for whole replicas up to a bound."""
        self.bounds[1][self.replicas :] = upper
        self.whole[self.replicas :] = True

    def solve(self, relative_gap: float = 1e-6) -> Answer | None:
        solver = highspy.Highs()
        for option, value in (*_OPTIONS, ("mip_rel_gap", relative_gap)):
            solver.setOptionValue(option, value)
        solver.passModel(self._model())
        solver.run()
        status = solver.getModelStatus()
        if status == highspy.HighsModelStatus.kInfeasible:
            return None
        if status != highspy.HighsModelStatus.kOptimal:
            msg = f"the solver ended with {solver.modelStatusToString(status)}"
            raise RuntimeError(msg)
        values = np.array(solver.getSolution().col_value)
        chosen = np.rint(values[self.replicas :]).astype(int)
        models = len(self.cell.scores.models)
        return Answer(
            score=float(solver.getInfo().objective_function_value),
            fractions=values[: self.flows].reshape(-1, models).sum(axis=0),
            replicas={(m, part): int(n) for (m, part, _), n in zip(self.options, chosen, strict=True) if n},
        )

    def _model(self) -> highspy.HighsLp:
        rows, columns, values = (np.concatenate([part[i] for part in self.parts]) for i in range(3))
        matrix = coo_array((values, (rows, columns)), shape=(self.rows, self.columns)).tocsc()
        model = highspy.HighsLp()
        model.num_col_, model.num_row_ = self.columns, self.rows
        model.sense_ = highspy.ObjSense.kMaximize
        model.col_cost_ = np.concatenate([self.cell.scores.matrix.ravel(), np.zeros(self.columns - self.flows)])
        model.col_lower_, model.col_upper_ = self.bounds
        model.row_lower_, model.row_upper_ = np.concatenate(self.lower), np.concatenate(self.upper)
        model.a_matrix_.format_ = highspy.MatrixFormat.kColwise
        model.a_matrix_.start_, model.a_matrix_.index_, model.a_matrix_.value_ = matrix.indptr, matrix.indices, matrix.data
        if self.whole.any():
            kinds = (highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger)
            model.integrality_ = [kinds[int(whole)] for whole in self.whole]
        return model


def best_score(scores: Scores, fractions: np.ndarray) -> float:
    """The best mean score when each model gets its fraction of the requests (M,): a transport problem, solved exactly."""
    classes, models = scores.matrix.shape
    by_class = kron(eye_array(classes), np.ones((1, models)))
    by_model = kron(np.ones((1, classes)), eye_array(models))
    # The fractions and the shares both sum to 1, so the last row follows from the others; rounding must not make it fail.
    equal = vstack([by_class, by_model]).tocsr()[:-1]
    found = linprog(-scores.matrix.ravel(), A_eq=equal, b_eq=np.concatenate([scores.shares, fractions])[:-1], method="highs")
    if found.x is None:
        raise RuntimeError(found.message)
    return -float(found.fun)
