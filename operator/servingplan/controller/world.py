"""What the operator has seen, frozen: the only thing that decisions are made from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from servingplan.api import v1alpha1
from servingplan.api.routing_table import RoutingTable, read_table
from servingplan.calibration.readings import Found, Readings
from servingplan.controller.times import seconds_of
from servingplan.render import names
from servingplan.render.names import LABEL_PLAN, LABEL_POOL, MANAGED, Owner, table_stamp

ChildKey = tuple[str, str, str]
"""Kind, namespace and name."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node.

    Attributes:
        allocatable: Whole units by extended resource.
        schedulable: Ready and not cordoned.
    """

    name: str
    labels: dict[str, str]
    allocatable: dict[str, int]
    schedulable: bool


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod that holds accelerators or belongs to a plan.

    Attributes:
        requests: Whole units by extended resource.
        waiting: Why it does not run, in the words of the scheduler or kubelet; empty where nothing is wrong.
        plan: Name of the plan that its labels name; empty for a foreign pod.
        component: Component that its labels name.
        created_s: When it was created, in seconds since the epoch.
        ready_changed_s: When it became ready or ceased to be; 0 where it never was either.
        restarts: Times that its containers were started again.
    """

    namespace: str
    name: str
    node: str
    requests: dict[str, int]
    ready: bool
    terminating: bool
    finished: bool
    waiting: str
    plan: str
    component: str
    pool: str
    address: str
    annotations: dict[str, str]
    created_s: float = 0.0
    ready_changed_s: float = 0.0
    restarts: int = 0

    @property
    def plan_key(self) -> str:
        """``namespace/name`` of its plan; empty for a foreign pod."""
        return f"{self.namespace}/{self.plan}" if self.plan else ""

    @property
    def serves(self) -> bool:
        """Whether requests may be sent there."""
        return self.ready and not self.terminating and not self.finished


@dataclass(frozen=True, slots=True)
class Served:
    """The table that a router pod says it serves.

    Attributes:
        pools: Pools that it knows a pod of; None where it does not say.
    """

    digest: str
    revision: int
    generation: int
    pools: frozenset[str] | None = None

    @property
    def stamp(self) -> str:
        """Which publication of which table it is."""
        return table_stamp(self.digest, self.revision)


@dataclass(frozen=True, slots=True)
class PlanObject:
    """A ModelServingPlan as it stands.

    Attributes:
        spec: None where it is invalid; ``rejected`` then says why.
        profiles: Profile by (model, setup), with references resolved.
        missing: What the plan names and the cluster lacks, one sentence each.
        status: The live status, as plain data.
        approval: The proposal that a user approves, by its id; empty where none is.
    """

    owner: Owner
    generation: int
    spec: v1alpha1.ModelServingPlanSpec | None
    rejected: str
    profiles: dict[tuple[str, str], v1alpha1.Profile]
    missing: tuple[str, ...]
    status: dict[str, Any]
    approval: str = ""

    @property
    def key(self) -> str:
        """``namespace/name``."""
        return f"{self.owner.namespace}/{self.owner.name}"


@dataclass(frozen=True, slots=True)
class World:
    """Everything seen at one moment.

    Attributes:
        children: The operator's own objects as they stand.
        served: What each ready router pod serves, by plan key and pod name; None where it did not answer.
        readings: What was measured, by plan key.
        now_s: When, in seconds since the epoch.
    """

    plans: tuple[PlanObject, ...]
    nodes: tuple[Node, ...]
    pods: tuple[Pod, ...]
    children: dict[ChildKey, dict[str, Any]]
    served: dict[str, dict[str, Served | None]]
    readings: dict[str, Readings] = field(default_factory=dict)
    now_s: float = 0.0

    def readings_of(self, plan_key: str) -> Readings:
        """What was measured of a plan."""
        return self.readings.get(plan_key, Readings(Found.NOT_CONFIGURED))

    def children_of(self, plan: PlanObject) -> dict[ChildKey, dict[str, Any]]:
        """The plan's own objects, those of an earlier plan of the same name left out."""
        return {
            key: body
            for key, body in self.children.items()
            if any(reference.get("uid") == plan.owner.uid for reference in body["metadata"].get("ownerReferences", []))
        }

    def published(self, plan: PlanObject) -> tuple[RoutingTable | None, str]:
        """The plan's routing table as it stands, None where there is none or someone has spoilt it, and its stamp."""
        live = self.children_of(plan).get(("ConfigMap", plan.owner.namespace, names.table_name(plan.owner.name)))
        if live is None:
            return None, ""
        stamp = live["metadata"].get("annotations", {}).get(names.ANNOTATION_TABLE, "")
        return read_table(live.get("data", {}).get("table.json")), stamp

    def behind(self, plan_key: str, stamp: str | None) -> list[str]:
        """Names of the plan's router pods that say they serve another table than this."""
        served = self.served.get(plan_key, {})
        return sorted(pod for pod, table in served.items() if table and table.stamp != stamp)

    def silent(self, plan_key: str) -> list[str]:
        """Names of the plan's ready router pods that did not say what they serve."""
        return sorted(pod for pod, table in self.served.get(plan_key, {}).items() if table is None)

    def unreached(self, plan_key: str) -> dict[str, list[str]]:
        """Pools with a ready pod that some routers know none of yet, with those routers: they learn of pods by name, later."""
        ready = {pod.pool for pod in self.pods if pod.plan_key == plan_key and pod.pool and pod.serves}
        found: dict[str, list[str]] = {}
        for router, table in sorted(self.served.get(plan_key, {}).items()):
            if table and table.pools is not None:
                for pool in sorted(ready - table.pools):
                    found.setdefault(pool, []).append(router)
        return found

    def pods_of(self, plan_key: str, component: str) -> tuple[Pod, ...]:
        """The plan's pods of one component that have not ended."""
        return tuple(pod for pod in self.pods if pod.plan_key == plan_key and pod.component == component and not pod.finished)


