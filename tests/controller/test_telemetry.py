"""What the operator says of itself to Prometheus and to probes."""

from __future__ import annotations

import asyncio
import copy
import socket
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from servingplan.api.plan_status import ModelServingPlanStatus
from servingplan.controller.health import Pulse, serving
from servingplan.controller.plan_metrics import PLAN_METRICS, of_status, word
from servingplan.controller.telemetry import Telemetry

NOW = "2026-01-01T00:00:00Z"
POOL = {"model": "m", "setup": "s"}
STATUS: dict[str, Any] = {
    "observedGeneration": 3,
    "conditions": [
        {"type": "Ready", "status": "False", "lastTransitionTime": NOW, "reason": "PodsNotStarting", "message": "pod x"},
        {"type": "SLOMet", "status": "Unknown", "lastTransitionTime": NOW, "reason": "NoTraffic", "message": ""},
    ],
    "allocations": [
        {
            **POOL,
            "accelerator": "h100",
            "deployment": "p-m-s",
            "replicas": 3,
            "ready": 1,
            "units": 6,
            "rate": "12.5",
            "utilization": "0.71",
            "predicted": {"ttftMean": "0.2", "ttftP95": "0.5", "interTokenMean": "0.03"},
            "observed": {"ttftP95": "0.7", "time": NOW},
            "givenUp": {"reason": "Insufficient nvidia.com/gpu", "attempts": 2, "retry": NOW},
            "calibration": {
                "samples": 9,
                "logStep": ["0.0", "0.6931471805599453", "-0.6931471805599453"],
                "covariance": [],
                "logBias": ["0.1"],
                "biasWeight": ["1"],
                "margin": {"ttft.p95": "0.08"},
                "drift": ["0", "0"],
                "drifting": True,
                "applied": {"step": ["1", "1.9", "0.5"], "ttft": ["1", "1.1", "1.2", "1.3"], "margin": {"ttft.p95": "0.07"}},
            },
        }
    ],
    "routes": [{"class": "chat", "weights": {"m": "0.9"}, "shed": "0.1", "distance": "0.23"}],
    "objective": {"quality": "0.83", "costPerHour": "11.7", "bound": "0.85", "gap": "0.02"},
    "demand": [
        {"class": "chat", "observed": "20", "planned": "26", "routed": "21"},
        {"model": "m", "planned": "1", "routed": "1"},
    ],
    "router": {"address": "p-router", "ready": 2},
    "accelerators": {"h100": 6},
}
SPOKEN = {
    ("servingplan_plan_quality",): 0.83,
    ("servingplan_plan_cost_per_hour",): 11.7,
    ("servingplan_plan_gap",): 0.02,
    ("servingplan_plan_shed_ratio", "chat"): 0.1,
    ("servingplan_share_distance", "chat"): 0.23,
    ("servingplan_accelerator_units", "h100"): 6,
    ("servingplan_replicas", "m", "s", "wanted"): 3,
    ("servingplan_replicas", "m", "s", "ready"): 1,
    ("servingplan_replicas_given_up", "m", "s"): 2,
    ("servingplan_utilization_ratio", "m", "s"): 0.71,
    ("servingplan_latency_seconds", "m", "s", "ttft_mean", "predicted"): 0.2,
    ("servingplan_latency_seconds", "m", "s", "ttft_p95", "predicted"): 0.5,
    ("servingplan_latency_seconds", "m", "s", "inter_token_mean", "predicted"): 0.03,
    ("servingplan_latency_seconds", "m", "s", "ttft_p95", "observed"): 0.7,
    ("servingplan_correction_ratio", "m", "s", "alpha", "learnt"): 1.0,
    ("servingplan_correction_ratio", "m", "s", "beta", "learnt"): pytest.approx(2.0),
    ("servingplan_correction_ratio", "m", "s", "gamma", "learnt"): pytest.approx(0.5),
    ("servingplan_correction_ratio", "m", "s", "alpha", "applied"): 1.0,
    ("servingplan_correction_ratio", "m", "s", "beta", "applied"): 1.9,
    ("servingplan_correction_ratio", "m", "s", "gamma", "applied"): 0.5,
    ("servingplan_correction_ratio", "m", "s", "ttft_bin_0", "applied"): 1.0,
    ("servingplan_correction_ratio", "m", "s", "ttft_bin_1", "applied"): 1.1,
    ("servingplan_correction_ratio", "m", "s", "ttft_bin_2", "applied"): 1.2,
    ("servingplan_correction_ratio", "m", "s", "ttft_bin_3", "applied"): 1.3,
    ("servingplan_margin_ratio", "m", "s", "ttft.p95", "learnt"): 0.08,
    ("servingplan_margin_ratio", "m", "s", "ttft.p95", "applied"): 0.07,
    ("servingplan_drifting", "m", "s"): 1,
    ("servingplan_rate_rps", "chat", "", "observed"): 20,
    ("servingplan_rate_rps", "chat", "", "planned"): 26,
    ("servingplan_rate_rps", "chat", "", "routed"): 21,
    ("servingplan_rate_rps", "", "m", "planned"): 1,
    ("servingplan_rate_rps", "", "m", "routed"): 1,
    ("servingplan_weight_ratio", "chat", "m", ""): 0.9,
    ("servingplan_router_ready",): 2,
    ("servingplan_condition", "Ready", "True"): 0,
    ("servingplan_condition", "Ready", "False"): 1,
    ("servingplan_condition", "Ready", "Unknown"): 0,
    ("servingplan_condition", "SLOMet", "True"): 0,
    ("servingplan_condition", "SLOMet", "False"): 0,
    ("servingplan_condition", "SLOMet", "Unknown"): 1,
    ("servingplan_condition_reason", "Ready", "PodsNotStarting"): 1,
    ("servingplan_condition_reason", "SLOMet", "NoTraffic"): 1,
}


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def series(telemetry: Telemetry) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of the page, read as Prometheus would."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(telemetry.page().decode())
        for sample in family.samples
    }


