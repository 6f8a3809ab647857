"""Names, labels and ownership: everything by which the operator finds its own objects again.

Names are functions of the plan alone, so that two passes over equal worlds name equal objects.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

from servingplan.api import v1alpha1

FIELD_MANAGER = "servingplan"
LABEL_PLAN = f"{v1alpha1.GROUP}/plan"
LABEL_MODEL = f"{v1alpha1.GROUP}/model"
LABEL_SETUP = f"{v1alpha1.GROUP}/setup"
LABEL_POOL = f"{v1alpha1.GROUP}/pool"
ANNOTATION_APPLIED = f"{v1alpha1.GROUP}/applied"
"""Hash of the object as the operator last wrote it; another hash means that it has to be written."""
ANNOTATION_TABLE = f"{v1alpha1.GROUP}/table"
"""Digest and revision of the routing table, stamped on router pods so that kubelet renews their mount at once."""

VLLM_PORT = 8000
POOL_NAME_LENGTH = 52
"""A ReplicaSet adds 11 characters to a Deployment's name, and a pod's name must remain a DNS label of 63."""

MANAGED = {"app.kubernetes.io/managed-by": FIELD_MANAGER}


@dataclass(frozen=True, slots=True)
class Owner:
    """The plan that owns an object.

    Attributes:
        uid: UID of the plan, by which the garbage collector finds its children.
    """

    namespace: str
    name: str
    uid: str


def pool_name(plan: str, model: str, setup: str) -> str:
    """Name of the Deployment and headless Service of one setup of one model: a DNS label, unique within the namespace."""
    readable = re.sub(r"[^a-z0-9]+", "-", f"{plan}-{model}-{setup}".lower()).strip("-")
    # "a-b"/"c" and "a"/"b-c" read alike, as do names that differ in case, so every name carries the hash of what it stands for.
    digest = hashlib.sha256("\0".join((plan, model, setup)).encode()).hexdigest()[:6]
    return f"{readable[: POOL_NAME_LENGTH - 7].rstrip('-')}-{digest}"


def router_name(plan: str) -> str:
    """Name of the router's Deployment, Service and PodDisruptionBudget."""
    return f"{plan}-router"


def table_name(plan: str) -> str:
    """Name of the ConfigMap that holds the routing table."""
    return f"{plan}-routing"


def table_stamp(digest: str, revision: int) -> str:
    """Which publication of which routing table: what ``ANNOTATION_TABLE`` holds."""
    return f"{digest}.{revision}"


def pool_address(namespace: str, pool: str) -> str:
    """DNS name that resolves to the ready pods of a pool; the dot at its end spares the resolver the search list."""
    return f"{pool}.{namespace}.svc.cluster.local."


def labels(owner: Owner, component: str) -> dict[str, str]:
    """Labels of every object of a plan; ``component`` is ``model-server`` or ``router``."""
    return {
        "app.kubernetes.io/name": "servingplan",
        "app.kubernetes.io/instance": owner.name,
        "app.kubernetes.io/component": component,
        "app.kubernetes.io/part-of": owner.name,
        **MANAGED,
        LABEL_PLAN: owner.name,
    }


def selector(owner: Owner, component: str) -> dict[str, str]:
    """The labels that select pods; a subset of ``labels`` that never changes, because a selector cannot."""
    return {"app.kubernetes.io/component": component, LABEL_PLAN: owner.name}


def metadata(owner: Owner, name: str, component: str, extra_labels: dict[str, str] | None = None) -> dict[str, Any]:
    """Metadata of a child: in the plan's namespace, with its labels, owned by it."""
    return {
        "name": name,
        "namespace": owner.namespace,
        "labels": labels(owner, component) | (extra_labels or {}),
        "ownerReferences": [
            {
                "apiVersion": v1alpha1.API_VERSION,
                "kind": v1alpha1.KIND,
                "name": owner.name,
                "uid": owner.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }
