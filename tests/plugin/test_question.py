"""The planner's question as the cluster puts it: measured rates, learnt speeds, and the plans that share GPUs."""

from __future__ import annotations

import argparse
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest

from servingplan.latency.profile import Correction
from servingplan.offline.errors import InputError
from servingplan.planning.problem import PlanDemand, SetupOption
from servingplan.plugin import arguments, compare, question
from servingplan.plugin.question import Gathered
from servingplan.plugin.reading import read_plan

H100 = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
L40S = {"nvidia.com/gpu.product": "NVIDIA-L40S"}


def node(name: str, labels: dict[str, str], gpus: int) -> dict[str, Any]:
    ready = {"conditions": [{"type": "Ready", "status": "True"}], "allocatable": {"nvidia.com/gpu": str(gpus)}}
    return {"kind": "Node", "metadata": {"name": name, "labels": labels}, "status": ready}


def pod(name: str, namespace: str, on: str, gpus: int, plan: str = "") -> dict[str, Any]:
    own = {"app.kubernetes.io/managed-by": "servingplan", "servingplan.io/plan": plan} if plan else {}
    containers = [{"name": "x", "resources": {"requests": {"nvidia.com/gpu": str(gpus)}}}]
    return {
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": own},
        "spec": {"nodeName": on, "containers": containers},
        "status": {"phase": "Running"},
    }


NODES = (node("a", H100, 8), node("b", L40S, 8))


def options(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    arguments.add_what_ifs(parser)
    return parser.parse_args(given)


def demand(body: dict[str, Any], *given: str, nodes: tuple[dict[str, Any], ...] | None = NODES, others: Any = ()) -> PlanDemand:
    asked = question.ask(Gathered(body, tuple(others), (), nodes), options(*given))
    key = f"{body['metadata']['namespace']}/{body['metadata']['name']}"
    return next(each for each in asked.problem.plans if each.key == key)


def setups(found: PlanDemand) -> dict[str, SetupOption]:
    return {f"{model.name}/{setup.name}": setup for model in found.models for setup in model.setups}


def rates(found: PlanDemand) -> dict[str, float]:
    return {entry.name: entry.rate_rps for entry in found.classes}


def test_rates_and_lengths_are_those_that_the_operator_plans_for(bodies: ModuleType) -> None:
    found = demand(bodies.plan())
    assert rates(found) == {"code": 5.2, "chat": 14.6}
    code, chat = found.classes
    assert code.mix.prompt_tokens == pytest.approx(1.31 * 512)
    assert code.mix.output_tokens == chat.mix.output_tokens == 128


def test_without_a_status_they_are_those_of_the_spec(bodies: ModuleType) -> None:
    body = bodies.plan()
    body["status"] = {}
    found = demand(body)
    assert rates(found) == {"code": 5, "chat": 14}
    assert {setup.current_replicas for setup in setups(found).values()} == {0}


def test_what_is_asked_otherwise_goes_first(bodies: ModuleType) -> None:
    assert rates(demand(bodies.plan(), "--rate", "chat=40")) == {"code": 5.2, "chat": 40}


def test_what_is_asked_otherwise_is_asked_of_the_plan_that_was_named(bodies: ModuleType) -> None:
    others = [bodies.plan("other")]
    assert rates(demand(bodies.plan(), "--rate", "chat=40", others=others)) == {"code": 5.2, "chat": 40}
    assert rates(demand(bodies.plan(), "--rate", "other/chat=40", others=others)) == {"code": 5.2, "chat": 14.6}


def test_a_sample_of_lengths_is_scaled_as_it_is(bodies: ModuleType) -> None:
    lengths = [{"promptTokens": 100, "outputTokens": 10}, {"promptTokens": 300, "outputTokens": 20}]
    classes = [{"name": "code", "match": {"headers": {"x-request-class": "code"}}, "lengths": lengths}, {"name": "chat"}]
    found = demand(bodies.plan(spec={"requestClasses": classes}))
    assert found.classes[0].mix.sample.columns[:2].tolist() == [[131, 393], [10, 20]]


def test_profiles_are_corrected_as_the_operator_corrects_them(bodies: ModuleType) -> None:
    found = setups(demand(bodies.plan()))
    assert found["qwen3-32b/h100-tp2"].profile.correction == Correction(
        (1.25, 1.24, 1.26), (1.0, 1.0, 1.02, 1.0), (("ttft.p95", 0.03),)
    )
    assert found["llama-3.1-8b/l40s"].profile.correction is not None
    by_sister = found["qwen2.5-14b/h100"].profile.correction
    assert by_sister is not None, "a model that is faster than declared in one setup is likely so in another"
    assert 0.79 < by_sister.step[0] < 1
    assert found["qwen3-32b/h100-tp2"].current_replicas == 3


def test_they_are_not_where_the_plan_does_without(bodies: ModuleType) -> None:
    found = setups(demand(bodies.plan(spec={"metrics": {"calibration": "Disabled"}})))
    assert {setup.profile.correction for setup in found.values()} == {None}


def test_gpus_that_others_hold_are_not_free(bodies: ModuleType) -> None:
    pods = (pod("own", "llm", "a", 2, "chat"), pod("foreign", "x", "a", 3), pod("other", "llm", "b", 1, "other"))
    found = demand(bodies.plan(), nodes=(*NODES, *pods))
    assert {kind.name: kind.free_units for kind in found.accelerators} == {"h100": {"a": 5}, "l40s": {"b": 7}}


def test_the_pods_of_plans_that_are_decided_together_are_free(bodies: ModuleType) -> None:
    found = demand(bodies.plan(), nodes=(*NODES, pod("other", "llm", "b", 1, "other")), others=[bodies.plan("other")])
    assert found.accelerators[1].free_units == {"b": 8}


def test_given_replicas_need_no_nodes(bodies: ModuleType) -> None:
    asked = question.ask(Gathered(bodies.plan(), (), (), None), options("--replicas", "qwen3-32b/h100-tp2=2"))
    assert asked.problem.standing is not None
    assert asked.problem.standing.replicas == {("llm/chat", "qwen3-32b", "h100-tp2"): 2}
    assert asked.problem.plans[0].accelerators[0].free_units == {"h100": 4}


def test_given_gpus_replace_the_nodes(bodies: ModuleType) -> None:
    found = demand(bodies.plan(), "--gpus", "h100=2x4", "--gpus", "l40s=8", nodes=None)
    assert [sum(kind.free_units.values()) for kind in found.accelerators] == [8, 8]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--rate", "nobody=3"), "has no request class nobody"),
        (("--replicas", "qwen3-32b/h100-tp2=2", "--gpus", "h100=4"), "give one of them"),
        (("--gap", "2"), "--gap 2"),
        (("--time-limit", "0"), "--time-limit 0"),
        (("--gpus", "b200=4"), "choose from h100, l40s"),
    ],
)
def test_what_cannot_be_asked(bodies: ModuleType, given: tuple[str, ...], said: str) -> None:
    with pytest.raises(InputError, match=said):
        demand(bodies.plan(), *given)


