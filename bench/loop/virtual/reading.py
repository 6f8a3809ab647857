"""What Prometheus would say: rates of short windows, and histograms of the last minute with vLLM's bucket edges.

Everything is as old as the last scrape. The time between tokens is known per request only: each of its gaps counts with the
request's mean, when the request ends.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from servingplan.calibration.readings import Found, Histogram, PoolReading, RateHistory, Readings
from servingplan.sim import metrics

WINDOW_S = 60.0
HISTORY_S = 3600.0

TTFT_EDGES = (*metrics._TTFT_S, np.inf)
GAP_EDGES = (*metrics._TOKEN_GAP_S, np.inf)
E2E_EDGES = (*metrics._REQUEST_S, np.inf)
TOKEN_EDGES = (*metrics._length_buckets(40_960), np.inf)


@dataclass(frozen=True, slots=True)
class Settings:
    """Times of the scrape.

    Attributes:
        scrape_s: Interval.
    """

    scrape_s: float = 15.0

    @property
    def short_window_s(self) -> float:
        """Length of the windows in which rates are told."""
        return max(30.0, 4 * self.scrape_s)

    def last_scrape_s(self, now_s: float) -> float:
        """When the last scrape was."""
        return float(np.floor(now_s / self.scrape_s + 1e-9) * self.scrape_s)


def histogram(values: np.ndarray, edges: tuple[float, ...], weights: np.ndarray | None = None) -> Histogram:
    """Observations in buckets; an observation on an edge is in the bucket below it."""
    weights = np.ones(len(values)) if weights is None else weights
    counts = np.bincount(np.searchsorted(edges, values, side="left"), weights, len(edges))
    return Histogram(tuple(map(float, edges)), tuple(counts.tolist()), float(weights @ values))


@dataclass(slots=True)
class Arrivals:
    """Counter of one class."""

    times_s: np.ndarray

    def history(self, begun_s: float, scraped_s: float, window_s: float) -> RateHistory | None:
        """Rates of the windows up to a scrape; None before anything came."""
        windows = int(min(HISTORY_S, scraped_s - begun_s) // window_s)
        if windows < 1 or not len(self.times_s) or self.times_s[0] > scraped_s:
            return None
        edges = scraped_s - window_s * np.arange(windows, -1, -1)
        counts = np.diff(np.searchsorted(self.times_s, edges))
        return RateHistory(window_s, tuple((counts / window_s).tolist()))


@dataclass(slots=True)
class PoolLog:
    """What the replicas of a pool have counted lately.

    Attributes:
        first: (time, TTFT) of first tokens, one array of (n, 2) per call.
        ended: (time, mean gap, gaps, end to end, prompt tokens, output tokens), one array of (n, 6) per call.
        gauges: (time, running, waiting, KV usage) at every scrape.
    """

    first: deque[np.ndarray] = field(default_factory=deque)
    ended: deque[np.ndarray] = field(default_factory=deque)
    gauges: deque[tuple[float, float, float, float]] = field(default_factory=deque)

    def forget(self, before_s: float) -> None:
        """Drops what no window reaches any more."""
        for chunks in (self.first, self.ended):
            while chunks and (not len(chunks[0]) or chunks[0][:, 0].max() < before_s):
                chunks.popleft()
        while self.gauges and self.gauges[0][0] < before_s:
            self.gauges.popleft()

    def reading(self, replicas: int, scraped_s: float) -> PoolReading:
        """The pool over the window that ends with a scrape."""
        first, ended = (_within(chunks, width, scraped_s) for chunks, width in ((self.first, 2), (self.ended, 6)))
        gauges = [row for row in self.gauges if scraped_s - WINDOW_S < row[0] <= scraped_s]
        many = ended[:, 2] > 0
        return PoolReading(
            replicas=replicas,
            rate_rps=len(first) / WINDOW_S,
            ttft=histogram(first[:, 1], TTFT_EDGES),
            inter_token=histogram(ended[many, 1], GAP_EDGES, ended[many, 2]),
            e2e=histogram(ended[:, 3], E2E_EDGES),
            prompt_tokens=histogram(ended[:, 4], TOKEN_EDGES),
            output_tokens=histogram(ended[:, 5], TOKEN_EDGES),
            running=max((row[1] for row in gauges), default=None),
            waiting=max((row[2] for row in gauges), default=None),
            kv_usage=max((row[3] for row in gauges), default=None),
        )


def _within(chunks: deque[np.ndarray], width: int, scraped_s: float) -> np.ndarray:
    rows = np.concatenate([np.zeros((0, width)), *chunks])
    return rows[(rows[:, 0] > scraped_s - WINDOW_S) & (rows[:, 0] <= scraped_s)]


def found(pools: dict[str, PoolReading], classes: dict[str, RateHistory], scraped_s: float) -> Readings:
    """The readings of a plan."""
    known = Found.FOUND if pools or classes else Found.MISSING
    return Readings(known, pools=pools, classes=classes, taken_s=scraped_s, window_s=WINDOW_S)
