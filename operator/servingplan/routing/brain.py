"""The endpoint picker's decision with all it remembers.

``choose`` decides one request at once, with no window: it brings the ledger up to now, adds what scrapes tell of others, scores
all endpoints in one go (``rule``), orders them by the constraints they miss and then by utility (``constraints``), and reserves
the request on the first. Events of the request and scrapes then correct what it expected. Nothing here reads a clock or draws:
equal arguments give equal answers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from servingplan.routing import constraints, decision, rule
from servingplan.routing.ask import Ask, Choice, ClassRule, Outcome, Reason, Terms
from servingplan.routing.capacity import CapacityPrices
from servingplan.routing.ejection import Ejection
from servingplan.routing.fleet import Endpoint, Scrape, fleet_of
from servingplan.routing.fusion import Fusion
from servingplan.routing.learning import Learnt
from servingplan.routing.ledger import GONE, Flight, Ledger
from servingplan.routing.prefix import HitTrust, PrefixIndex
from servingplan.routing.preset import Prices
from servingplan.routing.pressure import Pressure
from servingplan.routing.tally import Tally

__all__ = ["Brain", "Choice", "ClassRule", "Outcome", "Reason", "Terms"]

_LONGEST_RETRY_S = 30.0


@dataclass(slots=True, eq=False)
class _Open:
    """What the picker remembers of a request beside its flight in the ledger."""

    address: str
    weight: float
    tenant: str
    picked_s: float
    prefill_s: float
    wait_s: float
    first_s: float | None = None
    moved: bool = False


class Brain:
    """Decides and remembers; single-threaded.

    Args:
        prices: What a second and a dollar are worth.
        guard_s: Time to first token that no class may exceed which has none of its own; None for no guard.
        shed: Whether requests are turned away when no endpoint meets the time to first token.
        peers: Picker replicas that route to the same endpoints, this one included.
        fallbacks: Candidates after the first one.
        time_limit_s: After which a reservation is released whatever was told of it.

    Attributes:
        tally: What was chosen, of the requests that left the model to be chosen.
    """

    def __init__(
        self,
        prices: Prices,
        *,
        guard_s: float | None = 1.0,
        shed: bool = True,
        peers: int = 1,
        fallbacks: int = 2,
        time_limit_s: float = 3600.0,
    ) -> None:
        self._time_limit_s, self._fallbacks = time_limit_s, max(0, fallbacks)
        self._fleet = fleet_of(())
        self._rules: dict[str, ClassRule] = {}
        self._ledger, self._fusion, self._learnt, self._ejection = Ledger(), Fusion(), Learnt(), Ejection()
        self._prefixes, self._trust, self._capacity, self._pressure = PrefixIndex(), HitTrust(), CapacityPrices(), Pressure()
        self._open: dict[int, _Open] = {}
        self._assigned = np.zeros(0)
        self._tickets = 0
        self._picks: dict[str, dict[str, int]] = {}
        self.tally = Tally()
        self.retune(prices, guard_s=guard_s, shed=shed, peers=peers)

    def retune(self, prices: Prices, *, guard_s: float | None = 1.0, shed: bool = True, peers: int = 1) -> None:
        """Takes other weights; what is known of endpoints and requests stays."""
        self.prices, self._guard_s, self._shed = prices, guard_s, shed
        self._fusion.peers = max(1, peers)

    def __len__(self) -> int:
        """Requests in flight."""
        return len(self._open)

    def configure(self, endpoints: Sequence[Endpoint], classes: Mapping[str, ClassRule]) -> None:
        """Takes the endpoints and classes of a plan; endpoints that stay in their pool keep what is known of them."""
        old, new = self._fleet, fleet_of(endpoints)
        source = np.full(len(new), -1, dtype=np.int64)
        for row, endpoint in enumerate(new.endpoints):
            before = old.row_of.get(endpoint.address, -1)
            if before >= 0 and _same(old.endpoints[before], endpoint):
                source[row] = before
        for part in (self._ledger, self._fusion, self._learnt, self._ejection, self._trust):
            part.rebuild(source)
        assigned = np.zeros(len(new))
        assigned[source >= 0] = self._assigned[source[source >= 0]]
        self._assigned = assigned
        self._prefixes.keep([endpoint.address for row, endpoint in enumerate(new.endpoints) if source[row] >= 0])
        duals = {endpoint.engine.pool: endpoint.engine.capacity_price for endpoint in new.endpoints}
        self._capacity.configure({pool: duals[pool] for pool in new.pools})
        self._fleet, self._rules = new, dict(classes)

    def observe(self, address: str, scrape: Scrape, now_s: float) -> None:
        """Takes a scrape of an endpoint."""
        row = self._fleet.row_of.get(address)
        if row is not None:
            self._fusion.observe(row, scrape, self._ledger, float(self._fleet.kv_tokens[row]))
            self._ejection.scraped(row, now_s)
            if scrape.prefix_hit_share is not None:
                self._trust.told(row, scrape.prefix_hit_share)

    def silent(self, address: str, now_s: float) -> None:
        """A scrape of an endpoint failed."""
        row = self._fleet.row_of.get(address)
        if row is not None:
            self._ejection.silent(row, now_s)

    def gone(self, address: str, now_s: float) -> None:
        """An endpoint refused the connection of a scrape, and so would refuse that of a request."""
        row = self._fleet.row_of.get(address)
        if row is not None:
            self._ejection.gone(row, now_s)

    def failed(self, address: str, now_s: float) -> None:
        """A request could not reach an endpoint, or was reset by it, and may have gone on elsewhere."""
        row = self._fleet.row_of.get(address)
        if row is not None:
            self._ejection.failed(row, now_s)

    def choose(self, ask: Ask, now_s: float, draw: float) -> Choice:
        """Picks endpoints for a request, and reserves it on the first.

        Args:
            ask: The request.
            now_s: The moment; it may not lie before that of an earlier call by much.
            draw: In [0, 1); decides among endpoints that are equal in everything.
        """
        fleet, own = self._fleet, self._rules.get(ask.request_class) or ClassRule(ask.request_class)
        matched = self._prefixes.matched(ask.prefix, fleet.row_of) if ask.prefix else None
        need = decision.need_of(fleet, ask, matched * self._trust.trust() if matched is not None and matched.any() else None)
        may = constraints.permitted(fleet, ask, own) & constraints.holds(fleet, need)
        if not np.count_nonzero(may):
            return Choice((), None, 503, 0.0, None, Reason.NOBODY)
        if ask.budget is not None:
            may &= constraints.affordable(fleet, ask, need, ask.budget)
            if not may.any():
                return Choice((), None, 429, 0.0, None, Reason.BUDGET)
        weight = round(max(0.0, ask.weight * own.weight), 6)
        bound_s = self._bound_s(ask, own)
        patience = self._pressure.patience(weight, ask.tenant)
        view = self._view(ask, need, bound_s * patience, now_s)
        rows = decision.ordered(view, may, self._assigned, draw, spread=self._fusion.peers > 1, fallbacks=self._fallbacks)
        if self._capacity.due(now_s):
            self._capacity.meter(decision.strain(view, bound_s), now_s)
        if self._shed and view.tier[rows[0]] % constraints.HEALTH >= constraints.TTFT:
            late_s = decision.late_s(view, rows[0], bound_s, patience)
            if late_s > 0:
                retry_s = min(_LONGEST_RETRY_S, max(1.0, late_s))
                return Choice((), None, 429, retry_s, partial(decision.terms_of, view, rows), Reason.OVERLOAD)
        ticket = self._reserve(ask, view, rows[0], weight, now_s)
        if matched is not None:
            self._trust.sent(rows[0], float(matched[rows[0]]))
            self._prefixes.sent(fleet.endpoints[rows[0]].address, ask.prefix)
        chosen = fleet.endpoints[rows[0]].engine
        return Choice(
            candidates=tuple([fleet.endpoints[row].address for row in rows]),
            ticket=ticket,
            status=200,
            retry_after_s=0.0,
            explained=partial(decision.terms_of, view, rows),
            pool=chosen.pool,
            model=chosen.model,
            ttft_s=view.times.ttft_s.item(rows[0]),
        )

    def first_byte(self, ticket: int, now_s: float, address: str | None = None) -> None:
        """The first byte of an answer; ``address`` tells who sent it, after a retry. Told again, it changes nothing."""
        known, flight = self._open.get(ticket), self._ledger.flight(ticket)
        if known is None or flight is None or known.first_s is not None:
            return
        self._follow(ticket, known, flight, address, now_s)
        if flight.row == GONE:
            return
        self._ejection.served(flight.row, now_s)
        measured_s = now_s - known.picked_s
        if measured_s < 0.5 * self._fleet.alpha_s[flight.row]:
            # These are response headers: no step is as short.
            return
        known.first_s = now_s
        self._ledger.begin(flight, now_s)
        if not known.moved:
            self._learnt.first_token(flight.row, known.prefill_s, known.wait_s, measured_s, now_s)

    def finished(
        self, ticket: int, now_s: float, outcome: Outcome, output_tokens: float | None = None, address: str | None = None
    ) -> None:
        """A request ended; told again, it changes nothing.

        ``FAILED`` counts against the endpoint, and so does ``TIMED_OUT`` without a first byte: ``failed`` need not be told.
        """
        known, flight = self._open.get(ticket), self._ledger.flight(ticket)
        if known is None or flight is None:
            return
        self._follow(ticket, known, flight, address, now_s)
        if flight.row != GONE:
            self._ended(known, flight, outcome, output_tokens, now_s)
        self._close(ticket, now_s)

    def expire(self, now_s: float) -> int:
        """Releases requests that nobody told the end of; returns how many."""
        expired = self._ledger.older_than(now_s - self._time_limit_s)
        for ticket in expired:
            self._close(ticket, now_s)
        return len(expired)

    def shares(self) -> Mapping[str, Mapping[str, float]]:
        """Fraction of the picks of each class by pool since the last call; classes without picks are left out."""
        totals = {name: sum(pools.values()) for name, pools in self._picks.items()}
        found = {name: {pool: count / totals[name] for pool, count in pools.items()} for name, pools in self._picks.items()}
        self._picks = {}
        return found

    def in_flight(self) -> Mapping[str, float]:
        """Our requests in flight by address."""
        return dict(zip(self._fleet.row_of, self._ledger.flying.tolist(), strict=True))

    def scraped_s(self) -> Mapping[str, float]:
        """When the last scrape was taken by address; minus infinity for never."""
        return dict(zip(self._fleet.row_of, self._fusion.seen_s.tolist(), strict=True))

    def ejected(self, now_s: float) -> frozenset[str]:
        """Addresses that are ejected or on probation."""
        out = self._ejection.ejected(now_s)
        return frozenset(address for address, row in self._fleet.row_of.items() if out[row])

    def capacity_prices(self) -> Mapping[str, float]:
        """Capacity price now by pool, in quality per request."""
        return dict(zip(self._fleet.pools, self._capacity.prices.tolist(), strict=True))

    def _bound_s(self, ask: Ask, own: ClassRule) -> float:
        bound_s = own.ttft_s if own.ttft_s is not None else self._guard_s
        asked = [each for each in (ask.ttft_slo_s, bound_s) if each is not None]
        # A request cannot ask for more than its class has: whoever asked for an hour would fill everybody's queue.
        return min(asked, default=math.inf)

    def _view(self, ask: Ask, need: rule.Need, ttft_s: float, now_s: float) -> decision.View:
        fleet, ledger = self._fleet, self._ledger
        ledger.advance(now_s)
        factors = self._learnt.factors(now_s)
        load = self._fusion.load(fleet, ledger, need, now_s)
        step_s = rule.running_step_s(fleet, load, factors)
        each_s = step_s / fleet.budget
        each_s += fleet.beta_s * factors.step
        ledger.set_pace(step_s, (load.in_flight <= fleet.slots) / each_s)
        badness = self._ejection.badness(ledger.flying, now_s)
        capacity = self._capacity.prices.take(fleet.pool_of)
        return decision.view_of(fleet, ask, load, need, factors, capacity, self.prices, ttft_s, badness)

    def _reserve(self, ask: Ask, view: decision.View, row: int, weight: float, now_s: float) -> int:
        self._tickets += 1
        ticket, endpoint, need = self._tickets, self._fleet.endpoints[row], view.need
        fresh = max(0.0, need.prompt - float(need.hits[row]))
        due_s = now_s + float(view.times.ttft_s[row])
        self._ledger.reserve(Flight(ticket, row, need.prompt, fresh, float(need.output[row]), now_s, due_s), now_s)
        prefill_s, wait_s = float(view.times.prefill_s[row]), float(view.times.wait_s[row])
        self._open[ticket] = _Open(endpoint.address, weight, ask.tenant, now_s, prefill_s, wait_s)
        self._pressure.enters(weight, ask.tenant)
        self._assigned[row] = ticket
        pools = self._picks.setdefault(ask.request_class, {})
        pools[endpoint.engine.pool] = pools.get(endpoint.engine.pool, 0) + 1
        if ask.models is None:
            self.tally.took(ask.request_class, endpoint.engine.model, ask.quality)
        return ticket

    def _follow(self, ticket: int, known: _Open, flight: Flight, address: str | None, now_s: float) -> None:
        """Moves a request to the endpoint that really serves it; the one before it has failed."""
        if address is None or address == known.address:
            return
        self.failed(known.address, now_s)
        known.address, known.moved = address, True
        self._ledger.release(ticket, now_s)
        flight.row = self._fleet.row_of.get(address, GONE)
        flight.first_due_s = now_s + known.prefill_s
        self._ledger.reserve(flight, now_s)

    def _ended(self, known: _Open, flight: Flight, outcome: Outcome, output_tokens: float | None, now_s: float) -> None:
        if outcome is Outcome.COMPLETED:
            self._ejection.served(flight.row, now_s)
            if output_tokens is not None and known.first_s is not None:
                self._ledger.advance(now_s)
                self._learnt.tokens(flight.row, self._ledger.emitted(flight), output_tokens, now_s)
        elif outcome is Outcome.FAILED or (outcome is Outcome.TIMED_OUT and known.first_s is None):
            self._ejection.failed(flight.row, now_s)
        elif known.first_s is None:
            self._ejection.ended(flight.row, now_s)

    def _close(self, ticket: int, now_s: float) -> None:
        known = self._open.pop(ticket, None)
        self._ledger.release(ticket, now_s)
        if known is not None:
            self._pressure.leaves(known.weight, known.tenant)


def _same(before: Endpoint, now: Endpoint) -> bool:
    return before.engine.pool == now.engine.pool and before.engine.model == now.engine.model
