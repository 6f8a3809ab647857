"""A real Prometheus on loopback, and pods for it to scrape: real HTTP servers that may have a past."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from servingplan.calibration.readings import Readings
from servingplan.controller.prometheus.asked import Asked
from servingplan.controller.prometheus.connection import Source
from servingplan.controller.prometheus.read import Reader
from testbed import tools

DEADLINE_S = 60.0
SCRAPE_S = 1.0
PAST_S = 240


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """The condition's first true value; fails with ``what`` when it does not come true."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            if value := condition():
                return value
        time.sleep(0.05)
    return pytest.fail(f"not within {deadline_s} s: {what}")


class Web:
    """An HTTP server on loopback in threads of its own, over TLS with a context.

    Args:
        answer: Writes the answer to a request; it is given the request's handler and body.
    """

    def __init__(self, answer: Callable[[BaseHTTPRequestHandler, bytes], None], tls: Any = None) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer(self, self.rfile.read(int(self.headers.get("content-length", 0))))

            do_POST = do_GET  # noqa: N815

            def log_message(self, *args: Any) -> None:
                pass

        self._handler, self._tls, self.port = Handler, tls, free_port()
        self._server: ThreadingHTTPServer | None = None
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        server = self._server = ThreadingHTTPServer(("127.0.0.1", self.port), self._handler)
        server.daemon_threads = True
        if self._tls:
            server.socket = self._tls.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


def reply(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("content-length", str(len(body)))
    handler.end_headers()
    with contextlib.suppress(OSError):
        handler.wfile.write(body)


class Pod(Web):
    """A pod that Prometheus scrapes. Its first page also tells its past, second by second, with the times.

    Args:
        page: Its page at a time in seconds since the epoch.
    """

    def __init__(self, namespace: str, name: str, page: Callable[[float], Mapping[str, float]], past: bool = True) -> None:
        self.labels = {"namespace": namespace, "pod": name}
        self.page, self._past = page, past
        super().__init__(lambda handler, _: reply(handler, 200, self._text(), content_type="text/plain; version=0.0.4"))

    def _text(self) -> bytes:
        now = time.time()
        if not self._past:
            return "".join(f"{series} {value}\n" for series, value in self.page(now).items()).encode()
        self._past = False
        moments = [now - age for age in range(PAST_S, 0, -1)]
        pages = ((int(moment * 1000), self.page(moment)) for moment in moments)
        return "".join(f"{series} {value} {at}\n" for at, page in pages for series, value in page.items()).encode()


class Prometheus:
    """A Prometheus that scrapes these pods every second."""

    def __init__(self, folder: Path, pods: list[Pod]) -> None:
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        targets = [{"targets": [f"127.0.0.1:{pod.port}"], "labels": pod.labels} for pod in pods]
        interval = f"{int(SCRAPE_S * 1000)}ms"
        config = {
            "global": {"scrape_interval": interval, "scrape_timeout": interval},
            "scrape_configs": [{"job_name": "pods", "static_configs": targets}],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self._folder = folder
        self.start()

    def start(self) -> None:
        flags = {
            "config.file": self._folder / "prometheus.yml",
            "storage.tsdb.path": self._folder / "data",
            "web.listen-address": self.url.removeprefix("http://"),
        }
        argv = [tools.find().prometheus, *(f"--{name}={value}" for name, value in flags.items())]
        with (self._folder / "prometheus.log").open("ab") as log:
            self._process = subprocess.Popen(argv, stdout=log, stderr=log)
        wait_until(self._is_ready, "Prometheus is ready")

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, (self._folder / "prometheus.log").read_text()[-3000:]
        with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5) as answer:
            return answer.status == 200

    def value(self, query: str) -> float | None:
        with urllib.request.urlopen(f"{self.url}/api/v1/query?query={quote(query)}", timeout=5) as answer:
            result = json.load(answer)["data"]["result"]
        return float(result[0]["value"][1]) if result else None

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(DEADLINE_S)


class World:
    """The Prometheus under test and what it is asked.

    Attributes:
        pods: By namespace and name.
    """

    def __init__(self, prometheus: Prometheus, pods: list[Pod]) -> None:
        self.prometheus, self.source = prometheus, Source(prometheus.url, SCRAPE_S)
        self.pods = {(pod.labels["namespace"], pod.labels["pod"]): pod for pod in pods}

    def asked(self, namespace: str, *ready: str, **fields: Any) -> Asked:
        """What is asked for a plan that has one pool."""
        pods = {"pool": ready} if ready else {}
        return Asked(f"{namespace}/plan", namespace, "plan", **{"source": self.source, "pods": pods} | fields)

    def read(self, asked: Asked) -> Readings:
        """One reading of one plan."""
        return read(asked)[asked.key]

    def until(self, asked: Asked, condition: Callable[[Readings], Any], what: str) -> Readings:
        """The first reading that fulfils the condition."""
        return wait_until(lambda: reading if condition(reading := self.read(asked)) else None, what)


def read(*plans: Asked) -> dict[str, Readings]:
    async def once() -> dict[str, Readings]:
        reader = Reader()
        try:
            return await reader.read(plans, time.time())
        finally:
            reader.close()

    return asyncio.run(once())


@pytest.fixture(scope="session")
def read_all() -> Callable[..., dict[str, Readings]]:
    """One reading of several plans."""
    return read


@pytest.fixture(scope="session")
def until() -> Callable[..., Any]:
    """Waits for a condition with a deadline."""
    return wait_until


@pytest.fixture(scope="module")
def make_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., World]]:
    """Starts pods, given as the arguments of ``Pod``, and a Prometheus that scrapes them."""
    made: list[World] = []

    def make(*pods: tuple[Any, ...]) -> World:
        running = [Pod(*pod) for pod in pods]
        made.append(World(Prometheus(tmp_path_factory.mktemp("prometheus"), running), running))
        return made[-1]

    yield make
    for world in made:
        world.prometheus.kill()
        for pod in world.pods.values():
            pod.stop()


@pytest.fixture(scope="session")
def port() -> Callable[[], int]:
    """Finds a free port on loopback."""
    return free_port


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[..., Web]]:
    """Starts web servers, given as the arguments of ``Web``."""
    started: list[Web] = []

    def start(*arguments: Any) -> Web:
        started.append(Web(*arguments))
        return started[-1]

    yield start
    for server in started:
        server.stop()
