"""Which endpoint is likely to hold how much of a prompt in its prefix cache.

Each endpoint has a list of the blocks it was sent last, the least recently used leaving first. Which endpoints hold a block is
one integer with a bit for each of them, so that the longest match on all of them is found in one walk along the prompt.

How much of a match is believed is what the endpoint reports: the share of prompt tokens that it found in its cache, over the
share that the matches of what it was sent would have given. An endpoint without a prefix cache comes to be believed nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import numpy as np

from servingplan.routing.fleet import Rows, Vector, carried

BLOCKS = 2048
"""Remembered by endpoint."""
_LONGEST = 512
"""Blocks of one prompt that are looked at."""


_TRUST = 0.9
"""Of a match where an endpoint reports nothing: some blocks will have left."""
_LEAST_EXPECTED = 0.05
_EXPECTED_OF = 32.0
"""Picks over which the expected share is taken."""


class HitTrust:
    """How much of a match each endpoint's reports bear out, in columns of (endpoints,)."""

    def __init__(self) -> None:
        self._expected, self._reported = (np.zeros(0) for _ in range(2))

    def rebuild(self, source: Rows) -> None:
        """Follows a change of the fleet, as ``Ledger.rebuild``."""
        self._expected = carried(self._expected, source)
        self._reported = carried(self._reported, source, np.nan)

    def sent(self, row: int, matched: float) -> None:
        """An endpoint was sent a prompt of which this fraction matched."""
        self._expected[row] += (matched - self._expected[row]) / _EXPECTED_OF

    def told(self, row: int, share: float) -> None:
        """An endpoint found this fraction of its prompt tokens in its cache of late."""
        if 0.0 <= share <= 1.0:
            self._reported[row] = share

    def trust(self) -> Vector:
        """(endpoints,) fraction of a match that counts."""
        told = np.minimum(self._reported / np.maximum(self._expected, _LEAST_EXPECTED), _TRUST)
        return np.where((self._expected < _LEAST_EXPECTED) | np.isnan(told), _TRUST, told)


class PrefixIndex:
    """Blocks by endpoint; ``blocks`` of each are remembered."""

    def __init__(self, blocks: int = BLOCKS) -> None:
        self._blocks = blocks
        self._holders: dict[int, int] = {}
        self._recent: dict[str, OrderedDict[int, None]] = {}
        self._bit: dict[str, int] = {}

    def keep(self, addresses: Sequence[str]) -> None:
        """Forgets every endpoint but these."""
        for gone in set(self._bit) - set(addresses):
            for block in self._recent.pop(gone):
                self._drop(block, self._bit[gone])
            del self._bit[gone]

    def sent(self, address: str, prefix: Sequence[int]) -> None:
        """An endpoint was sent a prompt of these blocks."""
        if address not in self._bit:
            taken = set(self._bit.values())
            self._bit[address] = next(bit for bit in range(len(taken) + 1) if bit not in taken)
            self._recent[address] = OrderedDict()
        recent, bit = self._recent[address], self._bit[address]
        # Last to first: a prompt's end leaves before its beginning, without which the end is worth nothing.
        for block in reversed(prefix[:_LONGEST]):
            if block in recent:
                recent.move_to_end(block)
            else:
                recent[block] = None
                self._holders[block] = self._holders.get(block, 0) | 1 << bit
        while len(recent) > self._blocks:
            self._drop(recent.popitem(last=False)[0], bit)

    def matched(self, prefix: Sequence[int], row_of: Mapping[str, int]) -> Vector:
        """(endpoints,) fraction of the blocks, from the first one on without a gap, that each endpoint was sent."""
        found = np.zeros(len(row_of))
        alive = -1
        depth = 0
        by_bit: dict[int, int] = {}
        for block in prefix[:_LONGEST]:
            holders = alive & self._holders.get(block, 0)
            if holders != alive:
                _note(alive & ~holders if alive >= 0 else 0, depth, by_bit)
                alive = holders
            if not alive:
                break
            depth += 1
        if alive > 0:
            _note(alive, depth, by_bit)
        if by_bit:
            for address, bit in self._bit.items():
                if bit in by_bit and address in row_of:
                    found[row_of[address]] = by_bit[bit] / len(prefix)
        return found

    def __len__(self) -> int:
        return len(self._holders)

    def _drop(self, block: int, bit: int) -> None:
        left = self._holders.get(block, 0) & ~(1 << bit)
        if left:
            self._holders[block] = left
        else:
            self._holders.pop(block, None)


def _note(bits: int, depth: int, by_bit: dict[int, int]) -> None:
    while bits:
        low = bits & -bits
        if depth:
            by_bit[low.bit_length() - 1] = depth
        bits ^= low
