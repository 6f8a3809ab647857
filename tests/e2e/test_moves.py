"""A plan that moves drops no request, holds no accelerator too many and sends nobody where nobody is, whoever dies.

What must hold at every instant is judged by a witness that sees every version of every object.
"""

from __future__ import annotations

import asyncio
import copy
import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import yaml

from testbed import faults, traces
from testbed.bed import Bed
from testbed.cluster import wait_until
from testbed.load import Arrival, LoadClass, Record, send_arrivals
from testbed.stage import BackgroundLoad, Operator, Served, background_load
from testbed.witness import Moment, Witness

NAMESPACE = "moves"
H100, L40S = "NVIDIA-H100-80GB-HBM3", "NVIDIA-L40S"
PRODUCTS = {"h100": H100, "l40s": L40S}
LIMIT = 4
RATE_RPS, LONGEST_RUN_S = 8.0, 1800.0
STREAM_S, STREAM_TOKENS = 60.0, 1000
TAKEN_OVER_S = 20
CLASS = LoadClass("chat", prompt_tokens=100, output_tokens=16)

PLAN = yaml.safe_load("""
apiVersion: servingplan.io/v1alpha1
kind: ModelServingPlan
metadata: {name: chat}
spec:
  slo: {ttft: {seconds: "0.8", percentile: 95}}
  metrics: {calibration: Disabled}
  accelerators:
  - {name: h100, nodeSelector: {nvidia.com/gpu.product: NVIDIA-H100-80GB-HBM3}, limit: 4, costPerHour: "4"}
  - {name: l40s, nodeSelector: {nvidia.com/gpu.product: NVIDIA-L40S}, limit: 4, costPerHour: "1"}
  models:
  - name: only
    source: Qwen/Qwen3-32B
    quality: {default: "0.8"}
    drainSeconds: 90
    setups:
    - name: h100
      accelerator: h100
      count: 2
      maxReplicas: 2
      coldStartSeconds: 30
      profile: {coefficients: {alphaMs: "60", betaMs: "0.2", gammaMs: "0"}, kvTokens: 278000, maxNumSeqs: 16}
    - name: l40s
      accelerator: l40s
      count: 2
      maxReplicas: 0
      coldStartSeconds: 30
      profile: {coefficients: {alphaMs: "60", betaMs: "0.2", gammaMs: "0"}, kvTokens: 188000, maxNumSeqs: 16}
  requestClasses:
  - name: chat
    promptTokens: {mean: 100, cv: 0}
    outputTokens: {mean: 16, cv: 0}
    rate: 8
""")
ENGINE = {"SIM_ALPHA_MS": 60, "SIM_FLOOR_MS": 0, "SIM_BETA_US": 200, "SIM_GAMMA_NS": 0, "SIM_COLD_START_S": 1}


def plan_body() -> dict[str, Any]:
    body = copy.deepcopy(PLAN)
    container = {"name": "vllm", "env": [{"name": name, "value": str(value)} for name, value in ENGINE.items()]}
    body["spec"]["models"][0]["template"] = {"spec": {"containers": [container]}}
    return body


@dataclass
class Stage:
    """A plan that may be moved from one kind of accelerator to the other and back."""

    bed: Bed
    operator: Operator
    plan: Served
    witness: Witness
    load: BackgroundLoad
    kind: str = "h100"

    def move(self) -> None:
        """Allows replicas on the other kind of accelerator alone."""
        self.kind = "l40s" if self.kind == "h100" else "h100"
        patch = [
            {"op": "replace", "path": f"/spec/models/0/setups/{n}/maxReplicas", "value": 2 if kind == self.kind else 0}
            for n, kind in enumerate(PRODUCTS)
        ]
        self.bed.kubectl("patch", "msp", "chat", "-n", NAMESPACE, "--type=json", "-p", json.dumps(patch))

    def arrived(self) -> bool:
        """Every replica is of the kind that may be used, every request goes there, nothing else holds an accelerator."""
        replicas = self.plan.replicas()
        wanted = {setup: count for setup, count in replicas.items() if count[0]}
        assert list(wanted) == [f"only/{self.kind}"], replicas
        assert all(asked == ready for asked, ready in wanted.values()), replicas
        for condition in ("Ready", "RoutingSynced"):
            assert self.plan.condition(condition)["status"] == "True", self.plan.condition(condition)
        last = list(self.witness.moments("chat"))[-1]
        assert {product for product, units in last.units.items() if units} == {PRODUCTS[self.kind]}, last.units
        assert all(f"-{self.kind}-" in pool for pool in last.weighted), last.weighted
        return True


