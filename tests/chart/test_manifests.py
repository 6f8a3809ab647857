"""The examples are what they say they are, and an API server takes them."""

from pathlib import Path
from typing import Any

import helm_python as helm
import pytest
import yaml

from servingplan.api.load import parse
from servingplan.api.v1alpha1 import ModelServingPlan, Profile
from servingplan.planning.build import plan_demand
from servingplan.planning.problem import Problem
from servingplan.planning.solve import solve

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "manifests"
PLANS = sorted(MANIFESTS.glob("*.yaml"))
APPLICATIONS = sorted((MANIFESTS / "argocd").glob("application*.yaml"))


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def plans(path: Path) -> list[ModelServingPlan]:
    parsed = [parse(document) for document in documents(path) if document["kind"] == "ModelServingPlan"]
    valid = [plan for plan in parsed if isinstance(plan, ModelServingPlan)]
    assert valid == parsed
    return valid


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_every_example_is_a_valid_plan(path: Path) -> None:
    assert plans(path)


def test_no_two_examples_share_a_name() -> None:
    names = [d["metadata"]["name"] for path in PLANS for d in documents(path)]
    assert len(names) == len(set(names))


def test_the_demonstration_has_three_models_on_two_kinds_of_accelerator_for_two_classes() -> None:
    (plan,) = plans(MANIFESTS / "plan.yaml")
    assert [m.name for m in plan.spec.models] == ["qwen3-32b", "qwen2.5-14b", "llama-3.1-8b"]
    used = {setup.accelerator for model in plan.spec.models for setup in model.setups}
    assert used == {a.name for a in plan.spec.accelerators} == {"h100", "l40s"}
    code, chat = plan.spec.request_classes
    assert code.match is not None
    assert code.match.headers == {"x-request-class": "code"}
    assert chat.match is None


def test_the_demonstration_needs_all_three_models_on_both_kinds_and_gives_code_to_the_best() -> None:
    (plan,) = plans(MANIFESTS / "plan.yaml")
    profiles = {(m.name, s.name): s.profile for m in plan.spec.models for s in m.setups if s.profile}
    nodes = {"h100": {"h100-0": 8, "h100-1": 8}, "l40s": {"l40s-0": 4, "l40s-1": 4}}
    demand = plan_demand("default/chat", plan.spec, profiles, nodes)
    decision = solve(Problem(plans=(demand,))).of("default/chat")
    assert decision.feasible
    assert {a.model for a in decision.allocations if a.rate_rps > 1} == {m.name for m in plan.spec.models}
    assert {a.accelerator for a in decision.allocations if a.replicas} == set(nodes)
    routes = {route.request_class: route.by_model() for route in decision.routes}
    assert routes["code"]["qwen3-32b"] > 0.9
    assert all(share < 0.7 for share in routes["chat"].values())


def test_the_minimal_plan_gives_nothing_that_has_a_default() -> None:
    (document,) = documents(MANIFESTS / "minimal.yaml")
    plan = ModelServingPlan.model_validate(document)
    kept = plan.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude_none=True)
    given = plan.model_dump(mode="json", by_alias=True, exclude_unset=True)
    assert kept == given


def test_the_profile_in_the_config_map_is_one_and_the_plan_points_at_it() -> None:
    (config_map, _) = documents(MANIFESTS / "profile-from-configmap.yaml")
    (plan,) = plans(MANIFESTS / "profile-from-configmap.yaml")
    source = plan.spec.models[0].setups[0].profile_from
    assert source is not None
    assert source.config_map_key_ref.name == config_map["metadata"]["name"]
    Profile.model_validate(yaml.safe_load(config_map["data"][source.config_map_key_ref.key]))


@pytest.mark.parametrize("path", APPLICATIONS, ids=lambda path: path.stem)
def test_every_application_points_at_what_is_there(path: Path) -> None:
    (application,) = documents(path)
    source = application["spec"]["source"]
    folder = ROOT / source["path"]
    if "helm" in source:
        with helm.Chart.load(folder) as chart:
            chart.validate_schema(source["helm"]["valuesObject"])
    else:
        assert (folder / source["directory"]["include"]).is_file()


def test_plans_come_after_the_operator() -> None:
    waves = {
        a["metadata"]["name"]: int(a["metadata"]["annotations"]["argocd.argoproj.io/sync-wave"])
        for path in APPLICATIONS
        for a in documents(path)
    }
    assert waves["servingplan"] < waves["servingplan-plans"]
