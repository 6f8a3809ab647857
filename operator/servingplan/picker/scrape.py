"""What the pods say of themselves, several times a second: the few lines of ``/metrics`` that a decision needs.

A page of vLLM is some 50 kB, of which five lines count, so it is searched and never parsed. Every pod is asked over one
connection of its own that is kept, by one task that waits for the answer before it asks again: a slow pod is asked less, and
never twice at once. The names wanted stand in the question too. Servers that are built on Prometheus' Python client then
render only those, which spares the pod more than the picker; the others send the whole page, which does as well.

HTTP is read by hand from asyncio's streams, because a client library takes several times as long as the rest of a scrape and
this is most of what an idle picker does (``bench/picker/bench_scrape.py``).

A pod that does not answer is reported as silent and never as idle, and one that refuses connections as gone.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlencode

from servingplan.routing.fleet import Scrape

RUNNING = ("vllm:num_requests_running",)
WAITING = ("vllm:num_requests_waiting",)
KV_USAGE = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
PREFIX_HITS = (
    "vllm:prefix_cache_hits_total",
    "vllm:prefix_cache_hits",
    "vllm:gpu_prefix_cache_hits_total",
    "vllm:gpu_prefix_cache_hits",
)
PREFIX_QUERIES = (
    "vllm:prefix_cache_queries_total",
    "vllm:prefix_cache_queries",
    "vllm:gpu_prefix_cache_queries_total",
    "vllm:gpu_prefix_cache_queries",
)
"""Names by which releases of vLLM know each figure, the one to prefer first."""

_NAMES = (*RUNNING, *WAITING, *KV_USAGE, *PREFIX_HITS, *PREFIX_QUERIES)
_WHOLE = "/metrics"
_NARROW = f"{_WHOLE}?{urlencode([('name[]', name) for name in _NAMES])}"
_PAGE_LIMIT_BYTES = 4 * 1024 * 1024
_BUFFER_BYTES = 128 * 1024
_HIT_MEMORY_S = 30.0
_SLOWER = 1.5
_ROUNDS = 5
"""In which the pods are asked, per interval: apart enough that they do not all answer at once. To be woken costs more than to
search a page."""
_DOUBTFUL = 4
"""Failures in a row within which a pod is asked on at full pace: whether it has gone is what matters most then."""


class PageError(Exception):
    """An answer is not a metrics page of vLLM."""


@dataclass(frozen=True, slots=True)
class Page:
    """The figures of one page, over all engines and model labels on it.

    Attributes:
        kv_usage: Share of the KV cache in use, the mean over the engines; None where no engine tells.
        prefix_hits: Tokens found in the prefix cache since the server's start; None where it does not count.
        prefix_queries: Tokens looked up in it.
    """

    running: float
    waiting: float
    kv_usage: float | None
    prefix_hits: float | None
    prefix_queries: float | None


def read_page(page: bytes) -> Page:
    """The figures on a metrics page in Prometheus' text format.

    Raises:
        PageError: It lacks the requests in flight, or one of its figures is not a finite number of at least 0.
    """
    page = b"\n" + page
    running, waiting = _values(page, RUNNING), _values(page, WAITING)
    if not running or not waiting:
        raise PageError("the page does not tell the requests in flight")
    usage, hits, queries = (_values(page, names) for names in (KV_USAGE, PREFIX_HITS, PREFIX_QUERIES))
    return Page(
        running=sum(running),
        waiting=sum(waiting),
        kv_usage=min(1.0, sum(usage) / len(usage)) if usage else None,
        prefix_hits=sum(hits) if hits else None,
        prefix_queries=sum(queries) if queries else None,
    )


def _values(page: bytes, names: Collection[str]) -> list[float]:
    """The values of the samples of the first of these names that is on the page."""
    return next((found for name in names if (found := _samples(page, b"\n" + name.encode()))), [])


def _samples(page: bytes, start: bytes) -> list[float]:
    values: list[float] = []
    at = page.find(start)
    while at >= 0:
        end = page.find(b"\n", at + 1)
        line = page[at + len(start) : end if end >= 0 else len(page)]
        # Otherwise it is a longer name that begins alike.
        if line[:1] in {b"{", b" "}:
            values.append(_number(line))
        # The samples of one name stand together, so behind them the page need not be searched to its end.
        follows = end >= 0 and page.startswith(start, end)
        at = end if follows else -1 if values or end < 0 else page.find(start, end)
    return values


def _number(line: bytes) -> float:
    try:
        # A label's value may hold anything but an unescaped quote; behind the last brace there are only numbers.
        value = float(line[line.rfind(b"}") + 1 :].split()[0])
    except (ValueError, IndexError):
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise PageError("the page holds a figure that is no finite number of at least 0")
    return value


@dataclass(slots=True)
class HitShare:
    """Share of the prompt tokens that were found in the prefix cache of late, from two counters that only ever grow.

    Increases count with weight exp(-age / ``memory_s``).
    """

    memory_s: float = _HIT_MEMORY_S
    _last: tuple[float, float, float] | None = None
    _hits: float = 0.0
    _queries: float = 0.0

    def add(self, hits: float | None, queries: float | None, now_s: float) -> float | None:
        """Takes the counters as they stand; returns the share, or None as long as nothing was looked up."""
        if hits is None or queries is None:
            return None
        if self._last is not None:
            before_s, hits_before, queries_before = self._last
            kept = math.exp(-max(0.0, now_s - before_s) / self.memory_s)
            # A counter that has fallen began anew with its server, whose cache is empty.
            restarted = hits < hits_before or queries < queries_before
            self._hits = 0.0 if restarted else self._hits * kept + hits - hits_before
            self._queries = 0.0 if restarted else self._queries * kept + queries - queries_before
        self._last = now_s, hits, queries
        return min(1.0, self._hits / self._queries) if self._queries >= 1.0 else None


class Connection:
    """One connection to one pod, opened when needed and kept."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._host, self._port = host.strip("[]"), int(port)
        self._head = f"\r\nHost: {address}\r\nAccept: text/plain\r\n\r\n".encode()
        self._path = _NARROW
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def page(self) -> Page:
        """Asks once. Whatever it raises, or if it is cancelled, ``close`` has to follow.

        Raises:
            OSError: The pod cannot be reached.
            EOFError: It closed the connection within its answer.
            PageError: The answer is none of vLLM's.
        """
        body = await self._body()
        try:
            return read_page(body)
        except PageError:
            if self._path == _WHOLE:
                raise
            # There are servers that take the names in the question and then find nothing.
            self._path = _WHOLE
            return read_page(await self._body())

    def close(self) -> None:
        """Lets go of the connection; the next question opens another."""
        if self._streams is not None:
            # The pod may be gone for good, and then nobody would ever take what has been written.
            self._streams[1].transport.abort()
            self._streams = None

    async def _body(self) -> bytes:
        if self._streams is not None:
            try:
                return await self._ask(*self._streams)
            except (ConnectionError, EOFError):
                # Between two questions a server may let go of a connection; that says nothing about the pod.
                self.close()
        self._streams = await asyncio.open_connection(self._host, self._port, limit=_BUFFER_BYTES)
        return await self._ask(*self._streams)

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(b"GET " + self._path.encode() + b" HTTP/1.1" + self._head)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            status, length = head[9:12], head.find(b"\r\ncontent-length:")
            if length >= 0:
                body = await reader.readexactly(_size(head[length + 17 : head.index(b"\r\n", length + 2)], 10))
            elif b"\r\ntransfer-encoding: chunked\r\n" in head:
                body = await _chunks(reader)
            else:
                raise PageError("the answer does not tell its length")
        except asyncio.LimitOverrunError:
            raise PageError("the answer's head is too long") from None
        if b"\r\nconnection: close\r\n" in head:
            self.close()
        if status != b"200":
            message = f"the answer's status is {status.decode(errors='replace')}"
            raise PageError(message)
        return body


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := _size((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
        chunk = (await reader.readexactly(size + 2))[:-2]
        body = body + chunk if body else chunk
        if len(body) > _PAGE_LIMIT_BYTES:
            raise PageError("the page is too long")
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass
    return body


def _size(text: bytes, base: int) -> int:
    try:
        size = int(text, base)
    except ValueError:
        size = -1
    if not 0 <= size <= _PAGE_LIMIT_BYTES:
        raise PageError("the page is too long, or does not tell how long it is")
    return size


class Sink(Protocol):
    """Who is told what was found; ``servingplan.routing.brain.Brain`` is one."""

    def observe(self, address: str, scrape: Scrape, now_s: float) -> None:
        """A pod has answered."""

    def silent(self, address: str, now_s: float) -> None:
        """A pod has not answered, or not with a page."""

    def gone(self, address: str, now_s: float) -> None:
        """A pod has refused the connection: nobody listens there."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a pod is asked.

    Attributes:
        interval_s: While anything is in flight on it.
        idle_interval_s: Upper end of the interval while nothing is; also once it has not answered for some time.
        timeout_s: Within which it has to answer, connecting included.
    """

    interval_s: float = 0.25
    idle_interval_s: float = 1.0
    timeout_s: float = 0.5

    def __post_init__(self) -> None:
        if not (0 < self.interval_s <= self.idle_interval_s and self.timeout_s > 0):
            raise ValueError("the intervals and the limit have to be positive, and the idle interval not the shorter one")


@dataclass(slots=True)
class _Followed:
    task: asyncio.Task[None]
    scraped_s: float | None = None
    failures: int = 0


@dataclass(slots=True)
class Scraper:
    """Asks the pods it is told to follow, until it is told otherwise.

    Attributes:
        clock: Seconds that only grow; ``Scrape.taken_s`` is of this clock.
        draw: Random numbers in [0, 1), so that several pickers do not ask in step.
        answered: Answers so far.
        failed: Questions without a usable answer so far.
    """

    sink: Sink
    pace: Pace = field(default_factory=Pace)
    clock: Callable[[], float] = time.monotonic
    draw: Callable[[], float] = random.random
    answered: int = 0
    failed: int = 0
    _pods: dict[str, _Followed] = field(default_factory=dict)

    def follow(self, addresses: Collection[str]) -> None:
        """Asks these pods from now on and no others; what is known of the others is forgotten."""
        for address in [known for known in self._pods if known not in addresses]:
            self._pods.pop(address).task.cancel()
        for address in addresses:
            if address not in self._pods:
                self._pods[address] = _Followed(asyncio.create_task(self._ask_on(address), name=f"scrape {address}"))

    def age_s(self, address: str) -> float:
        """Seconds since a pod last answered; infinite if it never has, or is not followed."""
        pod = self._pods.get(address)
        return math.inf if pod is None or pod.scraped_s is None else max(0.0, self.clock() - pod.scraped_s)

    def oldest_s(self) -> float:
        """Age of the last answer of the pod that has been silent longest; infinite where one never answered."""
        return max((self.age_s(address) for address in self._pods), default=0.0)

    def until_s(self, wait_s: float) -> float:
        """About the wait, drawn out to the next round: the process is woken once for all pods that are asked in it."""
        round_s, now_s = self.pace.interval_s / _ROUNDS, self.clock()
        return math.ceil((now_s + wait_s * (0.8 + 0.2 * self.draw())) / round_s) * round_s - now_s

    async def close(self) -> None:
        """Follows nobody any more."""
        tasks = [pod.task for pod in self._pods.values()]
        self.follow(())
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask_on(self, address: str) -> None:
        connection, hits = Connection(address), HitShare()
        wait_s = self.pace.interval_s
        try:
            while True:
                urgent = await self._ask(address, connection, hits)
                wait_s = self.pace.interval_s if urgent else min(wait_s * _SLOWER, self.pace.idle_interval_s)
                await asyncio.sleep(self.until_s(wait_s))
        finally:
            connection.close()

    async def _ask(self, address: str, connection: Connection, hits: HitShare) -> bool:
        """Asks once and says whether to ask again soon."""
        pod, asked_s = self._pods[address], self.clock()
        try:
            async with asyncio.timeout(self.pace.timeout_s):
                page = await connection.page()
        except (OSError, EOFError, TimeoutError, PageError) as error:
            connection.close()
            self.failed += 1
            pod.failures += 1
            # The requests to a pod go to the same port as the scrapes.
            tell = self.sink.gone if isinstance(error, ConnectionRefusedError) else self.sink.silent
            tell(address, self.clock())
            return pod.failures <= _DOUBTFUL
        now_s = self.clock()
        pod.scraped_s, pod.failures = now_s, 0
        self.answered += 1
        # The pod counted somewhere between the question and the answer.
        taken_s = (asked_s + now_s) / 2
        share = hits.add(page.prefix_hits, page.prefix_queries, now_s)
        self.sink.observe(address, Scrape(taken_s, page.running, page.waiting, page.kv_usage, share), now_s)
        return page.running + page.waiting > 0
