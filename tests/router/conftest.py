"""A real Envoy in front of fake model servers on loopback."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import envoy
import grpc
import pytest
from aiohttp import web
from envoy.service.ext_proc.v3.external_processor_pb2 import ProcessingRequest, ProcessingResponse
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from servingplan.api.routing_table import RoutingTable
from servingplan.render.envoy import BootstrapPaths, bootstrap, dump, files
from servingplan.render.envoy.picker import ATTRIBUTES, CLASS_METADATA, DESTINATION, MESSAGE_TIMEOUT
from testbed.names import NameServer

ENVOY = Path(envoy.__path__[0]) / "_bin" / "envoy"
DEADLINE_S = 20.0
PATIENCE = "2.5s"
_PICKER_STREAMS = 128


def free_port(address: str = "127.0.0.1") -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """The condition's first true value; fails with ``what`` when it does not come true."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        with suppress(OSError):
            if value := condition():
                return value
        time.sleep(0.01)
    return pytest.fail(f"not within {deadline_s} s: {what}")


class Upstream:
    """A fake vLLM that says who it is and what it was sent.

    Attributes:
        mode: ``ok``, ``unavailable`` (503), ``reset`` (closes before the answer), ``cut`` (closes after the first chunk),
            ``hold`` (ends its stream when ``released`` is set) or ``wait`` (begins no answer before that).
        requests: How many it has received.
    """

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop, address: str, port: int) -> None:
        self.name, self.mode, self.requests = name, "ok", 0
        self.address, self.port = address, port
        self.released = threading.Event()
        self._loop = loop
        self._runner: web.AppRunner | None = None
        self.start()

    def start(self) -> None:
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(DEADLINE_S)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(DEADLINE_S)

    async def _start(self) -> None:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, self.address, self.port, backlog=4096).start()

    async def _stop(self) -> None:
        if self._runner:
            await self._runner.cleanup()
            self._runner = None

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.requests += 1
        assert request.transport
        if self.mode == "reset":
            request.transport.abort()
        if self.mode == "wait":
            await asyncio.to_thread(self.released.wait, DEADLINE_S)
        if self.mode == "unavailable":
            return web.Response(status=503, text=self.name)
        if self.mode in {"cut", "hold"} or b'"stream": true' in body:
            return await self._stream(request)
        return web.json_response({"upstream": self.name, "headers": dict(request.headers), "bytes": len(body)})

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        assert request.transport
        for number in range(5):
            await response.write(f"data: {self.name} {number}\n\n".encode())
            await asyncio.sleep(0.01)
            if self.mode == "cut":
                request.transport.abort()
                return response
        if self.mode == "hold":
            await asyncio.to_thread(self.released.wait, DEADLINE_S)
        await response.write(b"data: [DONE]\n\n")
        return response


