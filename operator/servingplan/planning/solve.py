"""Allocation and routing in one mixed-integer linear program.

Variables: x[k, j], the share of class k on column j (a setup, as strict as a class needs it); n[j, g], replicas of it on the
nodes of group g; d[k], what of class k is refused; o[s], minimum replicas that do not fit.

    sum_j x[k,j] + d[k] = 1                                          every request is served or refused
    sum_k rate_k x[k,j] / capacity[k,j] <= n[j]                      the SLOs of the classes that j serves
    sum_s floor(units_s / a) n[s,g] <= sum_node floor(free_node / a) for every replica size a in a group of nodes
    units per accelerator <= limit,  cost <= budget,  min_s - o[s] <= n[s] <= max_s

Where an SLO is the mean over all of a plan's requests (scope Plan), chords of the perspective function take the place of the
utilisation (``planning.means``). A plan that has to survive the loss of a node gets a second copy of the routing variables for
each kind of node, with the replicas that would be left.

Lexicographic: least unmet minimum and refused weight (of the plan, then after a loss); most quality; least cost and churn. A
class whose SLO no setup keeps at any load is planned for the least relaxed SLO that one does, and the plan says that it is
infeasible.

What a setup takes within an SLO depends on the lengths of all its requests. That is linear in the rates as far as waiting is
that of a queue with Poisson arrivals (``planning.columns``); where an answer shows it to be less, the capacity is lowered and
the shares are settled anew (``planning.settle``), and if that costs more than the gap, the program is solved again.

With replicas given the same rows share out what stands. Then the largest overload of any setup may be made least instead of
refusing anything, since a replica that is late beats an error while others start.

RouterWise (arXiv 2604.10907) is the source of the joint problem; replicas, percentile capacities and exactness are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from servingplan.planning.answer import Answer
from servingplan.planning.columns import Seen, SetupKey, frame
from servingplan.planning.dominance import undominated
from servingplan.planning.problem import Plan, Problem, Standing
from servingplan.planning.program import Program
from servingplan.planning.routing import Pairs
from servingplan.planning.settle import seen
from servingplan.planning.sharing import SharingProgram
from servingplan.planning.solution import Solution

_ROUNDS = 3
_SETTLING = 8
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
        found, _ = _settled(problem, found, {})
    return replace(found, given=True), {}


def _allocated(problem: Problem) -> tuple[Answer, dict[tuple[int, str], int]]:
    """The replicas and the shares, with what each setup takes of the requests that it is really sent.

    The bound is that of the last search: no plan is better by more than the gap, for the capacities that it was made with.
    """
    best, short, seconds = None, {}, 0.0
    known: dict[SetupKey, Seen] = {}
    for _ in range(_ROUNDS):
        found, lacking = _allocate(_left(problem, seconds), known)
        settled, known = _settled(problem, found, known)
        seconds += settled.solution.seconds
        if best is None or _rank(settled) > _rank(best):
            best, short = settled, lacking
        upper = found.solution.bound
        near = upper - best.solution.quality <= (problem.relative_gap + problem.slack) * upper
        if settled is found or (near and _no_more_refused(best, _refused_weight(found))):
            break
    assert best is not None, "there is at least one round"
    return Answer(best.pairs, replace(best.solution, bound=max(upper, best.solution.quality), seconds=seconds)), short


def _left(problem: Problem, seconds: float) -> Problem:
    """The problem with the time that is left for it."""
    return replace(problem, time_limit_s=max(0.0, problem.time_limit_s - seconds))


def _rank(found: Answer) -> tuple[float, float]:
    """Less refused, then more quality."""
    return -round(_refused_weight(found), 6), found.solution.quality


def _no_more_refused(found: Answer, least: float) -> bool:
    return _refused_weight(found) <= least + _EQUAL * max(1.0, least)


def _refused_weight(found: Answer) -> float:
    return float((found.pairs.weight * found.pairs.rate) @ found.solution.refused)


def _allocate(problem: Problem, known: dict[SetupKey, Seen]) -> tuple[Answer, dict[tuple[int, str], int]]:
    """The best replicas for what is known of the setups.

    A setup is kept strict for one class, for it has one queue. That makes the search long and is seldom what binds. So it is
    left out first; where an answer breaks it, the setups that do are held to it; and at last all are, with nothing left out.
    Each answer that keeps it stands if it is as near to the bound as was asked.
    """
    asked = frame(problem, known)
    every = frozenset(range(len(asked.setups)))
    torn: frozenset[int] = frozenset()
    upper, least, seconds = np.inf, 0.0, 0.0
    for attempt in ("relaxed", "held", "whole"):
        whole = attempt == "whole"
        pairs = Pairs.of(asked if whole else undominated(asked))
        if not asked.columns or not len(pairs.rate):
            return Answer(pairs, _nothing(pairs)), {}
        program = Program(_left(problem, seconds), pairs, every if whole else torn)
        found = Answer(pairs, program.solve())
        seconds += found.solution.seconds
        if attempt != "held":
            upper, least = min(upper, found.solution.bound), _refused_weight(found)
        torn |= {s for s, columns in enumerate(pairs.asked.setups) if _in_use(found, columns) > 1}
        if torn and not whole:
            found = _shared_again(problem, found, _strict(found, torn), known, asked_for=found)
        found = Answer(found.pairs, replace(found.solution, bound=max(upper, found.solution.quality), seconds=seconds))
        near = upper - found.solution.quality <= (problem.relative_gap + problem.slack) * abs(upper)
        if not torn or (near and _no_more_refused(found, least)):
            break
    lacking = found.solution.refused_after_loss.sum() > 0 or found.solution.unmet.sum() > 0.5
    return found, program.shortages() if lacking else {}


def _in_use(found: Answer, columns: tuple[int, ...]) -> int:
    return int(np.count_nonzero(found.solution.replicas[list(columns)]))


def _strict(found: Answer, torn: frozenset[int] = frozenset()) -> dict[SetupKey, str]:
    """The class that every setup in use is kept strict for, of those with one column in use."""
    asked = found.pairs.asked
    return {
        asked.setup_key(asked.columns[j]): asked.columns[j].strictest
        for s, columns in enumerate(asked.setups)
        for j in columns
        if s not in torn and found.solution.replicas[j] > 0 and asked.columns[j].strictest
    }


def _share(problem: Problem, known: dict[SetupKey, Seen]) -> Answer:
    pairs = Pairs.of(frame(problem, known))
    if not pairs.asked.columns or not len(pairs.rate):
        return Answer(pairs, _nothing(pairs))
    return Answer(pairs, SharingProgram(problem, pairs).solve())


def _settled(problem: Problem, found: Answer, known: dict[SetupKey, Seen]) -> tuple[Answer, dict[SetupKey, Seen]]:
    """The answer with shares that keep the SLOs among the requests that really meet, and what it took to know them."""
    first = found
    for _ in range(_SETTLING):
        shown = seen(found, known)
        if shown is None:
            break
        known = shown
        found = _shared_again(problem, found, _strict(found), known, asked_for=first)
    return found, known


def _shared_again(
    problem: Problem, found: Answer, strict: dict[SetupKey, str], known: dict[SetupKey, Seen], *, asked_for: Answer
) -> Answer:
    """Shares for the replicas of an answer by what is known now, with the proof of the answer that chose the replicas."""
    asked = found.pairs.asked
    replicas = dict.fromkeys((asked.setup_key(column) for column in asked.columns), 0)
    for column, count in zip(asked.columns, found.solution.replicas, strict=True):
        replicas[asked.setup_key(column)] += int(count)
    again = _share(replace(problem, standing=Standing(replicas, strict), overload=False), known)
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
