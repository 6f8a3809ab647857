"""Who is turned away first when not all can be served.

A request is turned away when the time to first token that it can get is above ``patience`` times what it may be, with

    patience = (1 + min(1, weight / heaviest weight in flight)) / 2 * max(1/2, min(1, fair share / its tenant's share))

The queue settles where those with the least patience are turned away. So the light ones go first, while a heavy one may still
use the room up to its bound; and of two tenants of one weight, the one that has more than its share in flight. The fair share
is one over the tenants in flight. Nothing of this shows while the queues are short.
"""

from __future__ import annotations

_LEAST = 0.5


class Pressure:
    """Counts of what is in flight by weight and by tenant; both forget what has none."""

    def __init__(self) -> None:
        self._weights: dict[float, int] = {}
        self._tenants: dict[str, int] = {}
        self._total = 0

    def enters(self, weight: float, tenant: str) -> None:
        """A request was picked for."""
        self._weights[weight] = self._weights.get(weight, 0) + 1
        self._tenants[tenant] = self._tenants.get(tenant, 0) + 1
        self._total += 1

    def leaves(self, weight: float, tenant: str) -> None:
        """A request that had entered has ended."""
        self._weights[weight] -= 1
        if not self._weights[weight]:
            del self._weights[weight]
        self._tenants[tenant] -= 1
        if not self._tenants[tenant]:
            del self._tenants[tenant]
        self._total -= 1

    def patience(self, weight: float, tenant: str) -> float:
        """Fraction of the bound on the time to first token up to which a request is served, 1/4 to 1."""
        heaviest = max(self._weights, default=weight)
        by_weight = 0.5 * (1.0 + min(1.0, weight / heaviest)) if heaviest > 0 else 1.0
        own = self._tenants.get(tenant, 0) + 1
        tenants = len(self._tenants) + (tenant not in self._tenants)
        fair = (self._total + 1) / tenants
        return by_weight * max(_LEAST, min(1.0, fair / own))
