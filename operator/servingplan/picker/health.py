"""Whether the picker is fit to be asked: for Envoy by gRPC, for kubelet and Prometheus by HTTP.

The two answers differ on purpose. A picker that knows no endpoint is alive, and restarting it would not help; but Envoy should
not wait for it, because the plan's weights serve as well. One that drains finishes its streams and is asked nothing new.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from aiohttp import web
from grpc_health.v1 import health_pb2
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from servingplan.picker.http2.stream import RpcError, Status, read_message

EXT_PROC_SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"
CHECK_METHOD = "/grpc.health.v1.Health/Check"
_READY_SERVICES = ("", EXT_PROC_SERVICE, "readiness")
_LIVE_SERVICES = ("liveness",)


class Health:
    """The picker's state as others ask for it.

    Args:
        is_ready: Whether there are a table and endpoints.
    """

    def __init__(self, is_ready: Callable[[], bool]) -> None:
        self._is_ready = is_ready
        self._draining = False

    @property
    def ready(self) -> bool:
        """Whether requests should be sent here."""
        return not self._draining and self._is_ready()

    def drain(self) -> None:
        """From now on nothing new should come."""
        self._draining = True

    def services(self) -> Mapping[str, bool]:
        """Whether each service of gRPC's health protocol serves."""
        return dict.fromkeys(_LIVE_SERVICES, True) | dict.fromkeys(_READY_SERVICES, self.ready)


class Check:
    """A call of gRPC's health protocol.

    Args:
        state: What it tells.
    """

    def __init__(self, state: Health) -> None:
        self._state = state

    def take(self, message: bytes) -> Sequence[bytes]:
        """The answer to one question.

        Raises:
            RpcError: The service is none of ours, or that is no question.
        """
        asked = read_message(health_pb2.HealthCheckRequest.FromString, message)
        serves = self._state.services().get(asked.service)
        if serves is None:
            raise RpcError(Status.NOT_FOUND, "no such service")
        status = health_pb2.HealthCheckResponse.SERVING if serves else health_pb2.HealthCheckResponse.NOT_SERVING
        return [health_pb2.HealthCheckResponse(status=status).SerializeToString()]

    def end(self) -> None:
        """Nothing is kept."""


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
