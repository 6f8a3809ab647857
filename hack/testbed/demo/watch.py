"""The demo's eyes and hands: the API server to look, kubectl to act, as a user would."""

import asyncio
import json
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, TypeVar

from kubernetes import config
from kubernetes.client import ApiException, CoreV1Api, CustomObjectsApi
from urllib3.exceptions import HTTPError

from testbed.cluster import Cluster
from testbed.demo.view import Node, Snapshot, nodes, snapshot

_LOOK_EVERY_S = 1.0
_TRIES = 5
_TIMEOUT_S = 5.0

Answer = TypeVar("Answer")


class DemoError(RuntimeError):
    """Something did not come up; the message is the one sentence that the user reads."""


class Watch:
    """One plan of a cluster."""

    def __init__(self, cluster: Cluster, namespace: str, plan: str) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.plan = plan
        client = config.new_client_from_config(str(cluster.kubeconfig))
        self._core, self._custom = CoreV1Api(client), CustomObjectsApi(client)

    async def kubectl(self, *arguments: str) -> str:
        """What kubectl prints.

        Raises:
            DemoError: It failed; the message is what it said.
        """
        try:
            done = await asyncio.to_thread(self.cluster.kubectl, *arguments)
        except RuntimeError as error:
            raise DemoError(str(error)) from error
        return done.stdout

    async def snapshot(self) -> Snapshot:
        """The plan and its pods now.

        Raises:
            DemoError: The plan does not exist, or the API server cannot be asked.
        """
        return await self._asked(self._snapshot)

    async def _asked(self, question: Callable[[], Answer]) -> Answer:
        """A display must not end the demo because a crowded machine kept the API server from one answer."""
        failure: Exception | None = None
        for _ in range(_TRIES):
            try:
                return await asyncio.to_thread(question)
            except (ApiException, HTTPError) as error:
                failure = error
                await asyncio.sleep(_LOOK_EVERY_S)
        raise DemoError(f"the API server did not answer {_TRIES} times, last with: {failure}") from failure

    def _snapshot(self) -> Snapshot:
        # Not by kubectl: a process every second would take its share of a machine that is there to serve the load.
        kind = ("servingplan.io", "v1alpha1", self.namespace, "modelservingplans", self.plan)
        try:
            plan: Any = self._custom.get_namespaced_custom_object(*kind, _request_timeout=_TIMEOUT_S)
        except ApiException as error:
            if error.status == HTTPStatus.NOT_FOUND:
                raise DemoError(f"there is no plan {self.plan} in namespace {self.namespace}") from error
            raise
        pods = _items(self._core.list_namespaced_pod, self.namespace)
        events = _items(self._core.list_namespaced_event, self.namespace)
        return snapshot(time.time(), plan, pods, events)

    async def nodes(self) -> tuple[Node, ...]:
        """Nodes that have GPUs."""
        return nodes(await self._asked(lambda: _items(self._core.list_node)))

    async def wait_for(
        self, done: Callable[[Snapshot], bool], what: str, deadline_s: float, seen: Callable[[Snapshot], None]
    ) -> Snapshot:
        """Look until `done`; `seen` is shown every look.

        Raises:
            DemoError: It is not so within `deadline_s`; the message quotes the plan's Ready condition.
        """
        end_s = time.monotonic() + deadline_s
        while True:
            found = await self.snapshot()
            seen(found)
            if done(found):
                return found
            if time.monotonic() > end_s:
                ready = found.condition("Ready")
                says = f"{ready.reason}: {ready.message}" if ready else "the operator has not decided on it"
                raise DemoError(f"no {what} within {deadline_s:g} s; the plan says {says}")
            await asyncio.sleep(_LOOK_EVERY_S)


def _items(listing: Callable[..., Any], *arguments: str) -> list[dict[str, Any]]:
    """What a list call of the client finds, as the API server wrote it."""
    items: list[dict[str, Any]] = json.loads(listing(*arguments, _preload_content=False, _request_timeout=_TIMEOUT_S).data)[
        "items"
    ]
    return items
