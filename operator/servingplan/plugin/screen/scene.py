"""What a frame is drawn on and from, besides the plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from servingplan.plugin.screen.samples import Samples

WIDE = 104
"""Columns from which everything is shown; below, what is said twice goes first."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What a frame is drawn from, besides the plan.

    Attributes:
        now_s: Seconds since the epoch.
        width: Columns.
        plain: Whether there are no colours.
        roomy: Whether there are lines to spare.
        samples: What was seen lately.
        there: Units on the nodes by plan key and accelerator; a kind is absent where nodes may not be read.
    """

    now_s: float
    width: int
    plain: bool
    roomy: bool
    samples: Samples
    there: Mapping[tuple[str, str], int]

    @property
    def wide(self) -> bool:
        """Whether there is room for everything."""
        return self.width >= WIDE
