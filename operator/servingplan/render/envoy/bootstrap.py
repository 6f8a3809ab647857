"""The bootstrap: what a router pod is for the whole of its life.

One listener takes the clients' requests and reads its routes from a watched file, one listener gives Prometheus the
statistics, and the administration interface listens on loopback alone. Nothing in here depends on the routing table, so
it only changes with the plan's name, with its policy (whether a picker stands beside the router) or with the operator's
version, and then the pods are replaced.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from servingplan.render.envoy.clusters import CIRCUIT_BREAKERS
from servingplan.render.envoy.document import METADATA, REQUEST_METADATA, extension, typed
from servingplan.render.envoy.picker import DESTINATION, PICKER_SOCKET, asking, picker_cluster

HTTP_PORT = 8080
METRICS_PORT = 9902
ADMIN_PORT = 9901
XDS_FOLDER = "/etc/envoy/xds"

BODY_LIMIT_BYTES = 32 * 1024 * 1024
"""Longest request body. It is held until the model is known and again for retries; a longer one is refused with 413."""

STREAM_BEGINS_S = 5.0
"""Longest wait for the headers of a stream before another pod is asked, too. vLLM sends them at once, before it has computed
anything, so a pod that does not is hung; but it may also be fetching an image, so whichever begins first is the answer. Three
such waits in a row put a pod out of use. What is not streamed has no headers before its end, and can only be waited for."""
_BOUND_HEADER = "x-envoy-upstream-rq-per-try-timeout-ms"

STRIPPED_HEADERS = (DESTINATION, "x-envoy-")
"""Prefixes of headers that choose a pod, or a set of them, or change Envoy's timeouts and retries: not for clients."""

_MANAGER = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_ROUTER = extension("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router", suppress_envoy_headers=True)

_TAGS = {
    "class": f"%METADATA(ROUTE:{METADATA}:class)%",
    "requested": f"%METADATA(ROUTE:{METADATA}:requested)%",
    "model": f"%UPSTREAM_METADATA({METADATA}:model)%",
    "pool": f"%UPSTREAM_METADATA({METADATA}:pool)%",
}
"""Of the route: the request's class, or the model it asked for by name. Of the pod that answered: its model and pool."""

# Envoy has some hundred statistics per cluster, and there are three clusters per pool.
_KEPT_STATS = ("servingplan.", "vhost.plan.route.", "http.ingress.", "cluster_manager.", "listener_manager.", "server.")
_KEPT_POOL_STATS = (
    "membership_.+",
    "outlier_detection.ejections_active",
    "update_.+",
    "upstream_cx_(active|connect_fail|connect_timeout|destroy_remote_with_active_rq|total)",
    "upstream_rq_(active|cancelled|pending_active|rx_reset|total|tx_reset)",
)

_ADMIN = "router/admin"
_UPSTREAM_FLAGS = ["NC", "UH", "UF", "UO", "UC", "UR", "URX", "UT", "UPE"]


@dataclass(frozen=True, slots=True)
class BootstrapPaths:
    """Where a router listens and reads; a pod uses the defaults.

    Attributes:
        address: Address of the two public listeners.
        picker_socket: Where the picker listens, if there is one.
    """

    address: str = "0.0.0.0"
    http_port: int = HTTP_PORT
    metrics_port: int = METRICS_PORT
    admin_port: int = ADMIN_PORT
    xds_folder: str = XDS_FOLDER
    picker_socket: str = PICKER_SOCKET


def bootstrap(namespace: str, plan: str, paths: BootstrapPaths | None = None, *, online: bool = False) -> dict[str, Any]:
    """The bootstrap configuration of a plan's routers.

    Args:
        namespace: Of the plan.
        plan: Its name.
        paths: Where the router listens and reads; None for what a pod uses.
        online: Whether a picker stands beside the router.
    """
    paths = paths or BootstrapPaths()
    pickers = [picker_cluster(paths.picker_socket, CIRCUIT_BREAKERS)] if online else []
    ask = asking(BODY_LIMIT_BYTES) if online else []
    return {
        "node": {"id": f"{namespace}/{plan}", "cluster": plan},
        "admin": {"address": _socket("127.0.0.1", paths.admin_port)},
        "dynamic_resources": {"cds_config": _watched(paths, "cds.yaml")},
        "static_resources": {
            "listeners": [_requests(plan, paths, [_read_body(), _hurry_streams(), *ask, _ROUTER]), _metrics(paths)],
            "clusters": [_admin_cluster(paths), *pickers],
        },
        "stats_config": _stats(plan),
    }


