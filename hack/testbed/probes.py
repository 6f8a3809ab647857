"""Container probes and hook requests, made from the node as kubelet makes them."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import aiohttp
import grpc

from testbed.api import Object

Exec = Callable[[list[str], float], Awaitable[int]]
"""Runs a command in the container within so many seconds and returns its exit code."""

_HTTP_OK = range(200, 400)
_GRPC_CHECK = "/grpc.health.v1.Health/Check"
_GRPC_SERVING = b"\x08\x01"


@dataclass(frozen=True, slots=True)
class Target:
    """What a probe speaks to.

    Attributes:
        address: The pod's IP.
        ports: The container's port numbers by name.
        session: HTTP session that keeps no connection.
        execute: Runs a command in the container.
    """

    address: str
    ports: dict[str, int]
    session: aiohttp.ClientSession
    execute: Exec

    def port(self, named: int | str) -> int:
        """The number behind a port given by number or by name."""
        return named if isinstance(named, int) else self.ports[named]


async def check(probe: Object, target: Target) -> bool:
    """Whether the probe, or the hook's request, succeeds within its `timeoutSeconds`."""
    timeout_s = float(probe.get("timeoutSeconds", 1))
    try:
        async with asyncio.timeout(timeout_s):
            return await _ask(probe, target, timeout_s)
    except (TimeoutError, aiohttp.ClientError, OSError):
        return False


async def _ask(probe: Object, target: Target, timeout_s: float) -> bool:
    if "httpGet" in probe:
        return await _http(probe["httpGet"], target)
    if "tcpSocket" in probe:
        port = target.port(probe["tcpSocket"]["port"])
        _, writer = await asyncio.open_connection(probe["tcpSocket"].get("host") or target.address, port)
        writer.close()
        return True
    if "exec" in probe:
        return await target.execute(probe["exec"]["command"], timeout_s) == 0
    return await _grpc(probe["grpc"], target)


async def _http(request: Object, target: Target) -> bool:
    scheme = request.get("scheme", "HTTP").lower()
    host = request.get("host") or target.address
    url = f"{scheme}://{host}:{target.port(request['port'])}/{request.get('path', '/').lstrip('/')}"
    headers = {"User-Agent": "kube-probe/1.36"} | {h["name"]: h["value"] for h in request.get("httpHeaders", [])}
    async with target.session.get(url, headers=headers, allow_redirects=False, ssl=False) as answer:
        return answer.status in _HTTP_OK


async def _grpc(request: Object, target: Target) -> bool:
    service = (request.get("service") or "").encode()
    message = bytes([0x0A, len(service)]) + service if service else b""
    async with grpc.aio.insecure_channel(f"{target.address}:{request['port']}") as channel:
        call = channel.unary_unary(_GRPC_CHECK)
        with contextlib.suppress(grpc.aio.AioRpcError):
            return bytes(await call(message)).startswith(_GRPC_SERVING)
    return False
