"""Servers to measure: the simulated vLLM in a process of its own, and bad ones in a thread."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from aiohttp import web

from servingplan.profiling.cli import add_profile

SIMULATE = "import sys; from servingplan.sim.cli import main; sys.exit(main(sys.argv[1:]))"
DEADLINE_S = 30.0


@dataclass(frozen=True)
class Outcome:
    """What the command said, and its exit status."""

    status: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        return lines[0].removeprefix("servingplan profile: ")


@dataclass(frozen=True)
class Simulator:
    """A simulated vLLM and where it listens."""

    url: str
    process: subprocess.Popen[bytes]


@pytest.fixture
def profile(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs ``servingplan profile`` with these arguments."""

    def run(*arguments: str) -> Outcome:
        parser = argparse.ArgumentParser("servingplan")
        runner = add_profile(parser.add_subparsers(required=True))
        status = runner(parser.parse_args(["profile", *arguments]))
        out, err = capsys.readouterr()
        return Outcome(status, out, err)

    return run


@contextlib.contextmanager
def simulator(*flags: str) -> Iterator[Simulator]:
    """A simulated vLLM with these flags."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = ["Qwen/Qwen3-32B", "-tp=2", "--served-model-name=qwen", "--host=127.0.0.1", f"--port={port}", *flags]
    process = subprocess.Popen([sys.executable, "-c", SIMULATE, *given], stderr=subprocess.DEVNULL)
    try:
        deadline_s = time.monotonic() + DEADLINE_S
        while not _listening(port):
            assert process.poll() is None, "the simulated server ended"
            assert time.monotonic() < deadline_s, "gave up waiting for the simulated server"
            time.sleep(0.02)
        yield Simulator(f"http://127.0.0.1:{port}", process)
    finally:
        process.kill()
        process.wait()


def _listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def thread_server(*routes: web.RouteDef) -> Iterator[str]:
    """A server with these routes in a thread; its address."""
    ready: list[str] = []
    loop = asyncio.new_event_loop()
    started = threading.Event()
    app = web.Application(client_max_size=2**26)
    app.add_routes(list(routes))

    async def start() -> web.AppRunner:
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert site._server is not None
        ready.append(f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}")  # type: ignore[attr-defined]
        return runner

    def work() -> None:
        runner = loop.run_until_complete(start())
        started.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert started.wait(DEADLINE_S)
        yield ready[0]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(DEADLINE_S)


async def models(_: web.Request) -> web.Response:
    """``/v1/models`` of a server with one model."""
    return web.json_response({"object": "list", "data": [{"id": "qwen", "max_model_len": 4096}]})


async def stream(request: web.Request, events: list[str], *, cut: bool = False) -> web.StreamResponse:
    """Streams these events, and breaks the connection after them if told."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    response.enable_chunked_encoding()
    await response.prepare(request)
    for event in events:
        await response.write(f"data: {event}\n\n".encode())
    if cut:
        assert request.transport is not None
        request.transport.abort()
    await response.write_eof()
    return response


TOKEN = json.dumps({"choices": [{"index": 0, "text": " word", "finish_reason": None}]})
