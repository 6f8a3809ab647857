"""What the API server says of a plan, as the demo's displays and figures need it. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Object = Mapping[str, Any]

LABEL_PLAN = "servingplan.io/plan"
LABEL_MODEL = "servingplan.io/model"
LABEL_SETUP = "servingplan.io/setup"
GPU = "nvidia.com/gpu"
GPU_PRODUCT = "nvidia.com/gpu.product"


@dataclass(frozen=True, slots=True)
class Node:
    """A node with GPUs."""

    name: str
    product: str
    gpus: int


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod of the plan.

    Attributes:
        node: Empty while it is not scheduled.
        model, setup: Empty for routers.
        state: One word, as in ``kubectl get pods``.
        holds_gpus: Whether its GPUs are taken: it is bound to a node and has not ended.
    """

    name: str
    node: str
    model: str
    setup: str
    gpus: int
    state: str
    ready: bool
    holds_gpus: bool


@dataclass(frozen=True, slots=True)
class Allocation:
    """What one setup gets, by the plan's status; planned latency in seconds, None where nothing is sent."""

    model: str
    setup: str
    accelerator: str
    pool: str
    replicas: int
    ready: int
    gpus: int
    rate_rps: float
    utilization: float
    ttft_p95_s: float | None


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition of the plan."""

    type: str
    status: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A plan and its pods at one moment.

    Attributes:
        at_s: The moment, in seconds since the epoch.
        generation: Generation of the spec.
        observed_generation: Generation that the status speaks of; 0 while there is none.
        shares: Planned part of each class by model; with the part that is shed it sums to 1.
        table: Hash of the routing table that every router serves; empty while they differ.
        events: Latest last, without repetitions.
    """

    at_s: float
    generation: int
    observed_generation: int
    conditions: tuple[Condition, ...]
    allocations: tuple[Allocation, ...]
    shares: Mapping[str, Mapping[str, float]]
    quality: float
    cost_per_hour: float
    address: str
    table: str
    ttft_slo_s: float
    pods: tuple[Pod, ...]
    events: tuple[str, ...]

    def condition(self, type_: str) -> Condition | None:
        """The condition of a type, if the status speaks of the present spec."""
        if self.observed_generation != self.generation:
            return None
        return next((each for each in self.conditions if each.type == type_), None)

    @property
    def ready(self) -> bool:
        """Whether the present spec is served as planned."""
        found = self.condition("Ready")
        return found is not None and found.status == "True"


def snapshot(at_s: float, plan: Object, pods: Iterable[Object], events: Iterable[Object] = ()) -> Snapshot:
    """Reads objects as the API server writes them; pods of other plans are left out."""
    status = plan.get("status", {})
    objective = status.get("objective", {})
    name = plan["metadata"]["name"]
    return Snapshot(
        at_s=at_s,
        generation=plan["metadata"]["generation"],
        observed_generation=status.get("observedGeneration", 0),
        conditions=tuple(
            Condition(each["type"], each["status"], each["reason"], each.get("message", ""))
            for each in status.get("conditions", ())
        ),
        allocations=tuple(_allocation(each) for each in status.get("allocations", ())),
        shares={
            route["class"]: {model: float(share) for model, share in route.get("weights", {}).items()}
            for route in status.get("routes", ())
        },
        quality=float(objective.get("quality", 0)),
        cost_per_hour=float(objective.get("costPerHour", 0)),
        address=status.get("router", {}).get("address", ""),
        table=status.get("router", {}).get("table", ""),
        ttft_slo_s=float(plan["spec"]["slo"].get("ttft", {}).get("seconds", "nan")),
        pods=tuple(
            sorted(
                (_pod(each) for each in pods if each["metadata"].get("labels", {}).get(LABEL_PLAN) == name),
                key=lambda pod: (pod.model, pod.setup, pod.name),
            )
        ),
        events=_told(events),
    )


def nodes(items: Iterable[Object]) -> tuple[Node, ...]:
    """Nodes that have GPUs, by product and name."""
    found = [
        Node(
            item["metadata"]["name"],
            item["metadata"]["labels"].get(GPU_PRODUCT, ""),
            int(item["status"].get("allocatable", {}).get(GPU, 0)),
        )
        for item in items
    ]
    return tuple(sorted((node for node in found if node.gpus), key=lambda node: (node.product, node.name)))


def pool_of(pod: str) -> str:
    """Name of the Deployment of a pod: a ReplicaSet's hash and the pod's own suffix follow it."""
    return pod.rsplit("-", 2)[0]


def _allocation(entry: Object) -> Allocation:
    predicted = entry.get("predicted", {}).get("ttftP95")
    return Allocation(
        model=entry["model"],
        setup=entry["setup"],
        accelerator=entry["accelerator"],
        pool=entry["deployment"],
        replicas=entry["replicas"],
        ready=entry["ready"],
        gpus=entry["units"],
        rate_rps=float(entry["rate"]),
        utilization=float(entry["utilization"]),
        ttft_p95_s=None if predicted is None else float(predicted),
    )


def _pod(item: Object) -> Pod:
    labels = item["metadata"].get("labels", {})
    status = item.get("status", {})
    limits = [container.get("resources", {}).get("limits", {}) for container in item["spec"]["containers"]]
    node = item["spec"].get("nodeName", "")
    ended = status.get("phase") in {"Succeeded", "Failed"}
    return Pod(
        name=item["metadata"]["name"],
        node=node,
        model=labels.get(LABEL_MODEL, ""),
        setup=labels.get(LABEL_SETUP, ""),
        gpus=sum(int(limit.get(GPU, 0)) for limit in limits),
        state=_state(item, status),
        ready=any(each["type"] == "Ready" and each["status"] == "True" for each in status.get("conditions", ())),
        holds_gpus=bool(node) and not ended,
    )


def _state(item: Object, status: Object) -> str:
    if "deletionTimestamp" in item["metadata"]:
        return "Terminating"
    for container in status.get("containerStatuses", ()):
        if reason := container.get("state", {}).get("waiting", {}).get("reason"):
            return str(reason)
    if status.get("phase") == "Running" and not all(each.get("ready") for each in status.get("containerStatuses", ())):
        return "Starting"
    return str(status.get("phase", "Pending"))


def _told(events: Iterable[Object]) -> tuple[str, ...]:
    def when(event: Object) -> str:
        return str(event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp", ""))

    lines = [
        f"{event['involvedObject']['kind'].lower()}/{event['involvedObject'].get('name', '')}: {event.get('message', '')}"
        for event in sorted(events, key=when)
    ]
    return tuple(dict.fromkeys(lines))
