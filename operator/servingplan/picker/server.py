"""The ext_proc server: one event loop, one HTTP/2 connection per Envoy worker, one stream per request in flight."""

from __future__ import annotations

import asyncio
import logging
import stat
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from aiohttp import web
from envoy.service.ext_proc.v3.external_processor_pb2 import ProcessingRequest
from grpc_health.v1 import health_pb2_grpc

from servingplan.picker.decide import Decider
from servingplan.picker.exchange import Exchange
from servingplan.picker.health import EXT_PROC_SERVICE, Health, http_app
from servingplan.picker.metrics import Metrics
from servingplan.picker.protocol import BodyMode, Wire

UNIX = "unix:"
_MESSAGE_OVERHEAD_BYTES = 1024 * 1024
_REFRESH_S = 0.2

log = logging.getLogger(__name__)


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


class Server:
    """Serves decisions until it is stopped.

    Args:
        decider: Who decides.
        health: What it answers about itself.
        metrics: What it counts in and shows.
        listening: Where.

    Attributes:
        port: The gRPC port; 0 on a socket.
        http_port: The HTTP port.
    """

    def __init__(self, decider: Decider, health: Health, metrics: Metrics, listening: Listening) -> None:
        self._decider, self._health, self._metrics, self._listening = decider, health, metrics, listening
        self._open = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._grpc: grpc.aio.Server | None = None
        self._http: web.AppRunner | None = None
        self._refresher: asyncio.Task[None] | None = None
        self.port = 0
        self.http_port = 0

    async def start(self) -> None:
        """Listens.

        Raises:
            OSError: An address cannot be used.
        """
        largest = self._decider.body_limit_bytes + _MESSAGE_OVERHEAD_BYTES
        options = [("grpc.max_receive_message_length", largest), ("grpc.so_reuseport", 0)]
        server = self._grpc = grpc.aio.server(options=options)
        server.add_generic_rpc_handlers((_handlers(self._process),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health.servicer, server)
        address = self._listening.address
        try:
            self.port = server.add_insecure_port(address)
        except RuntimeError as error:
            message = f"cannot listen on {address}: {error}"
            raise OSError(message) from error
        await self._health.refresh()
        await server.start()
        if address.startswith(UNIX):
            _open_to_all(Path(address.removeprefix(UNIX)))
            self.port = 0
        self._http = web.AppRunner(http_app(self._health, self._metrics.registry), access_log=None)
        await self._http.setup()
        site = web.TCPSite(self._http, self._listening.http_address, self._listening.http_port)
        await site.start()
        self.http_port = self._http.addresses[0][1]
        self._refresher = asyncio.create_task(self._keep_telling())

    async def stop(self) -> None:
        """Asks for no more requests, lets those under way end, and closes."""
        await self._health.drain()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), self._listening.drain_s)
        if self._refresher:
            self._refresher.cancel()
        if self._grpc:
            await self._grpc.stop(0.5)
        if self._http:
            await self._http.cleanup()

    async def _keep_telling(self) -> None:
        while True:
            await self._health.refresh()
            await asyncio.sleep(_REFRESH_S)

    async def _process(self, _: Any, context: grpc.aio.ServicerContext) -> None:
        """One stream: the end of the stream is the end of the request, however it ended."""
        exchange = Exchange(self._decider, self._listening.unannounced)
        self._opened()
        try:
            while (message := await context.read()) is not grpc.aio.EOF:
                for reply in await exchange.take(message):
                    await context.write(reply)
        except (grpc.RpcError, grpc.aio.UsageError, asyncio.InvalidStateError):
            # Envoy has gone while it was being answered.
            pass
        finally:
            exchange.end()
            self._closed()

    def _opened(self) -> None:
        self._open += 1
        self._idle.clear()
        self._metrics.stream_opened()

    def _closed(self) -> None:
        self._open -= 1
        self._metrics.stream_ended()
        if not self._open:
            self._idle.set()


def _open_to_all(socket: Path) -> None:
    # Envoy runs as another user; who may reach the folder is decided where the folder is mounted.
    socket.chmod(stat.S_IRUSR | stat.S_IWUSR | stat.S_IRGRP | stat.S_IWGRP | stat.S_IROTH | stat.S_IWOTH)


def _handlers(process: Callable[[Any, grpc.aio.ServicerContext], Awaitable[None]]) -> grpc.GenericRpcHandler:
    handler = grpc.stream_stream_rpc_method_handler(
        process, request_deserializer=ProcessingRequest.FromString, response_serializer=_serialised
    )
    return grpc.method_handlers_generic_handler(EXT_PROC_SERVICE, {"Process": handler})


def _serialised(reply: Wire) -> bytes:
    return reply if isinstance(reply, bytes) else reply.SerializeToString()
