"""Which replicas are wanted: what was wanted before, unless something better pays for the move.

What stands is judged first. Where it cannot carry what is asked (load rose, latency was learnt to be worse, a node is gone),
the best plan is adopted at once. Otherwise a move has to be worth it: what it gains within the dwell must exceed what its GPUs
are worth while they start. It moves few GPUs, waits a cycle after the last one, and takes nothing back that changed within the
dwell. A spec that has not been decided upon is always followed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from servingplan.controller import demands
from servingplan.controller.case import Case
from servingplan.controller.memory import SetupKey
from servingplan.controller.policy import QUALITY_SLACK, Policy, movable_units
from servingplan.planning.compiled import SolverFailed
from servingplan.planning.problem import Infeasible, Plan, PlanDemand, Problem, SetupOption

Solver = Callable[[Problem], Plan]
Key = tuple[str, str, str]

_EQUAL = 1e-6
_RESERVE = 1.2
"""What a smaller plan must be able to serve, as a multiple of what is planned for."""
_BETTER = 1e-3
"""Fraction of all requests that a forced move has to serve more."""


class Cause(Enum):
    """Why the wanted replicas are what they are; a closed set, for metrics."""

    HELD = "Held"
    FIRST_PLAN = "FirstPlan"
    SPEC_CHANGED = "SpecChanged"
    SHORT_OF_CAPACITY = "ShortOfCapacity"
    BETTER_QUALITY = "BetterQuality"
    LOWER_COST = "LowerCost"
    OTHER_PLANS = "OtherPlansChanged"
    APPROVED = "Approved"
    SOLVER_TIME_LIMIT = "SolverTimeLimit"


@dataclass(frozen=True, slots=True)
class Chosen:
    """The wanted replicas of all plans.

    Attributes:
        target: By (plan, model, setup).
        planned: What they come to, with latency and weights at the planned rates; None where no plan was found in time.
        causes: By plan key.
        bound: Proven upper bound on the quality of any plan, as far as one was sought.
        proved: Whether the last search ended with its proof.
    """

    target: dict[Key, int]
    planned: Plan | None
    causes: dict[str, Cause]
    bound: float
    proved: bool


def choose(
    cases: tuple[Case, ...],
    policy: Policy,
    solver: Solver,
    now_s: float,
    fixed: Mapping[str, Mapping[SetupKey, int]] | None = None,
) -> Chosen:
    """The wanted replicas.

    Args:
        cases: Every plan.
        policy: Dwell and cycle.
        solver: ``planning.solve.solve``, or one that remembers its answers.
        now_s: Seconds since the epoch.
        fixed: Replicas of plans that have no choice, by plan key.
    """
    question = _Question(cases, policy, solver, now_s, fixed or {})
    try:
        return question.answer()
    except SolverFailed:
        causes = {case.key: Cause.SOLVER_TIME_LIMIT for case in cases}
        return Chosen(dict(question.held), None, causes, 0.0, proved=False)


class _Question:
    """What is asked of the solver, as more and less is left open.

    Attributes:
        asked: Demand by plan, at the planned rates.
        held: Replicas as they are wanted so far.
        fresh: Plans whose spec has not been decided upon.
    """

    def __init__(
        self,
        cases: tuple[Case, ...],
        policy: Policy,
        solver: Solver,
        now_s: float,
        fixed: Mapping[str, Mapping[SetupKey, int]],
    ) -> None:
        self._cases, self._policy, self._solver, self._now_s, self._fixed = cases, policy, solver, now_s, fixed
        self.asked = {case.key: demands.planned(case) for case in cases}
        self.held = {(case.key, *key): n for case in cases for key, n in _held(case, fixed.get(case.key), now_s).items()}
        self.fresh = {case.key for case in cases if case.key not in fixed and case.fresh}

    def answer(self) -> Chosen:
        """The wanted replicas.

        Raises:
            SolverFailed: No plan was found in time.
        """
        if self.fresh:
            return _adopt(self._solved(self._careful), self._cases, self.held, self.fresh, Cause.OTHER_PLANS)
        stands = self._standing(self.asked)
        if isinstance(stands, Infeasible):
            # What is short already is mended at once; what will be short when the forecast comes true, a few GPUs a cycle.
            now = {case.key: demands.present(case) for case in self._cases}
            pressing = _refused(self._standing(now), now) > _BETTER or not self._fits(stands)
            found = self._relief(now) if pressing else self._solved(self._growing)
            if _serves_more(found, stands, self.asked):
                return _adopt(found, self._cases, self.held, self.fresh, Cause.SHORT_OF_CAPACITY)
        found = self._solved(self._careful)
        cause = _worth(found, stands, self.asked, self.held, self._policy)
        if cause is Cause.HELD or (cause is Cause.LOWER_COST and not self._sturdy(found)):
            bound = max(found.bound, stands.objective)
            return _hold(stands, self._cases, self.held, bound, proved=found.status == "optimal")
        return _adopt(self._slowly(found), self._cases, self.held, self.fresh, cause)

    def _relief(self, now: Mapping[str, PlanDemand]) -> Plan:
        """What serves most of what is short now: the smallest move that does, then more of what runs, then anything."""
        few = self._solved(self._few)
        if self._fits(few) and _refused(self._at(few, now), now) <= _BETTER:
            return few
        grown = self._solved(self._grown)
        if _refused(grown, self.asked) <= _BETTER and self._fits(grown):
            return grown
        return self._solved(self._forced)

    def _sturdy(self, found: Plan) -> bool:
        """Whether a smaller plan would still serve somewhat more than what is planned for: else it would soon be taken back."""
        more = {
            key: replace(demand, classes=tuple(replace(e, rate_rps=_RESERVE * e.rate_rps) for e in demand.classes))
            for key, demand in self.asked.items()
        }
        return _refused(self._at(found, more), more) <= _refused(found, self.asked) + _BETTER

    def _slowly(self, found: Plan) -> Plan:
        """A plan that only gives back, with no more given back than may move in a cycle; any other plan as it is."""
        counts = _counts(found)
        if any(count > self.held.get(key, 0) for key, count in counts.items()):
            return found
        slower = dict(counts)
        for case in self._cases:
            units = {key: setup.count for key, setup in case.setups.items()}
            total = sum(each * self.held.get((case.key, *key), 0) for key, each in units.items())
            left = movable_units(total, max(units.values()))
            for key, each in sorted(units.items(), key=lambda item: (-item[1], item[0])):
                before = self.held.get((case.key, *key), 0)
                back = min(before - counts.get((case.key, *key), 0), left // each)
                slower[case.key, *key] = before - back
                left -= back * each
        if slower == counts:
            return found
        return self._solver(Problem(tuple(_fixed(self.asked[case.key], slower) for case in self._cases)))

    def _standing(self, asked: Mapping[str, PlanDemand]) -> Plan:
        """What the replicas that are wanted so far come to."""
        return self._solver(Problem(tuple(_fixed(asked[case.key], self.held) for case in self._cases)))

    def _at(self, found: Plan, asked: Mapping[str, PlanDemand]) -> Plan:
        """What the replicas of a plan come to at another demand."""
        counts = _counts(found)
        return self._solver(Problem(tuple(_fixed(asked[case.key], counts) for case in self._cases)))

    def _fits(self, found: Plan) -> bool:
        """Whether a plan has all the replicas that are wanted so far."""
        return all(count >= self.held.get(key, 0) for key, count in _counts(found).items())

    def _solved(self, leave: Callable[[Case, PlanDemand], PlanDemand]) -> Plan:
        plans = (
            _fixed(self.asked[case.key], self.held) if case.key in self._fixed else leave(case, self.asked[case.key])
            for case in self._cases
        )
        return self._solver(Problem(tuple(plans), slack=QUALITY_SLACK))

    def _forced(self, case: Case, demand: PlanDemand) -> PlanDemand:
        """Everything open but what is given up, or unknown."""
        return _capped(case, demand, self.held, self._now_s)

    def _grown(self, case: Case, demand: PlanDemand) -> PlanDemand:
        """More replicas of anything, and none less."""
        return replace(self._few(case, demand), max_started_units=None)

    def _few(self, case: Case, demand: PlanDemand) -> PlanDemand:
        """A few more replicas, and none less."""
        return _dwelling(case, self._forced(case, demand), self.held, self._now_s, math.inf, regrow=True)

    def _growing(self, case: Case, demand: PlanDemand) -> PlanDemand:
        """A few more replicas, and none less, of plans that have not just moved."""
        return _fixed(demand, self.held) if self._just_moved(case) else self._few(case, demand)

    def _careful(self, case: Case, demand: PlanDemand) -> PlanDemand:
        """A small move of what has stood for a dwell; of a fresh plan everything."""
        if case.key in self.fresh:
            return self._forced(case, demand)
        if self._just_moved(case):
            return _fixed(demand, self.held)
        return _dwelling(case, self._forced(case, demand), self.held, self._now_s, self._policy.dwell_s, regrow=False)

    def _just_moved(self, case: Case) -> bool:
        last_s = max((kept.changed_s for kept in case.memory.setups.values()), default=0.0)
        retried = any(kept.given_up and not kept.given_up.holds(self._now_s) for kept in case.memory.setups.values())
        return self._now_s - last_s < self._policy.cycle_s and not retried


def _counts(plan: Plan) -> dict[Key, int]:
    """Replicas of a plan."""
    return {(d.key, a.model, a.setup): a.replicas for d in plan.decisions for a in d.allocations}


def _hold(stands: Plan, cases: tuple[Case, ...], held: dict[Key, int], bound: float, *, proved: bool) -> Chosen:
    target = {(case.key, *key): held.get((case.key, *key), 0) for case in cases for key in case.pools}
    return Chosen(target, stands, {case.key: Cause.HELD for case in cases}, bound, proved)


def _adopt(found: Plan, cases: tuple[Case, ...], held: dict[Key, int], fresh: set[str], cause: Cause) -> Chosen:
    target = _counts(found)
    target |= {(case.key, *key): 0 for case in cases for key in case.pools if (case.key, *key) not in target}
    causes = {}
    for case in cases:
        same = all(target[case.key, *key] == held.get((case.key, *key), 0) for key in case.pools)
        if case.key in fresh:
            causes[case.key] = Cause.SPEC_CHANGED if case.memory.generation else Cause.FIRST_PLAN
        else:
            causes[case.key] = Cause.HELD if same else cause
    return Chosen(target, found, causes, found.bound, proved=found.status == "optimal")


def _with_setups(demand: PlanDemand, change: Callable[[SetupKey, SetupOption], SetupOption]) -> PlanDemand:
    models = tuple(
        replace(model, setups=tuple(change((model.name, setup.name), setup) for setup in model.setups))
        for model in demand.models
    )
    return replace(demand, models=models)


def _between(setup: SetupOption, least: int, most: int | None) -> SetupOption:
    return replace(setup, min_replicas=least, max_replicas=most)


def _fixed(demand: PlanDemand, held: Mapping[Key, int]) -> PlanDemand:
    """The demand with no choice of replicas left, whatever the bounds in the spec have become."""

    def change(key: SetupKey, setup: SetupOption) -> SetupOption:
        count = held.get((demand.key, *key), 0)
        return _between(setup, max(count, setup.min_replicas), max(count, setup.min_replicas))

    return _with_setups(demand, change)


def _held(case: Case, fixed: Mapping[SetupKey, int] | None, now_s: float) -> dict[SetupKey, int]:
    """What is wanted as it stands: of a setup that is given up no more than is ready."""
    wanted = case.memory.replicas if fixed is None else fixed
    found = {}
    for key in case.pools:
        lost = case.memory.kept(key).given_up
        count = wanted.get(key, 0)
        found[key] = min(count, case.ready[key]) if lost and lost.holds(now_s) else count
    return found


def _capped(case: Case, demand: PlanDemand, held: Mapping[Key, int], now_s: float) -> PlanDemand:
    """What given-up setups may not exceed, and what setups of which nothing is known keep."""
    dark = {key for key, pool in case.pools.items() if (found := case.readings.pools.get(pool)) and found.dark}

    def change(key: SetupKey, setup: SetupOption) -> SetupOption:
        least, most = setup.min_replicas, setup.max_replicas
        lost = case.memory.kept(key).given_up
        if lost is not None and lost.holds(now_s):
            ready = case.ready[key]
            return _between(setup, min(least, ready), ready if most is None else min(most, ready))
        if key in dark:
            count = held.get((case.key, *key), 0)
            return _between(setup, count, count)
        return setup

    return _with_setups(demand, change)


def _dwelling(
    case: Case, demand: PlanDemand, held: Mapping[Key, int], now_s: float, dwell_s: float, *, regrow: bool
) -> PlanDemand:
    """Nothing that grew within the dwell shrinks again, nothing that shrank grows again, and few GPUs move."""

    def change(key: SetupKey, setup: SetupOption) -> SetupOption:
        kept, count = case.memory.kept(key), held.get((case.key, *key), 0)
        if not kept.changed_s or now_s - kept.changed_s >= dwell_s or kept.given_up is not None:
            return setup
        most = setup.max_replicas
        if kept.grew or regrow:
            return _between(setup, max(setup.min_replicas, count if most is None else min(count, most)), most)
        return _between(setup, min(setup.min_replicas, count), count if most is None else min(most, count))

    units = {key: setup.count for key, setup in case.setups.items()}
    total = sum(units[key] * held.get((case.key, *key), 0) for key in units)
    limited = replace(demand, max_started_units=movable_units(total, max(units.values())))
    return _with_setups(limited, change)


def _refused(plan: Plan, asked: Mapping[str, PlanDemand]) -> float:
    """Fraction of all requests, by weight, that is refused."""
    weights = {(key, entry.name): entry.weight * entry.rate_rps for key, demand in asked.items() for entry in demand.classes}
    total = sum(weights.values()) or 1.0
    return sum(weights[d.key, route.request_class] * route.shed for d in plan.decisions for route in d.routes) / total


def _serves_more(found: Plan, stands: Plan, asked: Mapping[str, PlanDemand]) -> bool:
    more = _refused(stands, asked) - _refused(found, asked)
    mended = sum(d.feasible for d in found.decisions) > sum(d.feasible for d in stands.decisions)
    return more > _BETTER or (mended and more > -_BETTER)


def _worth(found: Plan, stands: Plan, asked: Mapping[str, PlanDemand], held: Mapping[Key, int], policy: Policy) -> Cause:
    """Whether a plan pays for the move to it within the dwell, and by what."""
    if _refused(found, asked) > _refused(stands, asked) + _EQUAL:
        return Cause.HELD
    options = {
        (key, model.name, setup.name): setup
        for key, demand in asked.items()
        for model in demand.models
        for setup in model.setups
    }
    costs = {(key, supply.name): supply.cost_per_hour for key, demand in asked.items() for supply in demand.accelerators}
    total_units = sum(options[key].units * count for key, count in held.items() if key in options)
    warming = spent = saved = 0.0
    for decision in found.decisions:
        for allocation in decision.allocations:
            key = (decision.key, allocation.model, allocation.setup)
            setup = options[key]
            price = costs[decision.key, setup.accelerator] + 1e-6
            more = allocation.replicas - held.get(key, 0)
            warming += max(0, more) * setup.units * setup.cold_start_s
            spent += max(0, more) * setup.units * setup.cold_start_s * price
            saved -= more * setup.units * price
    gain = found.objective - stands.objective
    per_unit = stands.objective / max(1, total_units)
    if gain > QUALITY_SLACK * abs(stands.objective) and gain * policy.dwell_s > warming * per_unit:
        return Cause.BETTER_QUALITY
    if saved > 0 and saved * policy.dwell_s > spent and gain >= -2 * QUALITY_SLACK * abs(stands.objective):
        return Cause.LOWER_COST
    return Cause.HELD
