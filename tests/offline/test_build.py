"""What a plan says reaches the planner in its units."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from servingplan.api.load import Rejected, parse
from servingplan.api.v1alpha1 import ModelServingPlanSpec
from servingplan.latency.profile import Bound, Slo, TokenMix
from servingplan.planning.build import plan_demand
from servingplan.planning.problem import PlanDemand, Scope

Edit = Callable[..., dict[str, Any]]


def spec_of(plan: dict[str, Any]) -> ModelServingPlanSpec:
    parsed = parse(plan)
    assert not isinstance(parsed, Rejected), parsed
    return parsed.spec


def demand_of(plan: dict[str, Any], **further: Any) -> PlanDemand:
    spec = spec_of(plan)
    profiles = {(model.name, setup.name): setup.profile for model in spec.models for setup in model.setups if setup.profile}
    return plan_demand("default/chat", spec, profiles, {"h100": {"a": 8}}, **further)


def test_what_is_not_said_has_the_planners_defaults(plan_with: Edit) -> None:
    demand = demand_of(plan_with({}))
    code = demand.classes[0]
    assert (demand.scope, demand.tolerate_nodes) == (Scope.ROUTE, 0)
    assert code.mix == TokenMix(512, 128)
    assert (code.min_quality, code.arrival_cv) == (0, 1)
    setup = demand.models[0].setups[0]
    assert (setup.current_replicas, setup.cold_start_s) == (0, 120)


def test_what_is_said_reaches_the_planner(plan_with: Edit) -> None:
    changed = plan_with(
        {
            "spec.slo": {"scope": "Plan", "ttft": {"seconds": "0.5", "statistic": "Mean"}},
            "spec.tolerateNodes": 1,
            "spec.requestClasses.0.minQuality": "0.6",
            "spec.requestClasses.0.arrivalCv": 2.5,
            "spec.requestClasses.1.promptTokens": {"mean": 900, "cv": 0},
            "spec.models.0.setups.0.coldStartSeconds": 300,
        }
    )
    demand = demand_of(changed, current={("large", "tp2"): 3})
    code, chat = demand.classes
    assert (demand.scope, demand.tolerate_nodes) == (Scope.PLAN, 1)
    assert code.slo == chat.slo == Slo(ttft=Bound(0.5, None))
    assert (code.min_quality, code.arrival_cv) == (0.6, 2.5)
    assert chat.mix == TokenMix(900, 128, prompt_cv=0)
    assert demand.models[0].quality == {"code": 0.7, "chat": 0.8}
    setup = demand.models[0].setups[0]
    assert (setup.current_replicas, setup.cold_start_s) == (3, 300)


def test_a_sample_of_lengths_keeps_its_pairs_and_has_their_moments(plan_with: Edit) -> None:
    lengths = [{"promptTokens": 100, "outputTokens": 400}, {"promptTokens": 3100, "outputTokens": 20}]
    mix = demand_of(plan_with({"spec.requestClasses.0.lengths": lengths})).classes[0].mix
    assert mix.sample.columns.tolist() == [[100, 3100], [400, 20], [0.5, 0.5]]
    assert (mix.prompt_tokens, mix.output_tokens) == (1600, 210)
    assert mix.correlation == pytest.approx(-1)
