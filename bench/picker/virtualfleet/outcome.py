"""What became of the requests of one run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from virtualfleet.engines import NOBODY, Fleet
from virtualfleet.tiers import MODEL_OF, TIERS
from virtualfleet.workload import Workload

TTFT_S, INTER_TOKEN_S, E2E_S = 1.0, 0.05, 5.0
"""What a request must keep to count as goodput."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Requests in order of arrival; those that were shed have infinite times and score 0.

    Attributes:
        model: (n,) tier that answered, NOBODY where the request was shed.
        ttft_s, e2e_s: (n,) since the arrival at the router.
        inter_token_s: (n,) mean, 0 for answers of one token.
        quality: (n,)
        cost: (n,) dollars.
        arrival_s: (n,)
    """

    model: np.ndarray
    ttft_s: np.ndarray
    e2e_s: np.ndarray
    inter_token_s: np.ndarray
    quality: np.ndarray
    cost: np.ndarray
    arrival_s: np.ndarray

    @property
    def shed(self) -> float:
        """Share of the requests."""
        return float((self.model == NOBODY).mean())

    @property
    def mix(self) -> np.ndarray:
        """(tiers,) shares of what was served."""
        counts = np.bincount(self.model[self.model != NOBODY], minlength=len(TIERS))
        return counts / max(1, counts.sum())

    @property
    def good(self) -> np.ndarray:
        """(n,) whether a request kept all three bounds."""
        return (self.ttft_s <= TTFT_S) & (self.inter_token_s <= INTER_TOKEN_S) & (self.e2e_s <= E2E_S)

    def point(self) -> Point:
        """The run in a few numbers."""
        served = self.model != NOBODY
        return Point(
            quality=float(self.quality.mean()),
            cost=float(self.cost.mean()),
            e2e_p95_s=_quantile(self.e2e_s, 0.95),
            e2e_mean_s=float(self.e2e_s[served].mean()) if served.any() else np.inf,
            ttft_mean_s=float(self.ttft_s[served].mean()) if served.any() else np.inf,
            ttft_p99_s=_quantile(self.ttft_s[served], 0.99),
            e2e_p99_s=_quantile(self.e2e_s[served], 0.99),
            goodput=float(self.good.mean()),
            shed=self.shed,
            served_quality=float(self.quality[served].mean()) if served.any() else 0.0,
            good_quality=float((self.quality * self.good).mean()),
        )


@dataclass(frozen=True, slots=True)
class Point:
    """A run, summed up.

    Attributes:
        quality: Mean score; a shed request scores 0.
        cost: Dollars per request.
        e2e_p95_s: Infinite if more than 5 % were shed.
        e2e_mean_s, ttft_mean_s, ttft_p99_s, e2e_p99_s: Of those served.
        goodput: Share of all requests that kept the three bounds.
        shed: Share of all requests.
        served_quality: Mean score of those served.
        good_quality: Mean over all requests of the score, counted only where the three bounds were kept.
    """

    quality: float
    cost: float
    e2e_p95_s: float
    e2e_mean_s: float
    ttft_mean_s: float
    ttft_p99_s: float
    e2e_p99_s: float
    goodput: float
    shed: float
    served_quality: float
    good_quality: float


def _quantile(values: np.ndarray, share: float) -> float:
    # Not interpolated: between a finite and an infinite value there is nothing.
    return float(np.quantile(values, share, method="higher")) if len(values) else np.inf


def of(fleet: Fleet, work: Workload) -> Outcome:
    """The outcome of a run that has come to its end."""
    served = fleet.instance != NOBODY
    model = np.where(served, MODEL_OF[fleet.instance], NOBODY)
    rows = np.arange(len(work))
    tokens = work.output_tokens[rows, model]
    decode_s = (fleet.ended_s - fleet.first_s) / np.maximum(1, tokens - 1)
    return Outcome(
        model,
        np.where(served, fleet.first_s - work.arrival_s, np.inf),
        np.where(served, fleet.ended_s - work.arrival_s, np.inf),
        np.where(served, decode_s, np.inf),
        np.where(served, work.quality[rows, model], 0.0),
        np.where(served, work.cost[rows, model], 0.0),
        work.arrival_s,
    )
