"""Which model requests were sent to by choice, and what each model would have scored on them: what choosing comes to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class Sent:
    """Requests of one class that were sent to one model.

    Attributes:
        requests: How many.
        quality: Sum of the score that they were expected to have, by every model of the plan.
    """

    requests: int = 0
    quality: dict[str, float] = field(default_factory=dict)


class Tally:
    """Sums that only grow, by request class and by the model that was chosen."""

    def __init__(self) -> None:
        self.sent: dict[tuple[str, str], Sent] = {}

    def took(self, request_class: str, model: str, quality: Mapping[str, float]) -> None:
        """Counts a request that was sent to a model; ``quality`` is the score expected of every model."""
        row = self.sent.get((request_class, model))
        if row is None:
            row = self.sent[request_class, model] = Sent()
        row.requests += 1
        sums = row.quality
        for name, score in quality.items():
            # One score that is no number would spoil the sum for ever.
            sums[name] = sums.get(name, 0.0) + (score if 0.0 < score < math.inf else 0.0)
