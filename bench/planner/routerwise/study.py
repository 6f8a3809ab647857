"""The headline study: every cell, what each method makes of it, and what that costs in CPU time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from routerwise import baselines
from routerwise.algorithms import Effort, optimize_beta
from routerwise.cells import Cell
from routerwise.exact import best_replicas, best_routing, best_score, best_setup
from routerwise.real import SIZES_B, Hardware, curves, scores
from routerwise.replicas import plan
from routerwise.setups import TENTHS, Setup, Space

TRIPLES = {
    "A": ("codegemma-7b", "mistral-7b-instruct-v0.3", "llama-3.1-nemotron-51b-instruct"),
    "B": ("mistral-7b-instruct-v0.3", "llama-3.1-8b-instruct", "llama-3.1-nemotron-51b-instruct"),
}
TTFT_S = {"A100": (0.2, 0.5), "H100": (0.1, 0.5)}
LOADS = (0.6, 0.75, 0.9, 0.97)
GPUS = (4, 8)
SAMPLED_SETUPS = 8
"""Setups on which the algorithms run in each sampled cell; one that cannot carry the load takes them no time."""
SAMPLED_LOAD, FULL_LOAD = 0.75, 0.9
BETTER = 1e-4
"""Relative difference of scores from which on one is called better: the gap to which the planner proves its answer."""


@dataclass
class Result:
    """One cell and what every method makes of it.

    Attributes:
        load: As a fraction of the largest that a retained setup carries.
        scored: Best score of every retained setup; None where it cannot keep the bound.
        packed: Retained setups that keep every GPU within 100 % compute.
        others: Score by method; None where the method finds nothing.
        cpu_s: CPU seconds by method.
    """

    hardware: Hardware
    triple: str
    load: float
    cell: Cell
    scored: dict[Setup, float | None]
    packed: set[Setup]
    others: dict[str, float | None] = field(default_factory=dict)
    cpu_s: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        asked = f"{self.cell.rate_rps:g}/s {1e3 * self.cell.ttft_s:g} ms"
        return f"{self.cell.space.gpus} x {self.hardware.name} {self.triple} {asked}"

    @property
    def best(self) -> float:
        """Best score of one instance per model; 0 where no setup keeps the bound."""
        return max((score for score in self.scored.values() if score is not None), default=0.0)

    def feasible(self, *, packed: bool = False) -> np.ndarray:
        """Scores of the setups that keep the bound, ascending."""
        kept = (score for setup, score in self.scored.items() if score is not None and (not packed or setup in self.packed))
        return np.sort(np.array(list(kept)))

    def spread(self, *, packed: bool = False) -> float:
        found = self.feasible(packed=packed)
        return float(found[-1] / found[0] - 1) if len(found) else float("nan")


def sweep(hardware: Hardware, gpus: int) -> list[Result]:
    results = []
    for triple, models in TRIPLES.items():
        space = Space(tuple(SIZES_B[model] for model in models), gpus)
        setups = space.retained()
        packed = {setup for setup in setups if space.packs(setup)}
        of, curve = scores(models), curves(hardware, models, space)
        most_rps = max(sum(curve[m, part].limit_rps for m, part in enumerate(setup)) for setup in setups)
        for load in LOADS:
            for ttft_s in TTFT_S[hardware.name]:
                cell = Cell(of, space, curve, float(round(load * most_rps)), ttft_s)
                results.append(Result(hardware, triple, load, cell, {}, packed))
                solve_all(results[-1], setups)
    return results


def solve_all(result: Result, setups: tuple[Setup, ...]) -> None:
    cell, hardware = result.cell, result.hardware

    def timed(method: str, find: Callable[[], float | None]) -> None:
        begun_s = time.process_time()
        result.others[method] = find()
        result.cpu_s[method] = time.process_time() - begun_s

    begun_s = time.process_time()
    result.scored = {setup: answer.score if (answer := best_routing(cell, setup)) else None for setup in setups}
    result.cpu_s["enumeration"] = time.process_time() - begun_s
    timed("joint MILP", lambda: answer.score if (answer := best_setup(cell)) else None)
    timed("equal split", lambda: baselines.equal_split(cell, result.scored))
    timed("by size", lambda: baselines.size_proportional(cell, result.scored))
    timed("isolated", lambda: baselines.isolated(cell, result.scored))
    timed("sequential", lambda: baselines.sequential(cell))
    timed("whole GPUs", lambda: plan(cell, hardware).score)
    timed("whole GPUs, reference", lambda: answer.score if (answer := best_replicas(cell)) else None)
    timed("half GPUs", lambda: plan(cell, hardware, (5, 10)).score)
    timed("tenths", lambda: in_tenths(cell))


def in_tenths(cell: Cell) -> float | None:
    """Score with replicas on any tenths of GPUs whose memory First-Fit-Decreasing can place; None where none was found."""
    for memory_used in (1.0, 0.9, 0.8):
        answer = best_replicas(cell, TENTHS, memory_used=memory_used, relative_gap=BETTER)
        if answer and cell.space.fits_replicas(answer.replicas):
            return answer.score
    return None


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU seconds of RouterWise's algorithms on all retained setups of a cell.

    Attributes:
        seconds: Mean over the sampled setups times how many can carry the load.
        half_width_s: Of its 95 % interval.
        shortfall: Score below the exact optimum of the same setup, by sampled setup where both keep the bound.
    """

    result: Result
    seconds: float
    half_width_s: float
    shortfall: np.ndarray


def sample(result: Result, source: np.random.Generator) -> Cost:
    """The algorithms on some of the setups whose last profiled loads add up to the rate; they leave the others at once."""
    cell = result.cell
    able = [s for s in result.scored if sum(cell.curves[m, part].limit_rps for m, part in enumerate(s)) >= cell.rate_rps]
    seconds, shortfall = [], []
    for index in source.choice(len(able), SAMPLED_SETUPS, replace=False):
        begun_s = time.process_time()
        found = optimize_beta(cell, able[index], Effort())
        seconds.append(time.process_time() - begun_s)
        exact = result.scored[able[index]]
        if found is not None and exact is not None:
            shortfall.append(exact - best_score(cell.scores, found.fractions))
    error_s = float(np.std(seconds, ddof=1)) / SAMPLED_SETUPS**0.5
    # 2.36: Student's t for 7 degrees of freedom.
    return Cost(result, float(np.mean(seconds)) * len(able), 2.36 * error_s * len(able), np.array(shortfall))
