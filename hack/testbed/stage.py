"""What tests and benchmarks of the whole loop share: the operator as it runs, a load in the background, a plan's status."""

import asyncio
import re
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from testbed.cluster import Cluster, Object, wait_until
from testbed.load import Arrival, Record, send_arrivals

RELEASE, SYSTEM = "servingplan", "servingplan-system"
CONTROLLER = "servingplan-controller"
_HEALTH_PORT = 8081
_SAMPLE = re.compile(r"(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample of a metrics page."""

    name: str
    labels: dict[str, str]
    value: float


def samples(page: str) -> list[Sample]:
    """The samples of a metrics page in Prometheus' text format."""
    found = []
    for line in page.splitlines():
        match = None if line.startswith("#") else _SAMPLE.fullmatch(line.strip())
        if match is not None:
            found.append(Sample(match["name"], dict(_LABEL.findall(match["labels"] or "")), float(match["value"])))
    return found


@dataclass(frozen=True, slots=True)
class Operator:
    """The operator as it was installed from its chart; this process has to stand inside the bed."""

    cluster: Cluster

    def pods(self) -> list[Object]:
        """Its pods that are not on their way out."""
        found = self.cluster.get("pods", "-n", SYSTEM, "-l", "app.kubernetes.io/name=servingplan")["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def lease(self) -> Object:
        """The Lease by which one of its pods leads; LookupError where there is none."""
        found: list[Object] = self.cluster.get("leases", "-n", SYSTEM)["items"]
        if not found:
            raise LookupError("the operator has no Lease")
        return found[0]

    def holder(self) -> str:
        """Identity of who leads; empty where nobody does."""
        return str(self.lease()["spec"].get("holderIdentity") or "")

    def leader(self) -> Object:
        """The pod that leads; LookupError while none does. Without leader election, its only pod."""
        pods = self.pods()
        if len(pods) == 1:
            return pods[0]
        holder = self.holder()
        for pod in pods:
            if holder.startswith(pod["metadata"]["name"]):
                return pod
        raise LookupError(f"no pod is {holder!r}")

    def samples(self, pod: Object | None = None) -> list[Sample]:
        """What one of its pods, by default the leader, tells of itself; LookupError while it does not answer."""
        address = (pod or self.leader())["status"].get("podIP", "")
        try:
            with urllib.request.urlopen(f"http://{address}:{_HEALTH_PORT}/metrics", timeout=5) as answer:
                return samples(answer.read().decode())
        except OSError as error:
            raise LookupError(f"the operator at {address} does not answer: {error}") from error

    def value(self, name: str, **labels: str) -> float:
        """Sum of the leader's samples of this name with these labels; LookupError where there is none."""
        found = [s.value for s in self.samples() if s.name == name and labels.items() <= s.labels.items()]
        if not found:
            raise LookupError(f"the operator tells nothing of {name} {labels}")
        return sum(found)

    def wait_passes(self, count: int, timeout_s: float = 60) -> None:
        """Return once the operator has looked at the world this many times more."""
        began = wait_until(lambda: [self.value("servingplan_passes_total")], timeout_s, "a metrics page of the operator")[0]
        wait_until(lambda: self.value("servingplan_passes_total") >= began + count, timeout_s, f"{count} more passes")


@dataclass(slots=True)
class BackgroundLoad:
    """Requests that are being sent in a thread of their own.

    Attributes:
        records: Of the requests that have ended.
    """

    records: list[Record] = field(default_factory=list)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _thread: threading.Thread | None = None

    def begin(self, url: str, planned: Sequence[Arrival], **options: Any) -> None:
        """Send ``planned``; options are those of ``testbed.load.send_arrivals``."""

        def run() -> None:
            work = send_arrivals(url, planned, stop=self._stop, on_record=self.records.append, **options)
            self._loop.run_until_complete(work)
            self._loop.close()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def finish(self) -> list[Record]:
        """Send no more, wait for what is under way, and give every record."""
        with suppress(RuntimeError):  # the loop has ended by itself
            self._loop.call_soon_threadsafe(self._stop.set)
        if self._thread is not None:
            self._thread.join()
        return self.records

    def join(self) -> list[Record]:
        """Wait until everything was sent and answered, and give every record."""
        if self._thread is not None:
            self._thread.join()
        return self.records


@contextmanager
def background_load(url: str, planned: Sequence[Arrival], **options: Any) -> Iterator[BackgroundLoad]:
    """A load that ends with its context at the latest."""
    load = BackgroundLoad()
    load.begin(url, planned, **options)
    try:
        yield load
    finally:
        load.finish()


@dataclass(frozen=True, slots=True)
class Served:
    """A plan on the cluster, as people see it."""

    cluster: Cluster
    namespace: str
    name: str

    @property
    def url(self) -> str:
        """Its router."""
        return f"http://{self.name}-router.{self.namespace}.svc.cluster.local"

    def body(self) -> Object:
        """The plan as it stands."""
        found: Object = self.cluster.get("msp", self.name, "-n", self.namespace)
        return found

    def status(self) -> Object:
        """Its status; LookupError while there is none for the present spec."""
        body = self.body()
        found: Object = body.get("status", {})
        if found.get("observedGeneration") != body["metadata"]["generation"]:
            raise LookupError("the status is of an earlier generation")
        return found

    def condition(self, kind: str) -> Object:
        """One condition; LookupError while there is none for the present spec."""
        found = [entry for entry in self.status()["conditions"] if entry["type"] == kind]
        if not found:
            raise LookupError(f"no condition {kind}")
        return found[0]

    def wait(self, kind: str, status: str, reason: str = "", timeout_s: float = 60) -> Object:
        """Wait for a condition; returns it."""

        def met() -> Object:
            found = self.condition(kind)
            assert found["status"] == status, found
            assert reason in {"", found["reason"]}, found
            return found

        return wait_until(met, timeout_s, f"{self.namespace}/{self.name} {kind}={status} {reason}")

    def replicas(self) -> dict[str, tuple[int, int]]:
        """Wanted and ready replicas by ``model/setup``."""
        return {f"{a['model']}/{a['setup']}": (a["replicas"], a["ready"]) for a in self.status()["allocations"]}

    def shares(self) -> dict[str, dict[str, float]]:
        """Weights by class and model."""
        return {
            route["class"]: {model: float(share) for model, share in route.get("weights", {}).items()}
            for route in self.status()["routes"]
        }

    def pods(self, component: str = "model-server") -> list[Object]:
        """Pods of one component."""
        selector = f"servingplan.io/plan={self.name},app.kubernetes.io/component={component}"
        found: list[Object] = self.cluster.get("pods", "-n", self.namespace, "-l", selector)["items"]
        return found
