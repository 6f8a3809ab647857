"""Allocation and routing: what binds, what is traded, and that equal problems have equal answers."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servingplan.latency.capacity import capacity_rps, stable_rate_rps, utilization
from servingplan.latency.profile import Bound, EngineProfile, Slo, StepTime, TokenMix, blend
from servingplan.planning.problem import (
    AcceleratorSupply,
    ClassDemand,
    Infeasible,
    ModelOption,
    PlanDemand,
    Problem,
    Scope,
    SetupOption,
    Standing,
)
from servingplan.planning.solve import solve


def engine(alpha_ms: float, beta_ms: float, gamma_ms: float, **limits: int) -> EngineProfile:
    return EngineProfile(step=StepTime(alpha_ms / 1e3, beta_ms / 1e3, gamma_ms / 1e3), **limits)


MIX = TokenMix(500, 200)
SLO = Slo(ttft=Bound(0.8))
LARGE = SetupOption("tp2", "h100", 2, engine(13.7, 0.057, 0.00006, kv_tokens=300_000))
SMALL = SetupOption("tp1", "h100", 1, engine(6.4, 0.0207, 0.000041))
CHEAP = SetupOption("l40s", "l40s", 1, engine(20, 0.08, 0.0001, max_num_seqs=128))
H100 = AcceleratorSupply("h100", "nvidia.com/gpu", {"a": 8}, cost_per_hour=4.0)
L40S = AcceleratorSupply("l40s", "nvidia.com/gpu", {"b": 4}, cost_per_hour=1.0)


def plan(**changes) -> PlanDemand:
    base = PlanDemand(
        key="llm/chat",
        models=(
            ModelOption("large", {"chat": 0.7}, (LARGE,)),
            ModelOption("small", {"chat": 0.5}, (SMALL, CHEAP)),
        ),
        classes=(ClassDemand("chat", MIX, SLO, 20.0),),
        accelerators=(H100, L40S),
    )
    return replace(base, **changes)


def answer(demand: PlanDemand, **problem):
    return solve(Problem((demand,), **problem)).decisions[0]


def replicas(decision) -> dict[str, int]:
    return {f"{a.model}/{a.setup}": a.replicas for a in decision.allocations if a.replicas}


def loaded(rate: float, **changes) -> PlanDemand:
    return plan(classes=(ClassDemand("chat", MIX, SLO, rate),), **changes)


def test_the_best_model_gets_everything_while_it_fits():
    decision = answer(plan())
    assert decision.feasible
    assert decision.routes[0].by_model() == {"large": pytest.approx(1.0)}
    assert decision.quality == pytest.approx(0.7)


def test_no_more_replicas_than_the_load_needs():
    decision = answer(plan())
    needed = 20.0 / capacity_rps(LARGE.profile, MIX, SLO)
    assert replicas(decision) == {"large/tp2": -int(-needed // 1)}
    assert decision.cost_per_hour == replicas(decision)["large/tp2"] * 2 * 4.0


def test_scarce_accelerators_trade_quality_for_load():
    full = 4 * capacity_rps(LARGE.profile, MIX, SLO)
    decision = answer(loaded(full * 1.2))
    assert decision.feasible
    assert set(decision.routes[0].by_model()) == {"large", "small"}
    assert 0.5 < decision.quality < 0.7


def test_a_limit_holds_however_many_are_free():
    decision = answer(plan(accelerators=(replace(H100, limit=2), L40S)))
    assert sum(a.units for a in decision.allocations if a.accelerator == "h100") <= 2


def test_replicas_are_placed_on_single_nodes():
    scattered = replace(H100, free_units={"a": 1, "b": 1, "c": 1, "d": 1})
    decision = answer(plan(models=(ModelOption("large", {"chat": 0.7}, (LARGE,)),), accelerators=(scattered,)))
    assert replicas(decision) == {}
    assert not decision.feasible


def test_minimum_and_maximum_replicas_hold():
    models = (
        ModelOption("large", {"chat": 0.7}, (replace(LARGE, max_replicas=1),)),
        ModelOption("small", {"chat": 0.5}, (replace(SMALL, min_replicas=2), CHEAP)),
    )
    decision = answer(plan(models=models))
    assert replicas(decision)["large/tp2"] == 1
    assert replicas(decision)["small/tp1"] >= 2


def test_a_minimum_that_does_not_fit_is_named():
    models = (ModelOption("large", {"chat": 0.7}, (replace(LARGE, min_replicas=9),)),)
    decision = answer(plan(models=models))
    assert not decision.feasible
    assert replicas(decision) == {"large/tp2": 4}
    assert "minReplicas of large/tp2" in decision.reason


def test_a_budget_buys_the_cheap_accelerator():
    decision = answer(loaded(5.0, budget_per_hour=3.0))
    assert decision.cost_per_hour <= 3.0
    assert set(replicas(decision)) == {"small/l40s"}


def test_overload_is_refused_and_counted():
    decision = answer(loaded(2000.0))
    assert not decision.feasible
    assert 0 < decision.routes[0].shed < 1
    assert sum(decision.routes[0].shares.values()) + decision.routes[0].shed == pytest.approx(1.0)
    assert {s.accelerator for s in decision.shortages} <= {"h100", "l40s"}
    assert "GPUs short" in decision.reason


def test_the_units_said_to_be_short_are_enough():
    decision = answer(loaded(300.0, accelerators=(H100,), models=(ModelOption("large", {"chat": 0.7}, (LARGE,)),)))
    (short,) = decision.shortages
    more = replace(H100, free_units={"a": 8 + short.units})
    assert answer(loaded(300.0, accelerators=(more,), models=(ModelOption("large", {"chat": 0.7}, (LARGE,)),))).feasible


def test_the_lighter_class_is_refused_first():
    classes = (
        ClassDemand("gold", MIX, SLO, 40.0, weight=10.0),
        ClassDemand("iron", MIX, SLO, 40.0, weight=1.0),
    )
    models = (ModelOption("large", {"gold": 0.7, "iron": 0.7}, (LARGE,)),)
    decision = answer(plan(classes=classes, models=models))
    shed = {route.request_class: route.shed for route in decision.routes}
    assert shed["iron"] > 0
    assert shed["gold"] == 0


def test_an_slo_that_nothing_keeps_is_said_and_still_served():
    decision = answer(plan(classes=(ClassDemand("chat", MIX, Slo(ttft=Bound(0.001)), 5.0),)))
    assert not decision.feasible
    assert "no setup keeps the SLO of class chat even unloaded: TTFT 0.001 s" in decision.reason
    assert sum(decision.routes[0].shares.values()) > 0.9


def test_requests_that_fit_nowhere_name_the_field():
    tiny = replace(LARGE, profile=replace(LARGE.profile, kv_tokens=64))
    decision = answer(plan(models=(ModelOption("large", {"chat": 0.7}, (tiny,)),)))
    assert not decision.feasible
    assert "kvTokens" in decision.reason


def test_a_strict_class_keeps_the_setups_it_shares_less_busy():
    relaxed = ClassDemand("batch", MIX, Slo(ttft=Bound(30.0)), 30.0)
    strict = ClassDemand("chat", MIX, Slo(ttft=Bound(0.07)), 0.5)
    models = (ModelOption("small", {"batch": 0.5, "chat": 0.5}, (SMALL,)),)
    alone = answer(plan(classes=(relaxed,), models=models, accelerators=(H100,)))
    both = answer(plan(classes=(relaxed, strict), models=models, accelerators=(H100,)))
    assert both.allocations[0].replicas > alone.allocations[0].replicas
    assert both.allocations[0].predicted.ttft_p95_s <= 0.07


def test_two_plans_never_take_more_than_the_nodes_have():
    one, two = loaded(200.0, key="a/chat"), loaded(200.0, key="b/chat")
    found = solve(Problem((one, two)))
    for accelerator, room in (("h100", 8), ("l40s", 4)):
        used = sum(a.units for d in found.decisions for a in d.allocations if a.accelerator == accelerator)
        assert used <= room


def test_plans_with_overlapping_selectors_share_the_common_nodes():
    anywhere = AcceleratorSupply("any", "nvidia.com/gpu", {"a": 8, "b": 4})
    other = PlanDemand(
        "z/any",
        (ModelOption("small", {"chat": 0.5}, (replace(SMALL, accelerator="any"),)),),
        (ClassDemand("chat", MIX, SLO, 900.0),),
        (anywhere,),
    )
    found = solve(Problem((loaded(200.0), other)))
    assert sum(a.units for d in found.decisions for a in d.allocations) <= 12


def test_standing_replicas_share_the_load_and_refuse_nothing():
    standing = {("llm/chat", "large", "tp2"): 1, ("llm/chat", "small", "l40s"): 1}
    decision = answer(loaded(500.0), standing=Standing(standing))
    assert replicas(decision) == {"large/tp2": 1, "small/l40s": 1}
    assert decision.routes[0].shed == 0
    assert set(decision.routes[0].by_model()) == {"large", "small"}


def test_standing_replicas_that_suffice_serve_the_best_model():
    standing = {("llm/chat", "large", "tp2"): 4, ("llm/chat", "small", "l40s"): 1}
    assert answer(plan(), standing=Standing(standing)).routes[0].by_model() == {"large": pytest.approx(1.0)}


def test_no_replica_at_all_leaves_no_way():
    decision = answer(plan(), standing=Standing({}))
    assert decision.routes[0].shares == {}


@settings(max_examples=25, deadline=None)
@given(
    rate=st.floats(0.5, 400),
    h100=st.lists(st.integers(0, 8), min_size=0, max_size=3),
    l40s=st.integers(0, 4),
    ttft_s=st.floats(0.05, 2.0),
)
def test_every_plan_keeps_capacity_supply_and_balance(rate, h100, l40s, ttft_s):
    free = {f"n{i}": units for i, units in enumerate(h100)}
    demand = plan(
        classes=(ClassDemand("chat", MIX, Slo(ttft=Bound(ttft_s)), rate),),
        accelerators=(replace(H100, free_units=free), replace(L40S, free_units={"b": l40s})),
    )
    decision = answer(demand)
    assert sum(a.units for a in decision.allocations if a.accelerator == "h100") <= sum(h100)
    assert sum(a.replicas for a in decision.allocations if a.setup == "tp2") <= sum(units // 2 for units in h100)
    for allocation in decision.allocations:
        assert allocation.utilization <= 1 + 1e-6
        assert allocation.rate_rps == 0 or allocation.replicas > 0
    for route in decision.routes:
        assert sum(route.shares.values()) + route.shed == pytest.approx(1.0)


def test_shuffled_problems_have_the_same_answer():
    classes = tuple(ClassDemand(f"c{i}", MIX, SLO, 10.0 + i) for i in range(4))
    models = tuple(ModelOption(f"m{i}", {c.name: 0.4 + 0.05 * i for c in classes}, (LARGE, SMALL, CHEAP)) for i in range(4))
    demand = plan(classes=classes, models=models)
    expected = solve(Problem((demand, replace(demand, key="a/other"))))
    chance = random.Random(7)
    for _ in range(3):

        def shuffled(items):
            return tuple(chance.sample(items, len(items)))

        again = replace(
            demand,
            classes=shuffled(classes),
            models=tuple(replace(m, setups=shuffled(m.setups)) for m in shuffled(models)),
            accelerators=shuffled(demand.accelerators),
        )
        assert repr(solve(Problem(shuffled((again, replace(again, key="a/other")))))) == repr(expected)


def small_alone(rate: float, nodes: dict[str, int], **changes) -> PlanDemand:
    models = (ModelOption("small", {"chat": 0.5}, (SMALL,)),)
    return loaded(rate, models=models, accelerators=(replace(H100, free_units=nodes),), **changes)


def test_a_plan_that_survives_the_loss_of_a_node_has_enough_left():
    rate = 2.5 * capacity_rps(SMALL.profile, MIX, SLO)
    nodes = {"a": 4, "b": 4}
    assert replicas(answer(small_alone(rate, nodes))) == {"small/tp1": 3}
    safe = answer(small_alone(rate, nodes, tolerate_nodes=1))
    assert safe.feasible
    # Half of them are on either node, and three have to be left.
    assert replicas(safe) == {"small/tp1": 6}


def test_a_plan_on_one_node_cannot_survive_its_loss():
    lonely = answer(small_alone(5.0, {"a": 8}, tolerate_nodes=1))
    assert not lonely.feasible
    assert lonely.routes[0].shed == 0
    assert "after the loss of a node the others could not carry 100.0% of class chat" in lonely.reason


def test_running_replicas_are_kept_among_equal_plans():
    twin = replace(SMALL, name="other")
    models = (ModelOption("small", {"chat": 0.5}, (SMALL, replace(twin, current_replicas=1))),)
    assert set(replicas(answer(plan(models=models)))) == {"small/other"}


def test_no_request_goes_below_its_minimum_quality():
    entry = ClassDemand("chat", MIX, SLO, 2000.0, min_quality=0.6)
    decision = answer(plan(classes=(entry,)))
    assert set(decision.routes[0].by_model()) == {"large"}
    assert decision.routes[0].shed > 0


def test_a_minimum_quality_that_no_model_has_is_named():
    decision = answer(plan(classes=(ClassDemand("chat", MIX, SLO, 5.0, min_quality=0.9),)))
    assert "no model scores 0.9 for class chat: the best scores 0.7" in decision.reason
    assert decision.routes[0].shed == 1


def test_what_binds_has_a_price():
    full = 4 * capacity_rps(LARGE.profile, MIX, SLO)
    scarce = loaded(full * 1.4)
    bindings = answer(scarce).bindings
    assert (bindings[0].kind, bindings[0].name) == ("accelerator", "h100")
    assert answer(plan()).bindings == ()
    limited = answer(replace(scarce, accelerators=(replace(H100, limit=4), L40S)))
    assert {(binding.kind, binding.name) for binding in limited.bindings} >= {("limit", "h100")}


def test_the_price_of_a_unit_is_what_a_unit_brings():
    models = (ModelOption("small", {"chat": 0.5}, (SMALL,)),)
    one = capacity_rps(SMALL.profile, MIX, SLO)
    short = replace(H100, free_units={"a": 2})
    (binding,) = answer(loaded(10 * one, models=models, accelerators=(short,))).bindings
    assert binding.price == pytest.approx(one, rel=1e-3)


def test_a_mean_over_the_plan_lets_one_model_be_slower():
    mean = Slo(ttft=Bound(0.12, None))
    strict = (ClassDemand("chat", MIX, mean, 60.0),)
    per_route = answer(plan(classes=strict))
    together = answer(plan(classes=strict, scope=Scope.PLAN))
    assert together.feasible
    assert together.quality >= per_route.quality - 1e-9
    total = sum(a.rate_rps * a.predicted.ttft_mean_s for a in together.allocations if a.predicted)
    assert total / 60.0 <= 0.12


def test_an_infeasible_plan_is_told_apart_by_its_type():
    assert isinstance(solve(Problem((loaded(2000.0),))), Infeasible)
    assert not isinstance(solve(Problem((plan(),))), Infeasible)


def test_the_clock_tells_the_whole_time():
    ticks = iter([10.0, 12.5])
    assert solve(Problem((plan(),)), lambda: next(ticks)).seconds == 2.5


def test_standing_replicas_refuse_what_they_cannot_keep_where_that_is_asked():
    standing = Standing({("llm/chat", "large", "tp2"): 1})
    decision = answer(loaded(500.0), standing=standing, overload=False)
    assert decision.routes[0].shed > 0
    assert decision.allocations[0].utilization == pytest.approx(1.0)


def test_classes_with_other_lengths_keep_their_slo_among_each_other():
    short = ClassDemand("chat", TokenMix(300, 200), Slo(ttft=Bound(0.5)), 12.0)
    long = ClassDemand("files", TokenMix(3000, 60), Slo(ttft=Bound(3.0)), 4.0)
    models = (ModelOption("small", {"chat": 0.5, "files": 0.5}, (SMALL,)),)
    decision = answer(plan(classes=(short, long), models=models, accelerators=(H100,)))
    (allocation,) = decision.allocations
    each = blend([(12.0, short.mix), (4.0, long.mix)])
    kept = min(utilization(SMALL.profile, entry.mix, entry.slo, each) for entry in (short, long))
    stable = [stable_rate_rps(SMALL.profile, entry.mix) for entry in (short, long)]
    assert (12.0 / stable[0] + 4.0 / stable[1]) / allocation.replicas <= kept * 1.003


@pytest.mark.parametrize("factor", [1 - 1e-6, 1 - 1e-9, 1.0, 1 + 1e-9, 1 + 1e-6])
def test_a_load_at_the_very_capacity_has_an_answer(factor):
    models = (ModelOption("small", {"chat": 0.5}, (SMALL, CHEAP)),)
    full = 2 * capacity_rps(SMALL.profile, MIX, SLO) + 3 * capacity_rps(CHEAP.profile, MIX, SLO)
    # Two of the one and three of the other are all that the budget buys.
    decision = answer(loaded(factor * full, models=models, budget_per_hour=11.0))
    assert decision.routes[0].shed == pytest.approx(0.0, abs=2e-6)
    assert decision.cost_per_hour <= 11.0


def test_a_little_quality_is_given_up_for_a_cheaper_plan_and_no_more():
    one = capacity_rps(LARGE.profile, MIX, SLO)
    demand = loaded(one * 1.002)
    dear, cheap = answer(demand), answer(demand, slack=2e-3)
    assert replicas(dear)["large/tp2"] == 2
    assert replicas(cheap)["large/tp2"] == 1
    assert cheap.feasible
    assert dear.quality * (1 - 2e-3) <= cheap.quality < dear.quality


@pytest.mark.parametrize("units", [0, 2, 4])
def test_no_more_units_start_than_may(units):
    models = (ModelOption("large", {"chat": 0.7}, (LARGE,)), ModelOption("small", {"chat": 0.5}, (SMALL,)))
    demand = plan(models=models, max_started_units=units)
    decision = answer(demand)
    assert sum(a.units for a in decision.allocations) <= units
    running = replace(demand, models=(replace(models[0], setups=(replace(LARGE, current_replicas=2),)), models[1]))
    assert sum(a.units for a in answer(running).allocations) <= 4 + units
