"""What breaks around a plan that serves: it holds what runs, says what is wrong, and goes on by itself.

One plan under a steady load of 10 requests a second, of which its spec declares 4: a rate that is lost and taken for nothing,
or for what was declared, would show in the weights at the next look. A witness sees every version of every object, so what is
held is held at every instant.
"""

from __future__ import annotations

import copy
import itertools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from testbed import faults, traces
from testbed.bed import Bed
from testbed.cluster import wait_until
from testbed.load import LoadClass, Record
from testbed.proxy import Fault, Proxy
from testbed.stage import SYSTEM, BackgroundLoad, Operator, Served, background_load
from testbed.witness import Moment, Witness

NAMESPACE = "faults"
TOLD_S = RECOVERED_S = 60
DECLARED_RPS, REAL_RPS, LONGEST_RUN_S = 4.0, 10.0, 1800.0
SETUPS = (("large", "h100"), ("small", "l40s"))
CLASS = LoadClass("chat", prompt_tokens=100, output_tokens=16)
SMALL_MOVE = 0.12
"""Part of the requests that weights may shift by while the plan follows what it measures of a steady load."""

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
  - name: large
    source: Qwen/Qwen3-32B
    quality: {default: "0.8"}
    drainSeconds: 5
    setups:
    - name: h100
      accelerator: h100
      count: 2
      coldStartSeconds: 10
      profile: {coefficients: {alphaMs: "60", betaMs: "0.4", gammaMs: "0"}, kvTokens: 278000, maxNumSeqs: 8}
  - name: small
    source: meta-llama/Llama-3.1-8B-Instruct
    quality: {default: "0.5"}
    drainSeconds: 5
    setups:
    - name: l40s
      accelerator: l40s
      coldStartSeconds: 10
      profile: {coefficients: {alphaMs: "40", betaMs: "0.2", gammaMs: "0"}, kvTokens: 188000, maxNumSeqs: 8}
  requestClasses:
  - name: chat
    promptTokens: {mean: 100, cv: 0}
    outputTokens: {mean: 16, cv: 0}
