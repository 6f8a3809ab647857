"""The few requests that the operator makes of the API server, over the official client's transport."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

import aiohttp
from kubernetes.aio import client, config

from servingplan.api import v1alpha1
from servingplan.render.names import FIELD_MANAGER

NOT_FOUND, CONFLICT = 404, 409

_TIMEOUT_S = 30.0
_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"

PATHS = {
    "ConfigMap": ("/api/v1", "configmaps"),
    "Deployment": ("/apis/apps/v1", "deployments"),
    "Event": ("/api/v1", "events"),
    "Lease": ("/apis/coordination.k8s.io/v1", "leases"),
    "ModelServingPlan": (f"/apis/{v1alpha1.API_VERSION}", v1alpha1.PLURAL),
    "Pod": ("/api/v1", "pods"),
    "PodDisruptionBudget": ("/apis/policy/v1", "poddisruptionbudgets"),
    "RoleBinding": ("/apis/rbac.authorization.k8s.io/v1", "rolebindings"),
    "Service": ("/api/v1", "services"),
    "ServiceAccount": ("/api/v1", "serviceaccounts"),
}


class KubeError(Exception):
    """The API server refused a request or did not answer.

    Attributes:
        status: HTTP status; 0 where there was no answer.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class NotLeader(Exception):  # noqa: N818 - nothing is wrong with a process that has to hold back
    """A write was held back: this process does not lead, or can no longer be sure that it does."""


def _unguarded() -> float:
    return _TIMEOUT_S


def _untold(_: str) -> None:
    """Nobody counts."""


