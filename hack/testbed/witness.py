"""A witness of everything that happens in a namespace: each version of each object, in the order in which it was written.

Sampling sees what stands when it looks; what must hold at every instant needs every instant. The witness watches, so no
version escapes it, and orders versions of different kinds by their resource versions, which on a bed all come from one etcd.
"""

import asyncio
import base64
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import yaml

from testbed.api import Api, Object
from testbed.cluster import Cluster, wait_until
from testbed.pki import KeyPair

_KINDS = {
    "plan": "/apis/servingplan.io/v1alpha1/namespaces/{}/modelservingplans",
    "deployment": "/apis/apps/v1/namespaces/{}/deployments",
    "pod": "/api/v1/namespaces/{}/pods",
    "configmap": "/api/v1/namespaces/{}/configmaps",
    "event": "/api/v1/namespaces/{}/events",
}
_LABEL_POOL = "servingplan.io/pool"
_STOP_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Version:
    """One version of one object.

    Attributes:
        number: Its resource version; of a deletion, that of the deletion.
        at_s: When it was seen, in seconds since the epoch.
        body: The object; of a deletion, its last state.
    """

    kind: str
    name: str
    number: int
    at_s: float
    deleted: bool
    body: Object = field(repr=False)


@dataclass(frozen=True, slots=True)
class Moment:
    """What stood after one version was written.

    Attributes:
        asked: Replicas by Deployment of a pool.
        ready: Ready pods that stay, by pool.
        units: Accelerators requested by pods that have a node and have not ended, by node selector's product and in all.
        weights: Weight by class and pool, of the published routing table.
    """

    at_s: float
    number: int
    asked: dict[str, int]
    ready: dict[str, int]
    units: dict[str, int]
    weights: dict[str, dict[str, float]]

    @property
    def weighted(self) -> set[str]:
        """Pools that any class gives weight to."""
        return {pool for by_pool in self.weights.values() for pool, weight in by_pool.items() if weight > 0}


class Witness:
    """Watches one namespace; a context manager.

    Args:
        cluster: The bed or another cluster, reachable by its administrator's kubeconfig.
        namespace: What to watch.
        folder: A private folder for the client's certificate.
    """

    def __init__(self, cluster: Cluster, namespace: str, folder: Path) -> None:
        config = yaml.safe_load(cluster.kubeconfig.read_text())
        user, where = config["users"][0]["user"], config["clusters"][0]["cluster"]
        pair = KeyPair(_decoded(user["client-certificate-data"]), _decoded(user["client-key-data"]))
        self._api = Api(where["server"], _decoded(where["certificate-authority-data"]), pair, folder)
        self._namespace = namespace
        self._seen: list[Version] = []
        self._latest: dict[tuple[str, str], Version] = {}
        self._synced: set[str] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._task: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        wait_until(lambda: len(self._synced) == len(_KINDS), 20, "every kind listed")
        return self

    def __exit__(self, *_: object) -> None:
        if self._task is not None:
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(_STOP_TIMEOUT_S)

    def _watch(self) -> None:
        async def follow_all() -> None:
            self._task = asyncio.current_task()
            async with self._api:
                await asyncio.gather(*(self._follow(kind, path) for kind, path in _KINDS.items()))

        with suppress(asyncio.CancelledError):
            self._loop.run_until_complete(follow_all())
        self._loop.close()

    async def _follow(self, kind: str, path: str) -> None:
        async for event in self._api.follow(path.format(self._namespace)):
            if event.type == "synced":
                for body in event.items:
                    self._note(kind, body, deleted=False)
                self._forget(kind, {body["metadata"]["name"] for body in event.items})
                self._synced.add(kind)
            else:
                self._note(kind, event.item, deleted=event.type == "deleted")

    def _note(self, kind: str, body: Object, *, deleted: bool) -> None:
        meta = body["metadata"]
        version = Version(kind, meta["name"], int(meta["resourceVersion"]), time.time(), deleted, body)
        known = self._latest.get((kind, version.name))
        if known is None or (known.number, known.deleted) != (version.number, version.deleted):
            self._latest[kind, version.name] = version
            self._seen.append(version)

    def _forget(self, kind: str, present: set[str]) -> None:
        """After a lost watch: what is no longer listed was deleted unseen."""
        for (each, name), version in list(self._latest.items()):
            if each == kind and name not in present and not version.deleted:
                self._note(kind, version.body, deleted=True)

    def versions(self, kind: str, name: str = "", *, since_s: float = 0.0) -> list[Version]:
        """Versions of the objects of a kind, or of one of them, in the order of writing."""
        found = [v for v in list(self._seen) if v.kind == kind and name in {"", v.name} and v.at_s >= since_s]
        return sorted(found, key=lambda version: version.number)

    def news(self, *, since_s: float = 0.0) -> list[tuple[str, str]]:
        """Reason and message of the Events, in the order of writing."""
        return [(v.body["reason"], v.body.get("message", "")) for v in self.versions("event", since_s=since_s) if not v.deleted]

    def statuses(self, plan: str, *, since_s: float = 0.0) -> list[tuple[float, Object]]:
        """Every status that the plan had, with the time it was seen at."""
        return [(v.at_s, v.body.get("status", {})) for v in self.versions("plan", plan, since_s=since_s) if not v.deleted]

    def moments(self, plan: str, *, since_s: float = 0.0) -> Iterator[Moment]:
        """What stood after every write, oldest first; writes before ``since_s`` count but are not told."""
        now: dict[tuple[str, str], Object] = {}
        for version in sorted(self._seen[:], key=lambda v: v.number):
            if version.kind not in {"deployment", "pod", "configmap"}:
                continue
            if version.deleted:
                now.pop((version.kind, version.name), None)
            else:
                now[version.kind, version.name] = version.body
            if version.at_s >= since_s:
                yield _moment(plan, version, now)

    def held(self, plan: str, since_s: float, view: Callable[[Moment], Any]) -> bool:
        """Whether what ``view`` takes from a moment has been the same ever since."""
        last = None
        for moment in self.moments(plan):
            if moment.at_s < since_s:
                last = view(moment)
            elif last is not None and view(moment) != last:
                return False
        return True


