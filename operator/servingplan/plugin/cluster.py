"""The API server as the user's kubeconfig leads to it, with the user's own rights; every failure is one sentence."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from kubernetes import client, config
from urllib3.exceptions import HTTPError, MaxRetryError
from urllib3.util import Retry

from servingplan.api import v1alpha1
from servingplan.plugin.errors import MISUSED, ForbiddenError, NotFoundError, PluginError, UnreachableError

TIMEOUT_S = 10.0
_MERGE = "application/merge-patch+json"
_PLANS = f"{v1alpha1.PLURAL}.{v1alpha1.GROUP}"

_PATHS = {
    "configmaps": "/api/v1",
    "events": "/api/v1",
    "nodes": "/api/v1",
    "pods": "/api/v1",
    v1alpha1.PLURAL: f"/apis/{v1alpha1.API_VERSION}",
}
_VERBS = {"GET": "get", "PATCH": "patch"}

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Cluster:
    """A connection.

    Attributes:
        namespace: The one that is meant where none is given.
        timeout_s: Longest time that a request may take.
    """

    api: client.ApiClient
    namespace: str
    timeout_s: float = TIMEOUT_S

    def plan(self, namespace: str, name: str) -> Object:
        """One plan.

        Raises:
            NotFoundError: There is none of that name; the message names those that there are.
            PluginError: It cannot be read.
        """
        try:
            return self._request("GET", v1alpha1.PLURAL, namespace, name)
        except NotFoundError as error:
            others = [plan["metadata"]["name"] for plan in self.plans(namespace)]
            there = f"; there {'are' if len(others) > 1 else 'is'} {', '.join(others)}" if others else ""
            raise NotFoundError(f"there is no plan {name} in namespace {namespace}{there}") from error

    def plans(self, namespace: str | None) -> list[Object]:
        """All plans of one namespace, or of all."""
        return self._items(v1alpha1.PLURAL, namespace)

    def patch_plan(self, namespace: str, name: str, patch: Object) -> Object:
        """Merges a patch into a plan; returns the plan."""
        return self._request("PATCH", v1alpha1.PLURAL, namespace, name, body=patch)

    def nodes(self) -> list[Object]:
        """All nodes."""
        return self._items("nodes", None)

    def pods(self) -> list[Object]:
        """The pods of all namespaces."""
        return self._items("pods", None)

    def config_map(self, namespace: str, name: str) -> Object:
        """One ConfigMap."""
        return self._request("GET", "configmaps", namespace, name)

    def events(self, namespace: str, plan: str) -> list[Object]:
        """What was recorded about a plan."""
        selector = {"fieldSelector": f"involvedObject.kind={v1alpha1.KIND},involvedObject.name={plan}"}
        return self._items("events", namespace, selector)

    def _items(self, resource: str, namespace: str | None, query: dict[str, str] | None = None) -> list[Object]:
        items: list[Object] = self._request("GET", resource, namespace, None, query).get("items", [])
        return items

    def _request(
        self,
        method: str,
        resource: str,
        namespace: str | None,
        name: str | None,
        query: dict[str, str] | None = None,
        body: Object | None = None,
    ) -> Object:
        parts = [_PATHS[resource], *(["namespaces", quote(namespace)] if namespace else []), resource]
        path = "/".join([*parts, *([quote(name)] if name else [])]) + (f"?{urlencode(query)}" if query else "")
        method, url, headers, payload, _ = self.api.param_serialize(
            method,
            path,
            header_params={"Accept": "application/json", "Content-Type": _MERGE},
            body=body,
            auth_settings=["BearerToken"],
        )
        try:
            answer = self.api.call_api(method, url, headers, payload, _request_timeout=self.timeout_s)
            data = answer.read()
        except (OSError, HTTPError, client.ApiException) as error:
            raise UnreachableError(f"the API server {self.api.configuration.host} does not answer: {_cause(error)}") from error
        if answer.status >= 400:
            verb = _VERBS[method] if name or method != "GET" else "list"
            raise _refusal(answer.status, data, verb, resource, namespace, name)
        try:
            found: Object = json.loads(data)
        except ValueError as error:
            raise UnreachableError(f"{self.api.configuration.host} answers, but it is no API server") from error
        return found


def connect(kubeconfig: str | None, context: str | None) -> Cluster:
    """By the kubeconfig, as kubectl finds it; in a pod without one as the pod's ServiceAccount.

    Raises:
        PluginError: There is no kubeconfig, or none that can be used.
    """
    configuration = client.Configuration()
    try:
        contexts, active = config.list_kube_config_contexts(config_file=kubeconfig)
        config.load_kube_config(config_file=kubeconfig, context=context, client_configuration=configuration)
        chosen = next((each for each in contexts if each["name"] == context), active)
        namespace = str(chosen.get("context", {}).get("namespace") or "default")
    except (config.ConfigException, OSError, ValueError) as error:
        if kubeconfig and not Path(kubeconfig).expanduser().exists():
            raise PluginError(f"there is no kubeconfig {kubeconfig}", MISUSED) from error
        if kubeconfig or context:
            raise PluginError(f"the kubeconfig cannot be used: {_first_line(error)}", MISUSED) from error
        namespace = _in_cluster(configuration, error)
    # A person waits: what fails is said at once.
    configuration.retries = Retry(total=0)
    return Cluster(client.ApiClient(configuration), namespace)


def _in_cluster(configuration: client.Configuration, why_not: Exception) -> str:
    """Becomes the pod's ServiceAccount; returns the pod's namespace."""
    try:
        config.load_incluster_config(client_configuration=configuration)
    except config.ConfigException as error:
        raise PluginError(
            f"no cluster to ask: {_first_line(why_not)}; name a kubeconfig with --kubeconfig or KUBECONFIG", MISUSED
        ) from error
    return "default"


def _refusal(status: int, data: bytes, verb: str, resource: str, namespace: str | None, name: str | None) -> PluginError:
    """What an answer with an error means to the user."""
    said, details = _said(data)
    where = f" in namespace {namespace}" if namespace else " of the cluster"
    kind = _PLANS if resource == v1alpha1.PLURAL else resource
    if status == 401:
        return ForbiddenError("the API server does not know who you are: log in again, or correct the user of the kubeconfig")
    if status == 403:
        user = re.search(r'User "([^"]+)"', said)
        return ForbiddenError(f"{user[1] if user else 'the user of the kubeconfig'} may not {verb} {kind}{where}")
    if status == 404 and resource == v1alpha1.PLURAL and not details.get("name"):
        return PluginError(f"the cluster does not know {_PLANS}: install servingplan there first (its chart brings the CRD)")
    if status == 404:
        return NotFoundError(f"there is no {resource.removesuffix('s')} {name}{where}")
    if status in {400, 409, 422}:
        return PluginError(f"the API server refuses to {verb} {kind} {name}: {said}")
    return UnreachableError(f"the API server fails to {verb} {kind}: {status} {said}".rstrip())


def _said(data: bytes) -> tuple[str, Object]:
    try:
        body = json.loads(data)
        return str(body.get("message", "")), body.get("details") or {}
    except (ValueError, AttributeError):
        return data[:200].decode(errors="replace").strip(), {}


def _cause(error: Exception) -> str:
    inner = error.reason if isinstance(error, MaxRetryError) and error.reason else error
    text = _first_line(inner)
    # urllib3 puts its connection object in front.
    return re.sub(r"^.*(object at 0x[0-9a-f]+>|HTTPS?Connection(Pool)?\([^)]*\)): ", "", text)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
