"""What a second and a dollar are worth in quality."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True)
class Prices:
    """The weights of the decision, in absolute units.

    A request that takes T seconds is charged ``per_second * scale_s * (T / scale_s) ** power``: at power 2 the price of a
    further second is ``per_second`` for an answer of half the scale, and rises with its length.

    Attributes:
        per_dollar: Quality that a dollar is worth.
        per_second: Quality that a second is worth.
        externality: Factor on the delay that the request adds to others.
        first_token_share: Quality that a second of the time to first token is worth on top, as a share of ``per_second``.

    Raises:
        ValueError: A price is negative, the scale not positive, or the power below 1.
    """

    per_dollar: float
    per_second: float
    scale_s: float = 10.0
    power: float = 2.0
    externality: float = 1.0
    first_token_share: float = 0.0

    def __post_init__(self) -> None:
        if min(self.per_dollar, self.per_second, self.externality, self.first_token_share) < 0:
            message = "prices are not negative"
            raise ValueError(message)
        if self.scale_s <= 0 or self.power < 1:
            message = "the scale of latency is positive and its power at least 1"
            raise ValueError(message)


class Preset(Enum):
    """Named weights."""

    QUALITY = "Quality"
    BALANCED = "Balanced"
    LATENCY = "Latency"
    COST = "Cost"

    @property
    def prices(self) -> Prices:
        """The weights of the preset."""
        return _PRICES[self]


_PRICES = {
    Preset.QUALITY: Prices(per_dollar=600.0, per_second=0.003),
    Preset.BALANCED: Prices(per_dollar=1500.0, per_second=0.02),
    Preset.LATENCY: Prices(per_dollar=600.0, per_second=0.1),
    Preset.COST: Prices(per_dollar=8000.0, per_second=0.01),
}
