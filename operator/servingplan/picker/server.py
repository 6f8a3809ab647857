"""The ext_proc server: one event loop, one HTTP/2 connection per Envoy worker, one stream per request in flight.

Beside our own Envoy it listens on a Unix socket, with HTTP/2 of its own, because gRPC's server in Python costs more than the
decision. On a port, where gateways of others ask, gRPC's server serves the same calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from aiohttp import web
from envoy.service.ext_proc.v3.external_processor_pb2 import ProcessingRequest

from servingplan.picker.decide import Decider
from servingplan.picker.exchange import Exchange
from servingplan.picker.health import CHECK_METHOD, EXT_PROC_SERVICE, Check, Health, http_app
from servingplan.picker.http2.server import SocketServer
from servingplan.picker.http2.stream import Call, read_message
from servingplan.picker.metrics import Metrics
from servingplan.picker.protocol import BodyMode

UNIX = "unix:"
PROCESS_METHOD = f"/{EXT_PROC_SERVICE}/Process"
_MESSAGE_OVERHEAD_BYTES = 1024 * 1024
_CLOSE_S = 0.5


@dataclass(frozen=True, slots=True)
class Listening:
    """Where a picker listens.

    Attributes:
        address: ``unix:/path`` or ``host:port``; port 0 takes a free one.
        http_address: Host of the HTTP endpoints.
        http_port: Their port; 0 takes a free one.
        unannounced: Body mode of an Envoy that does not announce it.
        drain_s: Longest wait for streams to end at a stop.
    """

    address: str
    http_address: str = "0.0.0.0"
    http_port: int = 9090
    unannounced: BodyMode = BodyMode.BUFFERED
    drain_s: float = 30.0


class GrpcServer(Protocol):
    """Who carries the calls."""

    port: int

    async def start(self) -> None:
        """Listens; raises ``OSError`` when the address cannot be used."""

    async def stop(self, grace_s: float) -> None:
        """Takes no more streams, gives those under way ``grace_s`` to end, and closes."""


class Server:
    """Serves decisions until it is stopped.

    Args:
        decider: Who decides.
        health: What it answers about itself.
        metrics: What it counts in and shows.
        listening: Where.

    Attributes:
        http_port: The HTTP port.
    """

    def __init__(self, decider: Decider, health: Health, metrics: Metrics, listening: Listening) -> None:
        self._health, self._metrics, self._listening = health, metrics, listening
        self._streams = _Streams(decider, metrics, listening.unannounced)
        self._grpc = _grpc_server(self._streams, health, listening.address, decider.body_limit_bytes + _MESSAGE_OVERHEAD_BYTES)
        self._http: web.AppRunner | None = None
        self.http_port = 0

    @property
    def port(self) -> int:
        """The gRPC port; 0 on a socket."""
        return self._grpc.port

    async def start(self) -> None:
        """Listens.

        Raises:
            OSError: An address cannot be used.
        """
        await self._grpc.start()
        self._http = web.AppRunner(http_app(self._health, self._metrics.registry), access_log=None)
        await self._http.setup()
        site = web.TCPSite(self._http, self._listening.http_address, self._listening.http_port)
        await site.start()
        self.http_port = self._http.addresses[0][1]

    async def stop(self) -> None:
        """Asks for no more requests, lets those under way end, and closes."""
        self._health.drain()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._streams.idle.wait(), self._listening.drain_s)
        await self._grpc.stop(_CLOSE_S)
        if self._http:
            await self._http.cleanup()


def _grpc_server(streams: _Streams, health: Health, address: str, message_limit_bytes: int) -> GrpcServer:
    methods: Mapping[str, Callable[[], Call]] = {PROCESS_METHOD: streams.begin}
    if address.startswith(UNIX):
        methods = {**methods, CHECK_METHOD: lambda: Check(health)}
        return SocketServer(Path(address.removeprefix(UNIX)), methods, message_limit_bytes)
    # gRPC's server takes some 15 MB, which a picker beside its Envoy does without.
    from servingplan.picker.grpc_server import PortServer  # noqa: PLC0415

    return PortServer(address, methods, health, message_limit_bytes)


class _Streams:
    """Counts the streams that are open.

    Attributes:
        idle: Set while there is none.
    """

    def __init__(self, decider: Decider, metrics: Metrics, unannounced: BodyMode) -> None:
        self._decider, self._metrics, self._unannounced = decider, metrics, unannounced
        self._open = 0
        self.idle = asyncio.Event()
        self.idle.set()

    def begin(self) -> Call:
        """A stream has opened."""
        if not self._open:
            self.idle.clear()
        self._open += 1
        self._metrics.stream_opened()
        return _Process(Exchange(self._decider, self._unannounced), self)

    def ended(self) -> None:
        """A stream has ended."""
        self._open -= 1
        self._metrics.stream_ended()
        if not self._open:
            self.idle.set()


class _Process:
    """One stream of ext_proc: its end is the end of the request, however it ended."""

    __slots__ = ("_exchange", "_streams")

    def __init__(self, exchange: Exchange, streams: _Streams) -> None:
        self._exchange, self._streams = exchange, streams

    def take(self, message: bytes) -> Sequence[bytes]:
        replies = self._exchange.take(read_message(ProcessingRequest.FromString, message))
        return [reply if isinstance(reply, bytes) else reply.SerializeToString() for reply in replies]

    def end(self) -> None:
        try:
            self._exchange.end()
        finally:
            self._streams.ended()
