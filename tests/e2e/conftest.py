"""The operator as users install it, and plans to give it."""

from __future__ import annotations

import asyncio
import copy
import itertools
import json
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from testbed.cluster import Cluster, wait_until
from testbed.load import LoadClass, Record, send

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts/servingplan"
RELEASE, SYSTEM = "servingplan", "servingplan-system"
CONTROLLER = "deployment/servingplan-controller"
VALUES = {
    # The bed scrapes every second.
    "prometheus": {"url": "http://prometheus.monitoring.svc:9090", "scrapeIntervalSeconds": 1},
    "tickSeconds": 3,
    "cycleSeconds": 15,
}
CODE = {"x-request-class": "code"}
GENTLE = {
    # Tests that are not about draining need not wait for it.
    "spec": {
        "terminationGracePeriodSeconds": 20,
        "containers": [
            {
                "name": "vllm",
                "lifecycle": {"preStop": {"sleep": {"seconds": 1}}},
                "env": [{"name": "SIM_COLD_START_S", "value": "1"}],
            }
        ],
    }
}

_numbers = itertools.count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("last") is not None)


@dataclass(frozen=True)
class Serving:
    """A plan on the cluster."""

    cluster: Cluster
    namespace: str
    name: str

    @property
    def url(self) -> str:
        """The router, as clients inside the cluster reach it."""
        return f"http://{self.name}-router.{self.namespace}.svc.cluster.local"

    def body(self) -> dict[str, Any]:
        """The plan as it stands."""
        return self.cluster.get("msp", self.name, "-n", self.namespace)

    def condition(self, kind: str) -> dict[str, Any]:
        """One condition of its status; LookupError while there is none for the present generation."""
        body = self.body()
        status = body.get("status", {})
        if status.get("observedGeneration") != body["metadata"]["generation"]:
            raise LookupError("the status is of an earlier generation")
        return next(entry for entry in status["conditions"] if entry["type"] == kind)

    def wait(
        self, kind: str = "Ready", reason: str | None = None, status: str = "True", timeout_s: float = 60
    ) -> dict[str, Any]:
        """Waits for a condition; returns it."""

        def met() -> dict[str, Any]:
            found = self.condition(kind)
            assert found["status"] == status, found
            assert reason in {None, found["reason"]}, found
            return found

        return wait_until(met, timeout_s, f"{self.namespace}/{self.name} {kind}={status} {reason or ''}")

    def patch(self, patch: list[dict[str, Any]]) -> None:
        """JSON patch of the plan."""
        self.cluster.kubectl("patch", "msp", self.name, "-n", self.namespace, "--type=json", "-p", json.dumps(patch))

    def children(self) -> list[dict[str, Any]]:
        """Everything that the plan owns, pods included."""
        kinds = "deployments,services,configmaps,poddisruptionbudgets,replicasets,pods"
        selector = f"servingplan.io/plan={self.name}"
        return self.cluster.get(kinds, "-n", self.namespace, "-l", selector)["items"]

    def pods(self, component: str = "model-server") -> list[dict[str, Any]]:
        """Pods of one component."""
        selector = f"servingplan.io/plan={self.name},app.kubernetes.io/component={component}"
        return self.cluster.get("pods", "-n", self.namespace, "-l", selector)["items"]

    def tables(self) -> list[dict[str, Any]]:
        """What each ready router pod says it serves."""
        found = []
        for pod in self.pods("router"):
            ready = any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))
            if ready and "deletionTimestamp" not in pod["metadata"]:
                with urllib.request.urlopen(f"http://{pod['status']['podIP']}:8080/-/table", timeout=5) as answer:
                    found.append(json.load(answer))
        return found

    def shares(self) -> dict[str, dict[str, float]]:
        """Weights by class and model, as the status says them."""
        return {
            route["class"]: {model: float(share) for model, share in route.get("weights", {}).items()}
            for route in self.body()["status"]["routes"]
        }