@pytest.fixture(scope="module")
def stage(operator, install, values, tmp_path_factory) -> Iterator[Stage]:
    if not isinstance(operator, Bed):
        pytest.skip("another cluster is not ours to break")
    with ExitStack() as stack:
        prometheus = values["prometheus"] | {"scrapeIntervalSeconds": 1}
        quick = {"replicas": 2, "tickSeconds": 1, "cycleSeconds": 3, "dwellSeconds": 15, "prometheus": prometheus}
        install(operator, upgrade=values | quick)
        stack.callback(install, operator, upgrade=values)
        operator.kubectl("create", "namespace", NAMESPACE)
        stack.callback(operator.kubectl, "delete", "namespace", NAMESPACE, "--wait=false")
        witness = stack.enter_context(Witness(operator, NAMESPACE, tmp_path_factory.mktemp("witness")))
        operator.apply(plan_body(), namespace=NAMESPACE)
        plan = Served(operator, NAMESPACE, "chat")
        stack.callback(remove, operator, plan)
        plan.wait("Ready", "True", timeout_s=90)
        planned = traces.steady(CLASS, RATE_RPS, LONGEST_RUN_S)
        load = stack.enter_context(background_load(plan.url, planned, stream=False, patience_s=30))
        found = Stage(operator, Operator(operator), plan, witness, load)
        wait_until(found.arrived, 60, "the plan serves")
        yield found


def remove(bed: Bed, plan: Served) -> None:
    bed.kubectl("delete", "msp", plan.name, "-n", plan.namespace)
    wait_until(lambda: not plan.pods(), 150, "accelerators are free again")


@pytest.fixture
def safely(stage: Stage) -> Iterator[None]:
    """Judges everything that the test has done."""
    wait_until(stage.arrived, 60, "nothing is under way")
    began_s, answered = time.time(), len(stage.load.records)
    yield
    moments = list(stage.witness.moments("chat", since_s=began_s))
    assert all(m.units.get(product, 0) <= LIMIT for m in moments for product in PRODUCTS.values())
    assert [m for m in moments if nowhere(m)] == []
    assert [record for record in stage.load.records[answered:] if not record.answered] == []


def nowhere(moment: Moment) -> set[str]:
    """Pools that are sent requests and have no ready pod."""
    return {pool for pool in moment.weighted if not moment.ready.get(pool)}


@dataclass
class Stream:
    """One answer of a minute, in a thread of its own."""

    url: str
    record: Record | None = None

    def begin(self) -> threading.Thread:
        def run() -> None:
            one = [Arrival(0.0, CLASS, 20, STREAM_TOKENS)]
            (self.record,) = asyncio.run(send_arrivals(self.url, one, patience_s=180))

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread


@pytest.mark.usefixtures("safely")
def test_everything_moves_to_the_other_kind_and_a_stream_of_a_minute_survives_its_pod(stage: Stage) -> None:
    leaving = stage.kind
    streams = [Stream(stage.plan.url) for _ in range(3)]
    threads = [stream.begin() for stream in streams]
    began_s = time.time()
    stage.move()
    for thread in threads:
        thread.join(180)
    wait_until(stage.arrived, 180, "moved")
    for stream in streams:
        assert stream.record is not None
        assert stream.record.answered, stream.record
        assert stream.record.output_tokens == STREAM_TOKENS
        assert stream.record.e2e_s > 0.9 * STREAM_S
        assert f"-{leaving}-" in stream.record.pod
        deleted = [v for v in stage.witness.versions("pod", stream.record.pod, since_s=began_s) if terminating(v.body)]
        assert deleted, "the pod was asked to stop"
        assert deleted[0].at_s < stream.record.start_s + stream.record.e2e_s, "while it was still answering"


