"""Listens on a port for gateways of others, by gRPC's own server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from servingplan.picker.health import Health
from servingplan.picker.http2.stream import Call, RpcError

_REFRESH_S = 0.2

log = logging.getLogger(__name__)


class PortServer:
    """gRPC on ``host:port``. Its health can be asked for and watched.

    Args:
        address: Where; port 0 takes a free one.
        methods: By path, what begins a call.
        state: The health that is told.
        message_limit_bytes: Longest message of a client.

    Attributes:
        port: Where it listens.
    """

    def __init__(
        self, address: str, methods: Mapping[str, Callable[[], Call]], state: Health, message_limit_bytes: int
    ) -> None:
        self._address, self._methods, self._state, self._limit = address, methods, state, message_limit_bytes
        self._servicer = health.aio.HealthServicer()
        self._told: dict[str, bool] = {}
        self._server: grpc.aio.Server | None = None
        self._refresher: asyncio.Task[None] | None = None
        self.port = 0

    async def start(self) -> None:
        """Listens.

        Raises:
            OSError: The address cannot be used.
        """
        options = [("grpc.max_receive_message_length", self._limit), ("grpc.so_reuseport", 0)]
        server = self._server = grpc.aio.server(options=options)
        server.add_generic_rpc_handlers((_Handlers(self._methods),))
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)
        try:
            self.port = server.add_insecure_port(self._address)
        except RuntimeError as error:
            message = f"cannot listen on {self._address}: {error}"
            raise OSError(message) from error
        await self._tell()
        await server.start()
        self._refresher = asyncio.create_task(self._keep_telling())

    async def stop(self, grace_s: float) -> None:
        """Takes no more streams, gives those under way ``grace_s`` to end, and closes."""
        if self._refresher:
            self._refresher.cancel()
        if self._server:
            await self._server.stop(grace_s)

    async def _keep_telling(self) -> None:
        while True:
            await asyncio.sleep(_REFRESH_S)
            await self._tell()

    async def _tell(self) -> None:
        """Tells gRPC's clients what has changed."""
        for service, serves in self._state.services().items():
            if self._told.get(service) is not serves:
                self._told[service] = serves
                status = health_pb2.HealthCheckResponse.SERVING if serves else health_pb2.HealthCheckResponse.NOT_SERVING
                await self._servicer.set(service, status)


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, methods: Mapping[str, Callable[[], Call]]) -> None:
        self._handlers = {
            path: grpc.stream_stream_rpc_method_handler(partial(_serve, begin)) for path, begin in methods.items()
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """Who handles a call; None for another's."""
        return self._handlers.get(handler_call_details.method)


async def _serve(begin: Callable[[], Call], _: Any, context: grpc.aio.ServicerContext) -> None:
    """One stream: the end of the stream is the end of the request, however it ended."""
    call = begin()
    try:
        while (message := await context.read()) is not grpc.aio.EOF:
            for reply in call.take(message):
                await context.write(reply)
    except RpcError as error:
        context.set_code(_STATUSES[error.status])
        context.set_details(error.message)
    except (grpc.RpcError, grpc.aio.UsageError, asyncio.InvalidStateError):
        # Envoy has gone while it was being answered.
        pass
    except Exception as error:
        # What it says may hold a part of a prompt, and gRPC would log it and tell it.
        log.error("an RPC failed: %s", type(error).__name__)
        context.set_code(grpc.StatusCode.UNKNOWN)
    finally:
        call.end()


_STATUSES = {code.value[0]: code for code in grpc.StatusCode}
