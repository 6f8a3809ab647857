"""A pod on a node of the bed: volumes, network, containers, status, and its end."""

import asyncio
import contextlib
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from testbed import images, sandbox
from testbed.api import Api, ApiError, Object
from testbed.container import Container, Pod, WaitingError, timestamp
from testbed.mounts import VolumeError, Volumes
from testbed.netns import PodNetwork
from testbed.tools import Tools

_VOLUME_RETRY_S = 0.5
_DEFAULT_GRACE_S = 30
_PUSH_RETRY_S = 0.5


@dataclass(frozen=True, slots=True)
class Node:
    """The node a pod runs on, as its pods see it."""

    name: str
    address: str
    labels: dict[str, str]


@dataclass(frozen=True, slots=True)
class Kubelet:
    """What all pods of the bed share.

    Attributes:
        api: Client with a node's powers.
        tools: Programs behind the images.
        session: HTTP session for probes; keeps no connection.
        surroundings: What containers get from the cluster.
        volatile: Folder for volumes and container roots.
        logs: Folder for container logs.
        image_env: Extra environment by image name without tag, such as `vllm/vllm-openai`.
        backoff_s: Wait before the second restart of a failing container.
        refresh_s: How often mounted ConfigMaps are renewed without an event; each pod adds its own jitter.
        new_network: Makes a pod's network out of its address.
    """

    api: Api
    tools: Tools
    session: aiohttp.ClientSession
    surroundings: sandbox.Surroundings
    volatile: Path
    logs: Path
    image_env: dict[str, dict[str, str]]
    backoff_s: float = 1.0
    refresh_s: float = 45.0
    new_network: Callable[[str], PodNetwork] = PodNetwork


