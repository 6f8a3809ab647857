"""What the choices by the request add to a plan: it follows them as far as they are worth it, and never at an SLO's cost."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oracle import instance, packs
from servingplan.latency.capacity import capacity_rps
from servingplan.latency.profile import Bound, EngineProfile, Slo, StepTime, TokenMix
from servingplan.planning.build import LEAST_WORTH, MOST_WORTH, choices
from servingplan.planning.problem import (
    AcceleratorSupply,
    Choice,
    ClassDemand,
    ModelOption,
    PlanDemand,
    Problem,
    Scope,
    SetupOption,
    Standing,
)
from servingplan.planning.solve import solve

MIX = TokenMix(500, 200)
SLO = Slo(ttft=Bound(0.8))
LARGE = SetupOption("tp2", "h100", 2, EngineProfile(step=StepTime(0.0137, 0.000057, 6e-8), kv_tokens=300_000))
SMALL = SetupOption("tp1", "h100", 1, EngineProfile(step=StepTime(0.0064, 0.0000207, 4.1e-8)))
FEW = settings(max_examples=25, deadline=None)


def plan(chosen, rate=20.0, scores=(0.7, 0.65), units=16):
    return PlanDemand(
        key="llm/chat",
        models=(ModelOption("large", {"chat": scores[0]}, (LARGE,)), ModelOption("small", {"chat": scores[1]}, (SMALL,))),
        classes=(ClassDemand("chat", MIX, SLO, rate, weight=2.0, chosen=chosen),),
        accelerators=(AcceleratorSupply("h100", "nvidia.com/gpu", {"a": units}, cost_per_hour=4.0),),
    )


def solved(demand, **problem):
    return solve(Problem((demand,), relative_gap=1e-9, **problem))


def shares(found):
    return found.decisions[0].routes[0].by_model()


def standing(large, small):
    return Standing({("llm/chat", "large", "tp2"): large, ("llm/chat", "small", "tp1"): small})


@pytest.mark.parametrize("given", [None, standing(4, 4)])
@pytest.mark.parametrize(("worth", "kept"), [(0.04, 0.0), (0.06, 0.4)])
def test_a_plan_follows_choices_that_are_worth_more_than_they_cost_and_no_further(given, worth, kept):
    chosen = {"small": Choice(0.4, worth), "large": Choice(0.6, worth)}
    found = solved(plan(chosen), standing=given)
    assert shares(found).get("small", 0.0) == pytest.approx(kept, abs=1e-6)
    assert found.decisions[0].quality == pytest.approx(0.7 - 0.05 * kept)
    assert found.decisions[0].choice == pytest.approx(worth * (0.6 + kept))


@pytest.mark.parametrize("given", [None, standing(2, 3)])
@pytest.mark.parametrize("chosen", [{"small": Choice(0.5, 0.0)}, {"small": Choice(0.0, 0.1)}, {"gone": Choice(0.9, 0.1)}])
def test_choices_that_say_nothing_change_nothing(given, chosen):
    assert solved(plan(chosen), standing=given) == solved(plan({}), standing=given)


def test_choices_buy_no_latency():
    rate = 1.5 * 2 * capacity_rps(LARGE.profile, MIX, SLO)
    everything = plan({"large": Choice(1.0, 0.1)}, rate, scores=(0.65, 0.7), units=5)
    found = solved(everything)
    decision = found.decisions[0]
    assert decision.feasible
    assert 0.0 < shares(found)["large"] < 1.0
    assert all(each.utilization <= 1 + 1e-6 for each in decision.allocations)
    assert all(each.predicted.ttft_p95_s <= 0.8 for each in decision.allocations if each.predicted)


@pytest.mark.parametrize("given", [None, standing(2, 3), standing(1, 1)])
def test_objective_bound_and_gap_speak_of_quality_and_choice_together(given):
    rate = 2.2 * capacity_rps(LARGE.profile, MIX, SLO)
    found = solved(plan({"small": Choice(0.3, 0.08), "large": Choice(0.7, 0.02)}, rate), standing=given)
    decision = found.decisions[0]
    served = 1 - decision.routes[0].shed
    assert found.objective == pytest.approx(2.0 * rate * served * (decision.quality + decision.choice))
    assert decision.choice > 0
    assert found.bound >= found.objective
    assert found.gap <= 1e-6


def best_share(large, small, rate, given):
    """The best share of the large model for given replicas, by trying them all."""
    takes = [count * capacity_rps(each.profile, MIX, SLO) for count, each in ((large, LARGE), (small, SMALL))]
    tried = [i / 2000 for i in range(2001)]
    fit = [x for x in tried if rate * x <= takes[0] * (1 + 1e-9) and rate * (1 - x) <= takes[1] * (1 + 1e-9)]
    return max(
        fit,
        key=lambda x: (
            0.7 * x
            + 0.65 * (1 - x)
            + given["large"].worth * min(x, given["large"].share)
            + given["small"].worth * min(1 - x, given["small"].share)
        ),
    )


@FEW
@given(st.floats(0.05, 0.95), st.floats(0.0, 0.1), st.floats(0.0, 0.1), st.floats(0.6, 1.6))
def test_the_shares_are_the_best_ones_of_all(share, of_large, of_small, load):
    given = {"large": Choice(share, of_large), "small": Choice(1 - share, of_small)}
    rate = load * 2 * capacity_rps(LARGE.profile, MIX, SLO)
    found = solved(plan(given, rate), standing=standing(2, 3), overload=False)
    want = best_share(2, 3, rate, given)
    got = shares(found).get("large", 0.0)

    def worth(x):
        return 0.05 * x + of_large * min(x, share) + of_small * min(1 - x, 1 - share)

    assert worth(got) == pytest.approx(worth(want), abs=2e-4)


def test_the_price_of_a_class_counts_what_its_choices_add():
    chosen, more = {"small": Choice(0.4, 0.08), "large": Choice(0.6, 0.03)}, 1e-3
    rate = 1.8 * capacity_rps(LARGE.profile, MIX, SLO)
    before, after = (solved(plan(chosen, rate * f), standing=standing(1, 3), overload=False) for f in (1.0, 1.0 + more))
    assert (after.objective - before.objective) / (2.0 * rate * more) == pytest.approx(
        before.decisions[0].routes[0].value, rel=1e-3
    )


@FEW
@given(
    st.builds(instance, st.integers(0, 10_000), st.sampled_from(Scope)),
    st.lists(st.tuples(st.floats(0.0, 1.0), st.floats(0.0, MOST_WORTH)), min_size=6, max_size=6),
)
def test_what_is_given_up_for_choices_is_never_more_than_they_are_worth(demand, drawn):
    chosen = {model.name: Choice(*each) for model, each in zip(demand.models, drawn, strict=False)}
    with_choices = replace(demand, classes=tuple(replace(entry, chosen=chosen) for entry in demand.classes))
    plain, found = solved(demand), solved(with_choices)
    assert packs(with_choices, found)

    def refused(answer):
        entries = {entry.name: entry for entry in demand.classes}
        routes = answer.decisions[0].routes
        return sum(entries[r.request_class].weight * entries[r.request_class].rate_rps * r.shed for r in routes)

    assert refused(found) <= refused(plain) + 1e-5 * max(1.0, refused(plain))
    if not refused(plain):
        assert found.objective >= plain.objective * (1 - 1e-6)
        assert found.decisions[0].quality + found.decisions[0].choice >= plain.decisions[0].quality - 1e-6
        assert found.decisions[0].choice <= MOST_WORTH + 1e-9


def test_a_measured_gain_counts_between_bounds():
    names = "abcd"
    found = choices(
        {"a": 0.5, "b": 0.3, "c": 0.2, "d": 0.0, "gone": 0.3},
        {"a": -0.2, "b": 0.05, "c": 0.4},
        dict.fromkeys(names, 0.5),
        dict.fromkeys(names, 0.2),
    )
    assert found == {"a": Choice(0.5, LEAST_WORTH), "b": Choice(0.3, 0.05), "c": Choice(0.2, MOST_WORTH)}


def test_a_choice_is_worth_what_it_saves_of_the_money_of_the_best_other_model():
    scores, money = {"large": 0.7, "mid": 0.65, "small": 0.5}, {"large": 0.08, "mid": 0.03, "small": 0.01}
    found = choices({"large": 0.2, "mid": 0.5, "small": 0.3}, {"large": 0.09}, scores, money)
    assert found == {"large": Choice(0.2, 0.04), "mid": Choice(0.5, 0.05), "small": Choice(0.3, 0.07)}
    assert choices({"only": 1.0}, {}, {"only": 0.5}, {"only": 0.3}) == {"only": Choice(1.0, LEAST_WORTH)}