class Router:
    """An Envoy process that serves a table from a folder published as kubelet publishes a ConfigMap.

    Attributes:
        url: Address of the data plane.
        revision: Number of the last publication.
        log_path: Where the access log is written.
    """

    def __init__(self, folder: Path, table: RoutingTable, **bootstrap_fields: Any) -> None:
        self._folder, self._publications, self.revision = folder, 0, 0
        self._served = table
        (folder / "xds").mkdir(parents=True)
        self.paths = BootstrapPaths(
            "127.0.0.1", free_port(), free_port(), free_port(), str(folder / "xds"), str(folder / "picker.sock")
        )
        self.url = f"http://127.0.0.1:{self.paths.http_port}"
        self.publish(files(table))
        online = table.picker is not None
        configuration = bootstrap(table.namespace, table.plan, self.paths, online=online) | bootstrap_fields
        # The stand-in shares the machine with all else that runs: what it does slowly is not what is tested.
        text = dump(configuration).replace(f"message_timeout: {MESSAGE_TIMEOUT}", f"message_timeout: {PATIENCE}")
        assert online == (PATIENCE in text)
        (folder / "bootstrap.yaml").write_text(text)
        self.log_path = folder / "access.log"
        with self.log_path.open("wb") as out, (folder / "envoy.log").open("wb") as err:
            flags = ["--disable-hot-restart", "--concurrency", "1", "--file-flush-interval-msec", "20"]
            self._process = subprocess.Popen([ENVOY, "-c", folder / "bootstrap.yaml", *flags], stdout=out, stderr=err)

    def is_serving(self) -> bool:
        assert self._process.poll() is None, (self._folder / "envoy.log").read_text()[-3000:]
        return self.get("/-/table")[0] == 200

    def publish(self, texts: Mapping[str, str]) -> None:
        """Swaps all files at once by renaming a link to their folder."""
        self._publications += 1
        xds = self._folder / "xds"
        new = xds / f"..{self._publications}"
        new.mkdir()
        for name, text in texts.items():
            (new / name).write_text(text)
            if not (xds / name).is_symlink():
                (xds / name).symlink_to(Path("..data") / name)
        (xds / "..data_tmp").symlink_to(new.name)
        (xds / "..data_tmp").rename(xds / "..data")
        shutil.rmtree(xds / f"..{self._publications - 1}", ignore_errors=True)

    def serve(self, table: RoutingTable) -> None:
        """Publishes a table until Envoy serves it, as the controller does."""
        for _ in range(3):
            refusals = self._refusals()
            self.revision += 1
            self.publish(files(table, self.revision, self._served))
            wait_until(lambda seen=refusals: self._is_current() or self._refusals() > seen, "Envoy has read the table", 2)
            if self._is_current():
                self._served = table
                return
        pytest.fail("Envoy refuses the table")

    def _is_current(self) -> bool:
        return self.table()["revision"] == self.revision

    def _refusals(self) -> int:
        return self.stat("http.ingress.rds.plan.update_rejected")

    def table(self) -> dict[str, Any]:
        return json.loads(self.get("/-/table")[1])

    def get(self, path: str, port: int | None = None) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port or self.paths.http_port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def stat(self, name: str) -> int:
        text = self.get(f"/stats?filter=^{name}$", self.paths.admin_port)[1]
        return int(text.split(": ")[1]) if text else 0

    def metrics(self) -> str:
        return self.get("/stats/prometheus", self.paths.metrics_port)[1]

    def close(self) -> None:
        self._process.kill()
        self._process.wait(DEADLINE_S)


