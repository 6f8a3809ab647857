"""The few requests that the operator makes of the API server, over the official client's transport."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from kubernetes.aio import client, config

from servingplan.api import v1alpha1
from servingplan.render.names import FIELD_MANAGER

_TIMEOUT_S = 30.0
_NOT_FOUND = 404
_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"

PATHS = {
    "ConfigMap": ("/api/v1", "configmaps"),
    "Deployment": ("/apis/apps/v1", "deployments"),
    "Event": ("/api/v1", "events"),
    "ModelServingPlan": (f"/apis/{v1alpha1.API_VERSION}", v1alpha1.PLURAL),
    "Pod": ("/api/v1", "pods"),
    "PodDisruptionBudget": ("/apis/policy/v1", "poddisruptionbudgets"),
    "Service": ("/api/v1", "services"),
}


class KubeError(Exception):
    """The API server refused a request or did not answer.

    Attributes:
        status: HTTP status; 0 where there was no answer.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Kube:
    """A connection to the API server."""

    api: client.ApiClient

    @classmethod
    async def connect(cls) -> Kube:
        """In a pod as its ServiceAccount, elsewhere by the kubeconfig."""
        configuration = client.Configuration()
        try:
            config.load_incluster_config(client_configuration=configuration)
        except config.ConfigException:
            await config.load_kube_config(client_configuration=configuration)
        return cls(client.ApiClient(configuration))

    async def close(self) -> None:
        """Gives the connections back."""
        await self.api.close()

    async def get(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        """One object, or None where there is none."""
        try:
            found: dict[str, Any] = await self._request("GET", _path(kind, namespace, name))
        except KubeError as error:
            if error.status == _NOT_FOUND:
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
        applied: dict[str, Any] = await self._request("PATCH", where, query=query, body=body, content_type=_APPLY)
        return applied

    async def annotate(self, kind: str, namespace: str, name: str, annotations: dict[str, str]) -> None:
        """Adds annotations to an object that is there; nothing where it is gone."""
        body = {"metadata": {"annotations": annotations}}
        try:
            await self._request("PATCH", _path(kind, namespace, name), body=body, content_type=_MERGE)
        except KubeError as error:
            if error.status != _NOT_FOUND:
                raise

    async def delete(self, kind: str, namespace: str, name: str, uid: str) -> None:
        """Deletes this very object, not a later one of its name; nothing where it is gone."""
        body = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        try:
            await self._request("DELETE", _path(kind, namespace, name), body=body)
        except KubeError as error:
            if error.status not in {_NOT_FOUND, 409}:
                raise

    async def create(self, kind: str, namespace: str, body: dict[str, Any]) -> None:
        """Creates an object."""
        await self._request("POST", _path(kind, namespace), body=body)

    async def _request(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None = None,
        body: dict[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> Any:
        method, url, headers, payload, _ = await self.api.param_serialize(
            method,
            path,
            query_params=list((query or {}).items()),
            header_params={"Accept": "application/json", "Content-Type": content_type},
            body=body,
            auth_settings=["BearerToken"],
        )
        try:
            answer = await self.api.call_api(method, url, headers, payload, _request_timeout=_TIMEOUT_S)
            data = await answer.read()
        except (OSError, TimeoutError, client.ApiException) as error:
            message = f"{method} {path}: {error or type(error).__name__}"
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
