"""Another Envoy in the place of the clients: it takes the load's HTTP/1.1 and asks the router in HTTP/1.1 or HTTP/2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from live.process import Child, wait_until
from live.stack import ENVOY, Router, free_port
from servingplan.render.envoy import dump

_UPSTREAM = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_TYPE = "type.googleapis.com/"


@contextmanager
def relay(folder: Path, router: Router, version: int) -> Iterator[int]:
    """The port of a relay to a router, ended afterwards.

    Args:
        folder: For its files.
        router: Who is asked.
        version: 1 or 2, of HTTP. With 2 all requests share a connection or two.
    """
    port, admin = free_port(), free_port()
    (folder / "relay.yaml").write_text(dump(_bootstrap(port, admin, router, version)))
    child = Child([ENVOY, "-c", folder / "relay.yaml", "--disable-hot-restart", "--concurrency", "1"], folder / "relay.log")
    try:
        wait_until(lambda: router.get("/ready", admin)[0] == 200, "the relay serves")
        yield port
    finally:
        child.stop()


def _bootstrap(port: int, admin: int, router: Router, version: int) -> dict[str, Any]:
    protocol: dict[str, Any] = {"http2_protocol_options": {}} if version == 2 else {"http_protocol_options": {}}
    manager = {
        "@type": f"{_TYPE}envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "relay",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "router",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "router", "timeout": "0s"}}],
                }
            ]
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{_TYPE}envoy.extensions.filters.http.router.v3.Router"},
            }
        ],
    }
    limits = {"max_connections": 10_000, "max_pending_requests": 10_000, "max_requests": 10_000}
    return {
        "admin": {"address": _socket(admin)},
        "static_resources": {
            "listeners": [
                {
                    "name": "clients",
                    "address": _socket(port),
                    "filter_chains": [
                        {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
                    ],
                }
            ],
            "clusters": [
                {
                    "name": "router",
                    "type": "STATIC",
                    "connect_timeout": "1s",
                    "circuit_breakers": {"thresholds": [limits]},
                    "typed_extension_protocol_options": {
                        _UPSTREAM: {"@type": _TYPE + _UPSTREAM, "explicit_http_config": protocol}
                    },
                    "load_assignment": {
                        "cluster_name": "router",
                        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _socket(router.paths.http_port)}}]}],
                    },
                }
            ],
        },
    }


def _socket(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}
