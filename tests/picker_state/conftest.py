"""Model servers' metrics pages on loopback, in every way that they can be served or fail."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

LIMIT_S = 20.0
REAL_PAGE = Path(os.environ.get("SERVINGPLAN_DATA", Path(__file__).parents[3] / "shared/data")) / "vllm-0.32.0-metrics.txt"


async def until(condition: Callable[[], Any], what: str = "the condition") -> Any:
    """The condition's first true value; fails when it does not come true."""
    end_s = time.monotonic() + LIMIT_S
    while time.monotonic() < end_s:
        if value := condition():
            return value
        await asyncio.sleep(0.005)
    return pytest.fail(f"not within {LIMIT_S:g} s: {what}")


def metrics_page(running: float = 0.0, waiting: float = 0.0) -> str:
    return (
        "# TYPE vllm:num_requests_running gauge\n"
        f'vllm:num_requests_running{{engine="0",model_name="m"}} {running}\n'
        f'vllm:num_requests_waiting{{engine="0",model_name="m"}} {waiting}\n'
        f'vllm:kv_cache_usage_perc{{engine="0",model_name="m"}} 0.5\n'
    )


@dataclass
class Pod:
    """A model server of which only the metrics page is real.

    Attributes:
        page: What it answers.
        status: With which status.
        chunked: Whether it tells the length of its answer in chunks.
        closes: Whether it closes the connection after each answer.
        hangs: Whether it never answers.
        asked: Queries of the questions so far.
        at_once: Most questions that were open at the same time.
        connections: Sockets on which it was asked.
    """

    page: str = field(default_factory=metrics_page)
    status: int = 200
    chunked: bool = False
    closes: bool = False
    hangs: bool = False
    asked: list[str] = field(default_factory=list)
    at_once: int = 0
    connections: set[int] = field(default_factory=set)
    address: str = ""
    narrows: bool = False
    _open: int = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.query_string)
        self.connections.add(id(request.transport))
        self._open += 1
        self.at_once = max(self.at_once, self._open)
        try:
            if self.hangs:
                await asyncio.sleep(LIMIT_S)
            text = "" if self.narrows and request.query_string else self.page
            response = web.Response(text=text, status=self.status)
            if self.chunked:
                response.enable_chunked_encoding()
            if self.closes:
                response.force_close()
            return response
        finally:
            self._open -= 1


@contextlib.asynccontextmanager
async def serving(*pods: Pod, ports: tuple[int, ...] = ()) -> AsyncIterator[list[str]]:
    """The addresses of pods that serve their pages."""
    async with contextlib.AsyncExitStack() as stack:
        for index, pod in enumerate(pods):
            app = web.Application()
            app.router.add_get("/metrics", pod.answer)
            runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, "127.0.0.1", ports[index] if ports else 0).start()
            pod.address = f"127.0.0.1:{runner.addresses[0][1]}"
        yield [pod.address for pod in pods]


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


ENGINE = {
    "alphaS": 0.01,
    "betaS": 1e-5,
    "gammaS": 1e-8,
    "floorS": 0.002,
    "maxNumSeqs": 64,
    "maxNumBatchedTokens": 2048,
    "kvTokens": 10_000,
}


def table_json(**changes: Any) -> str:
    """A routing table of two models with a pool each, ``small`` and ``large``, with some of its fields changed."""

    def pool(name: str, port: int, price: float) -> dict[str, Any]:
        address = f"{name}.ns.svc.cluster.local."
        speed = {"engine": ENGINE, "price": price, "inputPrice": 1e-7, "outputPrice": 2e-7}
        return {"name": name, "setup": "one", "address": address, "port": port, **speed}

    chat = {"name": "chat", "headers": {"x-class": "chat"}, "weights": {"small": 250_000, "large": 750_000}}
    table = {
        "namespace": "ns",
        "plan": "plan",
        "generation": 1,
        "picker": {"perDollar": 1500.0, "perSecond": 0.02},
        "models": [
            {"name": "s", "pools": [pool("small", 8000, 0.03)]},
            {"name": "l", "pools": [pool("large", 8001, 0.0)]},
        ],
        "classes": [
            chat | {"weight": 2.0, "ttftS": 0.5, "quality": {"s": 0.4, "l": 0.3}, "minQuality": 0.4},
            {"name": "rest", "weights": {"large": 1_000_000}},
        ],
    }
    return json.dumps(table | changes)
