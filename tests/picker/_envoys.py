"""Real Envoys that ask a picker, and fake model servers behind them."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import envoy
import yaml
from aiohttp import web

ENVOY = Path(envoy.__path__[0]) / "_bin" / "envoy"
DEADLINE_S = 20.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Upstream:
    """A fake vLLM that says who it is and what it was sent.

    Attributes:
        mode: ``ok``, ``reset`` (closes before the answer) or ``hold`` (streams one event, ends when it is released).
    """

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop) -> None:
        self.name, self.mode, self.requests, self._loop = name, "ok", 0, loop
        self._released = asyncio.Event()
        self._runner = asyncio.run_coroutine_threadsafe(self._start(), loop).result(DEADLINE_S)
        self.address = f"127.0.0.1:{self._runner.addresses[0][1]}"

    async def _start(self) -> web.AppRunner:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
        return runner

    def release(self) -> None:
        self._loop.call_soon_threadsafe(self._released.set)

    def stop(self) -> None:
        self.release()
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(DEADLINE_S)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.requests += 1
        assert request.transport
        if self.mode == "reset":
            request.transport.abort()
        if self.mode == "hold":
            return await self._hold(request)
        return web.json_response({"upstream": self.name, "headers": dict(request.headers), "bytes": len(body)})

    async def _hold(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(f"data: {self.name}\n\n".encode())
        await asyncio.wait_for(self._released.wait(), DEADLINE_S)
        with suppress(ConnectionError):
            await response.write(b"data: [DONE]\n\n")
        return response


def _typed(name: str, **fields: Any) -> dict[str, Any]:
    return {"@type": f"type.googleapis.com/envoy.{name}", **fields}


def _cluster(name: str, addresses: list[str], **fields: Any) -> dict[str, Any]:
    def at(address: str) -> dict[str, Any]:
        if address.startswith("unix:"):
            return {"endpoint": {"address": {"pipe": {"path": address.removeprefix("unix:")}}}}
        host, port = address.rsplit(":", 1)
        return {"endpoint": {"address": {"socket_address": {"address": host, "port_value": int(port)}}}}

    endpoints = [{"lb_endpoints": [at(address) for address in addresses]}]
    load = {"cluster_name": name, "endpoints": endpoints}
    return {"name": name, "type": "STATIC", "connect_timeout": "1s", "load_assignment": load, **fields}


_PICK = "x-gateway-destination-endpoint"
_HTTP2 = {
    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": _typed(
        "extensions.upstreams.http.v3.HttpProtocolOptions", explicit_http_config={"http2_protocol_options": {}}
    )
}
_OVERRIDE_HOST = {
    "policies": [
        {
            "typed_extension_config": {
                "name": "envoy.load_balancing_policies.override_host",
                "typed_config": _typed(
                    "extensions.load_balancing_policies.override_host.v3.OverrideHost",
                    override_host_sources=[{"metadata": {"key": "envoy.lb", "path": [{"key": _PICK}]}}],
                    fallback_policy={
                        "policies": [
                            {
                                "typed_extension_config": {
                                    "name": "envoy.load_balancing_policies.round_robin",
                                    "typed_config": _typed("extensions.load_balancing_policies.round_robin.v3.RoundRobin"),
                                }
                            }
                        ]
                    },
                ),
            }
        }
    ]
}
_READ_MODEL = {
    "name": "envoy.filters.http.json_to_metadata",
    "typed_config": _typed(
        "extensions.filters.http.json_to_metadata.v3.JsonToMetadata",
        request_rules={
            "rules": [
                {"selectors": [{"key": "model"}], "on_present": {"metadata_namespace": "servingplan.request", "key": "model"}}
            ]
        },
    ),
}


def bootstrap(
    port: int, admin: int, picker: str, pods: list[str], weighted: str, mode: str, patience_s: float, **processing: Any
) -> dict[str, Any]:
    """An Envoy that asks a picker in one body mode, routes by its pick, and to ``weighted`` without one."""
    ext_proc = {
        "name": "envoy.filters.http.ext_proc",
        "typed_config": _typed(
            "extensions.filters.http.ext_proc.v3.ExternalProcessor",
            grpc_service={"envoy_grpc": {"cluster_name": "picker"}},
            failure_mode_allow=mode != "FULL_DUPLEX_STREAMED",
            message_timeout=f"{patience_s}s",
            processing_mode={
                "request_header_mode": "SEND",
                "request_body_mode": mode,
                "response_header_mode": "SKIP",
                "response_body_mode": "NONE",
                "request_trailer_mode": "SEND" if mode == "FULL_DUPLEX_STREAMED" else "SKIP",
                "response_trailer_mode": "SEND",
            }
            | processing,
            metadata_options={
                "receiving_namespaces": {"untyped": ["envoy.lb", "servingplan.picker"]},
                "forwarding_namespaces": {"untyped": ["envoy.lb", "envoy.lb.subset_hint", "servingplan.request"]},
            },
        ),
    }
    receipt = {
        "header": {"key": "x-servingplan-decision", "value": "%DYNAMIC_METADATA(servingplan.picker:receipt)%"},
        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
    }
    routes = [
        {
            "match": {"prefix": "/", "headers": [{"name": _PICK, "present_match": True}]},
            "response_headers_to_add": [receipt],
            "route": {
                "cluster": "pods",
                "timeout": "60s",
                "retry_policy": {"retry_on": "connect-failure,refused-stream,reset", "num_retries": 2},
            },
        },
        {"match": {"prefix": "/"}, "response_headers_to_add": [receipt], "route": {"cluster": "weighted", "timeout": "60s"}},
    ]
    subset = {
        "name": "envoy.filters.http.header_to_metadata",
        "typed_config": _typed(
            "extensions.filters.http.header_to_metadata.v3.Config",
            request_rules=[
                {
                    "header": "x-test-subset",
                    "on_header_present": {
                        "metadata_namespace": "envoy.lb.subset_hint",
                        "key": "x-gateway-destination-endpoint-subset",
                    },
                }
            ],
        ),
    }
    filters = [subset, *([_READ_MODEL] if mode == "NONE" else []), ext_proc]
    manager = _typed(
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="ingress",
        http_filters=[
            *filters,
            {"name": "envoy.filters.http.router", "typed_config": _typed("extensions.filters.http.router.v3.Router")},
        ],
        route_config={"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        early_header_mutation_extensions=[
            {
                "name": "strip",
                "typed_config": _typed(
                    "extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation", mutations=[{"remove": _PICK}]
                ),
            }
        ],
    )
    health_check = {
        "timeout": "5s",
        "interval": "0.1s",
        "no_traffic_interval": "0.1s",
        "unhealthy_threshold": 1,
        "healthy_threshold": 1,
        "grpc_health_check": {"service_name": "envoy.service.ext_proc.v3.ExternalProcessor"},
    }

    def socket_address(number: int) -> dict[str, Any]:
        return {"socket_address": {"address": "127.0.0.1", "port_value": number}}

    return {
        "node": {"id": "test", "cluster": "test"},
        "admin": {"address": socket_address(admin)},
        "static_resources": {
            "listeners": [
                {
                    "name": "requests",
                    "address": socket_address(port),
                    "per_connection_buffer_limit_bytes": 16 * 1024 * 1024,
                    "filter_chains": [
                        {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
                    ],
                }
            ],
            "clusters": [
                _cluster(
                    "picker",
                    [picker],
                    typed_extension_protocol_options=_HTTP2,
                    health_checks=[health_check],
                    common_lb_config={"healthy_panic_threshold": {"value": 0}},
                ),
                _cluster("pods", pods, load_balancing_policy=_OVERRIDE_HOST),
                _cluster("weighted", [weighted]),
            ],
        },
    }


class Router:
    """An Envoy process.

    Attributes:
        url: Of its listener.
    """

    def __init__(self, folder: Path, *served: Any, **processing: Any) -> None:
        port, self._admin = free_port(), free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._log = folder / "envoy.log"
        configuration = bootstrap(port, self._admin, *served, **processing)
        (folder / "bootstrap.yaml").write_text(yaml.safe_dump(configuration))
        with self._log.open("wb") as log:
            flags = ["--disable-hot-restart", "--concurrency", "1"]
            self._process = subprocess.Popen([ENVOY, "-c", folder / "bootstrap.yaml", *flags], stdout=log, stderr=log)

    def stat(self, name: str) -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._admin}/stats?filter=^{name}$", timeout=5) as answer:
            text = answer.read().decode()
        return int(text.split(": ")[1]) if text else 0

    def trusts_the_picker(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()[-3000:]
        return self.stat("cluster.picker.membership_healthy") == 1

    def close(self) -> None:
        self._process.kill()
        self._process.wait(DEADLINE_S)
