"""Corrections of declared token lengths by what the replicas count.

Routers do not see tokens, and replicas do not see classes. A pool's mean prompt is the mean over the classes that go there, so
the factors of the classes solve a small linear system: one row per pool, one unknown per class. It is solved by ridge
regression towards 1 (Hoerl and Kennard 1970): pools count by how well they know their mean, and classes that go to the same
pools in the same parts are corrected together, by their parts of its tokens, rather than told apart by noise.

A class's shape stays as declared; only its mean moves. What one pool was sent is known better: its spread is measured too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from servingplan.calibration.rates import on_grid
from servingplan.calibration.readings import Histogram, PoolReading
from servingplan.latency.mix import LengthSample, TokenMix

FEWEST_REQUESTS = 30
NEAR = 0.05

_PRIOR = 0.5
_SHARES_OFF = 0.03
_STRANGERS_OFF = 0.5
_SURE = 4.0
_SMALLEST, _LARGEST = 0.1, 10.0
_SPREADS_ALIKE = 0.15

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LengthFactors:
    """Measured lengths as multiples of the declared ones.

    Attributes:
        prompt: Of the mean prompt.
        output: Of the mean output.
    """

    prompt: float = 1.0
    output: float = 1.0


@dataclass(frozen=True, slots=True)
class MeasuredFactors:
    """Factors, and how far chance alone may have moved each, as a standard deviation; infinite where nothing was measured."""

    factors: LengthFactors
    deviation: LengthFactors


def measured_factors(
    pools: Mapping[str, PoolReading], flows_rps: Mapping[str, Mapping[str, float]], declared: Mapping[str, TokenMix]
) -> dict[str, MeasuredFactors]:
    """Factors by class.

    Args:
        pools: What the pools measured, by name.
        flows_rps: Requests per second by class and pool.
        declared: Lengths in the spec by class.
    """
    classes = sorted(declared)
    sent = {pool: np.array([flows_rps.get(name, {}).get(pool, 0.0) for name in classes]) for pool in sorted(pools)}
    known = {pool: _known_share(pools[pool], float(rates.sum())) for pool, rates in sent.items()}
    prompts = np.array([declared[name].prompt_tokens for name in classes])
    outputs = np.array([declared[name].output_tokens for name in classes])
    prompt = _regressed([_Row(pools[pool].prompt_tokens, sent[pool], known[pool]) for pool in sent], prompts)
    output = _regressed([_Row(pools[pool].output_tokens, sent[pool], known[pool]) for pool in sent], outputs)
    return {
        name: MeasuredFactors(
            LengthFactors(float(prompt[0][at]), float(output[0][at])), LengthFactors(float(prompt[1][at]), float(output[1][at]))
        )
        for at, name in enumerate(classes)
    }


def follow_factors(held: LengthFactors, found: MeasuredFactors, *, near: float = NEAR) -> LengthFactors:
    """The factors to plan with: those that are held, unless what was found is off by enough, and by more than chance explains.

    Args:
        held: The factors until now.
        found: What was measured.
        near: Fraction by which they may be off.
    """
    return LengthFactors(
        prompt=_followed(held.prompt, found.factors.prompt, found.deviation.prompt, near),
        output=_followed(held.output, found.factors.output, found.deviation.output, near),
    )


def scaled(mix: TokenMix, factors: LengthFactors) -> TokenMix:
    """A mix with all its lengths multiplied; no length falls below one token."""
    if factors == LengthFactors():
        return mix
    if mix.sample:
        prompts, outputs, weights = mix.sample.columns
        return _sampled(prompts * factors.prompt, outputs * factors.output, weights)
    return TokenMix(
        prompt_tokens=max(1.0, mix.prompt_tokens * factors.prompt),
        output_tokens=max(1.0, mix.output_tokens * factors.output),
        prompt_cv=mix.prompt_cv,
        output_cv=mix.output_cv,
        correlation=mix.correlation,
    )


def as_measured(mix: TokenMix, reading: PoolReading) -> TokenMix:
    """What a pool was sent, with the mean and the spread that it measured; rounded, so that like readings give equal mixes.

    Args:
        mix: What it was believed to be sent.
        reading: Its histograms; those of too few requests do not count.
    """
    prompt_factor, prompt_cv = _moved(mix.prompt_tokens, mix.prompt_cv, reading.prompt_tokens)
    output_factor, output_cv = _moved(mix.output_tokens, mix.output_cv, reading.output_tokens)
    if not mix.sample:
        moved = scaled(mix, LengthFactors(prompt_factor, output_factor))
        return TokenMix(moved.prompt_tokens, moved.output_tokens, prompt_cv, output_cv, correlation=mix.correlation)
    if (prompt_factor, output_factor, prompt_cv, output_cv) == (1.0, 1.0, mix.prompt_cv, mix.output_cv):
        return mix
    prompts, outputs, weights = mix.sample.columns
    return _sampled(
        _respread(prompts, weights, prompt_cv, mix.prompt_cv) * prompt_factor,
        _respread(outputs, weights, output_cv, mix.output_cv) * output_factor,
        weights,
    )


def spread(histogram: Histogram) -> float | None:
    """Coefficient of variation of what a histogram counted; None of too few.

    Within a bucket the values are taken to be evenly spread; beyond the last finite edge exponentially, with the mean that the
    sum of all leaves for them. So a variation below about a half is not resolved by buckets in steps of 1, 2 and 5: it reads as
    one half.
    """
    if histogram.count < FEWEST_REQUESTS:
        return None
    counts = np.array(histogram.counts)
    edges = np.array(histogram.edges)
    finite = np.isfinite(edges)
    high = edges[finite]
    low = np.concatenate([[0.0], high[:-1]])
    total = float(counts[finite] @ (low + high)) / 2
    square = float(counts[finite] @ (low**2 + low * high + high**2)) / 3
    beyond = float(counts[~finite].sum())
    if beyond > 0:
        edge = float(high[-1]) if len(high) else 0.0
        mean = max(edge, (histogram.total - total) / beyond)
        total += beyond * mean
        square += beyond * (mean**2 + (mean - edge) ** 2)
    if total <= 0:
        return None
    return math.sqrt(max(0.0, histogram.count * square / total**2 - 1))


@dataclass(frozen=True, slots=True)
class _Row:
    """What one pool says of the classes that go there: (classes,) rates, and the share of its requests that they are."""

    counted: Histogram | None
    sent_rps: Floats
    known: float


def _known_share(reading: PoolReading, sent_rps: float) -> float:
    """Share of a pool's requests that came by class, as planned; the rest named the model, or went other ways."""
    return 1.0 if not reading.rate_rps else min(1.0, sent_rps / reading.rate_rps)