class PodWorker:
    """Runs one pod from the moment it is bound until it is gone.

    Args:
        pod: The pod object.
        node: Its node.
        address: Its IP.
        kubelet: What it shares with the others.
        gone: Called once nothing of it is left on this node.
    """

    def __init__(self, pod: Object, node: Node, address: str, kubelet: Kubelet, gone: Callable[[], None]) -> None:
        self._pod = pod
        self._node = node
        self.address = address
        self._kubelet = kubelet
        self._gone = gone
        self._network: PodNetwork | None = None
        self._changed = asyncio.Event()
        self._renew = asyncio.Event()
        self._start_time = timestamp()
        self._pushed: Object = {}
        self._transitions: dict[str, tuple[str, str]] = {}
        self._phase = "Pending"
        meta = pod["metadata"]
        self._directory = kubelet.volatile / "pods" / meta["uid"]
        self.logs = kubelet.logs / "pods" / f"{meta['namespace']}_{meta['name']}_{meta['uid']}"
        group = pod["spec"].get("securityContext", {}).get("fsGroup")
        self._volumes = Volumes(kubelet.api, self._directory / "volumes", group)
        self._init: list[Container] = []
        self._main: list[Container] = []
        self._tasks = [asyncio.create_task(work) for work in (self._live(), self._push_status(), self._renew_volumes())]
        self._end_task: asyncio.Task[None] | None = None

    @property
    def node_name(self) -> str:
        """Name of the node it runs on."""
        return self._node.name

    @property
    def name(self) -> tuple[str, str]:
        """Namespace and name."""
        return self._pod["metadata"]["namespace"], self._pod["metadata"]["name"]

    def update(self, pod: Object) -> None:
        """Take note of a new version of the pod object."""
        meta, old = pod["metadata"], self._pod["metadata"]
        self._pod = pod
        if any(meta.get(key) != old.get(key) for key in ("annotations", "labels")):
            self._renew.set()
        if "deletionTimestamp" in meta and self._end_task is None:
            self._end_task = asyncio.create_task(self._terminate(meta.get("deletionGracePeriodSeconds", _DEFAULT_GRACE_S)))
        elif not _agrees(pod.get("status", {}), self._pushed):
            # The node controller writes Ready=False too; unanswered, a rollout would wait for ever.
            self._pushed = {}
            self._changed.set()

    async def abort(self) -> None:
        """Let everything of the pod vanish at once, without a word to the API server."""
        for task in [*self._tasks, *([self._end_task] if self._end_task else [])]:
            if task is not asyncio.current_task():
                task.cancel()
        for container in [*self._init, *self._main]:
            container.kill()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._release()

    def _release(self) -> None:
        if self._network is not None:
            self._network.close()
        shutil.rmtree(self._directory, ignore_errors=True)
        self._gone()

    async def _live(self) -> None:
        await self._make_volumes()
        self._network = await asyncio.to_thread(self._kubelet.new_network, self.address)
        spec = self._pod["spec"]
        shared = Pod(
            address=self.address,
            netns_fd=self._network.fd,
            session=self._kubelet.session,
            restart_policy=spec.get("restartPolicy", "Always"),
            grace_s=spec.get("terminationGracePeriodSeconds", _DEFAULT_GRACE_S),
            backoff_s=self._kubelet.backoff_s,
            changed=self._changed.set,
            specify=self._specify,
        )
        self._init = [self._container(container, shared, once=True) for container in spec.get("initContainers", [])]
        self._main = [self._container(container, shared, once=False) for container in spec["containers"]]
        for container in self._init:
            await container.run()
            if container.exit_code != 0:
                self._phase = "Failed"
                self._changed.set()
                return
        self._phase = "Running"
        async with asyncio.TaskGroup() as group:
            for container in self._main:
                container.wait_for("ContainerCreating")
                group.create_task(container.run())
        if self._end_task is None:
            self._phase = "Succeeded" if all(container.exit_code == 0 for container in self._main) else "Failed"
            self._changed.set()

    def _container(self, spec: Object, shared: Pod, *, once: bool) -> Container:
        directory = self._directory / "containers" / spec["name"]
        directory.mkdir(parents=True, exist_ok=True)
        return Container(spec, shared, directory, self.logs / spec["name"], once)

    async def _make_volumes(self) -> None:
        while True:
            try:
                await self._volumes.refresh(self._with_addresses())
            except (VolumeError, ApiError, aiohttp.ClientError, OSError):
                self._changed.set()
                await asyncio.sleep(_VOLUME_RETRY_S)
            else:
                return

    async def _renew_volumes(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._renew.wait(), self._kubelet.refresh_s * random.uniform(0.7, 1.3))
            self._renew.clear()
            if self._network is not None:
                with contextlib.suppress(VolumeError, ApiError, aiohttp.ClientError, OSError):
                    await self._volumes.refresh(self._with_addresses())

    async def _specify(self, container: Object, directory: Path) -> dict[str, Any]:
        kubelet = self._kubelet
        image = images.resolve(container["image"], kubelet.tools, self._node.labels)
        if image is None:
            raise WaitingError("ErrImagePull", f"the test bed has no image {container['image']!r}")
        try:
            pod = self._with_addresses()
            env = await sandbox.environment(kubelet.api, pod, container, image, kubelet.surroundings)
            env = self._image_env(container["image"]) | env
            return sandbox.specification(pod, container, image, env, self._volumes, directory, kubelet.surroundings)
        except (VolumeError, sandbox.ConfigError) as error:
            raise WaitingError("CreateContainerConfigError", str(error)) from error
        except (ApiError, aiohttp.ClientError) as error:
            raise WaitingError("ContainerCreating", str(error)) from error

    def _with_addresses(self) -> Object:
        """The pod with the addresses it has here: the API server learns them only from the next status."""
        status = self._pod.get("status", {}) | {"podIP": self.address, "hostIP": self._node.address}
        return self._pod | {"status": status}

    def _image_env(self, image: str) -> dict[str, str]:
        return {
            key: value
            for name, env in self._kubelet.image_env.items()
            if f"/{name}" in f"/{image.partition('@')[0]}"
            for key, value in env.items()
        }

    async def _terminate(self, grace_s: float) -> None:
        if self._main or self._init:
            await asyncio.gather(*(container.stop(grace_s) for container in [*self._init, *self._main]))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        meta = self._pod["metadata"]
        path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": meta["uid"]}}
        while True:
            try:
                await self._push_once()
                await self._kubelet.api.delete(path, options)
                break
            except ApiError as error:
                if error.is_gone:
                    break
                await asyncio.sleep(_PUSH_RETRY_S)
            except (aiohttp.ClientError, OSError):
                await asyncio.sleep(_PUSH_RETRY_S)
        self._release()

    async def _push_status(self) -> None:
        self._changed.set()
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                await self._push_once()
            except ApiError as error:
                if error.is_gone:
                    continue
                await self._push_later()
            except (aiohttp.ClientError, OSError):
                await self._push_later()

    async def _push_later(self) -> None:
        await asyncio.sleep(_PUSH_RETRY_S)
        self._changed.set()

    async def _push_once(self) -> None:
        status = self._status()
        if status == self._pushed:
            return
        meta = self._pod["metadata"]
        path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}/status"
        await self._kubelet.api.merge(path, {"metadata": {"uid": meta["uid"]}, "status": status})
        self._pushed = status

    def _status(self) -> Object:
        initialized = all(container.exit_code == 0 for container in self._init) and bool(self._main)
        ready = bool(self._main) and self._phase == "Running" and all(c.ready for c in self._main)
        unready = [c.spec["name"] for c in self._main if not c.ready]
        reason = "" if ready else "PodCompleted" if self._phase == "Succeeded" else "ContainersNotReady"
        message = "" if ready else f"containers with unready status: [{' '.join(unready)}]"
        status: Object = {
            "phase": self._phase,
            "hostIP": self._node.address,
            "hostIPs": [{"ip": self._node.address}],
            "startTime": self._start_time,
            "qosClass": self._pod.get("status", {}).get("qosClass", "Burstable"),
            "conditions": [
                self._condition("PodReadyToStartContainers", value=self._network is not None),
                self._condition("Initialized", value=initialized),
                self._condition("ContainersReady", value=ready, reason=reason, message=message),
                self._condition("Ready", value=ready, reason=reason, message=message),
            ],
            "containerStatuses": [c.status() for c in self._main] or self._placeholders("containers"),
        }
        if self._pod["spec"].get("initContainers"):
            status["initContainerStatuses"] = [c.status() | {"ready": c.exit_code == 0} for c in self._init] or (
                self._placeholders("initContainers")
            )
        if self._network is not None:
            status |= {"podIP": self.address, "podIPs": [{"ip": self.address}]}
        return status

    def _placeholders(self, kind: str) -> list[Object]:
        return [
            {
                "name": container["name"],
                "image": container["image"],
                "imageID": "",
                "state": {"waiting": {"reason": "ContainerCreating"}},
                "ready": False,
                "started": False,
                "restartCount": 0,
            }
            for container in self._pod["spec"][kind]
        ]

    def _condition(self, kind: str, *, value: bool, reason: str = "", message: str = "") -> Object:
        text = "True" if value else "False"
        if self._transitions.get(kind, ("", ""))[0] != text:
            self._transitions[kind] = (text, timestamp())
        condition = {"type": kind, "status": text, "lastTransitionTime": self._transitions[kind][1]}
        return condition | {"reason": reason or None, "message": message or None}


def _agrees(server: Object, pushed: Object) -> bool:
    """Whether the API server still shows the conditions and phase that were pushed last."""
    if not pushed:
        return True
    shown = {condition["type"]: condition["status"] for condition in server.get("conditions", [])}
    wanted = {condition["type"]: condition["status"] for condition in pushed["conditions"]}
    return server.get("phase") == pushed["phase"] and all(shown.get(kind) == text for kind, text in wanted.items())
