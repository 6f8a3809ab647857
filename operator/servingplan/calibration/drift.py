"""Whether replicas have changed since they were learnt: Page and Hinkley's test on standardised surprises, both ways.

A sum grows by what surprises exceed one standard deviation, so that a constant small error of the form leaves it at zero. Past
the alarm it takes some calm cycles to fall below the level at which all is settled.
"""

from __future__ import annotations

from dataclasses import dataclass

_TOLERATED = 1.0
_LARGEST = 3.0
_ALARM, _FULL, _SETTLED = 5.0, 6.0, 2.0


@dataclass(frozen=True, slots=True)
class Drift:
    """The state of the test.

    Attributes:
        up: Sum of what was slower than expected.
        down: The same of what was faster.
        drifting: Whether it has gone off and not been settled since.
    """

    up: float
    down: float
    drifting: bool

    def after(self, surprise: float) -> Drift:
        """A cycle later; one surprise counts for three deviations at most."""
        surprise = min(_LARGEST, max(-_LARGEST, surprise))
        up = min(_FULL, max(0.0, self.up + surprise - _TOLERATED))
        down = min(_FULL, max(0.0, self.down - surprise - _TOLERATED))
        return Drift(up, down, max(up, down) > (_SETTLED if self.drifting else _ALARM))
