"""Allocation and routing in one mixed-integer linear program.

Variables: x[k, j], the share of class k on column j (a setup at a utilisation); n[j, g], replicas of it on the nodes of group
g; d[k], what of class k is refused; o[s], minimum replicas that do not fit.

    sum_j x[k,j] + d[k] = 1                                          every request is served or refused
    sum_k rate_k x[k,j] / stable[k,j] <= utilisation_j n[j]          the SLOs of the classes that j serves
    sum_s floor(units_s / a) n[s,g] <= sum_node floor(free_node / a) for every replica size a in a group of nodes
    units per accelerator <= limit,  cost <= budget,  min_s - o[s] <= n[s] <= max_s

Where an SLO is the mean over all of a plan's requests (scope Plan), chords of the perspective function take the place of the
utilisation (``planning.means``). A plan that has to survive the loss of a node gets a second copy of the routing variables for
each kind of node, with the replicas that would be left.

Lexicographic: least unmet minimum and refused weight (of the plan, then after a loss); most quality; least cost and churn. A
class whose SLO no setup keeps at any load is planned for the least relaxed SLO that one does, and the plan says that it is
infeasible.

What a setup takes within an SLO depends on the lengths of all its requests. So the program is solved for an assumed mix; the
shares are then settled for the mixes that they send (``planning.settle``), and where that costs more than the gap that was
asked for, the program is solved again for those mixes.

With replicas given the same rows share out what stands. Then the largest overload of any setup may be made least instead of
refusing anything, since a replica that is late beats an error while others start.

RouterWise (arXiv 2604.10907) is the source of the joint problem; replicas, percentile capacities and exactness are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from servingplan.latency.profile import TokenMix
from servingplan.planning.answer import Answer
from servingplan.planning.columns import Backgrounds, Frame, SetupKey, frame
from servingplan.planning.dominance import undominated
from servingplan.planning.problem import Plan, Problem, Standing
from servingplan.planning.program import Program, SharingProgram, Solution
from servingplan.planning.routing import Pairs
from servingplan.planning.settle import kept_levels

_ROUNDS = 3
_SETTLING = 8
_ROUGH_GAP = 5e-3
_EQUAL = 1e-6


def solve(problem: Problem, clock: Callable[[], float] | None = None) -> Plan:
    """The best plan that the SLOs and the accelerators allow; with its proof, and never empty.

    Args:
        problem: All plans that share the cluster, in any order.
        clock: Seconds from any start, to say how long it took with everything; without it only the solver's time is said.

    Returns:
        A decision per plan in the order of their keys; ``Infeasible`` where not everything is served within its SLO. Equal
        problems give equal plans.

    Raises:
        SolverFailed: The time was too short for any plan at all.
    """
    began = clock() if clock else 0.0
    found, short = _standing(problem) if problem.standing is not None else _allocated(problem)
    return found.plan(short, clock() - began if clock else found.solution.seconds)


def _standing(problem: Problem) -> tuple[Answer, dict[tuple[int, str], int]]:
    """The shares of what stands, for the mixes that they send."""
    found = _share(problem, {})
    if not problem.overload:
        found = _settled(problem, found)
    return replace(found, given=True), {}


def _allocated(problem: Problem) -> tuple[Answer, dict[tuple[int, str], int]]:
    """The replicas and the shares, for the mixes that they send.

    The first mixes are a guess, so the first search need not be exact where they matter. The bound is that of the last search:
    no plan is better by more than the gap for the latencies that this plan's own mixes give.
    """
    best, short, seconds = None, {}, 0.0
    backgrounds: dict[SetupKey, tuple[TokenMix, ...]] = {}
    alike = len({entry.mix for plan in problem.plans for entry in plan.classes}) == 1
    for left in range(_ROUNDS, 0, -1):
        rough = left == _ROUNDS and not alike
        asked = frame(problem, backgrounds)
        given = replace(problem, relative_gap=max(problem.relative_gap, _ROUGH_GAP)) if rough else problem
        found, lacking = _allocate(given, asked)
        seconds += found.solution.seconds
        settled = _settled(problem, found)
        if best is None or _rank(settled) > _rank(best):
            best, short = settled, lacking
        upper = found.solution.bound
        if not rough and (settled is found or upper - best.solution.quality <= problem.relative_gap * upper):
            break
        backgrounds |= {key: (mix,) for key, mix in best.blends().items()}
    assert best is not None, "there is at least one round"
    return Answer(best.pairs, replace(best.solution, bound=max(upper, best.solution.quality), seconds=seconds)), short


def _rank(found: Answer) -> tuple[float, float]:
    """Less refused, then more quality."""
    return -round(_refused_weight(found), 6), found.solution.quality


def _refused_weight(found: Answer) -> float:
    return float((found.pairs.weight * found.pairs.rate) @ found.solution.refused)


def _allocate(problem: Problem, asked: Frame) -> tuple[Answer, dict[tuple[int, str], int]]:
    """The best replicas for the frame as it is.

    A setup runs at one utilisation, for it has one queue. That makes the search long and is seldom what binds. So it is left
    out first; where an answer breaks it, the setups that do are held to it; and at last all are, with nothing left out. Each
    answer that keeps it stands if it is as near to the bound as was asked.
    """
    every = frozenset(range(len(asked.setups)))
    torn: frozenset[int] = frozenset()
    upper, least = np.inf, 0.0
    for attempt in ("relaxed", "held", "whole"):
        whole = attempt == "whole"
        pairs = Pairs.of(asked if whole else undominated(asked))
        if not asked.columns or not len(pairs.rate):
            return Answer(pairs, _nothing(pairs)), {}
        program = Program(problem, pairs, every if whole else torn)
        found = Answer(pairs, program.solve())
        if attempt != "held":
            upper, least = min(upper, found.solution.bound), _refused_weight(found)
        torn |= {s for s, columns in enumerate(pairs.asked.setups) if _in_use(found, columns) > 1}
        if torn and not whole:
            found = _shared_again(problem, found, _levels(found, torn), asked_for=found)
        found = Answer(found.pairs, replace(found.solution, bound=max(upper, found.solution.quality)))
        near = upper - found.solution.quality <= problem.relative_gap * abs(upper)
        if not torn or (near and _refused_weight(found) <= least + _EQUAL * max(1.0, least)):
            break
    lacking = found.solution.refused_after_loss.sum() > 0 or found.solution.unmet.sum() > 0.5
    return found, program.shortages() if lacking else {}


def _in_use(found: Answer, columns: tuple[int, ...]) -> int:
    return int(np.count_nonzero(found.solution.replicas[list(columns)]))


def _levels(found: Answer, torn: frozenset[int]) -> dict[SetupKey, float]:
    """The utilisation of every setup that has one."""
    asked = found.pairs.asked
    return {
        asked.setup_key(asked.columns[j]): asked.columns[j].utilization
        for s, columns in enumerate(asked.setups)
        for j in columns
        if s not in torn and found.solution.replicas[j] > 0
    }


def _share(problem: Problem, backgrounds: Backgrounds) -> Answer:
    pairs = Pairs.of(frame(problem, backgrounds))
    if not pairs.asked.columns or not len(pairs.rate):
        return Answer(pairs, _nothing(pairs))
    return Answer(pairs, SharingProgram(problem, pairs).solve())


def _settled(problem: Problem, found: Answer) -> Answer:
    """The answer with shares that keep the SLOs among the requests that really meet on each setup, for the replicas it has."""
    first, strictest = found, dict[SetupKey, float]()
    for left in range(_SETTLING, 0, -1):
        levels = kept_levels(found)
        if levels is None:
            break
        if left < _SETTLING // 2:
            # Two answers that send each other away would go on for ever: from here on levels only fall.
            strictest = {key: min(level, strictest.get(key, level)) for key, level in levels.items()} | {
                key: level for key, level in strictest.items() if key not in levels
            }
            levels = strictest
        found = _shared_again(problem, found, levels, asked_for=first, backgrounds=found.blends())
    return found


def _shared_again(
    problem: Problem,
    found: Answer,
    levels: dict[SetupKey, float],
    *,
    asked_for: Answer,
    backgrounds: Mapping[SetupKey, TokenMix] | None = None,
) -> Answer:
    """Shares for the replicas of an answer at other levels, with the proof of the answer that chose the replicas."""
    asked = found.pairs.asked
    replicas = dict.fromkeys((asked.setup_key(column) for column in asked.columns), 0)
    for column, count in zip(asked.columns, found.solution.replicas, strict=True):
        replicas[asked.setup_key(column)] += int(count)
    given = replace(problem, standing=Standing(replicas, levels), overload=False)
    again = _share(given, {key: (mix,) for key, mix in (backgrounds or {}).items()})
    proof, solution = asked_for.solution, again.solution
    return Answer(
        again.pairs,
        replace(
            solution,
            bound=max(proof.bound, solution.quality),
            status=proof.status,
            unmet=proof.unmet,
            refused_after_loss=np.maximum(proof.refused_after_loss, solution.refused),
            bindings=proof.bindings,
            seconds=found.solution.seconds + solution.seconds,
        ),
    )


def _nothing(pairs: Pairs) -> Solution:
    """What a problem without a setup, or without a request, comes to."""
    classes, columns = len(pairs.rate), len(pairs.asked.columns)
    everything = np.ones(classes)
    return Solution(
        share=np.zeros(len(pairs.classes)),
        replicas=np.zeros(columns),
        refused=everything,
        refused_after_loss=everything,
        unmet=np.zeros(len(pairs.asked.setups)),
        column_price=np.zeros(columns),
        class_value=np.zeros(classes),
        quality=0.0,
        bound=0.0,
        status="optimal",
        seconds=0.0,
    )
