"""A picker on loopback whose decisions the test dictates."""

from __future__ import annotations

import asyncio
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from servingplan.api.routing_table import ClassEntry, ModelEntry, Picker, Pool, RoutingTable
from servingplan.picker.decide import Decider
from servingplan.picker.health import Health
from servingplan.picker.metrics import Metrics
from servingplan.picker.receipts import ReceiptLog
from servingplan.picker.server import Listening, Server
from servingplan.routing.ask import Ask, Choice, Outcome, Terms

DEADLINE_S = 20.0
_NOBODY = Choice((), None, 503, 0.0, None)


def make_table(**picker: Any) -> RoutingTable:
    """A plan with two models and the classes ``code`` (by header) and ``chat``."""
    models = [
        ModelEntry(name=f"{name}.v1", pools=(Pool(name=f"chat-{name}", setup="s", address=f"{name}.local"),))
        for name in ("large", "small")
    ]
    quality = {"large.v1": 0.9, "small.v1": 0.6}
    return RoutingTable(
        namespace="llm",
        plan="chat",
        generation=7,
        models=tuple(models),
        classes=(
            ClassEntry(name="code", headers={"x-request-class": "code"}, quality=quality, weight=2.0, ttft_s=0.5),
            ClassEntry(name="chat", quality=quality, prompt_tokens=300, output_tokens=150, e2e_s=9.0, min_quality=0.2),
        ),
        picker=Picker(per_dollar=1500, per_second=0.02, **picker),
    )


def make_terms(address: str, **fields: Any) -> Terms:
    values = dict.fromkeys((name for name in Terms.__dataclass_fields__), 0.25)
    named = {"address": address, "pool": "chat-large", "model": "large.v1", "relaxed": (), "runners_up": ()}
    return Terms(**(values | named | fields))


@dataclass
class Dictated:
    """The decision as a test wants it, which remembers what it was asked and told.

    Attributes:
        choice: The answer to every request; its ticket is replaced by a new one.
        in_flight: Tickets that have not ended.
    """

    choice: Choice = _NOBODY
    asks: list[Ask] = field(default_factory=list)
    in_flight: set[int] = field(default_factory=set)
    first_bytes: list[tuple[int, str | None]] = field(default_factory=list)
    ended: list[tuple[int, Outcome, str | None]] = field(default_factory=list)
    error: Exception | None = None
    last: int = 0

    def pick(self, *candidates: str) -> None:
        terms = make_terms(candidates[0])
        self.choice = Choice(candidates, 0, 200, 0.0, terms, pool=terms.pool, model=terms.model, ttft_s=terms.ttft_s)

    def choose(self, ask: Ask, now_s: float, draw: float) -> Choice:
        self.asks.append(ask)
        if self.error:
            raise self.error
        if self.choice.ticket is None:
            return self.choice
        self.last += 1
        self.in_flight.add(self.last)
        return replace(self.choice, ticket=self.last)

    def first_byte(self, ticket: int, now_s: float, address: str | None = None) -> None:
        self.first_bytes.append((ticket, address))

    def finished(
        self, ticket: int, now_s: float, outcome: Outcome, output_tokens: float | None = None, address: str | None = None
    ) -> None:
        self.in_flight.discard(ticket)
        self.ended.append((ticket, outcome, address))


@dataclass
class Given:
    """What the decider decides from, all of it the test's to change."""

    brain: Dictated = field(default_factory=Dictated)
    table: RoutingTable | None = field(default_factory=make_table)
    predict: Any = None
    is_ready: bool = True


class Receipts(ReceiptLog):
    """Receipts that stay in the process."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        super().__init__(self)  # type: ignore[arg-type]

    def write(self, *parts: str) -> None:
        super().write(*parts) if len(parts) > 1 else self.lines.append(*parts)

    def flush(self) -> None:
        pass


class RunningPicker:
    """A picker that serves in a loop that runs in another thread.

    Attributes:
        given: What it decides from.
        decider: Who decides.
        target: What gRPC connects to.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, address: str, **decider: Any) -> None:
        self.given, self.metrics, self.receipts = Given(), Metrics(), Receipts()
        self._loop = loop
        self.health = Health(lambda: self.given.is_ready)
        listening = Listening(address, http_address="127.0.0.1", http_port=0, drain_s=5.0)
        self.decider = Decider(self.given, self.metrics, receipts=self.receipts, **decider)

        async def start() -> Server:
            server = Server(self.decider, self.health, self.metrics, listening)
            await server.start()
            return server

        self.server = self.call(start())
        self.target = address if address.startswith("unix:") else f"127.0.0.1:{self.server.port}"
        self.stopped = False

    def call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(DEADLINE_S)

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Its loop does nothing meanwhile, nor for whoever else lives in it."""
        over = threading.Event()
        self._loop.call_soon_threadsafe(over.wait, DEADLINE_S)
        try:
            yield
        finally:
            over.set()

    def stop(self) -> None:
        if not self.stopped:
            self.stopped = True
            self.call(self.server.stop())

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.server.http_port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"servingplan_picker_{name}", labels) or 0.0
