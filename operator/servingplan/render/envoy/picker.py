"""How Envoy asks the picker that stands beside it, and goes on without it.

Every request that a pod may answer is shown to the picker before its pod is chosen, in one message: its body, and beside it
what a decision reads of its headers. The headers in a message of their own would cost as much again and decide nothing, because
the body is waited for. The headers that every decision reads are attributes, which the listener names for the life of a pod.
Those that tell the plan's classes come and go with the table: the routes name them, and they travel as metadata. (Routes could
name attributes too, but Envoy then parses their expressions for every request, which takes as long again as all else it does.)

The answer names pods in order, as metadata. By it the request gets to a route of its own, and the cluster behind that route
takes the first of them, then the next for every retry. That metadata is the picker's alone to write: no header leads there.

A filter whose headers are not shown lets them pass at once, and the route would be chosen before the picker has seen the body.
So another filter behind it keeps them until the body has passed, too. A request without a body is not shown, and goes by the
weights: no model server generates anything from it.

Nothing waits for a picker that does not answer: without it, or without a pick in its answer, the weighted routes hold as if
there were none. A health check takes a picker that hangs out of use after half a second; until then a request waits for
``MESSAGE_TIMEOUT`` once.

The pods that may be picked are the members of all pools in one cluster, resolved by name like the pools themselves. A pick
that Envoy does not know yet, because a name server is behind the API server, is passed over for the next one in the list.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from servingplan.render.envoy.document import REQUEST_METADATA, extension, typed

DESTINATION = "x-gateway-destination-endpoint"
"""Metadata key of the pick, and the header of it for other gateways: ``ip:port,ip:port``, best first, as in the Gateway API
Inference Extension."""

ASKED_HEADERS = (
    "x-request-id",
    "x-llm-d-slo-ttft-ms",
    "x-slo-ttft-ms",
    "x-llm-d-slo-tpot-ms",
    "x-slo-tpot-ms",
    "x-llm-d-inference-fairness-id",
    "x-gateway-inference-fairness-id",
    "x-servingplan-e2e-ms",
    "x-servingplan-budget",
    "x-servingplan-min-quality",
    "x-servingplan-priority",
    "x-servingplan-explain",
)
"""Headers that a decision reads whatever the plan is."""

CLASS_METADATA = "servingplan.class"
"""Namespace of the headers that tell the plan's classes, by name."""

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
_READ_HEADERS = "envoy.filters.http.header_to_metadata"
_READ_HEADERS_TYPE = "envoy.extensions.filters.http.header_to_metadata.v3.Config"


def _text_of(header: str) -> str:
    # Protobuf's texts are UTF-8, a header's bytes need not be: the picker could not read the message that carries them.
    value = f"request.headers['{header}']"
    return rf"{value}.matches(r'\A(?s:.*)\z') ? {value} : '\ufffd'"


ATTRIBUTES = {"request.method": ":method", "request.url_path": ":path", **{_text_of(name): name for name in ASKED_HEADERS}}
"""Names of headers by the attribute that tells them: an expression, by which Envoy calls it too. A header that a request does
not have is no attribute; several of one name are joined by commas."""


def asking(body_limit_bytes: int) -> list[dict[str, Any]]:
    """The filters that show requests to the picker and keep them until it has answered.

    Args:
        body_limit_bytes: Longest body.
    """
    return [
        extension(_READ_HEADERS, _READ_HEADERS_TYPE),
        _show(),
        extension(
            "envoy.filters.http.buffer", "envoy.extensions.filters.http.buffer.v3.Buffer", max_request_bytes=body_limit_bytes
        ),
    ]


def _show() -> dict[str, Any]:
    return extension(
        _EXT_PROC,
        f"{_EXT_PROC_TYPE}.ExternalProcessor",
        grpc_service={"envoy_grpc": {"cluster_name": PICKER_CLUSTER}},
        failure_mode_allow=True,
        message_timeout=MESSAGE_TIMEOUT,
        processing_mode={
            "request_header_mode": "SKIP",
            "request_body_mode": "BUFFERED",
            "response_header_mode": "SKIP",
            "response_body_mode": "NONE",
            "request_trailer_mode": "SKIP",
            "response_trailer_mode": "SKIP",
        },
        request_attributes=list(ATTRIBUTES),
        metadata_options={
            "forwarding_namespaces": {"untyped": [REQUEST_METADATA, CLASS_METADATA]},
            # Any other metadata in an answer is dropped.
            "receiving_namespaces": {"untyped": [LB_METADATA, RECEIPT_METADATA]},
        },
    )


def telling(headers: Iterable[str]) -> dict[str, Any]:
    """What a virtual host says of the headers that tell its classes; empty without any.

    Args:
        headers: Their names.
    """
    names = sorted(set(headers))
    return {_READ_HEADERS: typed(_READ_HEADERS_TYPE, request_rules=[_told(name) for name in names])} if names else {}


def _told(header: str) -> dict[str, Any]:
    told = {
        "metadata_namespace": CLASS_METADATA,
        "key": header,
        # The values that tell a class are printable ASCII. Another one tells none, and might be no text at all.
        "regex_value_rewrite": {"pattern": {"regex": r"^([ -~]*)$|^\C*$"}, "substitution": r"\1"},
    }
    return {"header": header, "on_header_present": told}


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
    """The metadata match of requests that the picker has chosen pods for."""
    return {"filter": LB_METADATA, "path": [{"key": DESTINATION}], "value": {"present_match": True}}


def picked_cluster(model: str | None = None) -> str:
    """Name of the cluster of all pods that may be picked, or of those of one model."""
    return "picked" if model is None else f"picked/{model}"


def localities(pools: Sequence[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """The endpoints of several pools in one cluster: each a locality of its own, because Envoy merges those of one.

    Args:
        pools: Name and ``lb_endpoints`` entry of each.
    """
    return [{"locality": {"sub_zone": name}, "lb_endpoints": [endpoint]} for name, endpoint in pools]