def value(telemetry: Telemetry, name: str, **labels: str) -> float | None:
    return series(telemetry).get((name, frozenset(labels.items())))


def of_plan(telemetry: Telemetry, plan: str) -> set[tuple[str, frozenset[tuple[str, str]]]]:
    return {key for key in series(telemetry) if ("plan", plan) in key[1]}


def test_the_example_is_a_status_that_the_api_server_would_take() -> None:
    ModelServingPlanStatus.model_validate(STATUS)


def test_every_figure_of_a_status_is_a_sample() -> None:
    assert {(name, *labels): number for name, found in of_status(STATUS).items() for labels, number in found.items()} == SPOKEN


def test_what_a_status_leaves_out_has_no_sample() -> None:
    assert all(not found for found in of_status({}).values())
    broken = copy.deepcopy(STATUS)
    broken["objective"]["quality"] = "NaN"
    broken["allocations"][0]["observed"] = None
    samples = of_status(broken)
    assert samples["servingplan_plan_quality"] == {}
    assert {labels[-1] for labels in samples["servingplan_latency_seconds"]} == {"predicted"}


def test_a_plan_s_samples_carry_its_name_and_those_that_the_loop_adds() -> None:
    telemetry = Telemetry()
    telemetry.plan(
        "llm/p",
        STATUS,
        asked={("m", "s"): 2},
        weights={("chat", "m", "s"): 0.9},
        bounds={("chat", "ttft.p95"): 0.8},
    )
    where = {"namespace": "llm", "plan": "p"}
    assert value(telemetry, "servingplan_replicas", **where, **POOL, state="asked") == 2
    assert value(telemetry, "servingplan_weight_ratio", **where, **POOL, **{"class": "chat"}) == 0.9
    assert value(telemetry, "servingplan_slo_seconds", **where, bound="ttft.p95", **{"class": "chat"}) == 0.8
    assert value(telemetry, "servingplan_plan_gap", **where) == 0.02
    assert {name for name, _ in of_plan(telemetry, "p")} == set(PLAN_METRICS)


def test_what_is_no_longer_so_leaves_no_series() -> None:
    telemetry = Telemetry()
    telemetry.plan("llm/p", STATUS)
    telemetry.plan("llm/p", {"objective": {"quality": "0.5"}})
    assert of_plan(telemetry, "p") == {
        ("servingplan_plan_quality", frozenset({("namespace", "llm"), ("plan", "p")})),
    }


def test_a_plan_that_is_gone_leaves_no_series() -> None:
    telemetry = Telemetry()
    before = series(telemetry).keys()
    for number in range(50):
        key = f"llm/p{number}"
        telemetry.plan(key, STATUS)
        telemetry.decided(key, "FirstPlan")
        telemetry.sampled(key, 1.0)
        telemetry.forget(key)
    assert series(telemetry).keys() == before
    telemetry.plan("llm/p", STATUS)
    telemetry.plan("llm/q", STATUS)
    telemetry.keep({"llm/q"})
    assert not of_plan(telemetry, "p")
    assert of_plan(telemetry, "q")


