"""A simulated vLLM in every ready pod: it serves what it is sent, and counts what Prometheus would read."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from servingplan.calibration.readings import PoolReading
from servingplan.sim.fleet import Engine, Progress
from servingplan.sim.replay import Replica
from virtual.cluster import Cluster
from virtual.reading import PoolLog
from virtual.traffic import LONGEST_TOKENS, Requests

REFUSED, UNSERVED = -1, -2
"""In place of a pool: shed, and nobody there."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of every request.

    Attributes:
        pool: (n,) index into `pools`, REFUSED or UNSERVED.
        first_token_s: (n,) NaN where it never came.
        finished_s: (n,) the same.
    """

    requests: Requests
    pools: tuple[str, ...]
    pool: np.ndarray
    first_token_s: np.ndarray
    finished_s: np.ndarray

    @property
    def ttft_s(self) -> np.ndarray:
        """(n,) infinite where the first token never came, NaN where the request was refused."""
        waited = self.first_token_s - self.requests.arrival_s
        return np.where(self.pool < 0, np.nan, np.where(np.isnan(waited), np.inf, waited))


@dataclass(slots=True, eq=False)
class Server:
    """The engine in one pod.

    Attributes:
        pod: Its name.
        pool: Index into the pools.
        taken: Requests in the order in which they were sent there.
        news: What it brought forth and is not noted yet.
    """

    pod: str
    engine: Engine
    pool: int
    taken: array[int] = field(default_factory=lambda: array("q"))
    news: list[Progress] = field(default_factory=list)

    @property
    def load(self) -> int:
        """Requests that run or wait."""
        return self.engine.running + self.engine.waiting


class Replicas:
    """The engines of one plan's pods.

    Args:
        cluster: Where the pods are.
        truth: How fast the replicas of each pool really are.
        requests: What will arrive.
        output_tokens: (n,) by pool, where the length of an answer hangs on who gives it.

    Attributes:
        servers: By the pod's name.
    """

    def __init__(
        self,
        cluster: Cluster,
        truth: Mapping[str, Replica],
        requests: Requests,
        output_tokens: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self._cluster, self._truth, self._requests = cluster, truth, requests
        self._pools = tuple(sorted(truth))
        self._outputs = [requests.output_tokens if output_tokens is None else output_tokens[pool] for pool in self._pools]
        self.servers: dict[str, Server] = {}
        self._logs = {pool: PoolLog() for pool in self._pools}
        n = len(requests.arrival_s)
        self._pool = np.full(n, UNSERVED)
        self._first_s, self._finished_s = np.full(n, np.nan), np.full(n, np.nan)

    def follow_pods(self, now_s: float) -> None:
        """Starts an engine in every pod that has become ready, and drops those of pods that have gone."""
        self.note()
        for at, pool in enumerate(self._pools):
            for name in self._cluster.ready(pool):
                if name not in self.servers:
                    engine = Engine(self._truth[pool], longest_tokens=LONGEST_TOKENS, opened_s=now_s)
                    self.servers[name] = Server(name, engine, at)
        for name in [name for name in self.servers if name not in self._cluster.pods]:
            del self.servers[name]

    def ready(self, pool: str) -> list[Server]:
        """The engines of a pool that requests may go to; none of a pool that nobody knows."""
        return [self.servers[name] for name in self._cluster.ready(pool) if name in self.servers]

    def busy(self, pod: str) -> bool:
        """Whether a pod has requests under way."""
        return pod in self.servers and self.servers[pod].load > 0

    def send(self, r: int, to: Server | int, at_s: float) -> None:
        """Lets a request reach an engine at a time, or marks it as REFUSED or UNSERVED."""
        if isinstance(to, int):
            self._pool[r] = to
            return
        to.engine.offer(at_s, int(self._requests.prompt_tokens[r]), int(self._outputs[to.pool][r]))
        to.taken.append(r)
        self._pool[r] = to.pool

    def advance(self, until_s: float) -> list[tuple[Server, Progress]]:
        """Lets engines work; what has happened since the last call, its requests as places in the engine's `taken`."""
        found = []
        for server in self.servers.values():
            server.engine.advance(until_s)
            news = server.engine.collect()
            if len(news.first) or len(news.finished):
                server.news.append(news)
                found.append((server, news))
        return found

    def note(self) -> None:
        """Counts what has happened."""
        for server in self.servers.values():
            if server.news:
                self._note(server)
                server.news.clear()

    def scrape(self, now_s: float) -> None:
        """Notes the gauges."""
        for at, pool in enumerate(self._pools):
            engines = [server.engine for server in self.servers.values() if server.pool == at]
            if engines:
                sums = [float(sum(getattr(engine, gauge) for engine in engines)) for gauge in ("running", "waiting")]
                self._logs[pool].gauges.append((now_s, *sums, max(engine.kv_usage for engine in engines)))

    def forget(self, before_s: float) -> None:
        """Drops what no window reaches any more."""
        self.note()
        for log in self._logs.values():
            log.forget(before_s)

    def readings(self, scraped_s: float) -> dict[str, PoolReading]:
        """What the pools with a ready pod said in the window that ended with a scrape."""
        self.note()
        ready = {pool: len(self._cluster.ready(pool)) for pool in self._pools}
        return {pool: self._logs[pool].reading(count, scraped_s) for pool, count in ready.items() if count}

    def outcome(self) -> Outcome:
        """What became of the requests so far."""
        self.note()
        return Outcome(self._requests, self._pools, self._pool, self._first_s, self._finished_s)

    def _note(self, server: Server) -> None:
        requests, log, taken = self._requests, self._logs[self._pools[server.pool]], np.array(server.taken)
        columns = ("first", "first_token_s", "finished", "finished_s")
        first, first_s, ended, ended_s = (np.concatenate([getattr(news, each) for news in server.news]) for each in columns)
        first, ended = taken[first], taken[ended]
        self._first_s[first], self._finished_s[ended] = first_s, ended_s
        log.first.append(np.column_stack([first_s, first_s - requests.arrival_s[first]]))
        output = self._outputs[server.pool][ended]
        gaps = output - 1
        took_s = ended_s - self._first_s[ended]
        numbers = [ended_s, took_s / np.maximum(1, gaps), gaps, ended_s - requests.arrival_s[ended]]
        log.ended.append(np.column_stack([*numbers, requests.prompt_tokens[ended], output]))
