"""What was measured of a plan, with its age: the input of every correction.

A figure that is missing is None or absent, never zero: a counter that nobody scraped has not stood still.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum


class Found(Enum):
    """What there is to say of a plan's metrics. The names are the reasons of the condition MetricsAvailable."""

    FOUND = "MetricsFound"
    AWAITED = "NotMeasuredYet"
    NOT_CONFIGURED = "NotConfigured"
    UNREACHABLE = "PrometheusUnreachable"
    MISSING = "MetricsMissing"
    STALE = "MetricsStale"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value read off a histogram: it lies between ``low`` and ``high``, the edges of its bucket."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Histogram:
    """Observations of some time, in buckets.

    Attributes:
        edges: (n,) ascending upper edges; the last one is infinite.
        counts: (n,) observations in each bucket alone.
        total: Sum of all observations.
    """

    edges: tuple[float, ...]
    counts: tuple[float, ...]
    total: float

    @property
    def count(self) -> float:
        """Observations."""
        return sum(self.counts)

    @property
    def mean(self) -> float | None:
        """Their mean, exactly; None without any."""
        return self.total / self.count if self.count > 0 else None

    def quantile(self, percentile: float) -> Estimate | None:
        """A percentile between 0 and 100, interpolated in its bucket; None without observations.

        In the infinite bucket the value is its lower edge, as in PromQL.

        Raises:
            ValueError: The percentile is outside of 0 to 100.
        """
        if not 0 <= percentile <= 100:
            message = f"a percentile lies between 0 and 100, not at {percentile}"
            raise ValueError(message)
        rank, below = percentile / 100 * self.count, 0.0
        filled = [place for place, count in enumerate(self.counts) if count > 0]
        for place in filled:
            count = self.counts[place]
            # The sum of the fractions that Prometheus extrapolates may end a hair below the rank.
            if below + count >= rank or place == filled[-1]:
                low, high = self._bounds(place)
                part = min(1.0, max(0.0, rank - below) / count)
                return Estimate(low if high == math.inf else low + part * (high - low), low, high)
            below += count
        return None

    def share_within(self, bound: float) -> Estimate | None:
        """Fraction of the observations up to a bound, interpolated in the bucket around it; None without observations.

        Of the infinite bucket nothing is taken to be within the bound.
        """
        total = self.count
        if total <= 0:
            return None
        below = 0.0
        for place, count in enumerate(self.counts):
            low, high = self._bounds(place)
            if bound < high:
                part = 0.0 if bound <= low or high == math.inf else (bound - low) / (high - low)
                most = below + (count if bound > low else 0.0)
                return Estimate((below + part * count) / total, below / total, most / total)
            below += count
        return Estimate(1.0, 1.0, 1.0)

    def _bounds(self, place: int) -> tuple[float, float]:
        """Edges of a bucket. What is measured is not negative, so the first bucket begins at zero."""
        high = self.edges[place]
        return (self.edges[place - 1] if place else min(0.0, high)), high


@dataclass(frozen=True, slots=True)
class PoolReading:
    """What the live, ready replicas of one setup say of the last window; only they count.

    Attributes:
        replicas: Ready replicas that were read.
        dark: Names of ready pods that have no fresh series.
        rate_rps: Requests per second that got their first token, over all replicas.
        ttft: Time to first token in seconds.
        inter_token: Time between tokens in seconds.
        e2e: Time to the last token in seconds.
        prompt_tokens: Prompt tokens of a request.
        output_tokens: Output tokens of a request.
        running: Requests in the engines, highest of the window, over all replicas.
        waiting: Requests in their queues, the same.
        kv_usage: Largest share of a replica's KV cache in use.
        prefix_hit_share: Share of prompt tokens found in the prefix cache.
        age_s: Age of the oldest of the newest samples of the replicas that are not dark.
    """

    replicas: int
    dark: tuple[str, ...] = ()
    rate_rps: float | None = None
    ttft: Histogram | None = None
    inter_token: Histogram | None = None
    e2e: Histogram | None = None
    prompt_tokens: Histogram | None = None
    output_tokens: Histogram | None = None
    running: float | None = None
    waiting: float | None = None
    kv_usage: float | None = None
    prefix_hit_share: float | None = None
    age_s: float = 0.0


@dataclass(frozen=True, slots=True)
class RateHistory:
    """Arrivals of short windows.

    Attributes:
        window_s: Length of each.
        rates_rps: Requests per second, oldest first, the last one ending now; windows of which nothing is known are left out
            at the beginning.
        age_s: Age of the newest sample.
    """

    window_s: float
    rates_rps: tuple[float, ...]
    age_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Chosen:
    """Where the pickers of a plan sent the requests of one class of late, of those that left the choice of the model to them.

    Attributes:
        requests: Choices that the figures rest on.
        shares: Fraction of them by model; those of a model that is left out are none.
        gains: By model, what it is worth that the picker chose it by the request, per request that was sent there and in units
            of quality: by how much its lead in predicted quality over the class's other models is greater for these requests
            than for all requests of the class. The others count as the picker used them. 0 where every request of the class
            is expected to do alike. A model that is left out gains nothing.
        window_s: Length of the time that they were made in.
        age_s: Age of the newest sample of the picker that is behind the others.
    """

    request_class: str
    requests: float
    shares: dict[str, float]
    gains: dict[str, float] = field(default_factory=dict)
    window_s: float = 300.0
    age_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Readings:
    """Everything that was measured of one plan at one time.

    Attributes:
        error: Why there is nothing, in one sentence; empty where there is.
        pools: By pool name; a pool without a ready replica is absent.
        classes: Arrivals by request class, of the requests that leave the choice of the model to the plan; absent where
            unknown.
        models: Arrivals by model, of the requests that name it; absent where unknown.
        aliases: Which of its names every series was found by, by what it is needed for.
        taken_s: When, in seconds since the epoch, by the clock of Prometheus.
        window_s: Length of the window that the pools' figures are of.
        chosen: What pickers made of the classes; absent where unknown, and where nothing was chosen.
    """

    found: Found
    error: str = ""
    pools: dict[str, PoolReading] = field(default_factory=dict)
    classes: dict[str, RateHistory] = field(default_factory=dict)
    models: dict[str, RateHistory] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    taken_s: float = 0.0
    window_s: float = 60.0
    chosen: dict[str, Chosen] = field(default_factory=dict)

    @property
    def age_s(self) -> float | None:
        """Age of the oldest figure when it was taken; None where there is none."""
        ages = [pool.age_s for pool in self.pools.values() if pool.rate_rps is not None]
        ages += [history.age_s for history in (*self.classes.values(), *self.models.values())]
        return max(ages, default=None)