@dataclass(frozen=True, slots=True)
class Kube:
    """A connection to the API server.

    Attributes:
        api: The transport.
        guard: Asked before every write within how many seconds it has to end; raises ``NotLeader`` where it must not begin.
        wrote: Told the kind of every object that was written.
    """

    api: client.ApiClient
    guard: Callable[[], float] = _unguarded
    wrote: Callable[[str], None] = _untold

    @classmethod
    async def connect(cls) -> Kube:
        """In a pod as its ServiceAccount, elsewhere by the kubeconfig."""
        configuration = client.Configuration()
        try:
            config.load_incluster_config(client_configuration=configuration)
        except config.ConfigException:
            await config.load_kube_config(client_configuration=configuration)
        return cls(client.ApiClient(configuration))

    def guarded(self, guard: Callable[[], float]) -> Kube:
        """The same connection for one who may write only while ``guard`` allows it; closing either closes both."""
        return replace(self, guard=guard)

    def counted(self, wrote: Callable[[str], None]) -> Kube:
        """The same connection with ``wrote`` told of every write; closing either closes both."""
        return replace(self, wrote=wrote)

    async def close(self) -> None:
        """Gives the connections back."""
        await self.api.close()

    async def get(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        """One object, or None where there is none."""
        try:
            found: dict[str, Any] = await self._request("GET", _path(kind, namespace, name))
        except KubeError as error:
            if error.status == NOT_FOUND:
                return None
            raise
        return found

    async def list(self, kind: str, namespace: str | None, labels: dict[str, str]) -> list[dict[str, Any]]:
        """Objects that carry the labels, of one namespace or of all."""
        selector = ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
        answer = await self._request("GET", _path(kind, namespace), query={"labelSelector": selector})
        items: list[dict[str, Any]] = answer.get("items", [])
        return items

    async def apply(self, body: dict[str, Any], *, status: bool = False) -> dict[str, Any]:
        """Server-side apply: makes the object exist and the named fields have these values, whoever held them before."""
        where = _path(body["kind"], body["metadata"]["namespace"], body["metadata"]["name"]) + ("/status" if status else "")
        query = {"fieldManager": FIELD_MANAGER, "force": "true"}
        kind = body["kind"] + ("/status" if status else "")
        applied: dict[str, Any] = await self._write("PATCH", where, kind, query=query, body=body, content_type=_APPLY)
        return applied

    async def annotate(self, kind: str, namespace: str, name: str, annotations: dict[str, str]) -> None:
        """Adds annotations to an object that is there; nothing where it is gone."""
        body = {"metadata": {"annotations": annotations}}
        try:
            await self._write("PATCH", _path(kind, namespace, name), kind, body=body, content_type=_MERGE)
        except KubeError as error:
            if error.status != NOT_FOUND:
                raise

    async def delete(self, kind: str, namespace: str, name: str, uid: str) -> None:
        """Deletes this very object, not a later one of its name; nothing where it is gone."""
        body = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        try:
            await self._write("DELETE", _path(kind, namespace, name), kind, body=body)
        except KubeError as error:
            if error.status not in {NOT_FOUND, CONFLICT}:
                raise

    async def create(self, kind: str, namespace: str, body: dict[str, Any]) -> dict[str, Any]:
        """Creates an object; returns it as it is stored.

        Raises:
            KubeError: With ``CONFLICT`` where there is one of its name.
        """
        created: dict[str, Any] = await self._write("POST", _path(kind, namespace), kind, body=body)
        return created

    async def replace(self, body: dict[str, Any]) -> dict[str, Any]:
        """Replaces an object that nobody has changed since it was read; returns it as it is stored.

        Raises:
            KubeError: With ``CONFLICT`` where its ``resourceVersion`` is no longer the present one.
        """
        kind, metadata = body["kind"], body["metadata"]
        where = _path(kind, metadata["namespace"], metadata["name"])
        replaced: dict[str, Any] = await self._write("PUT", where, kind, body=body)
        return replaced

    async def _write(
        self,
        method: str,
        path: str,
        kind: str,
        *,
        body: dict[str, Any],
        query: dict[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Any:
        writing = asyncio.create_task(self._request(method, path, query, body, content_type, guard=self.guard))
        try:
            answer = await (writing if self.guard is _unguarded else asyncio.shield(writing))
        except asyncio.CancelledError:
            # Whoever ends the loop gives the Lease back next, and by then nothing may be under way any more.
            await asyncio.wait([writing])
            raise
        self.wrote(kind)
        return answer

    async def _request(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None = None,
        body: dict[str, Any] | None = None,
        content_type: str = "application/json",
        guard: Callable[[], float] | None = None,
    ) -> Any:
        method, url, headers, payload, _ = await self.api.param_serialize(
            method,
            path,
            query_params=list((query or {}).items()),
            header_params={"Accept": "application/json", "Content-Type": content_type},
            body=body,
            auth_settings=["BearerToken"],
        )
        limit_s = _TIMEOUT_S
        if guard is not None:
            # As late as possible: before this a token may have been renewed, and that may have taken its time.
            limit_s = min(limit_s, guard())
            # The API server is told too. It would else carry out what its client has stopped waiting for.
            url += f"{'&' if '?' in url else '?'}timeout={limit_s:.3f}s"
        # Longer limits would be rounded up to the next second.
        timeout = aiohttp.ClientTimeout(total=limit_s, ceil_threshold=_TIMEOUT_S)
        try:
            answer = await self.api.call_api(method, url, headers, payload, _request_timeout=timeout)
            data = await answer.read()
        except (OSError, TimeoutError, aiohttp.ClientError, client.ApiException) as error:
            message = f"{method} {path}: {str(error) or type(error).__name__}"
            raise KubeError(0, message) from error
        if answer.status >= 400:
            message = f"{method} {path}: {answer.status} {_said(data)}"
            raise KubeError(answer.status, message)
        return json.loads(data)


def _path(kind: str, namespace: str | None, name: str | None = None) -> str:
    prefix, plural = PATHS[kind]
    parts = [prefix, *(["namespaces", quote(namespace)] if namespace else []), plural, *([quote(name)] if name else [])]
    return "/".join(parts)


def _said(data: bytes) -> str:
    try:
        return str(json.loads(data).get("message", ""))[:500]
    except ValueError:
        return data[:200].decode(errors="replace")
