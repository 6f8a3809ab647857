"""The picker's own decisions on the simulated fleet: `servingplan.routing.Brain`, told what a router would know, when it would.

It is scraped four times a second, hears of first bytes and ends as they happen, and never sees the engines otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from servingplan.routing.ask import Ask, ClassRule, Outcome
from servingplan.routing.brain import Brain
from servingplan.routing.fleet import Scrape
from servingplan.routing.preset import Prices
from virtualfleet import engines, outcome, profile
from virtualfleet.engines import FIRST, Fleet
from virtualfleet.tiers import ADDRESSES, NAMES, by_instance
from virtualfleet.workload import Workload

CLASS = "all"
_INSTANCE_OF = {address: instance for instance, address in enumerate(ADDRESSES)}


@dataclass(frozen=True, slots=True)
class Settings:
    """How the picker is run.

    Attributes:
        guard_s, shed: Of the brain.
        slots: Sequences that run at once on every instance.
        overhead_s: Between a request's arrival and its way to the instance; the decision is made at the arrival.
        scrape_s: Between two scrapes of an instance.
        stale_s: Age of what a scrape says when it is told.
        pickers: That share the load in turn, none knowing of the others' requests.
    """

    guard_s: float | None = 1.0
    shed: bool = True
    slots: int = 256
    overhead_s: float = 0.005
    scrape_s: float = 0.25
    stale_s: float = 0.0
    pickers: int = 1


def asks(work: Workload) -> list[Ask]:
    """What the picker knows of every request; not how prompts begin, for the simulated engines cache no prefixes."""
    return [
        Ask(
            CLASS,
            float(work.prompt_tokens[r]),
            dict(zip(NAMES, work.predicted_quality[r].tolist(), strict=True)),
            dict(zip(NAMES, work.predicted_tokens[r].tolist(), strict=True)),
        )
        for r in range(len(work))
    ]


class Drive:
    """One run.

    Args:
        work: The requests.
        prices: What a second and a dollar are worth.
        settings: How the picker is run.
        known: From `asks`, if at hand: it is the same for every run of a workload.

    Attributes:
        brains: Of the pickers.
        fleet: The engines.
    """

    def __init__(self, work: Workload, prices: Prices, settings: Settings, known: Sequence[Ask] | None = None) -> None:
        self._work, self._settings, self._known = work, settings, known or asks(work)
        self.brains = [
            Brain(prices, guard_s=settings.guard_s, shed=settings.shed, peers=settings.pickers) for _ in range(settings.pickers)
        ]
        for brain in self.brains:
            brain.configure(profile.endpoints(settings.slots), {CLASS: ClassRule(CLASS)})
        self.fleet: Fleet = engines.build(work.prompt_tokens, work.output_tokens, settings.slots)
        self._kv_tokens = by_instance("kv_tokens")
        self._ticket = np.full(len(work), -1)
        self._told = 0
        self._scraped: list[tuple[float, list[Scrape]]] = []

    def run(self) -> outcome.Outcome:
        """Route all requests and serve them to the end."""
        scrape_s = 0.0
        for r, (arrival_s, draw) in enumerate(zip(self._work.arrival_s.tolist(), self._work.draw.tolist(), strict=True)):
            while scrape_s <= arrival_s:
                self._until(scrape_s)
                self._scrape(scrape_s)
                scrape_s += self._settings.scrape_s
            self._until(arrival_s)
            choice = self.brains[r % len(self.brains)].choose(self._known[r], arrival_s, draw)
            if choice.ticket is None:
                continue
            self._ticket[r] = choice.ticket
            engines.send(self.fleet, r, _INSTANCE_OF[choice.candidates[0]], arrival_s + self._settings.overhead_s)
        self._until(np.inf)
        return outcome.of(self.fleet, self._work)

    def _until(self, now_s: float) -> None:
        """Let time pass and tell the brains what became known."""
        fleet = self.fleet
        known = int(engines.advance(fleet, now_s))
        if known == self._told:
            return
        lines = slice(self._told, known)
        order = np.argsort(fleet.log_s[lines], kind="stable")
        times, requests, kinds = (column[lines][order].tolist() for column in (fleet.log_s, fleet.log_request, fleet.log_kind))
        for at_s, r, kind in zip(times, requests, kinds, strict=True):
            brain, ticket, address = self.brains[r % len(self.brains)], int(self._ticket[r]), ADDRESSES[fleet.instance[r]]
            if kind == FIRST:
                brain.first_byte(ticket, at_s, address)
            else:
                brain.finished(ticket, at_s, Outcome.COMPLETED, float(fleet.emitted[r]), address)
        self._told = known

    def _scrape(self, now_s: float) -> None:
        fleet = self.fleet
        waiting = (
            [engines.waiting_now(fleet, i, now_s)[0] for i in range(len(ADDRESSES))] if fleet.waiting.any() else fleet.waiting
        )
        usage = np.minimum(1, fleet.kv / self._kv_tokens)
        found = [
            Scrape(now_s, float(running), float(queued), float(used))
            for running, queued, used in zip(fleet.running, waiting, usage, strict=True)
        ]
        self._scraped.append((now_s, found))
        if now_s < self._settings.stale_s:
            return
        while len(self._scraped) > 1 and self._scraped[1][0] <= now_s - self._settings.stale_s:
            self._scraped.pop(0)
        for brain in self.brains:
            for address, scrape in zip(ADDRESSES, self._scraped[0][1], strict=True):
                brain.observe(address, scrape, now_s)
            brain.expire(now_s)
