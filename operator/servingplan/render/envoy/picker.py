"""How Envoy asks the picker that stands beside it, and goes on without it.

Every request that a pod may answer is shown to the picker, headers and body, before its pod is chosen. The answer names
pods in order, as a header by which the request gets to a route of its own and as metadata by which the cluster behind that
route takes the first of them, then the next for every retry. The header alone says that there is a pick and the metadata
which: a route may take the header away before the request goes on.

Nothing waits for a picker that does not answer: without it, or without a pick in its answer, the weighted routes hold as if
there were none. A health check takes a picker that hangs out of use after half a second; until then a request waits for
``MESSAGE_TIMEOUT`` at most twice.

The pods that may be picked are the members of all pools in one cluster, resolved by name like the pools themselves. A pick
that Envoy does not know yet, because a name server is behind the API server, is passed over for the next one in the list.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from servingplan.render.envoy.document import REQUEST_METADATA, extension, typed

DESTINATION = "x-gateway-destination-endpoint"
"""Header and metadata key of the pick: ``ip:port,ip:port``, best first, as in the Gateway API Inference Extension."""

LB_METADATA = "envoy.lb"
RECEIPT_METADATA = "servingplan.picker"
RECEIPT_HEADER = "x-servingplan-decision"
"""Response header with the receipt of the decision, where the plan lets clients ask for it."""

PICKER_SOCKET = "/run/servingplan/picker.sock"
PICKER_CLUSTER = "router/picker"
MESSAGE_TIMEOUT = "0.2s"
HEALTH_INTERVAL = "0.5s"

_EXT_PROC = "envoy.filters.http.ext_proc"
_EXT_PROC_TYPE = "envoy.extensions.filters.http.ext_proc.v3"


def asking(picker_cluster: str = PICKER_CLUSTER) -> dict[str, Any]:
    """The filter that shows requests to the picker."""
    return extension(
        _EXT_PROC,
        f"{_EXT_PROC_TYPE}.ExternalProcessor",
        grpc_service={"envoy_grpc": {"cluster_name": picker_cluster}},
        failure_mode_allow=True,
        message_timeout=MESSAGE_TIMEOUT,
        # Headers that are skipped have gone to the router before the body's answer could change them.
        processing_mode={
            "request_header_mode": "SEND",
            "request_body_mode": "BUFFERED",
            "response_header_mode": "SKIP",
            "response_body_mode": "NONE",
            "request_trailer_mode": "SKIP",
            "response_trailer_mode": "SKIP",
        },
        metadata_options={
            "forwarding_namespaces": {"untyped": [REQUEST_METADATA]},
            # Any other metadata in an answer is dropped.
            "receiving_namespaces": {"untyped": [LB_METADATA, RECEIPT_METADATA]},
        },
    )


def unasked() -> dict[str, Any]:
    """What a route says that the picker is not asked about."""
    return {_EXT_PROC: typed(f"{_EXT_PROC_TYPE}.ExtProcPerRoute", disabled=True)}


def picker_cluster(socket: str, limits: dict[str, Any]) -> dict[str, Any]:
    """The cluster of the one picker, at a Unix socket.

    Args:
        socket: Path of the socket.
        limits: Circuit breakers. A stream lives as long as its answer, so those of Envoy's defaults would let the picker go
            unasked from some thousand requests in flight on.
    """
    endpoint = {"endpoint": {"address": {"pipe": {"path": socket}}}}
    return {
        "name": PICKER_CLUSTER,
        "type": "STATIC",
        "connect_timeout": "0.25s",
        "circuit_breakers": limits,
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": typed(
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                explicit_http_config={"http2_protocol_options": {}},
            )
        },
        "health_checks": [
            {
                "timeout": "0.25s",
                "interval": HEALTH_INTERVAL,
                # Without these an idle router would look once a minute, and a new one at a picker that still starts.
                "no_traffic_interval": HEALTH_INTERVAL,
                "no_traffic_healthy_interval": HEALTH_INTERVAL,
                "unhealthy_threshold": 1,
                "healthy_threshold": 1,
                "grpc_health_check": {},
            }
        ],
        # Else a picker that hangs would be asked because there is no other.
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "load_assignment": {"cluster_name": PICKER_CLUSTER, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }


def by_pick() -> dict[str, Any]:
    """The load balancing policy that takes the picked pods in their order, then the least busy of all."""
    fallback = extension(
        "envoy.load_balancing_policies.least_request",
        "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest",
    )
    override = extension(
        "envoy.load_balancing_policies.override_host",
        "envoy.extensions.load_balancing_policies.override_host.v3.OverrideHost",
        override_host_sources=[{"metadata": {"key": LB_METADATA, "path": [{"key": DESTINATION}]}}],
        fallback_policy={"policies": [{"typed_extension_config": fallback}]},
    )
    return {"policies": [{"typed_extension_config": override}]}


def has_pick() -> dict[str, Any]:
    """The header match of requests that the picker has chosen pods for."""
    return {"name": DESTINATION, "present_match": True}


def picked_cluster(model: str | None = None) -> str:
    """Name of the cluster of all pods that may be picked, or of those of one model."""
    return "picked" if model is None else f"picked/{model}"


def localities(pools: Sequence[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """The endpoints of several pools in one cluster: each a locality of its own, because Envoy merges those of one.

    Args:
        pools: Name and ``lb_endpoints`` entry of each.
    """
    return [{"locality": {"sub_zone": name}, "lb_endpoints": [endpoint]} for name, endpoint in pools]
