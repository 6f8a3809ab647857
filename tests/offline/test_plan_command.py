"""``servingplan plan``: its document, its table, its exit status, and what the options change."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Edit = Callable[..., dict[str, Any]]
MANIFESTS = Path(__file__).parents[2] / "manifests"


def document(ended: Any) -> dict[str, Any]:
    found = json.loads(ended.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert isinstance(found, dict)
    return found


def replicas(plan: dict[str, Any]) -> dict[str, int]:
    return {f"{each['model']}/{each['setup']}": each["replicas"] for each in plan["allocations"] if each["replicas"]}


def without_seconds(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if '"seconds"' not in line)


@pytest.fixture
def solved(desk: Any, plan_with: Edit) -> Callable[..., dict[str, Any]]:
    """Solves the plan with edits and further arguments; returns the document."""

    def run(edits: dict[str, Any] | None = None, *arguments: str) -> dict[str, Any]:
        desk.write("plan.yaml", plan_with(edits or {}))
        return document(desk.run("plan", "-f", "plan.yaml", "-o", "json", *arguments))

    return run


def test_the_document_says_what_is_planned_and_how_well_that_is_proved(solved: Callable[..., dict[str, Any]]) -> None:
    found = solved()
    assert {"feasible", "objective", "allocations", "routes", "prices", "solver"} <= found.keys()
    assert found["feasible"] is True
    assert found["objective"].keys() == {"quality", "costPerHour", "bound", "gap"}
    assert found["objective"]["bound"] >= found["objective"]["quality"] - 1e-9
    assert found["solver"].keys() == {"seconds", "status"}
    large = next(each for each in found["allocations"] if each["model"] == "large")
    assert {"model", "setup", "replicas", "units", "rate", "predicted"} <= large.keys()
    assert large["units"] == 2 * large["replicas"]
    assert large["predicted"]["ttft"].keys() == {"mean", "p50", "p95", "p99"}
    assert {"interTokenLatency", "e2e"} <= large["predicted"].keys()
    assert 0 < large["predicted"]["ttft"]["p50"] <= large["predicted"]["ttft"]["p95"] <= 0.8
    for route in found["routes"]:
        assert sum(route["weights"].values()) + route["shed"] == pytest.approx(1)
    served = sum(each["rate"] for each in found["allocations"])
    assert served == pytest.approx(9)


def test_equal_questions_in_another_order_have_the_same_answer(desk: Any, plan_with: Edit) -> None:
    plan = plan_with({"spec.requestClasses.1.rate": 40})
    turned = plan_with({}, plan)
    for field in ("accelerators", "models", "requestClasses"):
        turned["spec"][field] = list(reversed(turned["spec"][field]))
    desk.write("plan.yaml", plan)
    desk.write("turned.yaml", turned)
    answers = [desk.run("plan", "-f", name, "-o", "json").out for name in ("plan.yaml", "turned.yaml")]
    routes = [sorted(json.loads(answer).pop("routes"), key=lambda route: route["class"]) for answer in answers]
    assert routes[0] == routes[1]
    assert json.loads(answers[0])["allocations"] == json.loads(answers[1])["allocations"]


def test_what_cannot_be_served_is_said_and_the_answer_is_printed_all_the_same(desk: Any, plan_with: Edit) -> None:
    desk.write("plan.yaml", plan_with({"spec.requestClasses.1.rate": 100_000}))
    ended = desk.run("plan", "-f", "plan.yaml", "-o", "json")
    found = document(ended)
    assert ended.status == 3
    assert found["feasible"] is False
    assert found["reason"]
    assert found["shortages"]
    assert next(route for route in found["routes"] if route["class"] == "chat")["shed"] > 0.9


def test_a_target_below_the_unloaded_latency_is_infeasible_and_the_fastest_latency_is_said(desk: Any, plan_with: Edit) -> None:
    desk.write("plan.yaml", plan_with({"spec.slo.ttft.seconds": 0.001}))
    ended = desk.run("plan", "-f", "plan.yaml")
    assert ended.status == 3
    assert "NOT FEASIBLE" in ended.out
    assert "no setup keeps the SLO of class code even unloaded: TTFT 0.001 s (the fastest setup takes " in ended.out


def test_a_budget_of_nothing_refuses_everything(solved: Callable[..., dict[str, Any]]) -> None:
    found = solved({"spec.budget.costPerHour": 0})
    assert (found["feasible"], found["objective"]["costPerHour"], replicas(found)) == (False, 0, {})
    assert [route["shed"] for route in found["routes"]] == [1, 1]


def test_the_rate_at_the_command_line_counts_instead_of_the_plans(solved: Callable[..., dict[str, Any]]) -> None:
    assert without_seconds(json.dumps(solved({}, "--rate", "chat=25"), indent=1)) == without_seconds(
        json.dumps(solved({"spec.requestClasses.1.rate": 25}), indent=1)
    )


def test_lengths_of_a_trace_count_instead_of_the_plans(desk: Any, solved: Callable[..., dict[str, Any]]) -> None:
    desk.write("t.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n2023,4000,900\n2023,200,30\n")
    long, short = solved({}, "--lengths", "chat=t.csv", "--rate", "chat=40"), solved({}, "--rate", "chat=40")
    lengths = [{"promptTokens": 4000, "outputTokens": 900}, {"promptTokens": 200, "outputTokens": 30}]
    listed = solved({"spec.requestClasses.1.lengths": lengths}, "--rate", "chat=40")
    assert long["objective"]["quality"] < short["objective"]["quality"]
    assert long["allocations"] == listed["allocations"]


def test_given_replicas_are_the_allocation(solved: Callable[..., dict[str, Any]]) -> None:
    found = solved({}, "--replicas", "large/tp2=1", "--replicas", "small/single=2")
    assert replicas(found) == {"large/tp2": 1, "small/single": 2}
    assert found["objective"]["costPerHour"] == 2 * 4 + 2 * 1


def test_given_replicas_need_no_word_on_gpus_and_refuse_what_they_cannot_take(desk: Any, plan_with: Edit) -> None:
    desk.write("plan.yaml", plan_with({"spec.accelerators.0.limit": None, "spec.requestClasses.1.rate": 500}))
    ended = desk.run("plan", "-f", "plan.yaml", "--replicas", "large/tp2=1", "-o", "json")
    found = document(ended)
    assert ended.status == 3
    assert replicas(found) == {"large/tp2": 1}
    assert sum(each["rate"] for each in found["allocations"]) < 503 * 0.5
    assert max(route["shed"] for route in found["routes"]) > 0.5


def test_several_plans_compete_for_the_same_gpus(desk: Any, plan_with: Edit) -> None:
    alone = plan_with({"spec.requestClasses.1.rate": 60})
    desk.write("both.yaml", alone, plan_with({"metadata.name": "search"}, alone))
    desk.write("alone.yaml", alone)
    one = document(desk.run("plan", "-f", "alone.yaml", "--gpus", "h100=8", "-o", "json"))
    both = document(desk.run("plan", "-f", "both.yaml", "--gpus", "h100=8", "-o", "json"))
    assert [(each["namespace"], each["name"]) for each in both["plans"]] == [("default", "chat"), ("default", "search")]
    used = [sum(each["units"] for each in plan["allocations"]) for plan in both["plans"]]
    assert sum(used) <= 8
    assert max(used) < sum(each["units"] for each in one["allocations"]) == 8
    assert both["plans"][0]["objective"]["bound"] is None
    assert both["objective"]["bound"] > 0


def test_a_rate_can_be_given_for_one_of_several_plans(desk: Any, plan_with: Edit) -> None:
    desk.write("both.yaml", plan_with({}), plan_with({"metadata": {"name": "chat", "namespace": "shop"}}))
    ended = desk.run("plan", "-f", "both.yaml", "--gpus", "h100=16", "--rate", "shop/chat/code=1", "-o", "json")
    rates = [sum(each["rate"] for each in plan["allocations"]) for plan in document(ended)["plans"]]
    assert rates == pytest.approx([9, 7])


def test_profiles_are_found_beside_the_plan_and_in_files_of_their_own(desk: Any) -> None:
    path = MANIFESTS / "profile-from-configmap.yaml"
    config_map, plan = yaml.safe_load_all(path.read_text())
    desk.write("plan.yaml", plan)
    desk.write("profiles.yaml", config_map)
    beside = desk.run("plan", "-f", str(path), "--gpus", "h100=2")
    apart = desk.run("plan", "-f", "plan.yaml", "--profiles", "profiles.yaml", "--gpus", "h100=2")
    assert beside.status == apart.status == 0


def test_a_plan_may_come_by_standard_input(desk: Any, plan_with: Edit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(yaml.safe_dump(plan_with({}))))
    assert desk.run("plan", "-f", "-").status == 0


def test_the_table_lines_up_and_has_a_line_for_everything_in_use(desk: Any, plan_with: Edit) -> None:
    desk.write("plan.yaml", plan_with({"spec.requestClasses.1.rate": 60}))
    ended = desk.run("plan", "-f", "plan.yaml")
    found = document(desk.run("plan", "-f", "plan.yaml", "-o", "json"))
    first, *lines = ended.out.splitlines()
    assert first.startswith(f"default/chat: feasible, quality {found['objective']['quality']:.4f}")
    blocks = "\n".join(lines).strip().split("\n\n")
    allocations, routes, accelerators = (block.splitlines() for block in blocks)
    assert {tuple(line.split()[:3]) for line in allocations[1:]} == {
        (*name.split("/"), str(count)) for name, count in replicas(found).items()
    }
    assert [line.split()[0] for line in routes] == ["CLASS", "chat", "code"]
    assert [line.split()[:2] for line in accelerators[1:]] == [
        [kind, str(sum(each["units"] for each in found["allocations"] if each["accelerator"] == kind))]
        for kind in ("h100", "l40s")
    ]
    end = allocations[0].index("REPLICAS") + len("REPLICAS")
    assert all(line[end - 1].isdigit() for line in allocations[1:])


@pytest.mark.parametrize("name", ["plan", "budget", "mig", "minimal", "overlay", "two-plans", "plan-wide-mean"])
def test_every_example_can_be_solved_without_a_cluster(name: str, desk: Any) -> None:
    path = MANIFESTS / f"{name}.yaml"
    kinds = {
        kind["name"]
        for plan in yaml.safe_load_all(path.read_text())
        if plan["kind"] == "ModelServingPlan"
        for kind in plan["spec"]["accelerators"]
    }
    gpus = [argument for kind in sorted(kinds) for argument in ("--gpus", f"{kind}=8")]
    assert desk.run("plan", "-f", str(path), *gpus).status == 0
