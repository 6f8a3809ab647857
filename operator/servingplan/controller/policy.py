"""How quickly decisions follow the world."""

from __future__ import annotations

from dataclasses import dataclass

QUALITY_SLACK = 1e-3
"""Fraction of the quality that is not worth another accelerator or another start."""
_MOVED_FRACTION = 32


@dataclass(frozen=True, slots=True)
class Policy:
    """Periods of the loop, in seconds.

    Attributes:
        tick_s: Weights and readings.
        cycle_s: Corrections, and moves that nothing forces.
        dwell_s: How long a change is to last, and so what it has to pay for itself within.
    """

    tick_s: float = 10.0
    cycle_s: float = 60.0
    dwell_s: float = 900.0


def movable_units(total_units: int, largest_replica: int) -> int:
    """Units that may start in one cycle when nothing forces a move: a thirty-second of all, and one replica at least."""
    return max(largest_replica, -(-total_units // _MOVED_FRACTION))
