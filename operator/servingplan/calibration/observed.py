"""What one cycle's histograms say of a setup, in logarithms and with their noise, beside what the latency form expects.

A window of a minute is a short and correlated look at a queue: requests that wait behind the same prompts are late together,
and the lengths and arrivals of this minute are not those of the mix. The noise says so, since a filter that believes single
windows follows them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from servingplan.calibration.readings import Histogram
from servingplan.latency.capacity import Latency, latency, stable_rate_rps
from servingplan.latency.profile import Bound, Correction, EngineProfile, TokenMix

Floats = NDArray[np.float64]

LEAST_REQUESTS = 30
"""Requests of a window below which nothing is learnt from it."""

_RATIO_GRID = 0.04
_COMMON_STEP = 0.005
_FULL = 0.97
_PAST_FULL = 5.0
_MEASURING_SD = 0.05
_UNEVENNESS, _LEAST_UNEVENNESS = 0.1, 0.04
"""Where it was not measured, and where it was."""
_FORM_SD = (0.05, 0.12)
"""What the form of the time to first token is off by, idle and at the stable rate."""
_GAP_FORM_SD = 0.04
_GAP_CHANCE = 0.4
"""Variance by chance of the time between tokens, over that of the time to first token; the same prompts lengthen both."""
_BUSIEST = 0.9
_LARGEST_NOISE = 0.5


@dataclass(frozen=True, slots=True)
class Sample:
    """One cycle of one setup's live, warm replicas.

    Attributes:
        replicas: Whose figures these are.
        rate_rps: Requests per second that each of them got.
        mix: Lengths of those requests.
        arrival_cv: Coefficient of variation of the times between arrivals.
        requests: How many there were, over all replicas.
        ttft: Time to first token in seconds.
        inter_token: Time between tokens in seconds, one observation a token.
        e2e: Time to the last token in seconds.
        bounds: (metric, bound) that requests of this setup have to keep; metrics are ``ttft``, ``interToken`` and ``e2e``.
        growing: Whether more requests waited at the end of the window than at its beginning, by more than chance.
        draining: Whether fewer did.
        unevenness: Standard deviation of the rate between the scrapes of the window, beyond chance, over its mean; None where
            it was not measured.
        work: Mean prompt tokens of these requests over those of the mix; None where they were not measured.
    """

    replicas: int
    rate_rps: float
    mix: TokenMix
    arrival_cv: float
    requests: float
    ttft: Histogram
    inter_token: Histogram | None = None
    e2e: Histogram | None = None
    bounds: tuple[tuple[str, Bound], ...] = ()
    growing: bool = False
    draining: bool = False
    unevenness: float | None = None
    work: float | None = None

    @property
    def offered_rps(self) -> float:
        """Requests of the mix per second that are as much work as those there were."""
        return self.rate_rps * (self.work or 1.0)

    @property
    def busiest(self) -> float:
        """Rate of the busiest parts of the window over that of the whole."""
        return 1 + 3 * (self.unevenness or 0.0)


@dataclass(frozen=True, slots=True)
class Seen:
    """Logarithms of a mean time to first token and of a mean time between tokens, with their variances.

    Attributes:
        values: (2,) NaN where not measured.
        variances: (2,) infinite there.
    """

    values: Floats
    variances: Floats

    def without_ttft(self) -> Seen:
        """The time between tokens alone."""
        return Seen(np.array([np.nan, self.values[1]]), np.array([np.inf, self.variances[1]]))


@dataclass(frozen=True, slots=True)
class Form:
    """What the latency form expects of a sample, by the logarithms of the factors on a profile's step.

    Curves are made for ratios of the factors on a coarse grid and taken to be linear between them, so that cycle by cycle the
    same few serve; the common factor needs none of its own (``latency.correction``).
    """

    prior: EngineProfile
    sample: Sample

    def at(self, log_step: Floats) -> Floats:
        """(2,) logarithms of the mean time to first token and of the mean time between tokens."""
        nearest, apart = self._nearest(log_step)
        found = self._on_grid(nearest)
        return found if not apart.any() else found + self._by_ratio(nearest, found) @ apart

    def slopes(self, log_step: Floats) -> Floats:
        """(2, 3) derivatives of ``at``."""
        nearest, _ = self._nearest(log_step)
        found = self._on_grid(nearest)
        common = (self._on_grid(nearest + _COMMON_STEP) - self._on_grid(nearest - _COMMON_STEP)) / (2 * _COMMON_STEP)
        ratios = self._by_ratio(nearest, found)
        return np.column_stack([common - ratios.sum(axis=1), ratios])

    def load(self, log_step: Floats) -> float:
        """The sample's rate as a fraction of the stable one."""
        return self.sample.offered_rps / stable_rate_rps(stepped(self.prior, log_step), self.sample.mix)

    def _nearest(self, log_step: Floats) -> tuple[Floats, Floats]:
        """(3,) with ratios on the grid, and (2,) how far off those ratios are."""
        ratios = log_step[1:] - log_step[0]
        rounded = _RATIO_GRID * np.round(ratios / _RATIO_GRID)
        return np.concatenate([log_step[:1], log_step[0] + rounded]), ratios - rounded

    def _by_ratio(self, nearest: Floats, found: Floats) -> Floats:
        """(2, 2) derivatives by the two ratios."""
        if self.prior.step is None:
            return np.zeros((2, 2))
        moved = [self._on_grid(nearest + _RATIO_GRID * np.eye(3)[k]) - found for k in (1, 2)]
        return np.column_stack(moved) / _RATIO_GRID

    def _on_grid(self, log_step: Floats) -> Floats:
        profile = stepped(self.prior, log_step)
        stable_rps = stable_rate_rps(profile, self.sample.mix)
        load = self.sample.offered_rps / stable_rps
        rate_rps = min(load, _FULL) * stable_rps
        found = latency(profile, self.sample.mix, rate_rps, arrival_cv=self.sample.arrival_cv)
        # Past the last load the form is flat; what is slower still must look slower to whoever searches.
        beyond = _PAST_FULL * max(0.0, load - _FULL)
        return np.array([math.log(found.ttft_mean_s) + beyond, math.log(gap_s(found, self.sample.mix))])


