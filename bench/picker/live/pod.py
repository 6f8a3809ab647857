"""A simulated vLLM pod at an address of its own.

A pod with an engine queues, batches and generates as the simulated vLLM does (`servingplan.sim.driver`); without one it
answers at once, for cells that measure only the way there. Streams begin with their headers, before the first token, as
vLLM's do; tokens after the first are sent several at a time, because a chunk a token would cost more than the rest of the
box together.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from live.pages import Page
from live.wire import END_OF_CHUNKS, Reader, chunk
from servingplan.sim import engine
from servingplan.sim.driver import Driver, Ticket
from servingplan.sim.engine import BLOCK_TOKENS, Limits, StepCost

FLUSH_S = 0.5
"""Tokens after the first are held back for at most this long."""

_HEAD_BYTES = 400
_NUMBER = re.compile(rb'"(max_tokens|pace_s)": ?([0-9.]+)')
_STREAM = re.compile(rb'"stream": ?true')


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """Speed and limits of a pod's engine, as `servingplan.sim.engine` has them."""

    alpha_s: float
    beta_s: float
    gamma_s: float
    floor_s: float
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_tokens: int


@dataclass(frozen=True, slots=True)
class PodSpec:
    """One pod; without an engine it answers at once."""

    name: str
    model: str
    address: str
    port: int
    engine: EngineSpec | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request wants, as far as pods care."""

    stream: bool
    prompt_tokens: int
    max_tokens: int
    pace_s: float


def read_request(body: bytes | bytearray) -> Asked:
    """What a body asks for; its parameters stand before its messages, so that long ones need not be parsed."""
    head = bytes(body[:_HEAD_BYTES])
    numbers = {name: float(value) for name, value in _NUMBER.findall(head)}
    return Asked(
        stream=bool(_STREAM.search(head)),
        prompt_tokens=max(1, len(body) // 4),
        max_tokens=int(numbers.get(b"max_tokens", 16)),
        pace_s=numbers.get(b"pace_s", 0.0),
    )


class Link(asyncio.Protocol):
    """A connection to a pod."""

    def __init__(self, pod: Pod) -> None:
        self._pod = pod
        self._reader = Reader(self._on_head, self._on_body, self._on_end)
        self._head, self._body = b"", bytearray()
        self._held: list[bytes] = []
        self._unsent: list[bytes] = []
        self._transport: Any = None
        self.answer: Answer | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._pod.links.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._pod.links.discard(self)
        if self.answer:
            self.answer.cancel()

    def data_received(self, data: bytes) -> None:
        if self._pod.hung:
            self._held.append(data)
        else:
            self._reader.feed(data)

    def write(self, data: bytes) -> None:
        """Send, or keep while the pod hangs."""
        if self._pod.hung:
            self._unsent.append(data)
        elif not self._transport.is_closing():
            self._transport.write(data)

    def resume(self) -> None:
        """Do what was left undone while the pod hung."""
        held, unsent = self._held, self._unsent
        self._held, self._unsent = [], []
        for data in unsent:
            self.write(data)
        for data in held:
            self._reader.feed(data)

    def abort(self) -> None:
        """Close as a killed process's kernel does."""
        self._transport.abort()

    def _on_head(self, head: bytes) -> None:
        self._head = head
        self._body.clear()

    def _on_body(self, piece: bytes) -> None:
        self._body += piece

    def _on_end(self) -> None:
        if self._head.startswith(b"GET "):
            self.write(self._pod.get(self._head.split(b" ", 2)[1]))
            return
        self._pod.requests += 1
        self.answer = Answer(self._pod, self, read_request(self._body))
        self._body = bytearray()
        self.answer.begin()


