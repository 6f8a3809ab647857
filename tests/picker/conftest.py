"""Pickers, Envoys and model servers on loopback, all stopped at the end."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from servingplan.api.routing_table import RoutingTable

DEADLINE_S = 20.0


def _beside(name: str) -> ModuleType:
    """A module of this folder, which is no package."""
    spec = spec_from_file_location(f"picker_{name}", Path(__file__).with_name(f"_{name}.py"))
    assert spec and spec.loader
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


dictated, envoys = _beside("dictated"), _beside("envoys")


def wait_until(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """The condition's first true value; fails with ``what`` when it does not come true."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        with suppress(OSError):
            if value := condition():
                return value
        time.sleep(0.01)
    return pytest.fail(f"not within {deadline_s} s: {what}")


@pytest.fixture(scope="session")
def until() -> Callable[..., Any]:
    """Waits for a condition with a deadline."""
    return wait_until


@contextmanager
def running_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop that runs in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join(DEADLINE_S)
    loop.close()


@pytest.fixture(scope="session")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """The event loop of pickers and fakes."""
    with running_loop() as loop:
        yield loop


@pytest.fixture
def own_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop for what a test holds up."""
    with running_loop() as loop:
        yield loop


@pytest.fixture(scope="session")
def start_picker(loop: asyncio.AbstractEventLoop) -> Iterator[Callable[..., dictated.RunningPicker]]:
    """Starts a picker; all are stopped at the end."""
    started: list[dictated.RunningPicker] = []

    def start(address: str = "127.0.0.1:0", on: asyncio.AbstractEventLoop = loop, **decider: Any) -> dictated.RunningPicker:
        started.append(dictated.RunningPicker(on, address, **decider))
        return started[-1]

    yield start
    for each in started:
        each.stop()


@pytest.fixture(scope="session")
def start_upstream(loop: asyncio.AbstractEventLoop) -> Iterator[Callable[..., envoys.Upstream]]:
    """Starts a fake model server; all are stopped at the end."""
    started: list[envoys.Upstream] = []

    def start(name: str) -> envoys.Upstream:
        started.append(envoys.Upstream(name, loop))
        return started[-1]

    yield start
    for each in started:
        each.stop()


@pytest.fixture(scope="session")
def start_router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., envoys.Router]]:
    """Starts an Envoy; all are stopped at the end."""
    started: list[envoys.Router] = []

    def start(
        picker: dictated.RunningPicker,
        pods: list[str],
        weighted: str,
        mode: str = "BUFFERED",
        patience_s: float = 10.0,
        **processing: Any,
    ) -> envoys.Router:
        folder = tmp_path_factory.mktemp("router")
        router = envoys.Router(folder, picker.target, pods, weighted, mode, patience_s, **processing)
        started.append(router)
        wait_until(router.trusts_the_picker, "Envoy trusts the picker")
        return router

    yield start
    for each in started:
        each.close()


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Finds a port that nobody listens on."""
    return envoys.free_port


@pytest.fixture
def table() -> Callable[..., RoutingTable]:
    """Makes the table of the tests."""
    return dictated.make_table


@pytest.fixture
def body() -> Callable[..., bytes]:
    """Makes a chat request's body."""

    def make(content: Any = "hello", **fields: Any) -> bytes:
        return json.dumps({"messages": [{"role": "user", "content": content}], **fields}).encode()

    return make
