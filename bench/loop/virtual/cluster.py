"""Nodes, Deployments and pods in virtual time: what Kubernetes does between two looks of the controller.

A Deployment's missing pods are created at once, bound to the first node with room, and become ready after their pool's cold
start. Superfluous ones leave, those that are not ready first, then the youngest; their accelerators are free when they have
ended. Node failures, image pulls, probes and rollouts are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from servingplan.api.load import Rejected, parse
from servingplan.api.routing_table import RoutingTable, read_table
from servingplan.calibration.readings import Readings
from servingplan.controller.world import ChildKey, Node, PlanObject, Pod, Served, World
from servingplan.render import names
from servingplan.render.router import COMPONENT as ROUTER
from servingplan.render.vllm import COMPONENT as MODEL_SERVER

EPOCH_S = 1_800_000_000.0
"""The time 0 of a run, as the controller sees it."""

_ROUTER_START_S = 5.0


def manifest_plan(body: dict[str, Any]) -> PlanObject:
    """A plan as the controller observes it, profiles inline.

    Raises:
        ValueError: It is invalid.
    """
    parsed = parse(body)
    if isinstance(parsed, Rejected):
        raise ValueError(parsed.message)
    spec, metadata = parsed.spec, body["metadata"]
    return PlanObject(
        owner=names.Owner(metadata["namespace"], metadata["name"], metadata["uid"]),
        generation=metadata["generation"],
        spec=spec,
        rejected="",
        profiles={(m.name, s.name): s.profile for m in spec.models for s in m.setups if s.profile},
        missing=(),
        status={},
    )


@dataclass(slots=True)
class Cluster:
    """The cluster.

    Attributes:
        cold_start_s: Says how long a pod of a pool takes from being bound to being ready.
        busy: Says whether a leaving pod still has requests.
        plans: By key, as observed.
        children: The operator's objects as the API server stores them.
        pods: All pods by name.
        now_s: The present time.
    """

    nodes: tuple[Node, ...]
    cold_start_s: Callable[[str], float]
    busy: Callable[[str], bool] = lambda _pod: False
    plans: dict[str, PlanObject] = field(default_factory=dict)
    children: dict[ChildKey, dict[str, Any]] = field(default_factory=dict)
    pods: dict[str, Pod] = field(default_factory=dict)
    now_s: float = 0.0
    _ready_at_s: dict[str, float] = field(default_factory=dict)
    _created: int = 0

    def put(self, plan: PlanObject) -> None:
        """Creates or changes a plan; its status stays."""
        before = self.plans.get(plan.key)
        self.plans[plan.key] = replace(plan, status=before.status) if before else plan

    def remove(self, plan_key: str) -> None:
        """Deletes a plan, and with it everything it owns."""
        self.store(self.plans.pop(plan_key), ())

    def store(self, plan: PlanObject, objects: Iterable[dict[str, Any]]) -> None:
        """Makes the plan's objects these; others of its own are deleted."""
        mine = [key for key, body in self.children.items() if _owner_of(body) == plan.owner.uid]
        for key in mine:
            del self.children[key]
        for body in objects:
            self.children[body["kind"], body["metadata"]["namespace"], body["metadata"]["name"]] = body
        self._follow_deployments()

    def report(self, plan_key: str, status: dict[str, Any]) -> None:
        """Writes a plan's status."""
        if plan_key in self.plans:
            self.plans[plan_key] = replace(self.plans[plan_key], status=status)

    def advance(self, now_s: float) -> None:
        """Lets pods start, become ready and end."""
        self.now_s = now_s
        self.pods = {name: pod for name, pod in self.pods.items() if not (pod.terminating and not self.busy(name))}
        self._follow_deployments()
        for name, ready_s in list(self._ready_at_s.items()):
            if name not in self.pods:
                del self._ready_at_s[name]
            elif ready_s <= now_s and not self.pods[name].terminating:
                self.pods[name] = replace(self.pods[name], ready=True, ready_changed_s=ready_s)
                del self._ready_at_s[name]

    def next_ready_s(self) -> float:
        """When the next pod becomes ready; infinite where none starts."""
        return min(self._ready_at_s.values(), default=float("inf"))

    def fail(self, name: str) -> None:
        """A pod is gone from one moment to the next."""
        self.pods.pop(name, None)
        self._follow_deployments()

    def ready(self, pool: str) -> list[str]:
        """Names of the pods of a pool that requests may go to."""
        return [name for name, pod in self.pods.items() if pod.pool == pool and pod.ready and not pod.terminating]

    def units(self, resource: str = "nvidia.com/gpu") -> int:
        """Accelerator units that bound pods hold."""
        return sum(pod.requests.get(resource, 0) for pod in self.pods.values() if pod.node)

    def seen(self, readings: dict[str, Readings]) -> World:
        """The world as the controller observes it."""
        return World(
            plans=tuple(self.plans[key] for key in sorted(self.plans)),
            nodes=self.nodes,
            # What a router pod belongs to is no pool of model servers.
            pods=tuple(_dated(pod) for _, pod in sorted(self.pods.items())),
            children=dict(self.children),
            served=self.served(),
            readings={key: replace(one, taken_s=EPOCH_S + one.taken_s) for key, one in readings.items()},
            now_s=EPOCH_S + self.now_s,
        )

    def table(self, plan_key: str) -> RoutingTable | None:
        """The routing table that a plan's routers follow."""
        namespace, _, name = plan_key.partition("/")
        body = self.children.get(("ConfigMap", namespace, names.table_name(name)))
        return read_table(body["data"]["table.json"]) if body else None

    def served(self) -> dict[str, dict[str, Served | None]]:
        """What every ready router pod serves: the table as it is published."""
        found: dict[str, dict[str, Served | None]] = {}
        for pod in self.pods.values():
            if pod.component != ROUTER or not pod.ready or pod.terminating:
                continue
            table = self.children.get(("ConfigMap", pod.namespace, names.table_name(pod.plan)))
            if table is None:
                continue
            digest, _, revision = table["metadata"]["annotations"][names.ANNOTATION_TABLE].partition(".")
            published = self.table(pod.plan_key)
            generation = published.generation if published else 0
            found.setdefault(pod.plan_key, {})[pod.name] = Served(digest, int(revision), generation)
        return found

    def _follow_deployments(self) -> None:
        wanted = {key[2]: body for key, body in self.children.items() if key[0] == "Deployment"}
        living: dict[str, list[Pod]] = {}
        for pod in self.pods.values():
            if not pod.terminating:
                living.setdefault(pod.pool, []).append(pod)
        for pool, pods in living.items():
            keep = int(wanted[pool]["spec"]["replicas"]) if pool in wanted else 0
            leaving = sorted(pods, key=lambda pod: (pod.ready, -pod.created_s, pod.name))[: max(0, len(pods) - keep)]
            for pod in leaving:
                self.pods[pod.name] = replace(pod, terminating=True)
        for pool, body in wanted.items():
            for _ in range(int(body["spec"]["replicas"]) - len(living.get(pool, []))):
                self._create(pool, body)
        for pod in list(self.pods.values()):
            if not pod.node and not pod.terminating:
                self._bind(pod)

    def _create(self, pool: str, body: dict[str, Any]) -> None:
        template = body["spec"]["template"]
        labels = template["metadata"]["labels"]
        self._created += 1
        limits = [c.get("resources", {}).get("limits", {}) for c in template["spec"]["containers"]]
        name = f"{pool}-{self._created:05d}"
        self.pods[name] = Pod(
            namespace=body["metadata"]["namespace"],
            name=name,
            node="",
            requests={resource: int(units) for limit in limits for resource, units in limit.items() if "/" in resource},
            ready=False,
            terminating=False,
            finished=False,
            waiting="Unschedulable: no node has room",
            plan=labels[names.LABEL_PLAN],
            component=labels["app.kubernetes.io/component"],
            pool=pool,
            address="10.0.0.1",
            annotations={},
            created_s=self.now_s,
        )

    def _bind(self, pod: Pod) -> None:
        body = self.children.get(("Deployment", pod.namespace, pod.pool))
        if body is None:
            return
        spec = body["spec"]["template"]["spec"]
        for node in self.nodes:
            if spec.get("nodeSelector", {}).items() <= node.labels.items() and self._fits(pod, node):
                self.pods[pod.name] = replace(pod, node=node.name, waiting="")
                takes_s = self.cold_start_s(pod.pool) if pod.component == MODEL_SERVER else _ROUTER_START_S
                self._ready_at_s[pod.name] = self.now_s + takes_s
                return

    def _fits(self, pod: Pod, node: Node) -> bool:
        held = [other.requests for other in self.pods.values() if other.node == node.name]
        return all(
            sum(each.get(resource, 0) for each in held) + units <= node.allocatable.get(resource, 0)
            for resource, units in pod.requests.items()
        )


def _owner_of(body: dict[str, Any]) -> str:
    return next((str(entry["uid"]) for entry in body["metadata"].get("ownerReferences", [])), "")


def _dated(pod: Pod) -> Pod:
    changed_s = EPOCH_S + pod.ready_changed_s if pod.ready_changed_s else 0.0
    # What a router pod belongs to is no pool of model servers.
    pool = "" if pod.component == ROUTER else pod.pool
    return replace(pod, pool=pool, created_s=EPOCH_S + pod.created_s, ready_changed_s=changed_s)
