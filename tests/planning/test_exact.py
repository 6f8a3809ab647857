"""The planner against brute force over every allocation; the two share nothing but the latency functions."""

import pytest

from oracle import best, instance, packs
from servingplan.planning.attainable import attainable
from servingplan.planning.problem import Problem, Scope
from servingplan.planning.solve import solve


@pytest.mark.parametrize("scope", Scope)
@pytest.mark.parametrize("seed", range(12))
def test_the_plan_is_the_best_there_is(scope, seed):
    asked = attainable(instance(seed, scope)).plan
    want = best(asked)
    got = solve(Problem((asked,), relative_gap=1e-9))
    refused = sum(
        entry.weight * entry.rate_rps * route.shed
        for entry, route in zip(sorted(asked.classes, key=lambda entry: entry.name), got.decisions[0].routes, strict=True)
    )
    assert refused == pytest.approx(want.refused, rel=1e-6, abs=1e-6)
    assert got.objective == pytest.approx(want.quality, rel=1e-6, abs=1e-6)
    assert packs(asked, got)
