"""What the routing table tells a picker of pools and of prices."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from servingplan.api import v1alpha1
from servingplan.latency.capacity import MAX_UTILIZATION, stable_rate_rps
from servingplan.latency.profile import Correction, EngineProfile, Point, StepTime, TokenMix
from servingplan.planning.build import plan_demand
from servingplan.planning.problem import PlanDemand
from servingplan.render import picking
from servingplan.routing.preset import Preset

COEFFICIENTS = {"alphaMs": 12.5, "betaMs": 0.05, "gammaMs": 0.00006, "floorMs": 4.5}
MODEL: dict[str, Any] = {
    "name": "large",
    "source": "example/large",
    "quality": {"default": 0.8},
    "setups": [{"name": "tp2", "accelerator": "gpu", "count": 2, "profile": {"coefficients": COEFFICIENTS}}],
}


def plan(
    model: dict[str, Any] | None = None, cost: float = 3.6, router: dict[str, Any] | None = None, **fields: Any
) -> tuple[v1alpha1.ModelServingPlanSpec, PlanDemand]:
    classes = [{"name": "chat", "promptTokens": {"mean": 500}, "outputTokens": {"mean": 200}, "rate": 3}]
    spec = v1alpha1.ModelServingPlanSpec.model_validate(
        {
            "slo": {"ttft": {"seconds": 0.8}},
            "accelerators": [{"name": "gpu", "costPerHour": cost}],
            "models": [MODEL | (model or {})],
            "requestClasses": classes,
            "router": {"policy": "Online"} | (router or {}),
        }
        | fields
    )
    profiles = {(m.name, s.name): s.profile for m in spec.models for s in m.setups if s.profile}
    return spec, plan_demand("llm/chat", spec, profiles, {"gpu": {"node": 8}})


def facts(*args: Any, **kwargs: Any) -> picking.PoolFacts:
    return picking.pool_facts(*plan(*args, **kwargs))["large", "tp2"]


def weighed(**router: Any) -> Any:
    spec, demand = plan(router=router)
    return picking.picker(spec, picking.pool_facts(spec, demand), picking.declared_mix(spec, demand))


def test_the_engine_is_the_profile_in_seconds() -> None:
    engine = facts().engine
    assert (engine.alpha_s, engine.beta_s, engine.gamma_s, engine.floor_s) == (0.0125, 5e-5, 6e-8, 0.0045)
    assert (engine.max_num_seqs, engine.max_num_batched_tokens, engine.kv_tokens) == (256, 2048, None)


def test_what_was_learnt_of_the_speed_is_in_the_engine() -> None:
    slower = Correction(step=(1.2, 2.4, 1.2))
    profile = EngineProfile(step=StepTime(0.01, 5e-5, 6e-8, 0.004), correction=slower)
    found = picking._engine(profile, *picking._step(profile))
    assert (found.alpha_s, found.floor_s, found.gamma_s) == (0.012, 0.0048, 7.2e-8)
    assert found.beta_s == pytest.approx(1.2e-4, rel=5e-3)


def _loop(concurrency: int, prompt: int, output: int, step: StepTime) -> Point:
    """A closed loop of an engine whose steps take what the coefficients say."""
    tokens, read = concurrency * (1 + prompt / output), concurrency * (prompt + output / 2)
    tpot_s = step.alpha_s + step.beta_s * tokens + step.gamma_s * read
    return Point(concurrency, prompt, output, step.alpha_s + step.beta_s * prompt, tpot_s)


def test_measured_points_become_the_step_time_that_made_them() -> None:
    true = StepTime(0.02, 8e-5, 1e-7)
    points = tuple(_loop(c, prompt, output, true) for c in (1, 8, 64) for prompt, output in ((256, 256), (4096, 128)))
    found = picking._step_of(points)
    assert (found.alpha_s, found.beta_s, found.gamma_s) == pytest.approx((0.02, 8e-5, 1e-7), rel=1e-3)


def test_points_of_one_length_give_a_step_time_that_reproduces_them() -> None:
    points = tuple(_loop(c, 512, 128, StepTime(0.02, 8e-5, 1e-7)) for c in (1, 16, 128))
    found = picking._step_of(points)
    assert min(found.alpha_s, found.beta_s, found.gamma_s) >= 0
    for point in points:
        assert _loop(point.concurrency, 512, 128, found).tpot_s == pytest.approx(point.tpot_s, rel=0.02)


def test_a_price_of_the_plan_is_taken_as_it_is() -> None:
    found = facts({"price": {"inputPerMillion": "0.40", "outputPerMillion": 1.2}})
    assert (found.input_price, found.output_price) == (4e-7, 1.2e-6)


def test_without_a_price_a_busy_replica_earns_what_its_accelerators_cost() -> None:
    found = facts(cost=3.6)
    mix = TokenMix(500, 200)
    demand = plan()[1]
    (setup,) = demand.models[0].setups
    rate_rps = MAX_UTILIZATION * stable_rate_rps(setup.profile, mix)
    assert found.request_price(mix) * rate_rps == pytest.approx(2 * 3.6 / 3600, rel=0.01)
    assert found.output_price > 2 * found.input_price > 0


def test_accelerators_that_cost_nothing_give_tokens_that_cost_nothing() -> None:
    found = facts(cost=0)
    assert (found.input_price, found.output_price) == (0, 0)
    spec, demand = plan(cost=0)
    settled = picking.picker(spec, picking.pool_facts(spec, demand), picking.declared_mix(spec, demand))
    assert settled is not None
    assert settled.per_dollar == 0


def test_prices_do_not_follow_the_load_of_the_day() -> None:
    spec, demand = plan()
    busy = tuple(replace(each, rate_rps=7 * each.rate_rps) for each in demand.classes)
    assert picking.pool_facts(spec, demand) == picking.pool_facts(spec, replace(demand, classes=busy))


@pytest.mark.parametrize("preset", ["Quality", "Balanced", "Latency", "Cost"])
def test_a_preset_gives_up_the_same_quality_for_half_the_money_in_every_currency(preset: str) -> None:
    mix = TokenMix(500, 200)
    given_up = []
    for cost in (0.36, 36.0):
        spec, demand = plan(cost=cost, router={"preset": preset})
        known = picking.pool_facts(spec, demand)
        settled = picking.picker(spec, known, mix)
        assert settled is not None
        given_up.append(settled.per_dollar * known["large", "tp2"].request_price(mix))
        assert settled.per_second == Preset(preset).prices.per_second
    assert given_up[0] == pytest.approx(given_up[1], rel=0.02)
    assert given_up[0] == pytest.approx(Preset(preset).prices.per_dollar * picking.REFERENCE_REQUEST, rel=0.02)


def test_prices_in_numbers_stand_in_place_of_any_preset() -> None:
    found = weighed(prices={"perDollar": 700, "perSecond": "0.05", "scaleSeconds": 5, "power": 1, "externality": 0})
    assert (found.per_dollar, found.per_second, found.scale_s, found.power, found.externality) == (700, 0.05, 5, 1, 0)


def test_what_else_the_plan_says_of_its_pickers_is_in_the_table() -> None:
    where = {"configMapKeyRef": {"name": "scores", "key": "predictor.npz"}}
    found = weighed(shed=False, explain=True, predictor=where, replicas=3)
    assert (found.shed, found.explain, found.replicas) == (False, True, 3)
    assert found.predictor == "/etc/servingplan/predictor/predictor.npz"
    assert weighed(policy="Weights") is None


@pytest.mark.parametrize(
    ("slo", "guard_s"),
    [
        ({"ttft": {"seconds": 0.8}, "e2e": {"seconds": 9}}, 0.8),
        ({"e2e": {"seconds": 9}}, 9.0),
        ({"interTokenLatency": {"seconds": 0.05}}, picking.PATIENCE_S),
    ],
)
def test_no_request_is_refused_for_a_first_token_that_the_plan_does_not_bound(slo: dict[str, Any], guard_s: float) -> None:
    spec, demand = plan(slo=slo)
    found = picking.picker(spec, picking.pool_facts(spec, demand), picking.declared_mix(spec, demand))
    assert found is not None
    assert found.guard_s == guard_s
