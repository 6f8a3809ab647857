"""What a request is charged for the capacity of a pool, beside what its delay costs others now.

The price starts at the plan's dual and follows what is metered, in minutes: it decays while the pool has slack, the faster
the more slack, and climbs while its guard binds, that is while not even the least loaded of its endpoints meets the time to
first token. It moves with time and not with decisions, so no single pick is bent towards the plan's shares. A plan that
changes its dual sets the price anew.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from servingplan.routing.fleet import Vector

_FOLLOWS_S = 180.0
_LEAST_STEP = 0.02
"""Quality per request that the price of a pool without a dual climbs by in one time constant."""
_HIGHEST = 10.0
"""Times the dual, or the least step."""
_METERED_S, _LONGEST_STEP_S = 1.0, 5.0


class CapacityPrices:
    """Prices of all pools, (pools,)."""

    def __init__(self) -> None:
        self.prices = np.zeros(0)
        self._duals: dict[str, float] = {}
        self._steps = np.zeros(0)
        self._at_s = -math.inf

    def configure(self, duals: Mapping[str, float]) -> None:
        """Takes the plan's duals by pool, in order; a price whose dual is as before goes on from where it was."""
        before = dict(zip(self._duals, self.prices.tolist(), strict=True))
        same = {pool for pool, dual in duals.items() if self._duals.get(pool) == dual}
        self.prices = np.array(
            [before[pool] if pool in same else max(0.0, dual) for pool, dual in duals.items()], dtype=np.float64
        )
        self._steps = np.maximum(np.array(list(duals.values()), dtype=np.float64), _LEAST_STEP)
        self._duals = dict(duals)

    def due(self, now_s: float) -> bool:
        """Whether it is time to meter."""
        return now_s - self._at_s >= _METERED_S

    def meter(self, strain: Vector, now_s: float) -> None:
        """Takes (pools,) the least time to first token of each pool as a fraction of what it may be."""
        # Where nobody asked for long, the last strain says little of the time between.
        elapsed_s = min(max(now_s - self._at_s, 0.0), _LONGEST_STEP_S) if math.isfinite(self._at_s) else 0.0
        self._at_s = now_s
        share = elapsed_s / _FOLLOWS_S
        falling = self.prices * np.exp(-share * np.maximum(1.0 - strain, 0.0))
        rising = np.minimum(self.prices + share * self._steps, np.maximum(_HIGHEST * self._steps, self.prices))
        self.prices = np.where(strain > 1.0, rising, falling)
