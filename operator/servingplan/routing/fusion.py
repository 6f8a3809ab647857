"""What endpoints hold that is not our own, from scrapes that are of an earlier moment.

What a scrape counts beyond our own ledger *at the moment it was taken* is foreign: other picker replicas, clients that go past
the router, requests routed by weight. From then on it is extrapolated:

    foreign(now) = mean + (foreign - mean) * exp(-age / turnover) + (peers - 1) * (what we added since)
    spread(now)  = sqrt(max(mean, foreign, (peers - 1) * ours) * (1 - exp(-2 age / turnover)))

The first line is the regression to the mean of a queue of independent stays (M/M/infinity), whose variance given its start is
the square of the second line, at most. The last term of the first line says that the other replicas see what we see and do
what we did: without it all of them send everything to whoever was idle at the last scrape. Estimate and spread are added up:
of two endpoints that look alike, the one that was seen more lately is taken.

Unknown is not idle. An endpoint that was never scraped counts as half full, and one whose last scrape is long ago comes to
count so.
"""

from __future__ import annotations

import math

import numpy as np

from servingplan.routing.fleet import Fleet, Rows, Scrape, Vector, carried
from servingplan.routing.ledger import Ledger
from servingplan.routing.rule import Load, Need

_TURNOVER_S = 10.0
"""How long foreign requests stay, on average."""
_MEAN_S = 30.0
"""Over how long the mean of the foreign requests is taken."""
_DOUBT_FROM_S, _DOUBT_FULL_S = 10.0, 30.0
"""Ages of a scrape between which an endpoint comes to count as half full."""


class Fusion:
    """Scrapes of all endpoints, in columns of (endpoints,).

    Attributes:
        peers: Picker replicas that route to the same endpoints, this one included.
        seen_s: When the last scrape was taken; minus infinity for never.
    """

    def __init__(self, peers: int = 1) -> None:
        self.peers = peers
        self.seen_s, self._foreign, self._mean, self._waiting, self._ours, self._held = (np.zeros(0) for _ in range(6))
        self._oldest_s, self._latest_s, self._tells = -math.inf, -math.inf, False

    def rebuild(self, source: Rows) -> None:
        """Follows a change of the fleet, as ``Ledger.rebuild``."""
        self.seen_s = carried(self.seen_s, source, -np.inf)
        self._foreign = carried(self._foreign, source)
        self._mean = carried(self._mean, source)
        self._waiting = carried(self._waiting, source)
        self._ours = carried(self._ours, source)
        self._held = carried(self._held, source, np.nan)
        self._oldest_s = -math.inf

    def observe(self, row: int, scrape: Scrape, ledger: Ledger, kv_tokens: float) -> None:
        """Takes a scrape; one that is older than the last is ignored, and figures that are not finite count as 0."""
        since_s = scrape.taken_s - self.seen_s[row]
        if not since_s > 0 or not math.isfinite(scrape.taken_s):
            return
        running, waiting = _count(scrape.running), _count(scrape.waiting)
        total = running + waiting
        ours = ledger.flying_at(row, scrape.taken_s)
        foreign = max(0.0, total - ours)
        self._mean[row] += (foreign - self._mean[row]) * -math.expm1(-since_s / _MEAN_S)
        self.seen_s[row] = scrape.taken_s
        self._latest_s = max(self._latest_s, scrape.taken_s)
        self._foreign[row] = foreign
        self._ours[row] = ours
        self._waiting[row] = waiting / total if total else 0.0
        usage = scrape.kv_usage
        known = usage is not None and math.isfinite(usage) and math.isfinite(kv_tokens) and running > 0
        self._held[row] = min(1.0, max(0.0, usage)) * kv_tokens / running if known and usage is not None else np.nan
        self._tells = self._tells or known

    def load(self, fleet: Fleet, ledger: Ledger, need: Need, now_s: float) -> Load:
        """What endpoints hold now, ours and foreign.

        Foreign requests are taken to be like the one that is decided on, as far as the endpoint does not tell: a mean over
        other endpoints would let one that nobody picks change decisions.

        Args:
            fleet: The endpoints.
            ledger: Our own, advanced to now.
            need: Of the request that is decided on.
            now_s: The moment.
        """
        foreign, doubt = self._estimate(fleet, ledger, now_s)
        each = np.minimum(need.tokens, fleet.slot_tokens)
        if self._tells:
            np.copyto(each, self._held, where=self._held >= 0.0)
        each *= foreign
        each += ledger.held()
        usual_output = ledger.usual
        if np.count_nonzero(usual_output) < len(fleet):
            usual_output = np.where(usual_output > 0, usual_output, need.output)
        waiting = ledger.waiting_tokens()
        if np.count_nonzero(self._waiting):
            waiting += self._waiting * (1.0 - doubt) * foreign * need.prompt
        foreign += ledger.flying
        return Load(foreign, each, waiting, usual_output)

    def _estimate(self, fleet: Fleet, ledger: Ledger, now_s: float) -> tuple[Vector, Vector | float]:
        ago = self.seen_s - now_s
        if now_s < self._latest_s:
            np.minimum(ago, 0.0, out=ago)
        stays = np.exp(ago / _TURNOVER_S)
        foreign = self._foreign - self._mean
        foreign *= stays
        foreign += self._mean
        widest = np.maximum(self._mean, self._foreign)
        others = self.peers - 1
        if others:
            foreign = np.maximum(foreign + others * (ledger.flying - self._ours), 0.0)
            widest = np.maximum(widest, others * ledger.flying)
        stays *= stays
        np.subtract(1.0, stays, out=stays)
        stays *= widest
        foreign += np.sqrt(stays, out=stays)
        if not self._may_doubt(now_s):
            return foreign, 0.0
        doubt = np.minimum(np.maximum((-ago - _DOUBT_FROM_S) / (_DOUBT_FULL_S - _DOUBT_FROM_S), 0.0), 1.0)
        return foreign + doubt * np.maximum(0.5 * fleet.slots - ledger.flying - foreign, 0.0), doubt

    def _may_doubt(self, now_s: float) -> bool:
        # Scrapes only get later, so that the oldest one need not be looked for each time.
        if now_s - self._oldest_s > _DOUBT_FROM_S:
            self._oldest_s = float(self.seen_s.min(initial=now_s))
        return now_s - self._oldest_s > _DOUBT_FROM_S


def _count(value: float) -> float:
    return value if math.isfinite(value) and value > 0 else 0.0
