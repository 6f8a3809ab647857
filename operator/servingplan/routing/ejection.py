"""Which endpoints get nobody for a while because they failed.

An endpoint is ejected after a few failures in a row, or when it has given no sign of life for a while although it was asked:
scrapes that fail, with no first byte meanwhile. One that refuses the connection of a scrape is ejected at once, and for as long
as it does so: nobody listens there, and no client has to find that out. After the ejection it is on probation: one request at a
time, until a sign of life from that request (a first byte, a complete answer) takes it back. A failure on probation doubles the
next ejection. A scrape that succeeds takes back an endpoint that was silent or refused, not one whose requests failed. Whoever
picks does not always see who answered in the end: a request on probation that ended without a sign of life leaves a silent
endpoint out for longer.

Ejection only orders endpoints: where all that may serve a request are ejected, the one with the fewest failures is tried.
"""

from __future__ import annotations

import numpy as np

from servingplan.routing.fleet import Mask, Rows, Vector, carried

_FAILURES = 3
_SILENT_S, _SILENT_SCRAPES = 1.5, 3
_FIRST_S, _LONGEST_S = 2.0, 60.0


class Ejection:
    """The health of all endpoints, in columns of (endpoints,)."""

    def __init__(self) -> None:
        self._failures, self._silences, self._alive_s, self._until_s, self._length_s = (np.zeros(0) for _ in range(5))
        self._silent, self._probation, self._none = (np.zeros(0) for _ in range(3))
        self._out = 0

    def rebuild(self, source: Rows) -> None:
        """Follows a change of the fleet, as ``Ledger.rebuild``; a new endpoint counts as alive when it is first asked."""
        self._failures = carried(self._failures, source)
        self._silences = carried(self._silences, source)
        self._alive_s = carried(self._alive_s, source, np.nan)
        self._until_s = carried(self._until_s, source, -np.inf)
        self._length_s = carried(self._length_s, source, _FIRST_S)
        self._silent = carried(self._silent, source)
        self._probation = carried(self._probation, source)
        self._none = np.zeros(len(source))
        self._out = int(self._probation.sum())

    def badness(self, flying: Vector, now_s: float) -> Vector:
        """(endpoints,) 0 for those that may be picked, and the more the worse for others; ``flying`` is our requests there."""
        if not self._out:
            return self._none
        out = (now_s < self._until_s) | ((self._probation > 0) & (flying > 0))
        return np.where(out, 1.0 + np.minimum(self._failures, 14.0), 0.0)

    def ejected(self, now_s: float) -> Mask:
        """(endpoints,) which are ejected or on probation."""
        return (now_s < self._until_s) | (self._probation > 0)

    def failed(self, row: int, now_s: float) -> None:
        """A request could not be sent, or broke off."""
        self._failures[row] += 1
        if self._probation[row] or self._failures[row] >= _FAILURES:
            self._eject(row, now_s)
            self._silent[row] = 0.0

    def ended(self, row: int, now_s: float) -> None:
        """A request ended, nobody knows how."""
        if self._probation[row] and self._silent[row]:
            self._eject(row, now_s)

    def silent(self, row: int, now_s: float) -> None:
        """A scrape failed."""
        if np.isnan(self._alive_s[row]):
            self._alive_s[row] = now_s
        self._silences[row] += 1
        quiet = self._silences[row] >= _SILENT_SCRAPES and now_s - self._alive_s[row] >= _SILENT_S
        if quiet and not self._probation[row]:
            self.gone(row, now_s)

    def gone(self, row: int, now_s: float) -> None:
        """A scrape was refused: nobody listens."""
        if not self._probation[row]:
            self._silent[row] = 1.0
        self._eject(row, now_s)

    def scraped(self, row: int, now_s: float) -> None:
        """A scrape succeeded."""
        self._silences[row] = 0.0
        self._alive_s[row] = now_s
        if self._silent[row]:
            self._restore(row)

    def served(self, row: int, now_s: float) -> None:
        """A request got its first byte, or its whole answer."""
        self._alive_s[row] = now_s
        self._failures[row] = 0.0
        if self._probation[row] and now_s >= self._until_s[row]:
            self._restore(row)

    def _eject(self, row: int, now_s: float) -> None:
        # Requests that were in flight when the first of them failed say nothing new.
        if now_s < self._until_s[row]:
            return
        self._until_s[row] = now_s + self._length_s[row]
        self._length_s[row] = min(_LONGEST_S, 2.0 * self._length_s[row])
        self._out += not self._probation[row]
        self._probation[row] = 1.0

    def _restore(self, row: int) -> None:
        self._failures[row] = 0.0
        self._until_s[row] = -np.inf
        self._length_s[row] = _FIRST_S
        self._out -= bool(self._probation[row])
        self._probation[row] = 0.0
        self._silent[row] = 0.0