def _socket(address: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": address, "port_value": port}}


def _watched(paths: BootstrapPaths, name: str) -> dict[str, Any]:
    # A ConfigMap's files are symlinks through one folder link that kubelet renames: only a watch on the folder sees it.
    path = {"path": f"{paths.xds_folder}/{name}", "watched_directory": {"path": paths.xds_folder}}
    return {"resource_api_version": "V3", "path_config_source": path}


def _requests(plan: str, paths: BootstrapPaths, filters: list[dict[str, Any]]) -> dict[str, Any]:
    manager = typed(
        _MANAGER,
        stat_prefix="ingress",
        rds={"route_config_name": "plan", "config_source": _watched(paths, "rds.yaml")},
        http_filters=filters,
        early_header_mutation_extensions=[
            extension(
                "strip",
                "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
                mutations=[{"remove_on_match": {"key_matcher": {"prefix": prefix}}} for prefix in STRIPPED_HEADERS],
            )
        ],
        # The peer is the client: its address goes into x-forwarded-for, whatever it claims there.
        use_remote_address=True,
        normalize_path=True,
        merge_slashes=True,
        preserve_external_request_id=True,
        always_set_request_id_in_response=True,
        request_headers_timeout="10s",
        request_timeout="300s",
        # A queued request and a slow stream are idle for long; the route's timeout is the bound.
        stream_idle_timeout="0s",
        access_log=_access_logs(plan),
        local_reply_config={"mappers": _local_replies()},
    )
    return {
        "name": "requests",
        "address": _socket(paths.address, paths.http_port),
        "per_connection_buffer_limit_bytes": BODY_LIMIT_BYTES,
        "filter_chains": [{"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}],
    }


def _read_body() -> dict[str, Any]:
    """The filter that reads ``model`` and ``stream`` from the body and lets the route be chosen again with them."""
    return extension(
        "envoy.filters.http.json_to_metadata",
        "envoy.extensions.filters.http.json_to_metadata.v3.JsonToMetadata",
        request_rules={
            "rules": [
                {"selectors": [{"key": key}], "on_present": {"metadata_namespace": REQUEST_METADATA, "key": key}}
                for key in ("model", "stream")
            ],
            # vLLM reads the body as JSON whatever it is called, so a charset or a missing type must not hide the model.
            "allow_content_types_regex": {"regex": ".*"},
            "allow_empty_content_type": True,
        },
    )


def _hurry_streams() -> dict[str, Any]:
    """The filter that bounds the wait for the headers of a stream: who has been read to ask for none gets no bound."""
    streams = {
        "input": extension(
            "envoy.matching.inputs.dynamic_metadata",
            "envoy.extensions.matching.common_inputs.network.v3.DynamicMetadataInput",
            filter=REQUEST_METADATA,
            path=[{"key": "stream"}],
        ),
        "custom_match": extension(
            "envoy.matching.matchers.metadata_matcher",
            "envoy.extensions.matching.input_matchers.metadata.v3.Metadata",
            value={"bool_match": True},
        ),
    }
    skip = {"action": extension("skip", "envoy.extensions.filters.common.matcher.action.v3.SkipFilter")}
    bound = {"header": {"key": _BOUND_HEADER, "value": str(round(STREAM_BEGINS_S * 1000))}}
    return extension(
        "envoy.filters.http.match_delegate",
        "envoy.extensions.common.matching.v3.ExtensionWithMatcher",
        extension_config=extension(
            "envoy.filters.http.header_mutation",
            "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
            mutations={"request_mutations": [{"append": bound | {"append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}}]},
        ),
        xds_matcher={
            "matcher_list": {
                "matchers": [{"predicate": {"not_matcher": {"single_predicate": streams}}, "on_match": skip}],
            }
        },
    )


def _local_replies() -> list[dict[str, Any]]:
    """Envoy's own errors in the shape of the OpenAI API, which clients parse whatever the status is."""
    later = {"header": {"key": "retry-after", "value": "2"}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
    too_large = {"comparison": {"op": "EQ", "value": {"default_value": 413, "runtime_key": "router.too_large"}}}
    return [
        {
            "filter": {"response_flag_filter": {"flags": _UPSTREAM_FLAGS}},
            "headers_to_add": [later],
            "body_format_override": _error_format("ServiceUnavailableError"),
        },
        {"filter": {"status_code_filter": too_large}, "body_format_override": _error_format("BadRequestError")},
    ]


def _error_format(kind: str) -> dict[str, Any]:
    error = {"message": "%LOCAL_REPLY_BODY%", "type": kind, "param": None, "code": "%RESPONSE_CODE%"}
    return {"json_format": {"error": error}}


def _access_logs(plan: str) -> list[dict[str, Any]]:
    not_ours = {"header_filter": {"header": {"name": ":path", "string_match": {"prefix": "/-/"}, "invert_match": True}}}
    lines = extension(
        "envoy.access_loggers.stdout",
        "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
        log_format={"json_format": _log_line(), "omit_empty_values": True},
    )
    return [{**lines, "filter": not_ours}, {**_request_stats(plan), "filter": not_ours}]


def _log_line() -> dict[str, str]:
    """Fields of a line of the access log: neither bodies nor query strings nor credentials."""
    return {
        "time": "%START_TIME%",
        "request_id": "%REQ(X-REQUEST-ID)%",
        "method": "%REQ(:METHOD)%",
        "path": "%PATH(NQ)%",
        "protocol": "%PROTOCOL%",
        "status": "%RESPONSE_CODE%",
        **_TAGS,
        "upstream": "%UPSTREAM_HOST%",
        "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
        "flags": "%RESPONSE_FLAGS%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "request_bytes": "%BYTES_RECEIVED%",
        "response_bytes": "%BYTES_SENT%",
        "headers_ms": "%RESPONSE_DURATION%",
        "duration_ms": "%DURATION%",
    }


def _request_stats(plan: str) -> dict[str, Any]:
    """Counts every request when it ends, refused ones too, by what only the route and the pod know."""
    tags = [{"name": name, "value_format": value} for name, value in {"plan": plan, **_TAGS}.items()]
    code = {"name": "code", "value_format": "%RESPONSE_CODE%"}
    return extension(
        "envoy.access_loggers.stats",
        "envoy.extensions.access_loggers.stats.v3.Config",
        stats_scope={"prefix": METADATA},
        counters=[{"stat": {"name": "requests_total", "tags": [*tags, code]}, "value_fixed": 1}],
        histograms=[
            {
                "stat": {"name": "request_duration_ms", "tags": tags},
                "unit": "Milliseconds",
                "value_format": "%DURATION%",
            }
        ],
    )


def _metrics(paths: BootstrapPaths) -> dict[str, Any]:
    route = {"match": {"path": "/stats/prometheus"}, "route": {"cluster": _ADMIN}}
    manager = typed(
        _MANAGER,
        stat_prefix="metrics",
        route_config={"virtual_hosts": [{"name": "metrics", "domains": ["*"], "routes": [route]}]},
        http_filters=[_ROUTER],
    )
    return {
        "name": "metrics",
        "address": _socket(paths.address, paths.metrics_port),
        "filter_chains": [{"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}],
    }


def _admin_cluster(paths: BootstrapPaths) -> dict[str, Any]:
    endpoint = {"endpoint": {"address": _socket("127.0.0.1", paths.admin_port)}}
    return {
        "name": _ADMIN,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": _ADMIN, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }


def _stats(plan: str) -> dict[str, Any]:
    kept: list[dict[str, Any]] = [{"prefix": prefix} for prefix in _KEPT_STATS]
    kept.append({"safe_regex": {"regex": rf"cluster\.[^/]+\.({'|'.join(_KEPT_POOL_STATS)})"}})
    return {
        "stats_tags": [{"tag_name": "plan", "fixed_value": plan}],
        "stats_matcher": {"inclusion_list": {"patterns": kept}},
    }