@pytest.fixture(scope="session")
def values() -> dict[str, Any]:
    """The chart's values for the operator that most tests use."""
    return VALUES


@pytest.fixture(scope="session")
def install() -> Callable[..., None]:
    """Installs the operator from its chart, or upgrades it to other values, as users do."""

    def run(cluster: Cluster, upgrade: dict[str, Any] | None = None) -> None:
        if upgrade is None:
            cluster.helm.install(CHART, RELEASE, SYSTEM, VALUES)
        else:
            cluster.helm.upgrade(CHART, RELEASE, SYSTEM, upgrade)

    return run


@pytest.fixture(scope="session")
def operator(bed: Cluster, install: Callable[..., None]) -> Iterator[Cluster]:
    """The cluster with the operator installed."""
    install(bed)
    yield bed
    if not bed.controls_nodes:
        bed.helm.uninstall(RELEASE, SYSTEM)


@pytest.fixture
def without_operator(operator: Cluster) -> Iterator[Cluster]:
    """The operator scaled to zero, and back at the end."""
    operator.kubectl("scale", CONTROLLER, "-n", SYSTEM, "--replicas=0")
    wait_until(lambda: not operator.get("pods", "-n", SYSTEM)["items"], 60, "operator gone")
    yield operator
    operator.kubectl("scale", CONTROLLER, "-n", SYSTEM, "--replicas=1")
    operator.kubectl("rollout", "status", CONTROLLER, "-n", SYSTEM, "--timeout=60s")


@pytest.fixture
def namespace(operator: Cluster) -> Iterator[str]:
    """A namespace that is gone, with its pods, when the test ends."""
    name = f"e2e-{next(_numbers)}"
    operator.kubectl("create", "namespace", name)
    yield name
    operator.kubectl("delete", "msp", "--all", "-n", name)
    # Accelerators are free again only when the pods have ended.
    wait_until(
        lambda: not [p for p in operator.get("pods", "-n", name)["items"] if "router" not in p["metadata"]["name"]],
        60,
        f"pods of {name} gone",
    )
    operator.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def demo_plan() -> dict[str, Any]:
    """The plan that the README shows off with."""
    return yaml.safe_load((ROOT / "manifests/plan.yaml").read_text())


@pytest.fixture
def gentle_plan(demo_plan: dict[str, Any]) -> dict[str, Any]:
    """The same plan with pods that start and stop quickly."""
    found = copy.deepcopy(demo_plan)
    for model in found["spec"]["models"]:
        model["template"] = copy.deepcopy(GENTLE)
    return found


@pytest.fixture
def apply(operator: Cluster, namespace: str) -> Callable[..., Serving]:
    """Applies a plan in the test's namespace or in another one."""

    def applied(body: dict[str, Any], where: str = namespace) -> Serving:
        operator.apply(body, namespace=where)
        return Serving(operator, where, body["metadata"]["name"])

    return applied


def small_requests(**classes: dict[str, str]) -> list[LoadClass]:
    """Classes of short requests: many fit into a short test."""
    return [LoadClass(name, prompt_tokens=24, output_tokens=4, headers=headers) for name, headers in classes.items()]


@dataclass
class Load:
    """Requests that are being sent in the background."""

    records: list[Record]
    stop: Callable[[], None]
    result: Callable[[], list[Record]]


@pytest.fixture
def load() -> Iterator[Callable[..., Load]]:
    """Starts a load in a thread of its own; it ends with the test at the latest."""
    started: list[Load] = []
    with ThreadPoolExecutor(1) as pool:

        def start(url: str, classes: list[LoadClass], rate_rps: float, **bounds: Any) -> Load:
            loop = asyncio.new_event_loop()
            stop = asyncio.Event()
            records: list[Record] = []
            future = pool.submit(
                loop.run_until_complete, send(url, classes, rate_rps, stop=stop, on_record=records.append, **bounds)
            )
            found = Load(records, lambda: loop.call_soon_threadsafe(stop.set), future.result)
            started.append(found)
            return found

        yield start
        for each in started:
            each.stop()
