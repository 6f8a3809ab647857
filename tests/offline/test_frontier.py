"""The frontier: what is drawn was solved, and the plan itself is on it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from PIL import Image

Edit = Callable[..., dict[str, Any]]
FULL = {"spec.requestClasses.1.rate": 80}


def frontier(desk: Any, axis: str, *arguments: str) -> dict[str, Any]:
    ended = desk.run("plan", "-f", "plan.yaml", "--frontier", axis, "-o", "json", *arguments)
    found = json.loads(ended.out)
    assert isinstance(found, dict)
    return found


def test_the_latency_frontier_rises_and_the_plan_is_on_it(desk: Any, plan_with: Edit) -> None:
    desk.write("plan.yaml", plan_with(FULL))
    found = frontier(desk, "slo")
    points = found["frontier"]["points"]
    targets = [point["target"] for point in points]
    assert targets == sorted(targets)
    assert targets[0] < 0.4
    assert targets[-1] > 1.9
    qualities = [point["quality"] for point in points if point["feasible"]]
    assert all(later >= earlier * (1 - 2e-3) for earlier, later in pairwise(qualities))
    (own,) = [point for point in points if point["target"] == 0.8]
    assert own["quality"] == found["objective"]["quality"]


def test_the_cost_frontier_has_no_point_that_costs_more_for_nothing(desk: Any, plan_with: Edit) -> None:
    desk.write("plan.yaml", plan_with(FULL))
    found = frontier(desk, "cost")
    points = found["frontier"]["points"]
    assert points[0]["costPerHour"] == 0
    assert points[0]["shed"] == 1
    for cheaper, dearer in pairwise(points):
        assert dearer["costPerHour"] > cheaper["costPerHour"]
        assert (dearer["shed"], -dearer["quality"]) < (cheaper["shed"], -cheaper["quality"])
    assert found["objective"]["costPerHour"] in [point["costPerHour"] for point in points]


def test_a_point_of_the_frontier_is_the_plan_for_that_budget(desk: Any, plan_with: Edit) -> None:
    desk.write("plan.yaml", plan_with(FULL))
    point = next(point for point in frontier(desk, "cost")["frontier"]["points"] if point["feasible"])
    desk.write("plan.yaml", plan_with(FULL | {"spec.budget.costPerHour": point["costPerHour"]}))
    found = json.loads(desk.run("plan", "-f", "plan.yaml", "-o", "json").out)
    assert found["objective"]["quality"] == pytest.approx(point["quality"], rel=2e-4)


@pytest.mark.parametrize("axis", ["slo", "cost"])
def test_the_picture_is_one_and_the_table_marks_the_plan(axis: str, desk: Any, plan_with: Edit) -> None:
    desk.write("plan.yaml", plan_with(FULL))
    ended = desk.run("plan", "-f", "plan.yaml", "--frontier", axis, "--plot", "out.png")
    assert ended.status == 0
    (marked,) = [line for line in ended.out.splitlines() if line.startswith("*")]
    assert (
        marked.split()[1:3] == ["800", "ms"] if axis == "slo" else f"{marked.split()[1]} per hour" in ended.out.splitlines()[0]
    )
    with Image.open(desk.folder / "out.png") as picture:
        assert picture.width > 1000
        colours = {colour for _, colour in picture.convert("RGB").getcolors(maxcolors=2**24)}
    # The first two models' colours, and the mark of the plan itself.
    assert {(0x00, 0x72, 0xB2), (0xE6, 0x9F, 0x00), (0xD5, 0x5E, 0x00)} <= colours


def test_without_matplotlib_one_sentence_says_what_to_install(
    desk: Any, plan_with: Edit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    desk.write("plan.yaml", plan_with({}))
    ended = desk.run("plan", "-f", "plan.yaml", "--frontier", "slo", "--plot", "out.png")
    assert (ended.status, ended.err) == (2, "--plot: drawing needs matplotlib, install it with pip install matplotlib\n")


def test_a_cost_frontier_needs_costs(desk: Any, plan_with: Edit) -> None:
    desk.write("plan.yaml", plan_with({f"spec.accelerators.{i}.costPerHour": 0 for i in range(2)}))
    ended = desk.run("plan", "-f", "plan.yaml", "--frontier", "cost")
    assert ended.status == 2
    assert ended.err == "--frontier cost: no accelerator has a cost, set spec.accelerators[].costPerHour\n"


def test_one_plan_at_a_time(desk: Any, plan_with: Edit) -> None:
    desk.write("plan.yaml", plan_with({}), plan_with({"metadata.name": "search"}))
    ended = desk.run("plan", "-f", "plan.yaml", "--gpus", "h100=8", "--frontier", "slo")
    assert (ended.status, ended.err.splitlines()[-1]) == (2, "--frontier: it is drawn for one plan at a time, give one")