class Answer:
    """One answer in the making."""

    def __init__(self, pod: Pod, link: Link, asked: Asked) -> None:
        self._pod, self._link, self._asked = pod, link, asked
        self._sent, self._flushed_s = 0, 0.0
        self._ticket: Ticket | None = None
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Answer at once, at a given pace, or as the engine brings tokens forth."""
        self._pod.answers.add(self)
        if self._asked.stream:
            self._link.write(self._pod.stream_head())
        if self._pod.driver:
            self._ticket = self._pod.submit(self._asked, self)
        elif self._asked.stream and self._asked.pace_s:
            self._task = asyncio.get_running_loop().create_task(self._paced())
        else:
            self._give(self._asked.max_tokens, ended=True)

    def cancel(self) -> None:
        """The client has gone, or the pod."""
        self._pod.answers.discard(self)
        if self._ticket and self._pod.driver:
            self._pod.driver.abort(self._ticket)
        if self._task:
            self._task.cancel()

    def on_tokens(self, generated: int, *, done: bool, now_s: float) -> None:
        """The engine has brought forth tokens."""
        if done or generated == 1 or (self._asked.stream and now_s - self._flushed_s >= FLUSH_S):
            self._flushed_s = now_s
            self._give(generated, ended=done)

    async def _paced(self) -> None:
        for number in range(1, self._asked.max_tokens + 1):
            self._give(number, ended=number == self._asked.max_tokens)
            await asyncio.sleep(self._asked.pace_s)

    def _give(self, generated: int, *, ended: bool) -> None:
        if self._asked.stream:
            new, self._sent = generated - self._sent, generated
            text = b'data: {"choices":[{"delta":{"content":"%s"}}]}\n\n' % (b" token" * new)
            self._link.write(chunk(text) + (chunk(self._usage() + b"data: [DONE]\n\n") + END_OF_CHUNKS if ended else b""))
        elif ended:
            self._link.write(self._pod.whole(generated))
        if ended:
            self._pod.answers.discard(self)
            self._link.answer = None

    def _usage(self) -> bytes:
        return b'data: {"choices":[],"usage":{"prompt_tokens":%d,"completion_tokens":%d}}\n\n' % (
            self._asked.prompt_tokens,
            self._asked.max_tokens,
        )


@dataclass(slots=True)
class Pod:
    """One pod's state.

    Attributes:
        hung: It takes connections and bytes and says nothing.
        page_age_s: Its metrics page tells what was true so long ago.
        requests: How many generating requests have reached it.
    """

    spec: PodSpec
    page: Page
    driver: Driver | None = None
    hung: bool = False
    page_age_s: float = 0.0
    requests: int = 0
    links: set[Link] = field(default_factory=set)
    answers: set[Answer] = field(default_factory=set)
    _server: asyncio.Server | None = None
    _seen: deque[tuple[float, tuple[float, float, float]]] = field(default_factory=deque)
    _by_ticket: dict[Ticket, Answer] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @classmethod
    def of(cls, spec: PodSpec, page: Page) -> Pod:
        """A pod that does not listen yet."""
        pod = cls(spec, page)
        if spec.engine:
            e = spec.engine
            pod.driver = Driver(
                StepCost(e.alpha_s, e.floor_s, e.beta_s, e.gamma_s),
                Limits(e.max_num_seqs, e.max_num_batched_tokens, 0),
                e.kv_tokens // BLOCK_TOKENS + 1,
                32_768,
                on_token=pod._on_token,
                on_step=lambda _tokens: None,
            )
        return pod

    async def listen(self) -> None:
        """Begin to serve, or do so again after `kill`."""
        loop = asyncio.get_running_loop()
        if self.driver and not self._tasks:
            self._tasks.add(loop.create_task(self.driver.run()))
        self._server = await loop.create_server(lambda: Link(self), self.spec.address, self.spec.port, backlog=4096)

    def kill(self) -> None:
        """End as by SIGKILL: nothing listens, every connection is gone."""
        if self._server:
            self._server.close()
            self._server = None
        for link in list(self.links):
            link.abort()
        for answer in list(self.answers):
            answer.cancel()

    def resume(self) -> None:
        """End of hanging."""
        self.hung = False
        for link in list(self.links):
            link.resume()

    def submit(self, asked: Asked, answer: Answer) -> Ticket:
        """Put a request into the engine."""
        assert self.driver
        ticket = self.driver.submit(asked.prompt_tokens, asked.max_tokens, every_token=False)
        self._by_ticket[ticket] = answer
        return ticket

    def _on_token(self, ticket: Ticket, _since_s: float) -> None:
        if answer := self._by_ticket.get(ticket):
            answer.on_tokens(ticket.generated, done=ticket.done, now_s=ticket.last_token_s)
        if ticket.done:
            self._by_ticket.pop(ticket, None)

    def load(self) -> tuple[float, float, float]:
        """Running, waiting, and share of the KV cache that is held."""
        if not self.driver:
            return float(len(self.answers)), 0.0, 0.0
        counts = self.driver.engine.counts
        return float(counts[engine.N_RUNNING]), float(counts[engine.N_WAITING]), self.driver.kv_usage

    def look(self, now_s: float) -> None:
        """Remember the load for a page of the past, and forget requests that were aborted."""
        for ticket in [ticket for ticket in self._by_ticket if ticket.aborted]:
            del self._by_ticket[ticket]
        self._seen.append((now_s, self.load()))
        while len(self._seen) > 1 and self._seen[1][0] <= now_s - self.page_age_s:
            self._seen.popleft()

    def get(self, path: bytes) -> bytes:
        """Answer of a GET."""
        if path != b"/metrics":
            return b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
        told = self._seen[0][1] if self.page_age_s and self._seen else self.load()
        page = self.page.text(*told)
        kind = b"text/plain; version=0.0.4; charset=utf-8"
        return b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n%s" % (kind, len(page), page)

    def stream_head(self) -> bytes:
        """Headers of a stream."""
        return (
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n"
            b"x-pod: %s\r\n\r\n" % (self.spec.name.encode(),)
        )

    def whole(self, generated: int) -> bytes:
        """A plain answer."""
        usage = {"completion_tokens": generated}
        answer = {"model": self.spec.model, "choices": [{"message": {"content": "token"}}], "usage": usage}
        body = json.dumps(answer).encode()
        return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\nx-pod: %s\r\n\r\n%s" % (
            len(body),
            self.spec.name.encode(),
            body,
        )