""")


def engine(alpha_ms: float, beta_us: float) -> dict[str, Any]:
    """Pods that are what the profile says, and start and stop quickly."""
    settings = {"ALPHA_MS": alpha_ms, "FLOOR_MS": 0, "BETA_US": beta_us, "GAMMA_NS": 0, "COLD_START_S": 3}
    env = [{"name": f"SIM_{name}", "value": str(value)} for name, value in settings.items()]
    container = {"name": "vllm", "lifecycle": {"preStop": {"sleep": {"seconds": 3}}}, "env": env}
    return {"spec": {"terminationGracePeriodSeconds": 12, "containers": [container]}}


def plan_body() -> dict[str, Any]:
    body = copy.deepcopy(PLAN)
    large, small = body["spec"]["models"]
    large["template"], small["template"] = engine(60, 400), engine(40, 200)
    body["spec"]["requestClasses"][0]["rate"] = str(DECLARED_RPS)
    return body


@dataclass
class Stage:
    """Everything that a fault can be done to, and everything by which it can be seen."""

    bed: Bed
    operator: Operator
    plan: Served
    witness: Witness
    prometheus: Proxy
    api: Proxy
    load: BackgroundLoad
    folder: Path
    without_node: list[tuple[float, float]] = field(default_factory=list)

    def pool(self, model: str) -> str:
        return next(a["deployment"] for a in self.plan.status()["allocations"] if a["model"] == model)

    def now(self) -> Moment:
        return list(self.witness.moments("chat"))[-1]

    def ready_pods(self, model: str) -> list[dict[str, Any]]:
        pods = [pod for pod in self.plan.pods() if pod["metadata"]["labels"]["servingplan.io/model"] == model]
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def shares(self, moment: Moment) -> dict[str, float]:
        total = sum(moment.weights.get("chat", {}).values())
        return {pool: weight / total for pool, weight in moment.weights.get("chat", {}).items()} if total else {}

    def settled(self) -> bool:
        """Both models serve what is measured, nothing is under way."""
        replicas = self.plan.replicas()
        assert replicas["large/h100"] == (2, 2), replicas
        assert replicas["small/l40s"][0] == replicas["small/l40s"][1] > 0, replicas
        # The status may be old where it could not be written: what stands has to agree.
        last = self.now()
        assert last.asked == last.ready == {self.pool(name): replicas[f"{name}/{kind}"][0] for name, kind in SETUPS}, last
        for kind, status in (("Ready", "True"), ("MetricsAvailable", "True"), ("RoutingSynced", "True"), ("Feasible", "True")):
            condition = self.plan.condition(kind)
            assert condition["status"] == status, condition
        shares = self.plan.shares()["chat"]
        assert 0.45 < shares["large"] < 0.9, shares
        return True


@pytest.fixture(scope="module")
def stage(operator, install, values, tmp_path_factory) -> Iterator[Stage]:
    if not isinstance(operator, Bed):
        pytest.skip("another cluster is not ours to break")
    folder = tmp_path_factory.mktemp("faults")
    with ExitStack() as stack:
        prometheus = stack.enter_context(faults.prometheus_proxy())
        api = stack.enter_context(faults.api_proxy(operator))
        quick = {
            "replicas": 1,
            "tickSeconds": 1,
            "cycleSeconds": 3,
            "dwellSeconds": 60,
            # The nodes that are lost are not its own.
            "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-L40S"},
            "prometheus": {"url": prometheus.url, "timeoutSeconds": 2, "scrapeIntervalSeconds": 1},
            "extraEnv": faults.api_environment(api),
        }
        install(operator, upgrade=values | quick)
        stack.callback(install, operator, upgrade=values)
        operator.kubectl("create", "namespace", NAMESPACE)
        stack.callback(operator.kubectl, "delete", "namespace", NAMESPACE, "--wait=false")
        witness = stack.enter_context(Witness(operator, NAMESPACE, folder / "witness"))
        operator.apply(plan_body(), namespace=NAMESPACE)
        plan = Served(operator, NAMESPACE, "chat")
        stack.callback(_remove, operator, plan)
        plan.wait("Ready", "True", timeout_s=90)
        planned = traces.steady(CLASS, REAL_RPS, LONGEST_RUN_S)
        load = stack.enter_context(background_load(plan.url, planned, stream=False, patience_s=20))
        found = Stage(operator, Operator(operator), plan, witness, prometheus, api, load, folder)
        wait_until(found.settled, 120, "two models serve the load")
        yield found


def _remove(bed: Bed, plan: Served) -> None:
    bed.kubectl("delete", "msp", plan.name, "-n", plan.namespace)
    wait_until(lambda: not plan.pods(), 60, "accelerators are free again")


def by_prometheus(fault: Callable[[Stage], Fault] | Fault) -> Callable[[Stage], AbstractContextManager[None]]:
    return lambda stage: stage.prometheus.broken(fault(stage) if callable(fault) else fault)


def by_api(fault: Fault) -> Callable[[Stage], AbstractContextManager[None]]:
    return lambda stage: stage.api.broken(fault)


@dataclass(frozen=True)
class Case:
    """A fault and what the operator makes of it.

    Attributes:
        inject: Breaks something for as long as it is entered.
        condition: Type, status and reason that tell of it.
        words: What its message names.
        replicas_hold: Whether what is asked of every Deployment stays.
        weights_hold: Whether the weights stay once the condition tells of the fault.
        answers_all: Whether every request is answered nevertheless.
    """

    name: str
    inject: Callable[[Stage], AbstractContextManager[None]]
    condition: tuple[str, str, str]
    words: Callable[[Stage], tuple[str, ...]] = lambda _: ()
    replicas_hold: bool = True
    weights_hold: bool = True
    answers_all: bool = True


def empty_prometheus(stage: Stage) -> AbstractContextManager[None]:
    return faults.other_prometheus(stage.bed, stage.prometheus, stage.folder / "empty", scrapes=False)


def frozen_prometheus(stage: Stage) -> AbstractContextManager[None]:
    return faults.other_prometheus(stage.bed, stage.prometheus, stage.folder / "frozen", scrapes=False, remembers=True)


def small_pods_dark(stage: Stage) -> Fault:
    return faults.without("pod", f"^{stage.pool('small')}-")


@contextmanager
def lost_large_node(stage: Stage) -> Iterator[None]:
    began_s = time.time()
    with faults.lost_node(stage.bed, stage.ready_pods("large")[0]["spec"]["nodeName"]):
        yield
    dead = {v.name for v in stage.witness.versions("pod", since_s=began_s) if "deletionTimestamp" in v.body["metadata"]}
    wait_until(lambda: not dead & {pod["metadata"]["name"] for pod in stage.plan.pods()}, RECOVERED_S, "its pods are gone")
    stage.without_node.append((began_s, time.time()))


@contextmanager
def pending_replica(stage: Stage) -> Iterator[None]:
    with faults.tainted(stage.bed, "h100-1", "h100-2"):
        stage.bed.kubectl("delete", "pod", stage.ready_pods("large")[0]["metadata"]["name"], "-n", NAMESPACE, "--wait=false")
        yield


@contextmanager
def crash_loop(stage: Stage) -> Iterator[None]:
    with faults.crash_looping(stage.bed, NAMESPACE, stage.ready_pods("large")[0]["metadata"]["name"], "vllm"):
        yield


METRICS_CASES = [
    Case("Prometheus refuses connections", by_prometheus(faults.AWAY), ("MetricsAvailable", "False", "PrometheusUnreachable")),
    Case(
        "Prometheus accepts and never answers",
        by_prometheus(faults.HANGING),
        ("MetricsAvailable", "False", "PrometheusUnreachable"),
    ),
    Case(
        "Prometheus cuts connections", by_prometheus(faults.RESETTING), ("MetricsAvailable", "False", "PrometheusUnreachable")
    ),
    Case("Prometheus fails", by_prometheus(faults.answering(500)), ("MetricsAvailable", "False", "PrometheusUnreachable")),
    Case("Prometheus throttles", by_prometheus(faults.answering(429)), ("MetricsAvailable", "False", "PrometheusUnreachable")),
    Case(
        "a login page instead of Prometheus",
        by_prometheus(faults.NOT_JSON),
        ("MetricsAvailable", "False", "PrometheusUnreachable"),
    ),
    Case("Prometheus knows nothing", empty_prometheus, ("MetricsAvailable", "False", "MetricsMissing")),
    Case(
        "every value is not a number", by_prometheus(faults.values_of("NaN")), ("MetricsAvailable", "False", "MetricsMissing")
    ),
    Case(
        "series without the pod's name",
        by_prometheus(faults.without_label("pod")),
        ("MetricsAvailable", "False", "MetricsMissing"),
    ),
    Case(
        "Prometheus receives nothing new",
        frozen_prometheus,
        ("MetricsAvailable", "False", "MetricsStale"),
    ),
    Case(
        "the pods of one setup are dark",
        by_prometheus(small_pods_dark),
        ("MetricsAvailable", "False", "SetupDark"),
        words=lambda stage: ("small",),
        weights_hold=False,
    ),
]

CLUSTER_CASES = [
    Case(
        "a node is lost",
        lost_large_node,
        ("Ready", "False", "Progressing"),
        words=lambda _: ("large/h100 1/2",),
        replicas_hold=False,
        weights_hold=False,
        answers_all=False,
    ),
    Case(
        "a replica finds no node",
        pending_replica,
        ("Ready", "False", "PodsNotStarting"),
        words=lambda stage: (stage.pool("large"),),
        replicas_hold=False,
        weights_hold=False,
    ),
    Case(
        "a replica crashes again and again",
        crash_loop,
        ("Ready", "False", "PodsNotStarting"),
        words=lambda stage: (stage.pool("large"),),
        replicas_hold=False,
        weights_hold=False,
        answers_all=False,
    ),
]


@pytest.mark.parametrize("case", [*METRICS_CASES, *CLUSTER_CASES], ids=lambda case: case.name)
def test_a_fault_is_held_through_told_and_overcome(case: Case, stage: Stage) -> None:
    wait_until(stage.settled, RECOVERED_S, "nothing left of the fault before")
    kind, status, reason = case.condition
    began_s = time.time()
    before = stage.now()
    with case.inject(stage):
        words = case.words(stage)
        wait_until(lambda: told(stage, case.condition, words, began_s), TOLD_S, f"{kind}={status} {reason} {words}")
        told_s = time.time()
        wait_until(lambda: condition_metric(stage, kind, status) == 1.0, 20, "the operator's metric of the condition")
        stage.operator.wait_passes(6)
        held_until_s = time.time()
    wait_until(stage.settled, RECOVERED_S, "recovered by itself")
    assert reason in {news for news, _ in stage.witness.news(since_s=began_s)}
    during = [m for m in stage.witness.moments("chat", since_s=began_s) if m.at_s <= held_until_s]
    if case.replicas_hold:
        assert {json.dumps(m.asked, sort_keys=True) for m in [before, *during]} == {json.dumps(before.asked, sort_keys=True)}
    if case.weights_hold:
        assert all(distance(stage.shares(before), stage.shares(m)) <= SMALL_MOVE for m in during)
        after = [m.weights for m in during if m.at_s >= told_s]
        assert all(weights == after[0] for weights in after)
    if case.answers_all:
        assert failed(stage, began_s) == []


def told(stage: Stage, condition: tuple[str, str, str], words: tuple[str, ...], since_s: float) -> bool:
    """Whether any status since then had this condition, naming these words; else LookupError with what there was instead."""
    kind, status, reason = condition
    found = [
        (entry["status"], entry["reason"], entry["message"])
        for _, body in stage.witness.statuses("chat", since_s=since_s)
        for entry in body.get("conditions", [])
        if entry["type"] == kind
    ]
    if any(one[:2] == (status, reason) and all(word in one[2] for word in words) for one in found):
        return True
    raise LookupError(list(dict.fromkeys(found)))


def condition_metric(stage: Stage, kind: str, status: str) -> float:
    return stage.operator.value("servingplan_condition", namespace=NAMESPACE, plan="chat", type=kind, status=status)


def distance(one: dict[str, float], other: dict[str, float]) -> float:
    return sum(abs(one.get(pool, 0.0) - other.get(pool, 0.0)) for pool in one.keys() | other.keys()) / 2


def failed(stage: Stage, since_s: float) -> list[Record]:
    return [record for record in list(stage.load.records) if record.start_s >= since_s and record.failed]


# What the API server does: nothing can be reported through it, so the operator's own metrics tell.
API_FAULTS = {
    "the API server is away": faults.AWAY,
    "the API server accepts and never answers": faults.HANGING,
    "writes conflict": faults.answering(
        409, methods=["PATCH", "POST", "PUT"], path="/(deployments|configmaps|events|modelserving)"
    ),
    "writes are throttled": faults.answering(
        429, methods=["PATCH", "POST", "PUT"], path="/(deployments|configmaps|events|modelserving)"
    ),
    "writes fail": faults.answering(
        500, methods=["PATCH", "POST", "PUT"], path="/(deployments|configmaps|events|modelserving)"
    ),
}


@pytest.mark.parametrize("fault", API_FAULTS.values(), ids=API_FAULTS.keys())
def test_an_api_server_in_trouble_is_tried_again_and_nothing_is_done_twice(fault: Fault, stage: Stage) -> None:
    wait_until(stage.settled, RECOVERED_S, "nothing left of the fault before")
    began_s, pool = time.time(), stage.pool("large")
    generation = stage.witness.versions("deployment", pool)[-1].body["metadata"]["generation"]
    errors = stage.operator.value("servingplan_errors_total", kind="kube")
    with stage.api.broken(fault):
        # There is something to do: a colleague scales a Deployment.
        stage.bed.kubectl("scale", f"deployment/{pool}", "-n", NAMESPACE, "--replicas=1")
        wait_until(lambda: in_trouble(stage, errors), TOLD_S, "the operator's own metrics tell of it")
    wait_until(stage.settled, RECOVERED_S, "recovered by itself")
    stage.operator.wait_passes(3)
    after = [v.body for v in stage.witness.versions("deployment", pool) if v.body["metadata"]["generation"] > generation]
    replicas = [count for count, _ in itertools.groupby(body["spec"]["replicas"] for body in after)]
    assert replicas == [1, 2], "scaled by the colleague, and set back once"
    told_of = [one for one in stage.witness.news(since_s=began_s) if one[0] in {"Planned", "DriftCorrected"}]
    assert len(told_of) == len(set(told_of)), told_of
    assert failed(stage, began_s) == []


def in_trouble(stage: Stage, errors: float) -> bool:
    """Whether errors are counted, or the operator knows that it no longer leads, or has begun anew."""
    try:
        counted = stage.operator.value("servingplan_errors_total", kind="kube")
        return counted != errors or stage.operator.value("servingplan_leader") == 0
    except LookupError:
        return True


def test_expired_watches_are_begun_anew(stage: Stage) -> None:
    wait_until(stage.settled, RECOVERED_S, "nothing left of the fault before")
    pool = stage.pool("small")
    with stage.api.broken(faults.EXPIRED_WATCHES):
        stage.bed.kubectl("scale", f"deployment/{pool}", "-n", NAMESPACE, "--replicas=0")
        stage.operator.wait_passes(2)
    wait_until(
        lambda: stage.bed.get("deployment", pool, "-n", NAMESPACE)["spec"]["replicas"] == 1, RECOVERED_S, "seen and mended"
    )
    wait_until(stage.settled, RECOVERED_S, "recovered by itself")


def killed_controller(stage: Stage) -> None:
    faults.kill_container(stage.bed, stage.operator.leader(), "controller")


def stopped_controller(stage: Stage) -> None:
    pid = faults.container_pid(stage.bed, stage.operator.leader(), "controller")
    with faults.stopped(pid):
        wait_until(lambda: lease_age_s(stage) > 13, 30, "its Lease has run out")


def lease_age_s(stage: Stage) -> float:
    renewed = datetime.fromisoformat(stage.operator.lease()["spec"]["renewTime"])
    return (datetime.now(UTC) - renewed).total_seconds()


def stolen_lease(stage: Stage) -> None:
    lease = stage.operator.lease()["metadata"]["name"]
    faults.steal_lease(stage.bed, SYSTEM, lease, "a-thief")


@pytest.mark.parametrize("fault", [killed_controller, stopped_controller, stolen_lease], ids=lambda f: f.__name__)
def test_a_controller_that_loses_its_place_changes_nothing_and_comes_back(fault: Callable[[Stage], None], stage: Stage) -> None:
    wait_until(stage.settled, RECOVERED_S, "nothing left of the fault before")
    began_s, holder = time.time(), stage.operator.holder()
    before = stage.now()
    fault(stage)
    wait_until(lambda: stage.operator.holder() not in {"", "a-thief"} and leads(stage), RECOVERED_S, f"a leader after {holder}")
    wait_until(stage.settled, RECOVERED_S, "as before")
    stage.operator.wait_passes(3)
    during = list(stage.witness.moments("chat", since_s=began_s))
    assert all(m.asked == before.asked for m in during)
    assert all(distance(stage.shares(before), stage.shares(m)) <= SMALL_MOVE for m in during)
    assert failed(stage, began_s) == []


def leads(stage: Stage) -> bool:
    return stage.operator.value("servingplan_leader") == 1.0


def test_series_under_old_names_are_found_and_named_and_a_young_prometheus_changes_nothing(stage: Stage) -> None:
    wait_until(stage.settled, RECOVERED_S, "nothing left of the fault before")
    began_s = time.time()
    before = stage.now()
    old = faults.OLD_NAMES["vllm:inter_token_latency_seconds"]
    renaming = faults.renamed(faults.OLD_NAMES)
    with faults.other_prometheus(stage.bed, stage.prometheus, stage.folder / "renamed", renaming):

        def named() -> bool:
            return old in stage.plan.status()["metrics"]["series"].values()

        wait_until(named, TOLD_S, "the status names the series that was found")
        stage.plan.wait("MetricsAvailable", "True")
    wait_until(stage.settled, RECOVERED_S, "as before")
    during = list(stage.witness.moments("chat", since_s=began_s))
    assert all(m.asked == before.asked for m in during)


def drifted(stage: Stage, name: str, since_s: float) -> list[str]:
    return [m for reason, m in stage.witness.news(since_s=since_s) if reason == "DriftCorrected" and name in m]


def test_a_table_spoilt_by_hand_is_mended(stage: Stage) -> None:
    wait_until(stage.settled, RECOVERED_S, "nothing left of the fault before")
    began_s = time.time()
    spoilt = json.dumps({"data": {"rds.yaml": "resources: [{nonsense", "table.json": "{"}})
    stage.bed.kubectl("patch", "configmap", "chat-routing", "-n", NAMESPACE, "--type=merge", "-p", spoilt)
    wait_until(lambda: drifted(stage, "chat-routing", began_s), TOLD_S, "an Event")
    wait_until(stage.settled, RECOVERED_S, "mended")
    table = stage.bed.get("configmap", "chat-routing", "-n", NAMESPACE)["data"]
    assert "nonsense" not in table["rds.yaml"]
    assert failed(stage, began_s) == []


def test_replicas_changed_by_hand_are_set_back(stage: Stage) -> None:
    wait_until(stage.settled, RECOVERED_S, "nothing left of the fault before")
    began_s, pool = time.time(), stage.pool("large")
    stage.bed.kubectl("scale", f"deployment/{pool}", "-n", NAMESPACE, "--replicas=0")
    wait_until(lambda: told(stage, ("Ready", "False", "Progressing"), ("large/h100",), began_s), TOLD_S, "told")
    wait_until(stage.settled, RECOVERED_S, "set back")
    assert "Progressing" in {reason for reason, _ in stage.witness.news(since_s=began_s)}


def test_a_router_that_is_killed_is_replaced(stage: Stage) -> None:
    wait_until(stage.settled, RECOVERED_S, "nothing left of the fault before")
    began_s = time.time()
    before = stage.now()
    for router in stage.plan.pods("router"):
        stage.bed.kubectl(
            "delete", "pod", router["metadata"]["name"], "-n", NAMESPACE, "--force", "--grace-period=0", "--wait=false"
        )
    wait_until(lambda: told(stage, ("Ready", "False", "RouterNotReady"), (), began_s), TOLD_S, "told")
    wait_until(stage.settled, RECOVERED_S, "new routers serve")
    assert all(m.asked == before.asked for m in stage.witness.moments("chat", since_s=began_s))


@pytest.mark.parametrize(
    ("patch", "condition", "words"),
    [
        (
            {"op": "add", "path": "/spec/models/0/quality/classes", "value": {"poetry": "0.5"}},
            ("Stalled", "True", "InvalidPlan"),
            "poetry",
        ),
        (
            {"op": "replace", "path": "/spec/mode", "value": "Paused"},
            ("Ready", "Unknown", "Paused"),
            "",
        ),
    ],
    ids=["a spec that cannot be followed", "a pause"],
)
def test_a_plan_that_is_not_followed_serves_on_as_it_did(patch, condition, words, stage: Stage) -> None:
    wait_until(stage.settled, RECOVERED_S, "nothing left of the fault before")
    before = stage.now()
    began_s, spec = time.time(), stage.plan.body()["spec"]
    stage.bed.kubectl("patch", "msp", "chat", "-n", NAMESPACE, "--type=json", "-p", json.dumps([patch]))
    try:
        found = stage.plan.wait(*condition, timeout_s=TOLD_S)
        assert words in found["message"]
        stage.operator.wait_passes(6)
        held_until_s = time.time()
    finally:
        whole = [{"op": "replace", "path": "/spec", "value": spec}]
        stage.bed.kubectl("patch", "msp", "chat", "-n", NAMESPACE, "--type=json", "-p", json.dumps(whole))
    wait_until(stage.settled, RECOVERED_S, "followed again")
    during = [m for m in stage.witness.moments("chat", since_s=began_s) if m.at_s <= held_until_s]
    assert all((m.asked, m.weights) == (before.asked, before.weights) for m in during)
    assert failed(stage, began_s) == []


def test_the_plan_never_held_more_accelerators_than_it_may(stage: Stage) -> None:
    # The pods of a node that is lost stand there until it is back, and hold nothing.
    moments = [m for m in stage.witness.moments("chat") if not any(low <= m.at_s <= high for low, high in stage.without_node)]
    for product in ("NVIDIA-H100-80GB-HBM3", "NVIDIA-L40S"):
        assert 0 < max(m.units.get(product, 0) for m in moments) <= 4
