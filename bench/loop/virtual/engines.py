"""The data plane with engines: a router that follows the published table, and a simulated vLLM in every ready pod.

A request is refused by the class's share that the table sheds, or goes to a pool by weight, and there to the one of two
random replicas that has fewer requests. A pool without a ready replica answers 503.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from servingplan.api.routing_table import RoutingTable
from servingplan.calibration.readings import Readings
from servingplan.sim.fleet import Engine
from servingplan.sim.replay import Replica
from virtual import reading
from virtual.cluster import Cluster
from virtual.reading import Arrivals, PoolLog
from virtual.traffic import LONGEST_TOKENS, Requests

REFUSED, UNSERVED = -1, -2
"""In place of a pool: shed by the plan, and nobody there."""


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


@dataclass(slots=True)
class _Server:
    engine: Engine
    pool: int
    taken: array[int] = field(default_factory=lambda: array("q"))

    @property
    def load(self) -> int:
        return self.engine.running + self.engine.waiting


class Engines:
    """Serves the requests of one plan.

    Args:
        plan_key: ``namespace/name``.
        cluster: Where the pods are.
        truth: How fast the replicas of each pool really are.
        requests: What arrives.
        seed: Of the router's choices.
    """

    def __init__(
        self,
        plan_key: str,
        cluster: Cluster,
        truth: Mapping[str, Replica],
        requests: Requests,
        settings: reading.Settings,
        seed: int,
    ) -> None:
        self._key, self._cluster, self._truth, self._settings = plan_key, cluster, truth, settings
        self._requests, self._chance = requests, np.random.default_rng(seed)
        self._pools = tuple(sorted(truth))
        self._servers: dict[str, _Server] = {}
        self._logs = {pool: PoolLog() for pool in self._pools}
        n = len(requests.arrival_s)
        self._pool = np.full(n, UNSERVED)
        self._first_s, self._finished_s = np.full(n, np.nan), np.full(n, np.nan)
        self._next, self._now_s = 0, 0.0
        self._draws = self._chance.random((n, 4))
        self._arrivals = {name: Arrivals(requests.arrival_s[requests.kind == at]) for at, name in enumerate(requests.classes)}

    def busy(self, pod: str) -> bool:
        """Whether a pod has requests under way."""
        return pod in self._servers and self._servers[pod].load > 0

    def serve(self, until_s: float) -> None:
        """Lets requests arrive and be served."""
        self._follow_pods()
        table = self._cluster.table(self._key)
        scrape_s = self._settings.last_scrape_s(self._now_s) + self._settings.scrape_s
        while scrape_s <= until_s:
            self._serve(scrape_s, table)
            self._scrape(scrape_s)
            scrape_s += self._settings.scrape_s
        self._serve(until_s, table)
        for log in self._logs.values():
            log.forget(until_s - 3 * reading.WINDOW_S)

    def readings(self) -> Readings:
        """What Prometheus says now."""
        scraped_s = self._settings.last_scrape_s(self._now_s)
        ready = {pool: len(self._cluster.ready(pool)) for pool in self._pools}
        pools = {pool: self._logs[pool].reading(count, scraped_s) for pool, count in ready.items() if count}
        begun_s = float(self._requests.arrival_s[0]) if len(self._requests.arrival_s) else np.inf
        histories = {
            name: arrivals.history(begun_s, scraped_s, self._settings.short_window_s)
            for name, arrivals in self._arrivals.items()
        }
        return reading.found(pools, {name: one for name, one in histories.items() if one}, scraped_s)

    def outcome(self) -> Outcome:
        """What became of the requests so far."""
        return Outcome(self._requests, self._pools, self._pool, self._first_s, self._finished_s)

    def _follow_pods(self) -> None:
        for at, pool in enumerate(self._pools):
            for name in self._cluster.ready(pool):
                if name not in self._servers:
                    engine = Engine(self._truth[pool], longest_tokens=LONGEST_TOKENS, opened_s=self._now_s)
                    self._servers[name] = _Server(engine, at)
        for name in [name for name in self._servers if name not in self._cluster.pods]:
            del self._servers[name]

    def _serve(self, until_s: float, table: RoutingTable | None) -> None:
        end = int(np.searchsorted(self._requests.arrival_s, until_s))
        ways = self._ways(table)
        for r in range(self._next, end):
            self._route(r, ways[self._requests.kind[r]])
        self._next, self._now_s = end, until_s
        for server in self._servers.values():
            server.engine.advance(until_s)
            self._note(server)

    def _ways(self, table: RoutingTable | None) -> list[tuple[float, np.ndarray, list[list[_Server]]]]:
        """By class: the share that is shed, and cumulative weights and ready servers of its pools."""
        entries = {entry.name: entry for entry in table.classes} if table else {}
        ready = {
            pool: [self._servers[name] for name in self._cluster.ready(pool) if name in self._servers] for pool in self._pools
        }
        ways = []
        for name in self._requests.classes:
            weights = entries[name].weights if name in entries else {}
            total = max(1, sum(weights.values()))
            cumulative = np.cumsum([weight / total for weight in weights.values()])
            ways.append((entries[name].shed if name in entries else 0.0, cumulative, [ready[pool] for pool in weights]))
        return ways

    def _route(self, r: int, way: tuple[float, np.ndarray, list[list[_Server]]]) -> None:
        shed, cumulative, pools = way
        draws, requests = self._draws[r], self._requests
        if draws[0] < shed:
            self._pool[r] = REFUSED
            return
        at = min(int(np.searchsorted(cumulative, draws[1], side="right")), len(pools) - 1)
        if at < 0 or not pools[at]:
            return
        servers, arrival_s = pools[at], float(requests.arrival_s[r])
        two = {int(draws[2] * len(servers)), int(draws[3] * len(servers))}
        for one in two:
            servers[one].engine.advance(arrival_s)
        chosen = min((servers[one] for one in sorted(two)), key=lambda server: server.load)
        chosen.engine.offer(arrival_s, int(requests.prompt_tokens[r]), int(requests.output_tokens[r]))
        chosen.taken.append(r)
        self._pool[r] = chosen.pool

    def _note(self, server: _Server) -> None:
        news, requests = server.engine.collect(), self._requests
        if not len(news.first) and not len(news.finished):
            return
        taken = np.array(server.taken)
        log = self._logs[self._pools[server.pool]]
        first, ended = taken[news.first], taken[news.finished]
        self._first_s[first], self._finished_s[ended] = news.first_token_s, news.finished_s
        log.first.append(np.column_stack([news.first_token_s, news.first_token_s - requests.arrival_s[first]]))
        gaps = requests.output_tokens[ended] - 1
        took_s = news.finished_s - self._first_s[ended]
        e2e_s = news.finished_s - requests.arrival_s[ended]
        columns = [news.finished_s, took_s / np.maximum(1, gaps), gaps, e2e_s]
        log.ended.append(np.column_stack([*columns, requests.prompt_tokens[ended], requests.output_tokens[ended]]))

    def _scrape(self, now_s: float) -> None:
        for at, pool in enumerate(self._pools):
            engines = [server.engine for server in self._servers.values() if server.pool == at]
            if engines:
                sums = [float(sum(getattr(engine, gauge) for engine in engines)) for gauge in ("running", "waiting")]
                self._logs[pool].gauges.append((now_s, *sums, max(engine.kv_usage for engine in engines)))