def terminating(body: dict[str, Any]) -> bool:
    return "deletionTimestamp" in body["metadata"]


def writes(stage: Stage, since_s: float) -> int:
    """Versions of Deployments' specs and of the routing table."""
    generations = {
        (v.name, v.body["metadata"].get("generation"))
        for v in stage.witness.versions("deployment", since_s=since_s)
        if "-router" not in v.name
    }
    return len(generations) + len(stage.witness.versions("configmap", "chat-routing", since_s=since_s))


@pytest.mark.usefixtures("safely")
@pytest.mark.parametrize("after", [1, 3, 6], ids=lambda after: f"after {after} writes")
def test_a_move_ends_right_when_the_controllers_are_killed_in_the_middle(after: int, stage: Stage) -> None:
    began_s = time.time()
    stage.move()
    wait_until(lambda: writes(stage, began_s) >= after, 60, f"{after} writes")
    for pod in stage.operator.pods():
        faults.kill_container(stage.bed, pod, "controller")
    wait_until(stage.arrived, 180, "moved")
    planned = [message for reason, message in stage.witness.news(since_s=began_s) if reason == "Planned"]
    # Whoever dies between an Event and the status has the Event told again: what may not be is another decision.
    assert len(set(planned)) == 1, planned


def test_the_other_controller_takes_over_and_nothing_is_written_twice(stage: Stage) -> None:
    wait_until(stage.arrived, 60, "nothing is under way")
    wait_until(lambda: len(stage.operator.pods()) == 2, 60, "two controllers")
    leader = stage.operator.leader()
    holder = stage.operator.holder()
    before = at_rest(stage)
    killed_s = time.monotonic()
    faults.kill_container(stage.bed, leader, "controller")
    wait_until(lambda: stage.operator.holder() not in {"", holder}, 60, "another holder of the Lease")
    wait_until(lambda: stage.operator.value("servingplan_leader") == 1, 60, "a leader")
    taken_over_s = time.monotonic() - killed_s
    stage.operator.wait_passes(3)
    assert taken_over_s <= TAKEN_OVER_S
    assert versions(stage) == before, "the new leader finds everything as it should be"
    patch = json.dumps([{"op": "replace", "path": "/spec/slo/ttft/seconds", "value": "0.9"}])
    changed_s = time.time()
    stage.bed.kubectl("patch", "msp", "chat", "-n", NAMESPACE, "--type=json", "-p", patch)
    wait_until(stage.arrived, 60, "and acts on a change")
    stage.operator.wait_passes(3)
    assert len(stage.witness.statuses("chat", since_s=changed_s)) <= 4
    told = stage.witness.news(since_s=changed_s)
    assert len(told) == len(set(told)), told


def at_rest(stage: Stage) -> dict[tuple[str, str], Any]:
    """The versions, once nothing was written during some looks of the operator."""
    last: dict[tuple[str, str], Any] = {}

    def still() -> bool:
        nonlocal last
        previous, last = last, versions(stage)
        stage.operator.wait_passes(3)
        return previous == last

    wait_until(still, 60, "nothing is written any more")
    return last


def versions(stage: Stage) -> dict[tuple[str, str], Any]:
    """What identifies the last write of everything that the plan owns; the plan's status may report newer figures."""
    kinds = "deployments,services,configmaps,poddisruptionbudgets"
    items = stage.bed.get(kinds, "-n", NAMESPACE, "-l", "servingplan.io/plan=chat")["items"]
    return {
        (o["kind"], o["metadata"]["name"]): o["metadata"].get("generation", o["metadata"]["resourceVersion"]) for o in items
    }