def _regressed(rows: list[_Row], lengths: Floats) -> tuple[Floats, Floats]:
    """(classes,) factors on lengths, and (classes,) standard deviations that chance gives them."""
    parts, ratios, trusted, by_chance = [], [], [], []
    for row in rows:
        tokens = row.sent_rps * lengths
        if row.counted is None or row.counted.count < FEWEST_REQUESTS or row.counted.mean is None or tokens.sum() <= 0:
            continue
        chance = (spread(row.counted) or 1.0) ** 2 / row.counted.count
        parts.append(tokens / tokens.sum())
        ratios.append(row.counted.mean * row.sent_rps.sum() / tokens.sum())
        by_chance.append(chance)
        trusted.append(chance + _SHARES_OFF**2 + (_STRANGERS_OFF * (1 - row.known)) ** 2)
    if not parts:
        return np.ones(len(lengths)), np.full(len(lengths), np.inf)
    matrix = np.array(parts)
    gain = _PRIOR**2 * np.linalg.solve(_PRIOR**2 * matrix @ matrix.T + np.diag(trusted), matrix).T
    factors = np.clip(1 + gain @ (np.array(ratios) - 1), _SMALLEST, _LARGEST)
    deviations = np.sqrt(gain**2 @ np.array(by_chance))
    # A class that went nowhere was not measured.
    return factors, np.where(deviations > 0, deviations, np.inf)


def _followed(held: float, found: float, deviation: float, near: float) -> float:
    return held if abs(found - held) <= max(near * held, _SURE * deviation) else on_grid(found)


def _moved(mean: float, cv: float, counted: Histogram | None) -> tuple[float, float]:
    """Factor on the mean, and the coefficient of variation, that a histogram asks for."""
    if counted is None or counted.count < FEWEST_REQUESTS or not counted.mean:
        return 1.0, cv
    measured_cv = spread(counted)
    alike = measured_cv is None or abs(measured_cv - cv) <= _SPREADS_ALIKE * max(cv, 1.0)
    return on_grid(counted.mean / mean), cv if alike or measured_cv is None else on_grid(measured_cv)


def _respread(lengths: Floats, weights: Floats, cv: float, before: float) -> Floats:
    """Lengths of the same mean and order with another coefficient of variation: a power of them."""
    if cv == before or before <= 0:
        return lengths
    low, high = 0.0, 4.0
    mean = float(weights @ lengths)
    powered = lengths
    for _ in range(30):
        middle = (low + high) / 2
        powered = (lengths / mean) ** middle
        powered = powered * mean / float(weights @ powered)
        wider = float(weights @ powered**2) / mean**2 - 1 > cv**2
        low, high = (low, middle) if wider else (middle, high)
    return powered


def _sampled(prompts: Floats, outputs: Floats, weights: Floats) -> TokenMix:
    prompts, outputs = np.maximum(1.0, prompts), np.maximum(1.0, outputs)
    prompt, output = float(weights @ prompts), float(weights @ outputs)
    deviations = [float(weights @ (values - mean) ** 2) ** 0.5 for values, mean in ((prompts, prompt), (outputs, output))]
    covariance = float(weights @ ((prompts - prompt) * (outputs - output)))
    correlation = covariance / (deviations[0] * deviations[1]) if min(deviations) > 0 else 0.0
    sample = LengthSample.of(prompts, outputs, weights)
    return TokenMix(prompt, output, deviations[0] / prompt, deviations[1] / output, sample, correlation)
