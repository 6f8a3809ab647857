"""What the plugin prints of a plan: sentences, proposals, history, and what pausing would do."""

from __future__ import annotations

import argparse
from types import ModuleType

import pytest

from servingplan.plugin import arguments, past, pausing, proposal, report, states, times
from servingplan.plugin.reading import read_plan


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (119, "119s"), (190, "3m10s"), (240, "4m"), (3600, "60m"), (7300, "2h1m"), (7200, "2h"), (200_000, "2d")],
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    assert times.duration(seconds) == text


@pytest.mark.parametrize(("text", "seconds"), [("30", 30), ("30s", 30), ("2m", 120), ("1.5h", 5400), ("0", 0)])
def test_a_time_is_read(text: str, seconds: float) -> None:
    assert arguments.duration_s(text) == seconds


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf", "", "3d"])
def test_another_time_is_not(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="write a time such as 30s"):
        arguments.duration_s(text)


def test_a_plan_in_sentences(bodies: ModuleType) -> None:
    plan = read_plan(
        bodies.plan(conditions=bodies.with_conditions(bodies.condition("SLOMet", "False", "Late", "chat is late")))
    )
    text = "\n".join(report.lines(plan, bodies.NOW_S))
    for part in (
        "llm/chat, mode Auto, generation 3",
        "The SLO is MISSED, as measured (Late): chat is late.",
        "Metrics arrive (MetricsFound).",
        "What runs, quality 0.7643 for 30.00 per hour:",
        "qwen3-32b on h100-tp2: 3 replicas, of which 2 ready; 8.9/s, 82 % of a full load;"
        " TTFT p95 predicted 980 ms, measured 1.04 s, asked 1.2 s.",
        "steps take 1.25 times as long as by its profile (alpha x1.25, beta x1.24, gamma x1.26), learnt from 31 cycles",
        "it has CHANGED since",
        "as fast as its profile, learnt from 12 cycles",
        "Class chat, requests/s 14.9 measured, 14.6 planned for, 14 declared: 44 % to qwen2.5-14b, 27 % to qwen3-32b,"
        " 27 % to llama-3.1-8b and 2 % REFUSED.",
        "prompts 1.31 times as long as declared",
        "Requests that name qwen3-32b, requests/s 0.7 measured, 0.8 planned for.",
        "Measured by vllm:num_requests_running, vllm:time_to_first_token_seconds.",
        "  qwen3-32b/h100-tp2 starts: 2 of 3 ready, asked for 40s ago.",
    ):
        assert part in text
    assert "roposal" not in text, "a plan that decides by itself proposes nothing"


def test_a_plan_that_was_never_decided_on(bodies: ModuleType) -> None:
    body = bodies.plan()
    body["status"] = {}
    text = "\n".join(report.lines(read_plan(body), bodies.NOW_S))
    assert "has not decided on it yet" in text
    assert "Nothing runs." in text
    assert "requests/s 14 declared: no route yet" in text


def test_a_plan_whose_status_is_of_another_version(bodies: ModuleType) -> None:
    """An operator that is older leaves fields out, a newer one adds some; neither hides the rest."""
    body = bodies.plan(novelty={"x": 1}, demand=None, metrics=None)
    for entry in body["status"]["allocations"]:
        entry.pop("calibration")
        entry["more"] = "later"
    text = "\n".join(report.lines(read_plan(body), bodies.NOW_S))
    assert "3 replicas" in text
    assert "Learnt" not in text


def test_a_proposal_shows_all_that_it_would_change(bodies: ModuleType) -> None:
    plan = read_plan(bodies.plan(spec={"mode": "Recommend"}, proposal=bodies.PROPOSAL))
    assert plan.proposal is not None
    found = [" ".join(line.split()) for line in proposal.lines(plan.proposal, bodies.NOW_S)]
    for line in (
        "Proposal 7f3a21, made 3m10s ago for generation 3 of the spec",
        "because: load of class chat 14.6 to 21 requests/s",
        "qwen2.5-14b h100 h100 0 2 +2",
        "qwen3-32b h100-tp2 h100 3 2 -1",
        "chat llama-3.1-8b 27 % 18 % 1.9 s 1.08 s",
        "qwen2.5-14b 44 % 70 %",
        "quality 0.7643 0.7401 -0.0242",
        "cost per hour 30.00 30.00 +0.00",
        "refused 2 % 0 %",
    ):
        assert line in found
    text = "\n".join(report.lines(plan, bodies.NOW_S))
    assert "kubectl servingplan approve chat 7f3a21 -n llm" in text


