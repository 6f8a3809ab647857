"""What is decided in one cell: scores of prompts, a latency curve per model setup, a load and a bound on the mean TTFT."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from routerwise.setups import ModelSetup, Space


@dataclass(frozen=True)
class Curve:
    """Mean TTFT of one deployed model at profiled loads.

    Between the points the paper interpolates the latency l linearly, so the requests waiting for a first token,
    f(u) = u l(u), are a parabola between them. ``chords`` lie on or above it, ``tangents`` on or below.

    Attributes:
        rates_rps: Increasing, from 0; the last is a hard limit, because nothing is known past it.
        ttft_s: At those rates; not decreasing.
    """

    rates_rps: np.ndarray
    ttft_s: np.ndarray

    @property
    def limit_rps(self) -> float:
        """The last profiled rate."""
        return float(self.rates_rps[-1])

    def slowed(self, speed: float) -> Curve:
        """The same replica with every step 1 / speed times as long."""
        return Curve(self.rates_rps * speed, self.ttft_s / speed)

    @cached_property
    def slopes(self) -> np.ndarray:
        """Slope of the latency on each segment, in seconds per request per second."""
        return np.diff(self.ttft_s) / np.diff(self.rates_rps)

    def at(self, rate_rps: float) -> tuple[float, float]:
        """Latency and its slope at a rate up to the limit."""
        segment = min(max(int(np.searchsorted(self.rates_rps, rate_rps, side="right")) - 1, 0), len(self.slopes) - 1)
        slope = float(self.slopes[segment])
        return float(self.ttft_s[segment]) + slope * (rate_rps - float(self.rates_rps[segment])), slope

    @cached_property
    def chords(self) -> tuple[np.ndarray, np.ndarray]:
        """Intercepts and slopes of lines whose maximum is f at the points and at least f between them.

        Slopes are made to increase, so that the maximum is a convex majorant even of a noisy curve.
        """
        waiting = self.rates_rps * self.ttft_s
        slopes = np.maximum.accumulate(np.diff(waiting) / np.diff(self.rates_rps))
        heights = np.concatenate([[0.0], np.cumsum(slopes * np.diff(self.rates_rps))])
        return heights[:-1] - slopes * self.rates_rps[:-1], slopes

    @cached_property
    def tangents(self) -> tuple[np.ndarray, np.ndarray]:
        """Intercepts and slopes of tangents to each parabola at both its ends, for a convex f."""
        ends = [(u, t, s) for s, left in zip(self.slopes, range(len(self.slopes)), strict=True)
                for u, t in zip(self.rates_rps[left : left + 2], self.ttft_s[left : left + 2], strict=True)]  # fmt: skip
        slopes = np.array([ttft + slope * rate for rate, ttft, slope in ends])
        heights = np.array([rate * ttft for rate, ttft, _ in ends])
        return heights - slopes * np.array([rate for rate, _, _ in ends]), slopes


@dataclass(frozen=True)
class Scores:
    """Prompts with equal scores, taken together; nothing is lost, since prompts differ in nothing else here.

    Attributes:
        models: M names.
        matrix: (K, M) scores in [0, 1].
        shares: (K,) fractions of the prompts, summing to 1.
    """

    models: tuple[str, ...]
    matrix: np.ndarray
    shares: np.ndarray

    @cached_property
    def means(self) -> np.ndarray:
        """(M,) mean score of each model."""
        return self.shares @ self.matrix

    @property
    def ceiling(self) -> float:
        """Score of sending every prompt to a model that is best for it."""
        return float(self.shares @ self.matrix.max(axis=1))


@dataclass(frozen=True)
class Cell:
    """One question to all methods.

    Attributes:
        curves: By model index and setup; a setup without a curve cannot run the model.
        rate_rps: All requests, per second.
        ttft_s: Bound on the request-weighted mean.
    """

    scores: Scores
    space: Space
    curves: dict[tuple[int, ModelSetup], Curve]
    rate_rps: float
    ttft_s: float
