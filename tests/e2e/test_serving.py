"""From `kubectl apply` to an answer through Envoy, and on through changes under load."""

from __future__ import annotations

import itertools
import json
import time
import urllib.error
import urllib.request
from collections import Counter

import pytest

from testbed.cluster import wait_until
from testbed.load import LoadClass

CODE = {"x-request-class": "code"}
SMALL = {"prompt_tokens": 24, "output_tokens": 4}


def ask(url, path="/v1/chat/completions", headers=None, **body):
    """One plain request; (status, decoded answer)."""
    request = urllib.request.Request(
        url + path,
        data=json.dumps({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4} | body).encode(),
        headers={"content-type": "application/json"} | (headers or {}),
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_an_applied_plan_serves_within_a_minute_by_its_weights(apply, demo_plan, load):
    # Far more and far shorter requests are sent than the plan is for: its weights are to stay as they are for them.
    demo_plan["spec"]["metrics"] = {"rates": "Declared", "calibration": "Disabled"}
    for model in demo_plan["spec"]["models"]:
        model["template"] = {"spec": {"containers": [{"name": "vllm", "env": [{"name": "SIM_COLD_START_S", "value": "5"}]}]}}
    started = time.monotonic()
    plan = apply(demo_plan)
    plan.cluster.kubectl("wait", "--for=condition=Ready", "msp/chat", "-n", plan.namespace, "--timeout=60s")
    assert time.monotonic() - started < 60

    columns, row = (line.split() for line in plan.cluster.kubectl("get", "msp", "-n", plan.namespace).stdout.splitlines())
    assert columns == ["NAME", "READY", "REASON", "QUALITY", "SLO", "GPUS", "AGE"]
    assert row[:3] == ["chat", "True", "Serving"]

    models = [model["name"] for model in demo_plan["spec"]["models"]]
    with urllib.request.urlopen(f"{plan.url}/v1/models", timeout=5) as answer:
        assert [model["id"] for model in json.load(answer)["data"]] == ["chat", *models]
    running = {allocation["model"] for allocation in plan.body()["status"]["allocations"]}
    for model in models:
        if model in running:
            # Envoy looks a pool's pods up once a second, and only the other models could answer meanwhile.
            wait_until(lambda model=model: ask(plan.url, model=model)[1].get("model") == model, 10, f"an answer of {model}")
        else:
            status, answer = ask(plan.url, model=model)
            assert status == 503
            assert f"{model} of plan chat has no ready replica" in answer["error"]["message"]
    status, answer = ask(plan.url, model="gpt-4")
    assert status == 404
    assert "llama-3.1-8b" in answer["error"]["message"]

    classes = [LoadClass("code", headers=CODE, **SMALL), LoadClass("chat", **SMALL)]
    streamed = load(plan.url, classes, 100, count=2000, stream=True, seed=1)
    plain = load(plan.url, classes, 100, count=1100, stream=False, seed=2)
    records = streamed.result() + plain.result()
    assert len(records) == 3100
    assert not [record for record in records if not record.answered]
    for name, shares in plan.shares().items():
        answered = Counter(record.model for record in records if record.request_class == name)
        realised = {model: answered[model] / answered.total() for model in models}
        assert realised == pytest.approx({model: shares.get(model, 0.0) for model in models}, abs=0.03), name


def test_changing_slo_quality_and_limit_under_load_fails_no_request(apply, demo_plan, load):
    # The demo's own pods with their full drain: this is what a change does to users.
    for model in demo_plan["spec"]["models"]:
        model["template"] = {"spec": {"containers": [{"name": "vllm", "env": [{"name": "SIM_COLD_START_S", "value": "2"}]}]}}
    plan = apply(demo_plan)
    plan.wait()
    before = plan.body()["status"]
    running = load(plan.url, [LoadClass("code", headers=CODE, **SMALL), LoadClass("chat", **SMALL)], 60, duration_s=240)
    wait_until(lambda: len(running.records) > 200, 30, "load")

    decisions = [before["allocations"]]
    for patch in (
        [{"op": "replace", "path": "/spec/slo/ttft/seconds", "value": "0.5"}],
        [{"op": "replace", "path": "/spec/models/0/quality/default", "value": "0.4"}],
        [{"op": "replace", "path": "/spec/accelerators/1/limit", "value": 4}],
        [{"op": "replace", "path": "/spec/slo/ttft/seconds", "value": "1.2"}],
    ):
        plan.patch(patch)
        plan.wait(timeout_s=90)
        body = plan.body()
        assert {table["generation"] for table in plan.tables()} == {body["metadata"]["generation"]}
        assert body["status"]["router"]["generation"] == body["metadata"]["generation"]
        decisions.append([(a["model"], a["setup"], a["replicas"]) for a in body["status"]["allocations"]])
    assert any(one != other for one, other in itertools.pairwise(decisions)), "no change moved the plan"

    wait_until(lambda: len(running.records) >= 3000, 120, "3,000 requests")
    running.stop()
    records = running.result()
    assert len(records) >= 3000
    assert [record for record in records if not record.answered] == []


def test_new_weights_are_live_within_two_seconds_of_the_decision(apply, gentle_plan):
    plan = apply(gentle_plan)
    plan.wait()
    old = plan.tables()[0]["digest"]
    # Only weights move: the replicas stay, because chat alone becomes lighter.
    plan.patch([{"op": "replace", "path": "/spec/requestClasses/1/rate", "value": 13}])
    generation = plan.body()["metadata"]["generation"]
    started = time.monotonic()
    wait_until(lambda: {table["generation"] for table in plan.tables()} == {generation}, 5, "table live")
    assert time.monotonic() - started < 2 + 1, "decision and publication"
    assert {table["digest"] for table in plan.tables()} != {old}
