"""What the picker itself has in flight on every endpoint, at every moment.

Each endpoint has a token clock: the integral of one over its step time, in tokens. A request that decodes since clock c has
emitted ``clock - c`` tokens, so the tokens that all of them hold are a difference of sums, and an event changes a few
numbers whatever is in flight. A request waits from the pick until its prompt is computed, and decodes from its first byte, or
from the predicted one when nobody tells.

Waiting prompts are computed at the endpoint's speed meanwhile, as far as anything waits. While a prompt is computed the
others emit nothing for that long: the clock is set back by it.

Every ticket is added once and taken off once. Sums of floats drift, so an endpoint's sums are set to 0 when the last
request leaves it: the ledger returns to exactly zero.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass

import numpy as np

from servingplan.routing.fleet import Rows, Vector, carried

_CHANGES = 4096
"""Picks and ends of an endpoint that are remembered at most, to tell what was in flight when a scrape was taken."""

_USUAL_OF = 32.0
"""Picks over which the usual length of an endpoint's answers is taken."""

GONE = -1


@dataclass(slots=True, eq=False)
class Flight:
    """A request in flight.

    Attributes:
        row: Of its endpoint; ``GONE`` when the endpoint left the fleet.
        fresh: Prompt tokens that must be computed.
        output: Predicted tokens.
        picked_s: When it was put on its row.
        first_due_s: When its first byte is due.
        waiting: Until its first byte.
        start: The token clock at its first byte.
    """

    ticket: int
    row: int
    prompt: float
    fresh: float
    output: float
    picked_s: float
    first_due_s: float
    waiting: bool = True
    start: float = 0.0


_SUMS = ("flying", "prompts", "waiting", "computed", "decoding", "starts", "clock")
"""Columns that are 0 where nothing is in flight."""


