"""The only writer: server-side apply of what differs, and removal of what is no longer wanted.

An object is written when the hash of what is wanted is not the one it was last written with, or when a field that is wanted
does not have its value any more. The first notices fields that are no longer wanted, the second what others have changed.
Equal worlds therefore write nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
from enum import Enum
from typing import Any

from servingplan.controller.desired import Desired, key_of
from servingplan.controller.kube import Kube
from servingplan.controller.world import ChildKey, World
from servingplan.render import names, router

log = logging.getLogger(__name__)


class Change(Enum):
    """What one object needs."""

    NONE = "keep"
    CREATE = "create"
    UPDATE = "update"
    MEND = "mend"
    """It was last written as it is wanted, and somebody has changed it since."""


async def apply(
    kube: Kube, desired: Desired, world: World, children: dict[ChildKey, dict[str, Any]], plan_key: str
) -> tuple[ChildKey, ...]:
    """Makes one plan's objects what they should be, in an order in which no request meets a gap.

    What starts or grows comes first, then the routing table, then what shrinks or goes: weights leave a replica before the
    replica leaves.

    Args:
        kube: Where to write.
        desired: What should exist.
        world: What is seen.
        children: The plan's own objects as they stand.
        plan_key: ``namespace/name``.

    Returns:
        The objects that others had changed and that are mended now.
    """
    objects = desired.objects
    changes = {key: change(body, children.get(key)) for key, body in objects.items()}
    shrinking = sorted(key for key, body in desired.pools.items() if _shrinks(body, children.get(key)))
    growing = [key for key in desired.pools if key not in shrinking]
    for key in (*growing, key_of(desired.table), *desired.router):
        await _apply(kube, objects[key], changes[key])
    await _stamp(kube, desired, world, plan_key)
    for key in shrinking:
        await _apply(kube, objects[key], changes[key])
    for key in sorted(_removable(children) - objects.keys()):
        log.info("%s: delete %s %s", plan_key, key[0], key[2])
        await kube.delete(*key, uid=children[key]["metadata"]["uid"])
    return tuple(key for key, what in changes.items() if what is Change.MEND)


def change(wanted: dict[str, Any], live: dict[str, Any] | None) -> Change:
    """What has to be done so that a live object, or none, has everything that is wanted of it."""
    if live is None:
        return Change.CREATE
    if live["metadata"].get("annotations", {}).get(names.ANNOTATION_APPLIED) != digest(wanted):
        return Change.UPDATE
    # Items of a list do not say of what kind they are.
    parts = {name: part for name, part in wanted.items() if name not in {"apiVersion", "kind"}}
    return Change.NONE if _holds(parts, live) else Change.MEND


def digest(body: dict[str, Any]) -> str:
    """Sixteen hex digits of an object as it is wanted."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]


def stamped(body: dict[str, Any]) -> dict[str, Any]:
    """The object with its own hash among its annotations."""
    metadata = body["metadata"]
    annotations = metadata.get("annotations", {}) | {names.ANNOTATION_APPLIED: digest(body)}
    return body | {"metadata": metadata | {"annotations": annotations}}


def _holds(wanted: Any, live: Any) -> bool:
    """Whether everything in ``wanted`` is in ``live``, which may hold more: defaults, and what other managers own."""
    if isinstance(wanted, dict):
        return isinstance(live, dict) and all(
            # The API server stores no empty maps and lists, and few fields that are false.
            (key in live and _holds(value, live[key])) or (key not in live and (value is False or value in ({}, [], None)))
            for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        return (
            isinstance(live, list)
            and len(wanted) == len(live)
            and all(_holds(one, other) for one, other in zip(wanted, live, strict=True))
        )
    return bool(wanted == live)


def _shrinks(wanted: dict[str, Any], live: dict[str, Any] | None) -> bool:
    if live is None or wanted["kind"] != "Deployment":
        return False
    return bool(wanted["spec"]["replicas"] < live["spec"].get("replicas", 1))


async def _apply(kube: Kube, wanted: dict[str, Any], what: Change) -> None:
    if what is Change.NONE:
        return
    kind, namespace, name = key_of(wanted)
    log.info("%s/%s: %s %s", namespace, name, what.value, kind)
    await kube.apply(stamped(wanted))


def _removable(children: dict[ChildKey, dict[str, Any]]) -> set[ChildKey]:
    """What a change of the plan can leave over; its one routing table is not among it, and needs no right to be deleted."""
    return {key for key in children if key[0] != "ConfigMap"}


async def _stamp(kube: Kube, desired: Desired, world: World, plan_key: str) -> None:
    """Marks the router pods, which makes kubelet renew their mount of the table at once instead of within a minute or so."""
    for pod in world.pods_of(plan_key, router.COMPONENT):
        if not pod.terminating and pod.annotations.get(names.ANNOTATION_TABLE) != desired.stamp:
            await kube.annotate("Pod", pod.namespace, pod.name, {names.ANNOTATION_TABLE: desired.stamp})
