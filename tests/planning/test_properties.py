"""What holds for every plan, on random problems."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oracle import instance, packs
from servingplan.planning.attainable import attainable, scaled
from servingplan.planning.problem import Infeasible, Plan, PlanDemand, Problem, Scope
from servingplan.planning.solve import solve

PROBLEMS = st.builds(instance, st.integers(0, 10_000), st.sampled_from(Scope))
FEW = settings(max_examples=25, deadline=None)


def solved(plan: PlanDemand) -> Plan:
    return solve(Problem((plan,), relative_gap=1e-9))


def level(plan: PlanDemand, found: Plan) -> tuple[float, float]:
    """Weighted requests per second refused, and weighted quality per second."""
    entries = sorted(plan.classes, key=lambda entry: entry.name)
    shed = (route.shed for route in found.decisions[0].routes)
    return sum(e.weight * e.rate_rps * part for e, part in zip(entries, shed, strict=True)), found.objective


def no_worse(better: tuple[float, float], worse: tuple[float, float]) -> bool:
    if better[0] < worse[0] - 1e-5:
        return True
    return better[0] <= worse[0] + 1e-5 and better[1] >= worse[1] - 1e-5 * max(1.0, abs(worse[1]))


@FEW
@given(plan=PROBLEMS)
def test_capacity_balance_and_supply_hold(plan):
    found = solved(plan)
    decision = found.decisions[0]
    assert packs(plan, found)
    for allocation in decision.allocations:
        assert allocation.utilization <= 1 + 1e-6
        assert allocation.rate_rps == 0 or allocation.replicas > 0
    for route in decision.routes:
        assert sum(route.shares.values()) + route.shed == pytest.approx(1.0)
    assert isinstance(found, Infeasible) != decision.feasible
    assert decision.feasible or decision.reason
    assert found.bound >= found.objective
    assert found.gap >= 0


@FEW
@given(plan=PROBLEMS)
def test_more_accelerators_never_make_it_worse(plan):
    supplies = tuple(
        replace(s, free_units=s.free_units | {f"{s.name}-new": 4}, limit=s.limit and s.limit + 2) for s in plan.accelerators
    )
    more = replace(plan, accelerators=supplies)
    assert no_worse(level(more, solved(more)), level(plan, solved(plan)))


@FEW
@given(plan=PROBLEMS)
def test_a_looser_slo_never_makes_it_worse(plan):
    # From an SLO that some setup keeps, for one that none keeps is relaxed by steps.
    plan = attainable(plan).plan
    loose = replace(plan, classes=tuple(replace(entry, slo=scaled(entry.slo, 1.5)) for entry in plan.classes))
    assert no_worse(level(loose, solved(loose)), level(plan, solved(plan)))


@FEW
@given(plan=PROBLEMS, seed=st.integers(0, 100))
def test_the_order_of_the_question_does_not_matter(plan, seed):
    chance = random.Random(seed)

    def shuffled(items):
        return tuple(chance.sample(items, len(items)))

    other = replace(plan, key="a/other")
    again = replace(
        plan,
        models=tuple(replace(model, setups=shuffled(model.setups)) for model in shuffled(plan.models)),
        classes=shuffled(plan.classes),
        accelerators=shuffled(plan.accelerators),
    )
    assert repr(solve(Problem(shuffled((again, replace(again, key="a/other")))))) == repr(solve(Problem((plan, other))))
