"""What a request is charged for the capacity of a pool, beside what its delay costs others now.

The price starts at the plan's dual, which is that of the load that is planned for, and follows what is metered: it decays
within a minute or two while the pool has slack, the faster the more slack, and climbs in minutes while its guard binds, that is
while not even the least loaded of its endpoints meets the time to first token. It moves with time and not with decisions, so no
single pick is bent towards the plan's shares. A plan that changes its dual changes the price in proportion: set anew at every
step of the plan, a pool that is half empty would be priced as full.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from servingplan.routing.fleet import Vector

_RISES_S, _FALLS_S = 180.0, 60.0
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
        """Takes the plan's duals by pool, in order."""
        before = dict(zip(self._duals, self.prices.tolist(), strict=True))
        self.prices = np.array([self._begun(pool, dual, before.get(pool, 0.0)) for pool, dual in duals.items()])
        self._steps = np.maximum(np.array(list(duals.values()), dtype=np.float64), _LEAST_STEP)
        self._duals = dict(duals)

    def _begun(self, pool: str, dual: float, price: float) -> float:
        """The price from which a pool goes on with a dual."""
        known = self._duals.get(pool)
        if known == dual:
            return price
        return max(0.0, dual) * (min(1.0, price / known) if known is not None and known > 0 else 1.0)

    def due(self, now_s: float) -> bool:
        """Whether it is time to meter."""
        return now_s - self._at_s >= _METERED_S

    def meter(self, strain: Vector, now_s: float) -> None:
        """Takes (pools,) the least time to first token of each pool as a fraction of what it may be."""
        # Where nobody asked for long, the last strain says little of the time between.
        elapsed_s = min(max(now_s - self._at_s, 0.0), _LONGEST_STEP_S) if math.isfinite(self._at_s) else 0.0
        self._at_s = now_s
        falling = self.prices * np.exp(-elapsed_s / _FALLS_S * np.maximum(1.0 - strain, 0.0))
        higher = self.prices + elapsed_s / _RISES_S * self._steps
        rising = np.minimum(higher, np.maximum(_HIGHEST * self._steps, self.prices))
        self.prices = np.where(strain > 1.0, rising, falling)