def _moment(plan: str, version: Version, now: dict[tuple[str, str], Object]) -> Moment:
    asked, ready, units = {}, Counter[str](), Counter[str]()
    for (kind, name), body in now.items():
        pool = body["metadata"].get("labels", {}).get(_LABEL_POOL)
        if pool is None or body["metadata"]["labels"].get("servingplan.io/plan") != plan:
            continue
        if kind == "deployment":
            asked[name] = body["spec"]["replicas"]
        elif kind == "pod":
            ready[pool] += _stays_ready(body)
            if body["spec"].get("nodeName") and body["status"].get("phase") not in {"Succeeded", "Failed"}:
                for product, count in _units(body).items():
                    units[product] += count
    table = now.get(("configmap", f"{plan}-routing"))
    return Moment(version.at_s, version.number, asked, dict(ready), dict(units), weights(table) if table else {})


def _stays_ready(pod: Object) -> bool:
    conditions = {c["type"]: c["status"] for c in pod["status"].get("conditions", [])}
    return conditions.get("Ready") == "True" and "deletionTimestamp" not in pod["metadata"]


def _units(pod: Object) -> dict[str, int]:
    requests = pod["spec"]["containers"][0].get("resources", {}).get("requests", {})
    product = pod["spec"].get("nodeSelector", {}).get("nvidia.com/gpu.product", "")
    return {product: int(requests.get("nvidia.com/gpu", 0))}


def weights(table: Object) -> dict[str, dict[str, float]]:
    """Weight by class and pool, of the ConfigMap that holds a plan's routing table; nothing where somebody spoilt it.

    Requests that name a model stand under ``model:NAME``.
    """
    try:
        found = json.loads(table["data"]["table.json"])
    except (KeyError, ValueError):
        return {}
    named = {f"model:{entry['name']}": entry for entry in found["models"]}
    return {
        name: {pool: float(weight) for pool, weight in entry["weights"].items()}
        for name, entry in ({entry["name"]: entry for entry in found["classes"]} | named).items()
    }


def _decoded(text: str) -> bytes:
    return base64.b64decode(text)
