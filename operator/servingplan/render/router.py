"""The router's objects: Deployment, Service and PodDisruptionBudget of the Envoy in front of a plan's models.

With a picker beside it there are also the account by which that reads the cluster, and what binds the account.

The bootstrap stands in the container's arguments, so that what a running Envoy cannot take up rolls the pods; the
routing table stands in a ConfigMap that is mounted, so that weights move without touching them.

A pod that stops must cut nobody off: it asks clients to close their connections, serves on while Services and load
balancers forget it, then waits until the last answer is complete. Envoy itself exits at once on SIGTERM, so all of this
happens in the preStop hook.
"""

from __future__ import annotations

from typing import Any

from servingplan.api import v1alpha1
from servingplan.render import names, picker
from servingplan.render.envoy import bootstrap, dump
from servingplan.render.envoy.bootstrap import ADMIN_PORT, HTTP_PORT, METRICS_PORT, XDS_FOLDER
from servingplan.render.envoy.routes import TABLE_PATH
from servingplan.render.overlay import merge

COMPONENT = picker.COMPONENT
DEREGISTRATION_S = 10
"""Seconds until no Service or load balancer sends new connections to a pod that is terminating."""

_ENVOY_UID = 101
_WORKERS = 2

# bash alone, because the image has neither curl nor wget. An Envoy that no longer answers ends the wait.
_ASK = f"""
ask() {{
  exec 3<>/dev/tcp/127.0.0.1/{ADMIN_PORT} || return
  printf '%s %s HTTP/1.1\\r\\nhost: router\\r\\nconnection: close\\r\\n\\r\\n' "$1" "$2" >&3
  cat <&3
}}
"""
_WAIT = f"""
sleep {DEREGISTRATION_S}
while ask GET '/stats?filter=^http.ingress.downstream_rq_active$' | grep -q 'active: [1-9]'; do sleep 1; done
"""
_DRAIN = f"{_ASK}ask POST /healthcheck/fail >/dev/null{_WAIT}"


def router(
    owner: names.Owner, spec: v1alpha1.Router, image: str, beside: picker.PickerSettings | None = None
) -> list[dict[str, Any]]:
    """The router's objects in the order in which they are needed, without the ConfigMap of its routing table.

    Args:
        owner: The plan.
        spec: ``spec.router`` of the plan.
        image: Envoy's image, with a shell as in ``envoyproxy/envoy``.
        beside: The pickers; None where the operator has no image for them, and every plan is served by its weights.

    Raises:
        OverlayError: ``spec.template`` cannot be merged.
    """
    if spec.policy == "Weights":
        beside = None
    objects = picker.account(owner, beside) if beside else []
    objects += [_deployment(owner, spec, image, beside), _service(owner, spec)]
    return [*objects, _disruption_budget(owner)] if spec.replicas > 1 else objects


def _metadata(owner: names.Owner) -> dict[str, Any]:
    return names.metadata(owner, names.router_name(owner.name), COMPONENT)


def _deployment(owner: names.Owner, spec: v1alpha1.Router, image: str, beside: picker.PickerSettings | None) -> dict[str, Any]:
    selector = names.selector(owner, COMPONENT)
    template = _template(owner, spec, image)
    if beside:
        _add_picker(template["spec"], owner, spec, beside)
    template = merge(template, spec.template or {})
    template["metadata"]["labels"] |= selector
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(owner),
        "spec": {
            "replicas": spec.replicas,
            "revisionHistoryLimit": 2,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "selector": {"matchLabels": selector},
            "template": template,
        },
    }


def _template(owner: names.Owner, spec: v1alpha1.Router, image: str) -> dict[str, Any]:
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": names.selector(owner, COMPONENT)},
    }
    return {
        "metadata": {
            "labels": names.labels(owner, COMPONENT),
            "annotations": {
                "prometheus.io/scrape": "true",
                "prometheus.io/port": str(METRICS_PORT),
                "prometheus.io/path": "/stats/prometheus",
            },
        },
        "spec": {
            # Left out it would stay what it was: the API server keeps it in a second, deprecated field that nobody owns.
            "serviceAccountName": "default",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": _ENVOY_UID,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            # The longest answer that may be under way when the pod is asked to stop.
            "terminationGracePeriodSeconds": spec.timeout_seconds + DEREGISTRATION_S + 20,
            "topologySpreadConstraints": [spread],
            "containers": [_container(owner, image)],
            "volumes": [{"name": "routing", "configMap": {"name": names.table_name(owner.name)}}],
        },
    }


def _add_picker(pod: dict[str, Any], owner: names.Owner, spec: v1alpha1.Router, beside: picker.PickerSettings) -> None:
    (envoy,) = pod["containers"]
    envoy["args"][1] = dump(bootstrap(owner.namespace, owner.name, online=True))
    envoy["volumeMounts"].append(picker.socket_mount())
    pod["serviceAccountName"] = names.router_name(owner.name)
    pod["terminationGracePeriodSeconds"] += picker.DRAIN_S
    pod["containers"].append(picker.container(owner, spec, beside, f"{_ASK}{_WAIT}"))
    pod["volumes"] += picker.volumes(spec)


def _container(owner: names.Owner, image: str) -> dict[str, Any]:
    serves = {"httpGet": {"path": TABLE_PATH, "port": "http"}}
    return {
        "name": "envoy",
        "image": image,
        "args": [
            "--config-yaml",
            dump(bootstrap(owner.namespace, owner.name)),
            "--concurrency",
            str(_WORKERS),
            "--disable-hot-restart",
            "--file-flush-interval-msec",
            "1000",
            "--log-level",
            "warning",
        ],
        "ports": [
            {"name": "http", "containerPort": HTTP_PORT},
            {"name": "metrics", "containerPort": METRICS_PORT},
        ],
        "startupProbe": {**serves, "periodSeconds": 1, "failureThreshold": 60},
        "readinessProbe": {**serves, "periodSeconds": 2, "failureThreshold": 3},
        "livenessProbe": {**serves, "periodSeconds": 10, "failureThreshold": 6},
        "lifecycle": {"preStop": {"exec": {"command": ["bash", "-c", _DRAIN]}}},
        "resources": {"requests": {"cpu": "250m", "memory": "256Mi"}, "limits": {"memory": "2Gi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "routing", "mountPath": XDS_FOLDER, "readOnly": True}],
    }


def _service(owner: names.Owner, spec: v1alpha1.Router) -> dict[str, Any]:
    metadata = _metadata(owner)
    if spec.service.annotations:
        metadata["annotations"] = dict(spec.service.annotations)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "type": spec.service.type,
            "selector": names.selector(owner, COMPONENT),
            "ports": [{"name": "http", "port": spec.service.port, "targetPort": "http", "appProtocol": "http"}],
        },
    }


def _disruption_budget(owner: names.Owner) -> dict[str, Any]:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(owner),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": names.selector(owner, COMPONENT)}},
    }