def gap_s(found: Latency, mix: TokenMix) -> float:
    """Mean time between tokens over tokens, as engines count it, where ``Latency`` has the mean over requests."""
    return found.decode_s / (mix.output_tokens - 1) if mix.output_tokens > 1 else found.inter_token_s


def stepped(prior: EngineProfile, log_step: Floats) -> EngineProfile:
    """A profile with factors on its step, given as logarithms."""
    alpha, beta, gamma = np.exp(log_step).tolist()
    return replace(prior, correction=Correction(step=(alpha, beta, gamma)))


def snapped(log_step: tuple[float, float, float]) -> Floats:
    """(3,) logarithms with ratios on the grid for which there are curves."""
    common, *others = log_step
    return np.array([common, *(common + _RATIO_GRID * round((other - common) / _RATIO_GRID) for other in others)])


def held_back(profile: EngineProfile, mix: TokenMix, load: float) -> float:
    """Share of the time between tokens for which prompts are to blame that came while a request waited for its own.

    Where outputs are short that share is large, and by about as much the form of the time between tokens is too high.
    """
    stable_rps = stable_rate_rps(profile, mix)
    idle, found = (latency(profile, mix, at * stable_rps) for at in (0.0, load))
    return (found.ttft_mean_s - idle.ttft_mean_s) * found.stretch / found.decode_s if found.decode_s > 0 else 1.0


def seen(sample: Sample, profile: EngineProfile) -> Seen:
    """What a sample says, by a profile believed before it came."""
    load = min(_BUSIEST, sample.offered_rps / stable_rate_rps(profile, sample.mix))
    sharpness = load / (1 - load)
    ttft = _mean(sample.ttft)
    # Neighbours in a queue are late together; and the lengths of this window are not those of the mix.
    chance = _relative_variance(sample.ttft) / sample.requests * (1 + load) / (1 - load)
    if sample.work is None:
        chance += (sharpness * sample.mix.prompt_cv) ** 2 / sample.requests
    chance = min(_LARGEST_NOISE**2, chance)
    unevenness = _UNEVENNESS if sample.unevenness is None else max(_LEAST_UNEVENNESS, sample.unevenness)
    uneven = (sharpness * unevenness) ** 2
    low, high = _FORM_SD
    form = low + (high - low) * load
    values, variances = [math.nan, math.nan], [math.inf, math.inf]
    if ttft > 0:
        # The logarithm of a noisy mean is low by half of its variance.
        values[0] = math.log(ttft) + chance / 2
        variances[0] = _MEASURING_SD**2 + form**2 + uneven + chance
    if sample.inter_token is not None and (gap := _mean(sample.inter_token)) > 0:
        values[1] = math.log(gap)
        form = _GAP_FORM_SD + held_back(profile, sample.mix, load)
        variances[1] = _MEASURING_SD**2 + form**2 + _GAP_CHANCE * (chance + uneven)
    return Seen(np.array(values), np.array(variances))


def _mean(histogram: Histogram) -> float:
    return histogram.mean or 0.0


def _relative_variance(histogram: Histogram) -> float:
    """Variance over the squared mean, with observations in the middle of their buckets."""
    edges = np.array(histogram.edges)
    low = np.concatenate([[0.0], edges[:-1]])
    middles = np.where(np.isfinite(edges), (low + edges) / 2, 1.5 * low)
    counts = np.array(histogram.counts)
    mean = float(counts @ middles / counts.sum())
    return float(counts @ (middles - mean) ** 2 / counts.sum()) / mean**2 if mean > 0 else 1.0
