"""Reads from the cluster what a question needs, and no more than that."""

from __future__ import annotations

from typing import Any

from servingplan.plugin.cluster import Cluster
from servingplan.plugin.errors import ForbiddenError, NotFoundError, PluginError
from servingplan.plugin.question import Gathered, references, sharing

Object = dict[str, Any]


def gather(cluster: Cluster, body: Object, *, alone: bool, with_nodes: bool) -> Gathered:
    """What is needed to solve a plan.

    Args:
        cluster: Where to read.
        body: The plan, as it was read.
        alone: Whether other plans keep the GPUs that they hold.
        with_nodes: Whether nodes and pods are needed.

    Raises:
        PluginError: Something that is needed is not there, or may not be read.
    """
    notes: list[str] = []
    others = [] if alone or not with_nodes else sharing(body, _plans(cluster, body, notes))
    config_maps = _config_maps(cluster, body)
    kept = []
    for other in others:
        try:
            config_maps += _config_maps(cluster, other)
        except PluginError as error:
            notes.append(f"plan {_key(other)} is taken to keep what it holds: {error}")
        else:
            kept.append(other)
    if kept:
        notes.append(f"decided together with {', '.join(map(_key, kept))}, which want the same GPUs (--alone leaves them out)")
    return Gathered(body, tuple(kept), tuple(config_maps), _nodes(cluster) if with_nodes else None, tuple(notes))


def _plans(cluster: Cluster, body: Object, notes: list[str]) -> list[Object]:
    try:
        return cluster.plans(None)
    except ForbiddenError:
        notes.append("plans of other namespaces may not be read: they are taken to keep what they hold")
        return cluster.plans(body["metadata"]["namespace"])


def _config_maps(cluster: Cluster, body: Object) -> list[Object]:
    found = []
    for namespace, name in sorted(references(body)):
        try:
            # What is read one by one says its own kind; what is read as a list does not.
            found.append(cluster.config_map(namespace, name) | {"kind": "ConfigMap"})
        except NotFoundError as error:
            raise PluginError(f"plan {_key(body)} names the ConfigMap {name} for a profile, which is not there") from error
    return found


def _nodes(cluster: Cluster) -> tuple[Object, ...]:
    try:
        nodes, pods = cluster.nodes(), cluster.pods()
    except ForbiddenError as error:
        raise ForbiddenError(
            f"{error}, so it cannot be counted which GPUs are free: say how many there are with --gpus KIND=N"
        ) from error
    return (*({**node, "kind": "Node"} for node in nodes), *({**pod, "kind": "Pod"} for pod in pods))


def _key(body: Object) -> str:
    return f"{body['metadata']['namespace']}/{body['metadata']['name']}"