class Picker:
    """A stand-in for the picker: a real gRPC server on a Unix socket that answers every request as its mode says.

    Attributes:
        mode: ``pick``, ``none`` (answers without a pick), ``refuse`` (429), ``error`` (of gRPC), ``hang`` or ``nonsense``.
        pick: Addresses in order.
        receipt: Text for the receipt; empty for none.
        seen: What is told of the headers, body and the model that Envoy read, of every request that was shown.
        kinds: What kind of message each was.
        open: The streams that have not ended.
    """

    def __init__(self, socket: str) -> None:
        self.mode, self.pick, self.receipt = "pick", [], ""
        self.seen: list[tuple[dict[str, str], bytes, str]] = []
        self.kinds: list[str | None] = []
        self.open: set[object] = set()
        self._socket = socket
        self._released = threading.Event()
        self._server: grpc.Server | None = None
        self._health: health.HealthServicer | None = None
        self.start()

    def start(self) -> None:
        self._released.clear()
        options = [("grpc.max_receive_message_length", 64 * 1024 * 1024)]
        self._server = grpc.server(ThreadPoolExecutor(_PICKER_STREAMS), options=options)
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        handler = grpc.stream_stream_rpc_method_handler(
            self._process, ProcessingRequest.FromString, ProcessingResponse.SerializeToString
        )
        service = "envoy.service.ext_proc.v3.ExternalProcessor"
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Process": handler}),))
        assert self._server.add_insecure_port(f"unix:{self._socket}")
        self._server.start()

    def stop(self) -> None:
        self._released.set()
        assert self._server
        self._server.stop(None).wait()

    def say(self, *, healthy: bool) -> None:
        """What its health check answers from now on."""
        status = health_pb2.HealthCheckResponse.SERVING if healthy else health_pb2.HealthCheckResponse.NOT_SERVING
        assert self._health
        self._health.set("", status)

    def _process(self, messages: Iterator[ProcessingRequest], context: grpc.ServicerContext) -> Iterator[ProcessingResponse]:
        mode, stream = self.mode, object()
        self.open.add(stream)
        try:
            for message in messages:
                self.kinds.append(message.WhichOneof("request"))
                if mode == "error":
                    context.abort(grpc.StatusCode.INTERNAL, "as the test wants it")
                if mode == "hang":
                    while self.mode == mode and not self._released.wait(0.01):
                        pass
                    return
                if mode == "nonsense":
                    yield ProcessingResponse(response_trailers={})
                    continue
                self.seen.append(self._read(message))
                yield self._answer("request_body", mode)
        finally:
            self.open.discard(stream)

    @staticmethod
    def _read(message: ProcessingRequest) -> tuple[dict[str, str], bytes, str]:
        metadata = message.metadata_context.filter_metadata
        told = {ATTRIBUTES[name]: text for name, text in message.attributes["envoy.filters.http.ext_proc"].items()}
        model = metadata["servingplan.request"].fields["model"].string_value
        return told | dict(metadata[CLASS_METADATA]), message.request_body.body, model

    def _answer(self, field: str, mode: str) -> ProcessingResponse:
        if mode == "refuse":
            return ProcessingResponse(immediate_response={"status": {"code": 429}, "body": b"{}"})
        if mode != "pick" or not self.pick:
            return ProcessingResponse(**{field: {}})
        value = ",".join(self.pick)
        mutation = {"set_headers": [{"header": {"key": DESTINATION, "raw_value": value.encode()}}]}
        common: dict[str, Any] = {"clear_route_cache": True, "header_mutation": mutation}
        reply = ProcessingResponse(**{field: {"response": common}})
        reply.dynamic_metadata.update({"envoy.lb": {DESTINATION: value}})
        if self.receipt:
            reply.dynamic_metadata.update({"servingplan.picker": {"receipt": self.receipt}})
        return reply


@pytest.fixture(scope="session")
def until() -> Callable[..., Any]:
    """Waits for a condition with a deadline."""
    return wait_until


@pytest.fixture(scope="session")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop that runs in a thread of its own, for the fakes."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join(DEADLINE_S)
    loop.close()


@pytest.fixture
def name_server(loop: asyncio.AbstractEventLoop) -> Iterator[tuple[NameServer, int]]:
    """A name server on loopback and its port."""

    async def start() -> tuple[asyncio.BaseTransport, NameServer]:
        return await asyncio.get_running_loop().create_datagram_endpoint(lambda: NameServer({}), local_addr=("127.0.0.1", 0))

    transport, server = asyncio.run_coroutine_threadsafe(start(), loop).result(DEADLINE_S)
    yield server, transport.get_extra_info("sockname")[1]
    loop.call_soon_threadsafe(transport.close)


@pytest.fixture(scope="session")
def start_router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Router]]:
    """Starts an Envoy with a table; all are stopped at the end."""
    started: list[Router] = []

    def start(table: RoutingTable, **bootstrap_fields: Any) -> Router:
        started.append(router := Router(tmp_path_factory.mktemp("router"), table, **bootstrap_fields))
        wait_until(router.is_serving, "Envoy serves its first table")
        return router

    yield start
    for router in started:
        router.close()


@pytest.fixture(scope="session")
def start_upstream(loop: asyncio.AbstractEventLoop) -> Iterator[Callable[..., Upstream]]:
    """Starts a fake model server; all are stopped at the end."""
    started: list[Upstream] = []

    def start(name: str, address: str = "127.0.0.1", port: int | None = None) -> Upstream:
        started.append(Upstream(name, loop, address, port or free_port(address)))
        return started[-1]

    yield start
    for upstream in started:
        upstream.stop()


@pytest.fixture(scope="session")
def start_picker() -> Iterator[Callable[[str], Picker]]:
    """Starts a stand-in for the picker on a socket; all are stopped at the end."""
    started: list[Picker] = []

    def start(path: str) -> Picker:
        started.append(Picker(path))
        return started[-1]

    yield start
    for picker in started:
        picker.stop()
