"""kopf keeps the world; this is all that is left to say to it.

Indices hold what the watches bring, events wake the loop, and nothing else: no timer, no daemon and no change handler, because
kopf keeps their state in finalizers and annotations of the user's object. Handlers are coroutines, so that only kopf's own
event loop ever touches the indices. An object wakes the loop only when something that decisions depend on has changed: a node's
heartbeat or the operator's own status write does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import aiohttp
import kopf

from servingplan.api import v1alpha1
from servingplan.controller.health import Pulse, serving
from servingplan.controller.kube import Kube
from servingplan.controller.lease import Elector, Leadership, candidate
from servingplan.controller.measure import Meter
from servingplan.controller.observe import Watched
from servingplan.controller.reconcile import Loop, RememberingSolver
from servingplan.controller.settings import Settings
from servingplan.controller.telemetry import Telemetry
from servingplan.controller.world import node_of, pod_of
from servingplan.render.names import MANAGED

_Store = dict[Any, Any]


class _Indices:
    """The live indices of kopf, and what of each object was last seen."""

    def __init__(self) -> None:
        self.stores: dict[str, _Store] = {}
        self._marks: dict[tuple[str, str], Any] = {}

    def changed(self, kind: str, event: Any, mark: Any) -> bool:
        """Whether the object differs from when it was last seen in anything that ``mark`` holds."""
        key = (kind, event["object"]["metadata"]["uid"])
        if event["type"] == "DELETED":
            return self._marks.pop(key, None) is not None
        if key in self._marks and self._marks[key] == mark:
            return False
        self._marks[key] = mark
        return True

    def watched(self) -> Watched:
        """What the watches have brought by now."""

        def values(kind: str) -> list[Any]:
            return [value for store in self.stores.get(kind, {}).values() for value in store]

        return Watched(values("plans"), values("nodes"), values("pods"), values("deployments"))


def registry(indices: _Indices, wake: Callable[[], object]) -> kopf.OperatorRegistry:
    """Handlers that index four kinds and wake the loop."""
    found = kopf.OperatorRegistry()
    plans = (v1alpha1.GROUP, v1alpha1.VERSION, v1alpha1.PLURAL)

    @kopf.index(*plans, id="plans", registry=found)
    async def index_plans(uid: str, body: kopf.Body, **_: Any) -> _Store:
        return {uid: _plain(body)}

    @kopf.index("", "v1", "nodes", id="nodes", registry=found)
    async def index_nodes(name: str, body: kopf.Body, **_: Any) -> _Store:
        return {name: node_of(body)}

    @kopf.index("", "v1", "pods", id="pods", registry=found)
    async def index_pods(uid: str, body: kopf.Body, **_: Any) -> _Store | None:
        pod = pod_of(_plain(body))
        return {uid: pod} if pod else None

    @kopf.index("apps", "v1", "deployments", labels=MANAGED, id="deployments", registry=found)
    async def index_deployments(uid: str, body: kopf.Body, **_: Any) -> _Store:
        return {uid: _child(body)}

    def on_event(kind: str, mark: Callable[[Any], Any]) -> Callable[..., Coroutine[Any, Any, None]]:
        async def handle(event: Any, body: kopf.Body, **kwargs: Any) -> None:
            indices.stores |= {name: kwargs[name] for name in ("plans", "nodes", "pods", "deployments")}
            if indices.changed(kind, event, mark(body)):
                wake()

        return handle

    kopf.on.event(*plans, id="plan", registry=found)(on_event("plans", _plan_mark))
    kopf.on.event("", "v1", "nodes", id="node", registry=found)(on_event("nodes", node_of))
    kopf.on.event("", "v1", "pods", id="pod", registry=found)(on_event("pods", lambda body: pod_of(_plain(body))))
    kopf.on.event("apps", "v1", "deployments", labels=MANAGED, id="deployment", registry=found)(
        on_event("deployments", _child_mark)
    )
    kopf.on.login(id="login", registry=found)(_login)
    return found


class _Watches:
    """kopf in a thread with an event loop of its own.

    When it stops it waits five seconds for every task of the loop that it runs in, and then cancels them: in a loop of its own
    there are none but its own.
    """

    def __init__(self, settings: Settings, wake: Callable[[], object]) -> None:
        self._settings = settings
        self._indices = _Indices()
        self._registry = registry(self._indices, wake)
        self._stop = threading.Event()
        self._loop = asyncio.new_event_loop()

    def run(self) -> None:
        """Watches until it is stopped; for a thread.

        Raises:
            Exception: A watch ended by itself.
        """
        with contextlib.closing(self._loop):
            asyncio.set_event_loop(self._loop)
            self._loop.run_until_complete(
                kopf.operator(
                    registry=self._registry,
                    settings=_kopf_settings(),
                    clusterwide=not self._settings.namespaces,
                    namespaces=list(self._settings.namespaces),
                    standalone=True,
                    stop_flag=self._stop,
                )
            )

    def stop(self) -> None:
        """Ends the watches soon."""
        self._stop.set()

    async def watched(self) -> Watched:
        """What the watches have brought by now, copied where nothing changes it meanwhile."""

        async def copy() -> Watched:
            return self._indices.watched()

        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(copy(), self._loop))


async def operate(settings: Settings, stop: asyncio.Event) -> None:
    """Runs the controller until it is told to stop.

    Raises:
        RuntimeError: A watch or the loop ended by itself, or the Lease was lost; the pod has to be started anew.
    """
    loop, wake = asyncio.get_running_loop(), asyncio.Event()
    watches = _Watches(settings, lambda: loop.call_soon_threadsafe(wake.set))
    pulse = Pulse(stale_after_s=4 * settings.tick_s + 60)
    kube = await Kube.connect()
    leadership = Leadership() if settings.lease else None
    telemetry = Telemetry(leadership.is_leader if leadership else lambda: True)
    own = kube.counted(telemetry.wrote)
    meter = Meter(settings, watches.watched, wake.set)
    async with aiohttp.ClientSession() as http, serving(pulse, settings.health_port, telemetry.page):
        work = Loop(
            kube=own.guarded(leadership.guard) if leadership else own,
            http=http,
            settings=settings,
            watched=watches.watched,
            pulse=pulse,
            meter=meter,
            telemetry=telemetry,
            wake=wake,
            solver=RememberingSolver(telemetry),
            leads=leadership.acquired if leadership else _at_once,
        )
        watching = asyncio.create_task(asyncio.to_thread(watches.run), name="watches")
        vital = [asyncio.create_task(work.run(), name="loop")]
        if settings.lease and leadership:
            elector = Elector(
                kube,
                settings.lease.namespace,
                settings.lease.name,
                candidate(settings.lease.identity),
                leadership,
                pulse.stands_by,
            )
            vital.append(asyncio.create_task(elector.run(), name="lease"))
        measuring = asyncio.create_task(meter.run(), name="measure")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        try:
            await asyncio.wait([*vital, watching, stopping], return_when=asyncio.FIRST_COMPLETED)
        finally:
            # The loop first, so that nothing is written any more when the elector gives the Lease back.
            for task in (vital[0], measuring, stopping):
                task.cancel()
            ended = list(await asyncio.gather(vital[0], measuring, return_exceptions=True))
            for task in vital[1:]:
                task.cancel()
            ended += await asyncio.gather(*vital[1:], return_exceptions=True)
            watches.stop()
            ended += await asyncio.gather(watching, return_exceptions=True)
            await kube.close()
        failures = [error for error in ended if isinstance(error, Exception)]
        if failures or not stop.is_set():
            raise RuntimeError("the watches or the loop ended, or the Lease was lost") from (failures[0] if failures else None)


async def _at_once() -> None:
    """Who is alone leads."""


def _kopf_settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.peering.standalone = True
    # Looking for new kinds and namespaces would need the right to list them.
    settings.scanning.disabled = True
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 330
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)
    return settings


def _login(**kwargs: Any) -> kopf.ConnectionInfo | None:
    return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)


def _plan_mark(body: Any) -> Any:
    metadata = body["metadata"]
    approval = metadata.get("annotations", {}).get(v1alpha1.APPROVE_ANNOTATION)
    return metadata.get("generation"), metadata.get("deletionTimestamp"), approval


def _child_mark(body: Any) -> Any:
    annotations = dict(body["metadata"].get("annotations", {}))
    return body["metadata"].get("generation"), annotations, _replica_failures(body)


def _child(body: Any) -> dict[str, Any]:
    """A Deployment without what changes all the time: most of its status, and the bookkeeping of field managers."""
    plain: dict[str, Any] = _plain(body)
    plain["status"] = {"conditions": _replica_failures(plain)}
    plain["metadata"].pop("managedFields", None)
    return plain


def _replica_failures(body: Any) -> list[dict[str, str]]:
    """Why pods cannot be created, as quotas and admission say it on the Deployment alone."""
    return [
        {"message": entry.get("message", "")}
        for entry in body.get("status", {}).get("conditions", [])
        if entry["type"] == "ReplicaFailure" and entry["status"] == "True"
    ]


def _plain(value: Any) -> Any:
    """A plain copy of what kopf hands out as a live view."""
    if hasattr(value, "items"):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