def test_decisions_are_counted_by_words_only() -> None:
    telemetry = Telemetry()
    for reason in ("ShortOfCapacity", "ShortOfCapacity", "load of chat 14 -> 21 requests/s", ""):
        telemetry.decided("llm/p", reason)
    where = {"namespace": "llm", "plan": "p"}
    assert value(telemetry, "servingplan_decisions_total", **where, reason="ShortOfCapacity") == 2
    assert value(telemetry, "servingplan_decisions_total", **where, reason="Other") == 2
    assert word("x" * 50) == "Other"


def test_metrics_age_until_they_are_sampled_again() -> None:
    clock = Clock()
    telemetry = Telemetry(clock=clock)
    where = {"namespace": "llm", "plan": "p"}
    telemetry.plan("llm/p", STATUS)
    assert value(telemetry, "servingplan_metrics_age_seconds", **where) is None, "never sampled is not zero seconds old"
    telemetry.sampled("llm/p", 4.0)
    clock.now_s += 30
    assert value(telemetry, "servingplan_metrics_age_seconds", **where) == 34
    telemetry.sampled("llm/p", 1.0)
    assert value(telemetry, "servingplan_metrics_age_seconds", **where) == 1


def test_what_happens_is_counted_and_starts_at_zero() -> None:
    clock, leading = Clock(), [False]
    telemetry = Telemetry(leads=lambda: leading[0], clock=clock)
    assert value(telemetry, "servingplan_leader") == 0
    assert value(telemetry, "servingplan_errors_total", kind="prometheus") == 0
    assert value(telemetry, "servingplan_passes_total", outcome="failed") == 0
    leading[0] = True
    with telemetry.solving("plan"):
        clock.now_s += 0.3
    telemetry.passed("failed", 0.2)
    telemetry.error("prometheus")
    telemetry.wrote("ModelServingPlan/status")
    assert value(telemetry, "servingplan_leader") == 1
    assert value(telemetry, "servingplan_solve_seconds_sum", kind="plan") == pytest.approx(0.3)
    assert value(telemetry, "servingplan_solve_seconds_count", kind="hold") == 0
    assert value(telemetry, "servingplan_errors_total", kind="prometheus") == 1
    assert value(telemetry, "servingplan_passes_total", outcome="failed") == 1
    assert value(telemetry, "servingplan_pass_seconds_count") == 1
    assert value(telemetry, "servingplan_writes_total", kind="ModelServingPlan/status") == 1


def test_two_operators_in_one_process_do_not_meet() -> None:
    first, second = Telemetry(), Telemetry()
    first.error("kube")
    assert value(second, "servingplan_errors_total", kind="kube") == 0


def ask(pulse: Pulse, telemetry: Telemetry) -> dict[str, tuple[int, str]]:
    """Status and text of every page that the health port serves."""

    async def answers() -> dict[str, tuple[int, str]]:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        async with serving(pulse, port, telemetry.page), aiohttp.ClientSession() as session:
            found = {}
            for path in ("healthz", "readyz", "metrics"):
                async with session.get(f"http://127.0.0.1:{port}/{path}") as answer:
                    found[path] = (answer.status, (await answer.text()).strip())
            return found

    return asyncio.run(answers())


def test_an_operator_that_leads_is_ready_after_its_first_pass() -> None:
    pulse, telemetry = Pulse(stale_after_s=60), Telemetry()
    assert ask(pulse, telemetry)["readyz"] == (503, "no pass over the world was completed yet")
    pulse.failed("403 nodes")
    assert ask(pulse, telemetry)["readyz"] == (503, "403 nodes")
    pulse.completed()
    pulse.failed("later")
    found = ask(pulse, telemetry)
    assert found["readyz"] == (200, "ok")
    assert found["healthz"] == (200, "ok")
    assert found["metrics"][0] == 200
    assert "servingplan_leader 1.0" in found["metrics"][1].splitlines()


def test_one_that_stands_by_is_ready_when_it_has_seen_everything() -> None:
    pulse, telemetry = Pulse(stale_after_s=60), Telemetry()
    pulse.stands_by()
    assert ask(pulse, telemetry)["readyz"] == (503, "the watches have not listed everything yet")
    pulse.listed()
    assert ask(pulse, telemetry)["readyz"] == (200, "stands by, another operator leads")
    pulse.leads()
    assert ask(pulse, telemetry)["readyz"][0] == 503, "its passes have yet to show that they succeed"


def test_a_loop_that_stands_still_is_not_healthy() -> None:
    pulse = Pulse(stale_after_s=60)
    pulse.last_turn -= 61
    assert ask(pulse, Telemetry())["healthz"] == (500, "the loop has not turned for 61 s")
    pulse.stands_by()
    assert ask(pulse, Telemetry())["healthz"] == (200, "ok")