def test_history_shows_what_every_decision_changed(bodies: ModuleType) -> None:
    events = [
        {
            "metadata": {"name": "a", "creationTimestamp": bodies.stamp(100)},
            "type": "Normal", "reason": "Planned", "message": "first", "lastTimestamp": bodies.stamp(100), "count": 3,
        },
        {
            "metadata": {"name": "b", "creationTimestamp": bodies.stamp(10)},
            "type": "Warning", "reason": "Late", "message": "second\nline", "eventTime": bodies.stamp(10),
        },
    ]  # fmt: skip
    lines = list(past.lines(read_plan(bodies.plan()), events, bodies.NOW_S))
    first, second, third = (
        next(line for line in lines if part in line) for part in ("11 to 14.6", "faster than", "generation 2")
    )
    assert "+1 qwen3-32b/h100-tp2 (2 to 3)" in first
    assert "+2 llama-3.1-8b/l40s (0 to 2), -1 qwen2.5-14b/l40s-tp2 (3 to 2)" in second
    assert third.rstrip().endswith("-"), "what the oldest changed is not kept"
    told = [line for line in lines if "Planned" in line or "Late" in line]
    assert "second line" in told[0]
    assert "first (x3)" in told[1]
    assert "may not be read" in "\n".join(past.lines(read_plan(bodies.plan(history=[])), None, bodies.NOW_S))


def test_what_is_going_on_is_told_by_how_pressing_it_is(bodies: ModuleType) -> None:
    late = bodies.condition("SLOMet", "False", "Late", "chat is late")
    stuck = {"reason": "Unschedulable: no GPU", "attempts": 2, "retry": bodies.stamp(-240)}
    allocations = [
        entry | ({"givenUp": stuck} if entry["setup"] == "h100-tp2" else {}) for entry in bodies.STATUS["allocations"]
    ]
    body = bodies.plan(
        spec={"mode": "Recommend"}, proposal=bodies.PROPOSAL, allocations=allocations, conditions=bodies.with_conditions(late)
    )
    found = states.going_on(read_plan(body), bodies.NOW_S)
    assert [(news.text.split(":")[0], news.bad) for news in found] == [
        ("qwen3-32b/h100-tp2 given up, 2 times in a row", True),
        ("proposal 7f3a21 waits for approval, made 3m10s ago", False),
        ("Late", True),
        ("qwen2.5-14b/l40s-tp2 has changed its speed and is learnt anew", False),
    ]
    assert found[0].text.endswith("tried again in 4m")


def test_a_plan_at_rest_has_nothing_going_on(bodies: ModuleType) -> None:
    settled = [entry | {"ready": entry["replicas"], "calibration": None} for entry in bodies.STATUS["allocations"]]
    assert states.going_on(read_plan(bodies.plan(allocations=settled)), bodies.NOW_S) == []


@pytest.mark.parametrize("mode", ["Auto", "Recommend"])
def test_a_pause_is_undone_by_resuming(bodies: ModuleType, mode: str) -> None:
    paused = pausing.pause(read_plan(bodies.plan(spec={"mode": mode})))
    assert paused.patch == {"metadata": {"annotations": {"servingplan.io/mode-before-pause": mode}}, "spec": {"mode": "Paused"}}
    kept = {"annotations": paused.patch["metadata"]["annotations"]}
    resumed = pausing.resume(read_plan(bodies.plan(spec=paused.patch["spec"], metadata=kept)))
    assert resumed.patch == {"metadata": {"annotations": {"servingplan.io/mode-before-pause": None}}, "spec": {"mode": mode}}
    assert "GitOps" in paused.text


def test_what_has_that_mode_already_is_left_alone(bodies: ModuleType) -> None:
    assert pausing.pause(read_plan(bodies.plan(spec={"mode": "Paused"}))).patch is None
    assert pausing.resume(read_plan(bodies.plan())).patch is None
    by_hand = pausing.resume(read_plan(bodies.plan(spec={"mode": "Paused"})))
    assert by_hand.patch is not None
    assert by_hand.patch["spec"] == {"mode": "Auto"}


@pytest.mark.parametrize(
    ("tool", "metadata"),
    [
        ("Argo CD", {"annotations": {"argocd.argoproj.io/tracking-id": "plans:servingplan.io/ModelServingPlan:llm/chat"}}),
        ("Flux", {"labels": {"kustomize.toolkit.fluxcd.io/name": "plans"}}),
        ("Flux", {"managedFields": [{"manager": "kubectl"}, {"manager": "kustomize-controller"}]}),
    ],
)
def test_the_tool_that_would_undo_a_pause_is_named(bodies: ModuleType, tool: str, metadata: dict[str, object]) -> None:
    assert f"{tool} applies this plan" in pausing.pause(read_plan(bodies.plan(metadata=metadata))).text