class Ledger:
    """Requests in flight by endpoint, in columns of (endpoints,).

    Attributes:
        flying: Requests.
        prompts: Prompt tokens of all of them.
        waiting: Prompt tokens to be computed, of which ``computed`` are.
        decoding: Requests that emit tokens; ``starts`` is the sum of their clocks at the first one.
        clock: Tokens emitted by each of the requests, since the endpoint was last empty.
        usual: Mean predicted length of the answers that it was picked for of late; 0 before the first.
    """

    flying: Vector
    prompts: Vector
    waiting: Vector
    computed: Vector
    decoding: Vector
    starts: Vector
    clock: Vector
    usual: Vector

    def __init__(self) -> None:
        self._flights: dict[int, Flight] = {}
        self._first_due: list[tuple[float, int]] = []
        self._changes: list[deque[tuple[float, int]]] = []
        for name in _SUMS:
            setattr(self, name, np.zeros(0))
        self.usual, self._picks, self._at_s, self._pace, self._drain = (np.zeros(0) for _ in range(5))
        self._latest_s = 0.0

    def rebuild(self, source: Rows) -> None:
        """Follows a change of the fleet: row i is what row ``source[i]`` was; negative for an endpoint that is new.

        Flights on endpoints that left stay known, on no row.
        """
        rows = {int(old): new for new, old in enumerate(source) if old >= 0}
        for name in _SUMS:
            setattr(self, name, carried(getattr(self, name), source))
        self._at_s = carried(self._at_s, source)
        self._pace = carried(self._pace, source)
        self._drain = carried(self._drain, source)
        self.usual = carried(self.usual, source)
        self._picks = carried(self._picks, source)
        self._changes = [self._changes[old] if old >= 0 else deque(maxlen=_CHANGES) for old in source]
        for flight in self._flights.values():
            flight.row = rows.get(flight.row, GONE)

    def __len__(self) -> int:
        return len(self._flights)

    def __contains__(self, ticket: int) -> bool:
        return ticket in self._flights

    def flight(self, ticket: int) -> Flight | None:
        """A request in flight; None when it has ended."""
        return self._flights.get(ticket)

    def advance(self, now_s: float) -> None:
        """Lets all clocks run until now, and takes predicted first bytes and ends for real ones."""
        while self._first_due and self._first_due[0][0] <= now_s:
            due_s, ticket = heapq.heappop(self._first_due)
            flight = self._flights.get(ticket)
            if flight is not None and flight.waiting and flight.first_due_s <= due_s:
                self.begin(flight, due_s)
        elapsed = now_s - self._at_s
        if now_s < self._latest_s:
            np.maximum(elapsed, 0.0, out=elapsed)
            np.maximum(self._at_s, now_s, out=self._at_s)
        else:
            self._at_s.fill(now_s)
            self._latest_s = now_s
        self.clock += elapsed * self._pace
        elapsed *= self._drain
        elapsed += self.computed
        np.minimum(self.waiting, elapsed, out=self.computed)

    def set_pace(self, step_s: Vector, drain: Vector) -> None:
        """Takes (endpoints,) seconds a step, and prompt tokens computed a second, to hold from now on."""
        self._pace = 1.0 / step_s
        self._drain = drain

    def reserve(self, flight: Flight, now_s: float) -> None:
        """Puts a request on its row, or back on another one after ``release``."""
        row = flight.row
        self._flights[flight.ticket] = flight
        if row == GONE:
            return
        self._advance_row(row, now_s)
        flight.waiting = True
        self.flying[row] += 1
        self.prompts[row] += flight.prompt
        self.waiting[row] += flight.fresh
        self._picks[row] += 1
        self.usual[row] += (flight.output - self.usual[row]) / min(self._picks[row], _USUAL_OF)
        self._changes[row].append((now_s, 1))
        heapq.heappush(self._first_due, (flight.first_due_s, flight.ticket))

    def begin(self, flight: Flight, now_s: float) -> None:
        """The first byte of a request; told again, or later than predicted, its clock starts anew."""
        row = flight.row
        if row == GONE:
            return
        self._advance_row(row, now_s)
        if flight.waiting:
            self._computed(flight)
            self._stall(flight, now_s)
        else:
            self._stop(flight)
        flight.waiting = False
        flight.start = float(self.clock[row])
        self.decoding[row] += 1
        self.starts[row] += flight.start

    def release(self, ticket: int, now_s: float) -> Flight | None:
        """Takes a request off; None when it had ended before."""
        flight = self._flights.pop(ticket, None)
        if flight is None or flight.row == GONE:
            return flight
        row = flight.row
        self._advance_row(row, now_s)
        if flight.waiting:
            self._computed(flight)
        else:
            self._stop(flight)
        self.flying[row] -= 1
        self.prompts[row] -= flight.prompt
        self._changes[row].append((now_s, -1))
        if self.flying[row] == 0:
            self._clear(row)
        return flight

    def emitted(self, flight: Flight) -> float:
        """Tokens that a request has emitted by its endpoint's clock."""
        if flight.row == GONE or flight.waiting:
            return 0.0
        return max(0.0, float(self.clock[flight.row]) - flight.start)

    def held(self) -> Vector:
        """(endpoints,) tokens in the KV caches, prompts that wait included."""
        emitted = self.decoding * self.clock
        emitted -= self.starts
        np.maximum(emitted, 0.0, out=emitted)
        emitted += np.maximum(self.prompts, 0.0)
        return emitted

    def waiting_tokens(self) -> Vector:
        """(endpoints,) prompt tokens that are still to be computed."""
        return np.maximum(self.waiting - self.computed, 0.0)

    def flying_at(self, row: int, then_s: float) -> float:
        """Requests in flight at an earlier moment; what is older is forgotten with it."""
        changes = self._changes[row]
        while changes and changes[0][0] <= then_s:
            changes.popleft()
        return max(0.0, float(self.flying[row]) - sum(change for _, change in changes))

    def older_than(self, moment_s: float) -> list[int]:
        """Tickets of requests picked before a moment."""
        found = []
        for ticket, flight in self._flights.items():
            if flight.picked_s > moment_s:
                break
            found.append(ticket)
        return found

    def _advance_row(self, row: int, now_s: float) -> None:
        elapsed = now_s - self._at_s[row]
        if elapsed > 0:
            self.clock[row] += elapsed * self._pace[row]
            self.computed[row] = min(self.waiting[row], self.computed[row] + elapsed * self._drain[row])
            self._at_s[row] = now_s
            self._latest_s = max(self._latest_s, now_s)

    def _computed(self, flight: Flight) -> None:
        row = flight.row
        self.waiting[row] -= flight.fresh
        self.computed[row] = max(0.0, self.computed[row] - flight.fresh)

    def _stall(self, flight: Flight, now_s: float) -> None:
        row = flight.row
        if self._drain[row] > 0:
            computing_s = min(flight.fresh / self._drain[row], max(0.0, now_s - flight.picked_s))
            self.clock[row] = max(0.0, self.clock[row] - computing_s * self._pace[row])

    def _stop(self, flight: Flight) -> None:
        self.decoding[flight.row] -= 1
        self.starts[flight.row] -= flight.start

    def _clear(self, row: int) -> None:
        for name in _SUMS:
            getattr(self, name)[row] = 0.0
