"""Open-loop load, lean enough to share two cores with what it measures.

Started with a JSON line on standard input (a `Plan`), it sends and then writes one row a request to the file that the
plan names. Requests leave at the moments of a seeded Poisson process whatever became of the ones before. Every body is
its own from its first word on, so that no prefix is shared. The generator's own lateness is recorded with every request:
latencies count from the moment of sending, and a run whose `lag_s` is large says nothing.
"""

from __future__ import annotations

import asyncio
import json
import math
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from live import process
from live.traffic import ROW, Bodies, End, Plan, moments_s, plan_from
from live.wire import FramingError, Reader, header

_SWEEP_S = 0.5
_MADE_BYTES = 128 * 2**20
"""Bodies up to this much are made before the load starts."""


class Call:
    """One request and what became of it."""

    __slots__ = ("end", "end_s", "first_s", "headers_s", "max_tokens", "planned_s", "pod", "sent_s", "status")

    def __init__(self, planned_s: float, sent_s: float, max_tokens: int) -> None:
        self.planned_s, self.sent_s, self.max_tokens = planned_s, sent_s, max_tokens
        self.headers_s = self.first_s = self.end_s = float("nan")
        self.status, self.pod = 0, b""
        self.end: End | None = None

    def row(self) -> tuple[Any, ...]:
        """As `ROW` has it."""
        assert self.end is not None
        times = (self.planned_s, self.sent_s, self.headers_s, self.first_s, self.end_s)
        return (*times, self.status, self.end.value, self.pod, self.max_tokens)


class Connection(asyncio.Protocol):
    """A kept connection to a router; one request at a time."""

    def __init__(self, load: Load, idle: deque[Connection]) -> None:
        self._load, self._idle = load, idle
        self._reader = Reader(self._on_head, self._on_body, self._on_end)
        self._tail = b""
        self.call: Call | None = None
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.transport = transport

    def ask(self, call: Call, request: bytes) -> None:
        """Send a request."""
        self.call, self._tail = call, b""
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
        except FramingError:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if self in self._idle:
            self._idle.remove(self)
        self._end(None)

    def give_up(self, why: End) -> None:
        """Go away, whatever the request has got so far."""
        self._end(why)
        self.transport.abort()

    def _on_head(self, head: bytes) -> None:
        if call := self.call:
            call.headers_s = self._load.now_s()
            call.status = int(head[9:12])
            call.pod = header(head, b"x-pod") or b""

    def _on_body(self, piece: bytes) -> None:
        if call := self.call:
            if math.isnan(call.first_s):
                call.first_s = self._load.now_s()
            self._tail = (self._tail + piece)[-32:]

    def _on_end(self) -> None:
        call = self.call
        if not call:
            return
        broken = call.status == 200 and self._load.plan.stream and b"[DONE]" not in self._tail
        self._end(None if broken else End.WHOLE if call.status == 200 else End.REFUSED)
        self._idle.append(self)

    def _end(self, how: End | None) -> None:
        call, self.call = self.call, None
        if not call:
            return
        if how is None:
            how = End.CUT if not math.isnan(call.first_s) else End.HEADED if call.status else End.BEFORE
        call.end = how
        call.end_s = self._load.now_s()
        self._load.ended()


class Load:
    """The run of one plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._loop = asyncio.get_running_loop()
        self._bodies = Bodies(plan)
        self._idle: list[deque[Connection]] = [deque() for _ in plan.targets]
        self._open: set[Connection] = set()
        self._random = np.random.default_rng([plan.seed, 3])
        self._tasks: set[asyncio.Task[None]] = set()
        self._start_s = 0.0
        self._calls: list[Call] = []
        self._done = asyncio.Event()
        self._in_flight = 0
        self._more = plan.streams > 0

    def now_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start_s

    async def run(self) -> np.ndarray:
        """Send everything and wait for the answers."""
        sweeping = self._loop.create_task(self._sweep())
        self._start_s = time.monotonic()
        if self.plan.streams:
            await self._keep_streams()
        else:
            await self._follow()
        self._more = False
        while self._in_flight:
            self._done.clear()
            await self._done.wait()
        sweeping.cancel()
        return np.array([call.row() for call in self._calls], dtype=ROW)

    async def _follow(self) -> None:
        times_s = moments_s(self.plan)
        made = deque(self._bodies.next() for _ in times_s[: _MADE_BYTES // self.plan.body_bytes])
        self._start_s = time.monotonic()
        for number, at_s in enumerate(times_s):
            if (delay_s := at_s - self.now_s()) > 0:
                await asyncio.sleep(delay_s)
            self._send(float(at_s), number, made.popleft() if made else self._bodies.next())

    async def _keep_streams(self) -> None:
        """Begins them one after the other, so that they do not all end at once."""
        ramp_s = 10.0 / self.plan.streams
        for number in range(self.plan.streams):
            self._send(self.now_s(), number, self._bodies.next())
            await asyncio.sleep(ramp_s)
        await asyncio.sleep(sum(seconds for seconds, _ in self.plan.pieces))

    def _send(self, planned_s: float, number: int, ready: tuple[bytes, int]) -> None:
        request, max_tokens = ready
        call = Call(planned_s, self.now_s(), max_tokens)
        self._calls.append(call)
        self._in_flight += 1
        target = number % len(self.plan.targets)
        idle = self._idle[target]
        if idle:
            self._ask(idle.pop(), call, request)
        else:
            task = self._loop.create_task(self._connect(target, call, request))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _connect(self, target: int, call: Call, request: bytes) -> None:
        host, port = self.plan.targets[target]
        try:
            _, connection = await self._loop.create_connection(lambda: Connection(self, self._idle[target]), host, port)
        except OSError:
            call.end, call.end_s = End.BEFORE, self.now_s()
            self.ended()
            return
        self._ask(connection, call, request)

    def _ask(self, connection: Connection, call: Call, request: bytes) -> None:
        self._open.add(connection)
        connection.ask(call, request)
        if self.plan.abort_share and self._random.random() < self.plan.abort_share:
            after_s = float(self._random.exponential(self.plan.abort_after_s))
            self._loop.call_later(after_s, lambda: connection.give_up(End.ABORTED) if connection.call is call else None)

    def ended(self) -> None:
        """A request is over."""
        self._in_flight -= 1
        if self._more:
            self._send(self.now_s(), len(self._calls), self._bodies.next())
        if not self._in_flight:
            self._done.set()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            late_s = self.now_s() - self.plan.patience_s
            for connection in list(self._open):
                if not connection.call:
                    self._open.discard(connection)
                elif connection.call.sent_s < late_s:
                    connection.give_up(End.LATE)


def orders() -> Iterator[dict[str, Any]]:
    """The lines of standard input."""
    for line in iter(sys.stdin.readline, ""):
        yield json.loads(line)


def main() -> None:
    process.tell({"ready": True})
    for order in orders():
        plan = plan_from(order)
        rows: list[np.ndarray] = []
        before_s = time.process_time()

        async def work(plan: Plan = plan, rows: list[np.ndarray] = rows) -> None:
            rows.append(await Load(plan).run())

        process.run(work())
        np.save(Path(plan.out), rows[0])
        process.tell({"cpu_s": time.process_time() - before_s})


if __name__ == "__main__":
    main()
