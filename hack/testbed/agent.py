"""The node agent: registers nodes, keeps them alive, runs the pods bound to them and serves their logs.

One agent plays the kubelet of every node of the bed, so a pod event costs one watch for all of them. A node can be
killed (its processes vanish, its heartbeat stops, nobody says so) and revived.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
from aiohttp import web

from testbed import netns
from testbed.api import Api, ApiError, Object
from testbed.container import timestamp
from testbed.pod import Kubelet, Node, PodWorker

KUBELET_PORT = 10250
_HEARTBEAT_S = 1.0
_LEASE_S = 40
_LOG_POLL_S = 0.2
_FIRST_HOST, _LAST_HOST = 2, 254


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """A node to register.

    Attributes:
        name: Node name.
        accelerator: Value of the label `nvidia.com/gpu.product`; empty for a node without accelerators.
        gpus: Allocatable `nvidia.com/gpu`.
        labels: More labels.
        cpu: Allocatable CPUs, a quantity.
        memory: Allocatable memory, a quantity.
        pods: Allocatable pods.
    """

    name: str
    accelerator: str = ""
    gpus: int = 0
    labels: dict[str, str] = field(default_factory=dict)
    cpu: str = "128"
    memory: str = "1Ti"
    pods: int = 110

    def all_labels(self) -> dict[str, str]:
        """The labels the node registers with."""
        product = {"nvidia.com/gpu.product": self.accelerator} if self.accelerator else {}
        return {
            "kubernetes.io/hostname": self.name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": "amd64",
            **product,
            **self.labels,
        }


def _cycle_hosts() -> Iterator[int]:
    while True:
        yield from range(_FIRST_HOST, _LAST_HOST + 1)


@dataclass(slots=True)
class _Machine:
    spec: NodeSpec
    node: Node
    number: int
    alive: bool = True
    hosts: Iterator[int] = field(default_factory=_cycle_hosts)

    def free_address(self, taken: set[str]) -> str:
        """A pod address of this node that is not in `taken`."""
        return next(a for a in (f"10.244.{self.number}.{host}" for host in self.hosts) if a not in taken)


class Agent:
    """The kubelet of every node in `nodes`."""

    def __init__(self, nodes: list[NodeSpec], kubelet: Kubelet) -> None:
        self._kubelet = kubelet
        self._api: Api = kubelet.api
        self._machines = {
            spec.name: _Machine(spec, Node(spec.name, f"10.98.0.{number}", spec.all_labels()), number)
            for number, spec in enumerate(nodes, start=1)
        }
        self._workers: dict[str, PodWorker] = {}

    async def register(self) -> None:
        """Create the node objects, Ready and free of the taint that new nodes carry."""
        for machine in self._machines.values():
            await netns.add_local_address(machine.node.address)
        await asyncio.gather(*(self._register(machine) for machine in self._machines.values()))

    async def run(self) -> None:
        """Follow the pods and keep the nodes alive, until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow_pods())
                for machine in self._machines.values():
                    group.create_task(self._heartbeat(machine))
        finally:
            await asyncio.gather(*(worker.abort() for worker in list(self._workers.values())))

    async def kill_node(self, name: str) -> None:
        """Let a node lose power: its pods' processes are gone and its heartbeat ends; KeyError for an unknown node."""
        machine = self._machines[name]
        machine.alive = False
        doomed = [worker for worker in self._workers.values() if worker.node_name == name]
        await asyncio.gather(*(worker.abort() for worker in doomed))

    async def revive_node(self, name: str) -> None:
        """Start a killed node again: pods still bound to it start afresh."""
        self._machines[name].alive = True
        listing = await self._api.get(f"/api/v1/pods?fieldSelector=spec.nodeName={name}")
        for pod in listing["items"]:
            self._see(pod)

    async def _register(self, machine: _Machine) -> None:
        spec = machine.spec
        resources = {"cpu": spec.cpu, "memory": spec.memory, "pods": str(spec.pods), "ephemeral-storage": "1Ti"}
        if spec.gpus:
            resources["nvidia.com/gpu"] = str(spec.gpus)
        node = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": spec.name, "labels": machine.node.labels},
            "spec": {"podCIDR": f"10.244.{machine.number}.0/24", "providerID": f"testbed://{spec.name}"},
            "status": {"capacity": resources, "allocatable": resources} | self._node_status(machine),
        }
        await self._api.create("/api/v1/nodes", node)

    def _node_status(self, machine: _Machine) -> Object:
        now = timestamp()
        fine = {"lastHeartbeatTime": now, "lastTransitionTime": now}
        pressures = ("MemoryPressure", "DiskPressure", "PIDPressure")
        return {
            "conditions": [
                *({"type": kind, "status": "False", "reason": "KubeletHasSufficient", **fine} for kind in pressures),
                {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "test bed", **fine},
            ],
            "addresses": [
                {"type": "InternalIP", "address": machine.node.address},
                {"type": "Hostname", "address": machine.node.name},
            ],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": KUBELET_PORT}},
            "nodeInfo": {
                "kubeletVersion": "v1.36.3",
                "osImage": "servingplan test bed",
                "operatingSystem": "linux",
                "architecture": "amd64",
                "containerRuntimeVersion": "testbed://1",
                "kernelVersion": "",
                "machineID": machine.node.name,
                "systemUUID": machine.node.name,
                "bootID": machine.node.name,
                "kubeProxyVersion": "",
            },
        }

    async def _renew_lease(self, name: str) -> None:
        lease = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": name},
            "spec": {
                "holderIdentity": name,
                "leaseDurationSeconds": _LEASE_S,
                "renewTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            },
        }
        await self._api.apply(f"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{name}", lease)

    async def _heartbeat(self, machine: _Machine) -> None:
        while True:
            if machine.alive:
                with contextlib.suppress(ApiError, aiohttp.ClientError, OSError):
                    await self._renew_lease(machine.spec.name)
                    await self._heal(machine)
            await asyncio.sleep(_HEARTBEAT_S)

    async def _heal(self, machine: _Machine) -> None:
        """Post the node as Ready when the node controller thinks otherwise: a lease alone does not change its mind."""
        node = await self._api.get(f"/api/v1/nodes/{machine.spec.name}")
        ready = next((c["status"] for c in node["status"].get("conditions", []) if c["type"] == "Ready"), "")
        if ready != "True":
            await self._api.merge(f"/api/v1/nodes/{machine.spec.name}/status", {"status": self._node_status(machine)})

    async def _follow_pods(self) -> None:
        async for event in self._api.follow("/api/v1/pods", "fieldSelector=spec.nodeName!="):
            if event.type == "synced":
                present = {pod["metadata"]["uid"] for pod in event.items}
                for uid in [uid for uid in self._workers if uid not in present]:
                    await self._workers[uid].abort()
                for pod in event.items:
                    self._see(pod)
            elif event.type == "changed":
                self._see(event.item)
            elif (worker := self._workers.get(event.item["metadata"]["uid"])) is not None:
                await worker.abort()

    def _see(self, pod: Object) -> None:
        uid = pod["metadata"]["uid"]
        machine = self._machines.get(pod["spec"].get("nodeName", ""))
        if machine is None or not machine.alive:
            return
        if (worker := self._workers.get(uid)) is not None:
            worker.update(pod)
            return
        if pod.get("status", {}).get("phase") in {"Succeeded", "Failed"} and "deletionTimestamp" not in pod["metadata"]:
            return
        address = machine.free_address({worker.address for worker in self._workers.values()})
        worker = PodWorker(pod, machine.node, address, self._kubelet, lambda: self._forget(uid))
        self._workers[uid] = worker
        if "deletionTimestamp" in pod["metadata"]:
            worker.update(pod)

    def _forget(self, uid: str) -> None:
        self._workers.pop(uid, None)

    async def serve_logs(self, certificate: Path, key: Path) -> web.AppRunner:
        """Serve `kubectl logs` on the kubelet's port; the caller cleans the runner up."""
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(certificate, key)
        app = web.Application()
        app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", self._logs)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "0.0.0.0", KUBELET_PORT, ssl_context=tls).start()
        return runner

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        wanted = (request.match_info["namespace"], request.match_info["pod"])
        worker = next((worker for worker in self._workers.values() if worker.name == wanted), None)
        if worker is None:
            raise web.HTTPNotFound(text=f"no pod {'/'.join(wanted)} on this node\n")
        files = sorted((worker.logs / request.match_info["container"]).glob("*.log"), key=lambda file: int(file.stem))
        if request.query.get("previous") == "true":
            files = files[:-1]
        if not files:
            raise web.HTTPNotFound(text="the container has not started\n")
        return await _send_log(request, files[-1])


async def _send_log(request: web.Request, file: Path) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/plain"})
    await response.prepare(request)
    with file.open("rb") as log:
        content = log.read()
        if "tailLines" in request.query:
            lines = int(request.query["tailLines"])
            content = b"".join(content.splitlines(keepends=True)[-lines:]) if lines else b""
        await response.write(content)
        while request.query.get("follow") == "true":
            await asyncio.sleep(_LOG_POLL_S)
            if more := log.read():
                await response.write(more)
    return response
