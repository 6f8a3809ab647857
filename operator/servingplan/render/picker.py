"""The picker in a router's pod: its container, what it may read, and how it ends.

Envoy goes on by the weights when its picker is gone, but a container that ends makes its pod unready, and no Service sends
requests to a pod that is not ready. So nothing that befalls the picker may show in the pod's readiness: it has no probe, and a
small loop is the container's first process. The loop starts the picker again when it ends, and ends it when it has not
answered for half a minute or a little more. Whether requests are shown to it is decided by Envoy's own health check.

It learns the routing table from the mounted ConfigMap, at the moment at which Envoy does, and the pods from EndpointSlices,
which is all that it may read. Its ServiceAccount is bound to a ClusterRole that the operator's chart brings: the operator
needs leave to bind that one role, not to write roles of its own. The token is mounted in the picker alone.

When the pod is deleted the picker stays until Envoy has sent its last answer.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from servingplan.api import v1alpha1
from servingplan.render import names
from servingplan.render.envoy.picker import PICKER_SOCKET
from servingplan.render.picking import PREDICTOR_FOLDER

CONTAINER = "picker"
COMPONENT = "router"
HTTP_PORT = 9903
TABLE_FOLDER = "/etc/servingplan/routing"
DRAIN_S = 20

_SOCKET_FOLDER = PICKER_SOCKET.rpartition("/")[0]
_ACCOUNT_FOLDER = "/var/run/secrets/kubernetes.io/serviceaccount"
_TOKEN_S = 3607
"""Seconds that a token lives; kubelet mounts the next one long before. Like the default of Kubernetes itself."""

# bash alone, because the image has neither an init process nor curl. `wait` returns early when a signal comes, and a picker
# that closes a connection must not end the loop that writes to it.
_KEPT_RUNNING = f"""
answers() {{
  exec 3<>/dev/tcp/127.0.0.1/{HTTP_PORT} || return
  printf 'GET /healthz HTTP/1.1\\r\\nhost: picker\\r\\nconnection: close\\r\\n\\r\\n' >&3
  IFS= read -r -t 5 status <&3
  exec 3>&-
  [[ "$status" == *' 200 '* ]]
}}
trap '' PIPE
trap 'ending=yes; kill -TERM "$picker"' TERM INT
while [[ -z "$ending" ]]; do
  "$@" &
  picker=$! silent=0
  while [[ -z "$ending" ]] && kill -0 "$picker" 2>/dev/null; do
    sleep 5 & wait -n "$picker" $!
    if answers 2>/dev/null; then silent=0; elif (( ++silent >= 6 )); then kill -KILL "$picker"; fi
  done
  while kill -0 "$picker" 2>/dev/null; do wait "$picker"; done
  [[ -n "$ending" ]] || sleep 1
done
"""


@dataclass(frozen=True, slots=True)
class PickerSettings:
    """What the operator's flags say of every picker.

    Attributes:
        image: The operator's own image.
        cluster_role: Name of the ClusterRole that lets a picker read EndpointSlices.
    """

    image: str
    cluster_role: str


def account(owner: names.Owner, settings: PickerSettings) -> list[dict[str, Any]]:
    """The ServiceAccount of a plan's router pods, and the binding that lets it read the EndpointSlices of its namespace."""
    name = names.router_name(owner.name)
    group = "rbac.authorization.k8s.io"
    # What a binding refers to cannot be changed, so another role is another binding.
    digest = hashlib.sha256(settings.cluster_role.encode()).hexdigest()[:6]
    return [
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": names.metadata(owner, name, COMPONENT),
            "automountServiceAccountToken": False,
        },
        {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": names.metadata(owner, f"{name}-{digest}", COMPONENT),
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": settings.cluster_role},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": owner.namespace}],
        },
    ]


def container(owner: names.Owner, spec: v1alpha1.Router, settings: PickerSettings, pre_stop: str) -> dict[str, Any]:
    """The picker's container.

    Args:
        owner: The plan.
        spec: ``spec.router`` of the plan.
        settings: Image.
        pre_stop: Shell script that waits until Envoy has sent its last answer.
    """
    return {
        "name": CONTAINER,
        "image": settings.image,
        "command": ["bash", "-c", _KEPT_RUNNING, CONTAINER],
        "args": [
            "servingplan",
            "picker",
            f"--namespace={owner.namespace}",
            f"--plan={owner.name}",
            f"--listen=unix:{PICKER_SOCKET}",
            f"--http-port={HTTP_PORT}",
            f"--table-file={TABLE_FOLDER}/table.json",
            f"--drain-seconds={DRAIN_S}",
        ],
        # A thread for each core of the node, to multiply vectors, would spin where the decision runs.
        "env": [{"name": name, "value": "1"} for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")],
        "ports": [{"name": "picker-metrics", "containerPort": HTTP_PORT}],
        "lifecycle": {"preStop": {"exec": {"command": ["bash", "-c", pre_stop]}}},
        "resources": {"requests": {"cpu": "250m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            socket_mount(),
            {"name": "routing", "mountPath": TABLE_FOLDER, "readOnly": True},
            {"name": "account", "mountPath": _ACCOUNT_FOLDER, "readOnly": True},
            *([{"name": "predictor", "mountPath": PREDICTOR_FOLDER, "readOnly": True}] if spec.predictor else []),
        ],
    }


def socket_mount() -> dict[str, Any]:
    """Where Envoy and its picker meet."""
    return {"name": "picker", "mountPath": _SOCKET_FOLDER}


def volumes(spec: v1alpha1.Router) -> list[dict[str, Any]]:
    """Volumes of the pod beyond the routing table."""
    token = {"serviceAccountToken": {"path": "token", "expirationSeconds": _TOKEN_S}}
    authority = {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}}
    found: list[dict[str, Any]] = [
        {"name": "picker", "emptyDir": {}},
        {"name": "account", "projected": {"sources": [token, authority]}},
    ]
    if spec.predictor:
        where = spec.predictor.config_map_key_ref
        # A router without its estimator serves; one that waits for it does not.
        source = {"name": where.name, "items": [{"key": where.key, "path": where.key}], "optional": True}
        found.append({"name": "predictor", "configMap": source})
    return found
