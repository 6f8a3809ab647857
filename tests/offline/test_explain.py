"""``servingplan explain``: what it claims holds when the plan is changed as it says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

Edit = Callable[..., dict[str, Any]]
FULL = {"spec.requestClasses.1.rate": 80}
"""More than the large model can take."""
TOO_MUCH = {"spec.requestClasses.1.rate": 400}
"""More than all GPUs can take."""


def numbers(text: str) -> list[float]:
    return [float(found) for found in re.findall(r"\d+(?:\.\d+)?", text)]


def line(text: str, start: str) -> str:
    found = [each for each in text.splitlines() if each.strip().startswith(start)]
    assert len(found) == 1, text
    return found[0]


@pytest.fixture
def explained(desk: Any, plan_with: Edit) -> Callable[..., Any]:
    def run(edits: dict[str, Any], *arguments: str) -> Any:
        desk.write("plan.yaml", plan_with(edits))
        return desk.run("explain", "-f", "plan.yaml", *arguments)

    return run


@pytest.fixture
def quality(desk: Any, plan_with: Edit) -> Callable[..., tuple[bool, float]]:
    def run(edits: dict[str, Any]) -> tuple[bool, float]:
        desk.write("changed.yaml", plan_with(edits))
        found = json.loads(desk.run("plan", "-f", "changed.yaml", "-o", "json").out)
        return found["feasible"], found["objective"]["quality"]

    return run


def test_a_plan_with_room_is_held_back_by_nothing(explained: Callable[..., Any]) -> None:
    ended = explained({})
    assert (ended.status, ended.err) == (0, "")
    assert "everything is served within its SLO" in ended.out
    assert "Nothing holds default/chat back." in ended.out
    assert line(ended.out, "1 or 2 more h100").endswith("nothing changes.")
    assert "The way out" not in ended.out


def test_one_more_gpu_buys_what_is_said(explained: Callable[..., Any], quality: Callable[..., tuple[bool, float]]) -> None:
    text = explained(FULL).out
    assert "All 8 h100 that it may use are taken" in text
    better, was = numbers(line(text, "2 more h100 (fewer than 2 change nothing)").partition("quality")[2])[:2]
    assert better > was
    more = FULL | {"spec.accelerators.0.limit": 10}
    assert [better, was] == pytest.approx([quality(more)[1], quality(FULL)[1]], abs=6e-5)


def test_ten_percent_more_latency_buys_what_is_said(
    explained: Callable[..., Any], quality: Callable[..., tuple[bool, float]]
) -> None:
    tight, looser = FULL | {"spec.slo.ttft.seconds": 0.2}, FULL | {"spec.slo.ttft.seconds": 0.22}
    said = numbers(line(explained(tight).out, "10 % more latency").partition("quality")[2])[:2]
    assert said == pytest.approx([quality(looser)[1], quality(tight)[1]], abs=6e-5)


def test_every_way_out_is_one(explained: Callable[..., Any], quality: Callable[..., tuple[bool, float]]) -> None:
    ended = explained(TOO_MUCH)
    assert ended.status == 3
    assert "NOT everything is served within its SLO" in ended.out
    assert quality(TOO_MUCH)[0] is False
    more = {name: int(count) for count, name in re.findall(r"(\d+) more (h100|l40s)", line(ended.out, "GPUs:"))}
    limits = {f"spec.accelerators.{i}.limit": [8, 4][i] + more.get(name, 0) for i, name in enumerate(("h100", "l40s"))}
    assert quality(TOO_MUCH | limits)[0] is True
    code, chat = numbers(line(ended.out, "Requests:").partition("(")[2])
    rates = {"spec.requestClasses.0.rate": round(code * 0.999, 6), "spec.requestClasses.1.rate": round(chat * 0.999, 6)}
    assert quality(rates)[0] is True
    assert quality({path: round(rate * 1.03, 6) for path, rate in rates.items()})[0] is False


def test_a_longer_latency_is_a_way_out_where_it_is_one(
    explained: Callable[..., Any], quality: Callable[..., tuple[bool, float]]
) -> None:
    text = explained({"spec.slo.ttft.seconds": 0.01}).out
    milliseconds = numbers(line(text, "Latency:").partition("TTFT p95")[2])[0]
    assert quality({"spec.slo.ttft.seconds": milliseconds / 1e3 * 1.005})[0] is True
    assert quality({"spec.slo.ttft.seconds": milliseconds / 1e3 * 0.97})[0] is False


def test_the_budget_that_would_do_does(explained: Callable[..., Any], quality: Callable[..., tuple[bool, float]]) -> None:
    text = explained({"spec.budget.costPerHour": 1, "spec.requestClasses.1.rate": 12}).out
    assert "The budget of 1.00 per hour is spent" in text
    needed = numbers(line(text, "Money:"))[0]
    assert quality({"spec.budget.costPerHour": needed, "spec.requestClasses.1.rate": 12})[0] is True
    assert quality({"spec.budget.costPerHour": needed - 0.5, "spec.requestClasses.1.rate": 12})[0] is False


def test_given_replicas_are_explained_without_a_word_on_more_gpus(explained: Callable[..., Any]) -> None:
    ended = explained(FULL, "--replicas", "large/tp2=1")
    assert ended.status == 3
    assert "more h100" not in ended.out
    assert line(ended.out, "Requests:")


def test_several_plans_are_explained_by_name(desk: Any, plan_with: Edit) -> None:
    desk.write("both.yaml", plan_with(FULL), plan_with({"metadata.name": "search"}))
    text = desk.run("explain", "-f", "both.yaml", "--gpus", "h100=8").out
    assert text.index("default/chat:") < text.index("default/search:")
    assert "default/chat refuses" in line(text, "2 more h100") or "default/chat quality" in line(text, "2 more h100")
