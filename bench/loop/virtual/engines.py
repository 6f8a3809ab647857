"""The data plane with engines: a router that follows the published table, and a simulated vLLM in every ready pod.

A request is refused by the class's share that the table sheds, or goes to a pool by weight, and there to the one of two
random replicas that has fewer requests. A pool without a ready replica passes its requests on as the router's clusters do;
where none has any they are answered with 503.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from servingplan.api.routing_table import RoutingTable
from servingplan.calibration.readings import Readings
from servingplan.render.envoy.clusters import FALLBACK_POOLS
from servingplan.sim.replay import Replica
from virtual import reading
from virtual.cluster import Cluster
from virtual.reading import Arrivals
from virtual.replicas import REFUSED, UNSERVED, Outcome, Replicas, Server
from virtual.traffic import Requests

__all__ = ["REFUSED", "UNSERVED", "Engines", "Outcome", "Weights"]

Way = tuple[float, np.ndarray, list[list[Server]]]
"""Of a class: the share that is shed, and cumulative weights and ready servers of its pools."""


class Weights:
    """The router without a picker: the table's weights, then the less busy of two replicas.

    Args:
        replicas: Where requests go.
        classes: Names of the request classes.
        count: Requests that will come.
        chance: Of the router's choices.
    """

    def __init__(self, replicas: Replicas, classes: Sequence[str], count: int, chance: np.random.Generator) -> None:
        self._replicas, self._classes = replicas, classes
        self._draws = chance.random((count, 4))
        self._ways: list[Way] = []

    def follow(self, table: RoutingTable | None) -> None:
        """Takes the table that holds from now on, and the replicas that are ready now."""
        entries = {entry.name: entry for entry in table.classes} if table else {}
        after = _successors(table) if table else {}
        self._ways = []
        for name in self._classes:
            weights = entries[name].weights if name in entries else {}
            total = max(1, sum(weights.values()))
            cumulative = np.cumsum([weight / total for weight in weights.values()])
            servers = [self._first_ready(after[pool]) for pool in weights]
            self._ways.append((entries[name].shed if name in entries else 0.0, cumulative, servers))

    def send(self, r: int, kind: int, arrival_s: float) -> Server | int:
        """The replica of a request, REFUSED or UNSERVED."""
        shed, cumulative, pools = self._ways[kind]
        draws = self._draws[r]
        if draws[0] < shed:
            return REFUSED
        at = min(int(np.searchsorted(cumulative, draws[1], side="right")), len(pools) - 1)
        if at < 0 or not pools[at]:
            return UNSERVED
        servers = pools[at]
        two = {int(draws[2] * len(servers)), int(draws[3] * len(servers))}
        for one in two:
            servers[one].engine.advance(arrival_s)
        return min((servers[one] for one in sorted(two)), key=lambda server: server.load)

    def _first_ready(self, pools: Sequence[str]) -> list[Server]:
        return next((servers for pool in pools if (servers := self._replicas.ready(pool))), [])


def _successors(table: RoutingTable) -> dict[str, list[str]]:
    """By pool where a class's requests go: there, to the model's other pools, then to the models that follow in the table."""
    found = {}
    for index, model in enumerate(table.models):
        others = [pool.name for other in (*table.models[index + 1 :], *table.models[:index]) for pool in other.pools]
        own = [pool.name for pool in model.pools]
        for position, name in enumerate(own):
            found[name] = [*own[position:], *own[:position], *others][: 1 + FALLBACK_POOLS]
    return found


class Engines:
    """Serves the requests of one plan.

    Args:
        plan_key: ``namespace/name``.
        cluster: Where the pods are.
        truth: How fast the replicas of each pool really are.
        requests: What arrives.
        seed: Of the router's choices.
        output_tokens: (n,) by pool, where the length of an answer hangs on who gives it.
    """

    def __init__(
        self,
        plan_key: str,
        cluster: Cluster,
        truth: Mapping[str, Replica],
        requests: Requests,
        settings: reading.Settings,
        seed: int,
        output_tokens: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self._key, self._cluster, self._settings, self._requests = plan_key, cluster, settings, requests
        self.replicas = Replicas(cluster, truth, requests, output_tokens)
        self._chance = np.random.default_rng(seed)
        self._weights = Weights(self.replicas, requests.classes, len(requests.arrival_s), self._chance)
        self._next, self._now_s = 0, 0.0
        self._arrivals = {name: Arrivals(requests.arrival_s[requests.kind == at]) for at, name in enumerate(requests.classes)}

    def busy(self, pod: str) -> bool:
        """Whether a pod has requests under way."""
        return self.replicas.busy(pod)

    def serve(self, until_s: float) -> None:
        """Lets requests arrive and be served."""
        self.replicas.follow_pods(self._now_s)
        self._follow(self._cluster.table(self._key))
        scrape_s = self._settings.last_scrape_s(self._now_s) + self._settings.scrape_s
        while scrape_s <= until_s:
            self._serve(scrape_s)
            self.replicas.scrape(scrape_s)
            self._scraped(scrape_s)
            scrape_s += self._settings.scrape_s
        self._serve(until_s)
        self.replicas.forget(until_s - 3 * reading.WINDOW_S)

    def readings(self) -> Readings:
        """What Prometheus says now."""
        scraped_s = self._settings.last_scrape_s(self._now_s)
        begun_s = float(self._requests.arrival_s[0]) if len(self._requests.arrival_s) else np.inf
        histories = {
            name: arrivals.history(begun_s, scraped_s, self._settings.short_window_s)
            for name, arrivals in self._arrivals.items()
        }
        return reading.found(
            self.replicas.readings(scraped_s), {name: one for name, one in histories.items() if one}, scraped_s
        )

    def outcome(self) -> Outcome:
        """What became of the requests so far."""
        return self.replicas.outcome()

    def _follow(self, table: RoutingTable | None) -> None:
        self._weights.follow(table)

    def _send(self, r: int, kind: int, arrival_s: float) -> None:
        self.replicas.send(r, self._weights.send(r, kind, arrival_s), arrival_s)

    def _serve(self, until_s: float) -> None:
        requests = self._requests
        end = int(np.searchsorted(requests.arrival_s, until_s))
        kinds, times_s = requests.kind[self._next : end].tolist(), requests.arrival_s[self._next : end].tolist()
        for r, kind, arrival_s in zip(range(self._next, end), kinds, times_s, strict=True):
            self._send(r, kind, arrival_s)
        self._next, self._now_s = end, until_s
        self._advance(until_s)

    def _advance(self, until_s: float) -> None:
        self.replicas.advance(until_s)

    def _scraped(self, now_s: float) -> None:
        """What else Prometheus reads at a scrape."""