def node_of(body: Any) -> Node:
    """A node from the API server's object."""
    status, spec = body.get("status", {}), body.get("spec", {})
    ready = any(entry["type"] == "Ready" and entry["status"] == "True" for entry in status.get("conditions", []))
    return Node(
        name=body["metadata"]["name"],
        labels=dict(body["metadata"].get("labels", {})),
        allocatable=_whole_units(status.get("allocatable", {})),
        schedulable=ready and not spec.get("unschedulable", False),
    )


def pod_of(body: Any) -> Pod | None:
    """A pod from the API server's object; None for one that neither holds accelerators nor belongs to a plan."""
    metadata, spec, status = body["metadata"], body.get("spec", {}), body.get("status", {})
    labels = metadata.get("labels", {})
    ours = all(labels.get(key) == value for key, value in MANAGED.items())
    requests = _pod_requests(spec)
    if not ours and not requests:
        return None
    conditions = {entry["type"]: entry for entry in status.get("conditions", [])}
    return Pod(
        namespace=metadata["namespace"],
        name=metadata["name"],
        node=spec.get("nodeName", ""),
        requests=requests,
        ready=conditions.get("Ready", {}).get("status") == "True",
        terminating="deletionTimestamp" in metadata,
        finished=status.get("phase") in {"Succeeded", "Failed"},
        waiting=_waiting(conditions, status),
        plan=labels.get(LABEL_PLAN, "") if ours else "",
        component=labels.get("app.kubernetes.io/component", "") if ours else "",
        pool=labels.get(LABEL_POOL, "") if ours else "",
        address=status.get("podIP", ""),
        annotations={key: value for key, value in metadata.get("annotations", {}).items() if key.startswith(v1alpha1.GROUP)},
        created_s=seconds_of(metadata.get("creationTimestamp", "")),
        ready_changed_s=seconds_of(conditions.get("Ready", {}).get("lastTransitionTime", "")),
        restarts=sum(container.get("restartCount", 0) for container in status.get("containerStatuses", [])),
    )


def _waiting(conditions: dict[str, Any], status: Any) -> str:
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        return f"{scheduled.get('reason', 'Unschedulable')}: {scheduled.get('message', '')}".strip(": ")
    for container in status.get("containerStatuses", []):
        waiting = container.get("state", {}).get("waiting", {})
        if waiting.get("reason") in {"CrashLoopBackOff", "ErrImagePull", "ImagePullBackOff", "CreateContainerConfigError"}:
            return f"{waiting['reason']}: {waiting.get('message', '')}".strip(": ")
    return ""


def _pod_requests(spec: Any) -> dict[str, int]:
    """Extended resources: for them limits and requests are equal, and the larger of init and running containers counts."""

    def of(container: Any) -> dict[str, int]:
        resources = container.get("resources", {})
        return _whole_units(resources.get("requests") or resources.get("limits") or {})

    total: dict[str, int] = {}
    for container in spec.get("containers", []):
        for resource, units in of(container).items():
            total[resource] = total.get(resource, 0) + units
    for container in spec.get("initContainers", []):
        for resource, units in of(container).items():
            total[resource] = max(total.get(resource, 0), units)
    return total


def _whole_units(quantities: Any) -> dict[str, int]:
    """Extended resources, which Kubernetes counts in whole units; cpu and memory are the scheduler's business."""
    return {resource: int(value) for resource, value in quantities.items() if "/" in resource and str(value).isdigit()}
