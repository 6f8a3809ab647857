"""The data plane with a picker: every request goes where `Brain` says, configured from the routing table as a picker is.

What the picker hears of a request is what Envoy tells it: that its stream has ended, when it has. Until it has a table and an
endpoint of it, requests go by the weights. Left out: that Envoy learns of a pod a second after the picker.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from servingplan.api.routing_table import RoutingTable
from servingplan.calibration.choices import chosen
from servingplan.calibration.readings import Chosen, Readings
from servingplan.picker import table as tables
from servingplan.picker.asking import Catalogue, Prediction, make_ask
from servingplan.picker.body import Prompt
from servingplan.picker.protocol import BodyMode, Opening
from servingplan.routing.ask import Ask, Outcome
from servingplan.routing.brain import Brain
from servingplan.routing.fleet import Scrape
from servingplan.routing.preset import Preset
from servingplan.sim.replay import Replica
from together.service import CLASS_HEADER, CLASSES, MODELS
from together.trace import Asked
from virtual import reading
from virtual.cluster import Cluster
from virtual.engines import REFUSED, UNSERVED, Engines

SCRAPE_S = 0.25
OVERHEAD_S = 0.003
"""That the picker adds to a request on its way, as the live benchmark measures it."""
CHOICE_WINDOW_S = 300.0
"""Of which the controller asks what was chosen."""


@dataclass(slots=True)
class Counts:
    """Choices of one class in some time, as `calibration.choices` takes them."""

    picks: dict[str, float] = field(default_factory=dict)
    quality: dict[tuple[str, str], float] = field(default_factory=dict)

    def since(self, before: Counts) -> Counts:
        """What was added."""
        return Counts(
            {model: requests - before.picks.get(model, 0.0) for model, requests in self.picks.items()},
            {pair: total - before.quality.get(pair, 0.0) for pair, total in self.quality.items()},
        )


class Picked(Engines):
    """Serves the requests of one plan as a router with a picker does.

    Args:
        plan_key: ``namespace/name``.
        cluster: Where the pods are.
        truth: How fast the replicas of each pool really are.
        asked: What arrives, and what the picker's estimator says of it.
        settings: Times of Prometheus' scrapes.
        seed: Of the router's choices.
        reports: Whether the controller is told what was chosen.
        hears: Whether the picker is told of first bytes and lengths, as a gateway does that shows it responses.
    """

    def __init__(
        self,
        plan_key: str,
        cluster: Cluster,
        truth: Mapping[str, Replica],
        asked: Asked,
        settings: reading.Settings,
        seed: int,
        *,
        reports: bool,
        hears: bool = False,
    ) -> None:
        super().__init__(plan_key, cluster, truth, asked.requests, settings, seed, asked.outputs())
        self._asked, self._reports, self._hears = asked, reports, hears
        self._draws = self._chance.random(len(asked)).tolist()
        self.brain = Brain(Preset.BALANCED.prices)
        self._table: RoutingTable | None = None
        self._catalogue: Catalogue | None = None
        self._weighing: tables.Weighing | None = None
        self._applied: Any = None
        self._ticket: dict[int, int] = {}
        self._heard_s = 0.0
        self._counted: deque[tuple[float, dict[str, Counts]]] = deque()
        self._openings = [_opening(name) for name in CLASSES]

    def readings(self) -> Readings:
        """What Prometheus says now."""
        found = super().readings()
        return replace(found, chosen=self._chosen(found.taken_s)) if self._reports else found

    def _chosen(self, now_s: float) -> dict[str, Chosen]:
        """What was chosen in the window that ends with the last scrape."""
        if not self._counted:
            return {}
        newest = self._counted[-1][1]
        before = next((counts for at_s, counts in self._counted if at_s >= now_s - CHOICE_WINDOW_S), newest)
        none = Counts()
        found = {name: chosen(name, one.since(before.get(name, none)), CHOICE_WINDOW_S) for name, one in newest.items()}
        return {name: one for name, one in found.items() if one is not None}

    def _follow(self, table: RoutingTable | None) -> None:
        super()._follow(table)
        if table is None or table.picker is None:
            self._catalogue = None
            return
        weighing = tables.weighing(table)
        if self._weighing is None:
            self.brain = Brain(Preset.BALANCED.prices, time_limit_s=weighing.time_limit_s)
        if weighing != self._weighing:
            self._weighing = weighing
            self.brain.retune(weighing.prices, guard_s=weighing.guard_s, shed=weighing.shed, peers=weighing.peers)
        applied = tables.endpoints(table, self._members()), tables.class_rules(table)
        if applied != self._applied:
            self.brain.configure(*applied)
            self._applied = applied
        if table != self._table:
            self._table, self._catalogue = table, Catalogue(table)

    def _members(self) -> tables.Members:
        found: dict[str, dict[str, bool]] = {}
        for pod in self._cluster.pods.values():
            found.setdefault(pod.pool, {})[pod.name] = pod.ready and not pod.terminating
        return found

    def _send(self, r: int, kind: int, arrival_s: float) -> None:
        if self._catalogue is None:
            super()._send(r, kind, arrival_s)
            return
        while self._heard_s + SCRAPE_S <= arrival_s:
            self._heard_s = max(self._heard_s + SCRAPE_S, arrival_s - 2 * SCRAPE_S)
            self._advance(self._heard_s)
            self._scrape(self._heard_s)
        self._advance(arrival_s)
        choice = self.brain.choose(self._ask(r, kind), arrival_s, self._draws[r])
        if choice.ticket is None:
            self.replicas.send(r, UNSERVED if choice.status == 503 else REFUSED, arrival_s)
            return
        self._ticket[r] = choice.ticket
        self.replicas.send(r, self.replicas.servers[choice.candidates[0]], arrival_s + OVERHEAD_S)

    def _ask(self, r: int, kind: int) -> Ask:
        assert self._catalogue is not None
        opening, prompt = self._openings[kind], Prompt(tokens=float(self._asked.requests.prompt_tokens[r]))
        entry = self._catalogue.request_class(opening.headers)
        assert entry is not None
        quality, tokens = self._predicted[0][r], self._predicted[1][r]
        names = [model.name for model in MODELS]
        said = Prediction(dict(zip(names, quality, strict=True)), dict(zip(names, tokens, strict=True)))
        ask = make_ask(self._catalogue, entry, opening, prompt, said)
        assert isinstance(ask, Ask)
        return ask

    @cached_property
    def _predicted(self) -> tuple[Sequence[Sequence[float]], Sequence[Sequence[float]]]:
        return self._asked.predicted_quality.tolist(), self._asked.predicted_tokens.tolist()

    def _advance(self, until_s: float) -> None:
        """Lets engines work, and tells the picker what it would hear, in order of time."""
        events = []
        for server, news in self.replicas.advance(until_s):
            events += [
                (at_s, 1, server.taken[place], server.pod)
                for place, at_s in zip(news.finished.tolist(), news.finished_s.tolist(), strict=True)
            ]
            if self._hears:
                events += [
                    (at_s, 0, server.taken[place], server.pod)
                    for place, at_s in zip(news.first.tolist(), news.first_token_s.tolist(), strict=True)
                ]
        for at_s, ended, r, pod in sorted(events):
            ticket = self._ticket.get(r)
            if ticket is None:
                continue
            if not ended:
                self.brain.first_byte(ticket, at_s, pod)
            elif self._hears:
                self.brain.finished(ticket, at_s, Outcome.COMPLETED, None, pod)
            else:
                self.brain.finished(ticket, at_s, Outcome.CANCELLED)

    def _scrape(self, now_s: float) -> None:
        """The picker's own scrape."""
        for name, server in self.replicas.servers.items():
            engine = server.engine
            self.brain.observe(name, Scrape(now_s, float(engine.running), float(engine.waiting), engine.kv_usage), now_s)
        self.brain.expire(now_s)

    def _scraped(self, now_s: float) -> None:
        counts: dict[str, Counts] = {}
        for (name, model), sent in self.brain.tally.sent.items():
            one = counts.setdefault(name, Counts())
            one.picks[model] = float(sent.requests)
            one.quality |= {(model, other): total for other, total in sent.quality.items()}
        self._counted.append((now_s, counts))
        while self._counted[0][0] < now_s - 2 * CHOICE_WINDOW_S:
            self._counted.popleft()


def _opening(name: str) -> Opening:
    headers = {":path": b"/v1/chat/completions", ":method": b"POST", CLASS_HEADER: name.encode()}
    return Opening(headers, is_whole=False, mode=BodyMode.BUFFERED)
