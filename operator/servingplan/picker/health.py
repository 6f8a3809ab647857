"""Whether the picker is fit to be asked: for Envoy by gRPC, for kubelet and Prometheus by HTTP.

The two answers differ on purpose. A picker that knows no endpoint is alive, and restarting it would not help; but Envoy should
not wait for it, because the plan's weights serve as well. One that drains finishes its streams and is asked nothing new.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import web
from grpc_health.v1 import health, health_pb2
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

EXT_PROC_SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"
_READY_SERVICES = ("", EXT_PROC_SERVICE, "readiness")
_LIVE_SERVICES = ("liveness",)


class Health:
    """The picker's state as others ask for it.

    Args:
        is_ready: Whether there are a table and endpoints.

    Attributes:
        servicer: The gRPC health service.
    """

    def __init__(self, is_ready: Callable[[], bool]) -> None:
        self.servicer = health.aio.HealthServicer()
        self._is_ready = is_ready
        self._draining = False
        self._told: bool | None = None
        # Two answers told at once could leave the older one standing.
        self._telling = asyncio.Lock()

    @property
    def ready(self) -> bool:
        """Whether requests should be sent here."""
        return not self._draining and self._is_ready()

    async def drain(self) -> None:
        """From now on nothing new should come."""
        self._draining = True
        await self.refresh()

    async def refresh(self) -> None:
        """Tells gRPC's clients when the answer has changed."""
        async with self._telling:
            ready = self.ready
            if ready is self._told:
                return
            if self._told is None:
                for service in _LIVE_SERVICES:
                    await self.servicer.set(service, health_pb2.HealthCheckResponse.SERVING)
            self._told = ready
            status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
            for service in _READY_SERVICES:
                await self.servicer.set(service, status)


def http_app(state: Health, registry: CollectorRegistry) -> web.Application:
    """``/healthz``, ``/readyz`` and ``/metrics``."""

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n") if state.ready else web.Response(status=503, text="no table or no endpoint\n")

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"content-type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    return app