def test_no_node_of_the_kind_says_what_was_looked_for(bodies: ModuleType) -> None:
    with pytest.raises(InputError, match=r"the cluster: no node that is ready offers .*give the GPUs with --gpus"):
        demand(bodies.plan(), nodes=(node("c", {}, 8),))


def test_plans_are_shared_with_through_others(bodies: ModuleType) -> None:
    def on(name: str, *labels: dict[str, str], mode: str = "Auto") -> dict[str, Any]:
        kinds = [{"name": f"k{at}", "nodeSelector": label} for at, label in enumerate(labels)]
        found: dict[str, Any] = bodies.plan(name, spec={"mode": mode, "accelerators": kinds})
        return found

    asked, bridge, far, alone = on("it", H100), on("bridge", H100, L40S), on("far", L40S), on("alone", {"x": "y"})
    found = question.sharing(asked, [far, alone, asked, bridge, on("paused", H100, mode="Paused")])
    assert [body["metadata"]["name"] for body in found] == ["bridge", "far"]


def test_config_maps_of_profiles_are_named(bodies: ModuleType) -> None:
    body = bodies.plan()
    setup = body["spec"]["models"][0]["setups"][0]
    del setup["profile"]
    setup["profileFrom"] = {"configMapKeyRef": {"name": "profiles", "key": "large"}}
    assert question.references(body) == {("llm", "profiles")}
    held = {
        "kind": "ConfigMap",
        "metadata": {"name": "profiles", "namespace": "llm"},
        "data": {"large": "coefficients: {alphaMs: 10, betaMs: 0.05, gammaMs: 0.0001}"},
    }
    asked = question.ask(Gathered(body, (), (held,), NODES), options())
    step = setups(asked.problem.plans[0])["qwen3-32b/h100-tp2"].profile.step
    assert step is not None
    assert step.alpha_s == pytest.approx(0.010)


def test_what_stands_is_shown_beside_what_would_be(bodies: ModuleType) -> None:
    from servingplan.offline.whatif import answer

    body = bodies.plan()
    asked = question.ask(Gathered(body, (), (), NODES), options("--rate", "chat=2", "--rate", "code=1"))
    decision = answer(replace(asked.problem, time_limit_s=20.0)).of("llm/chat")
    found = [" ".join(line.split()) for line in compare.to_text(read_plan(body), decision)]
    assert "MODEL SETUP READY STANDS WOULD BE CHANGE" in found
    after = {(each.model, each.setup): each.replicas for each in decision.allocations}[("llama-3.1-8b", "l40s")]
    change = f"{after - 2:+d}" if after != 2 else "-"
    assert f"llama-3.1-8b l40s 2 2 {after} {change}" in found
    assert f"cost per hour 30.00 {decision.cost_per_hour:.2f}" in found
    body["status"] = {}
    assert compare.to_text(read_plan(body), decision) == ["Nothing of llm/chat stands yet."]
