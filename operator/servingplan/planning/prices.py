"""Prices that realise a plan's shares, request by request.

A hard rule, the model with the greatest score less price, cannot split requests whose scores tie: all of them go one way. A
soft one can: a request goes to model i with probability proportional to exp((score_i - price_i) / temperature). Its prices are
found by Sinkhorn's iteration, price_i += temperature * ln(share it gets / share it should get), and the quality that this
gives away is at most temperature * ln(models).

RouterWise (arXiv 2604.10907, Prop. 1) prices models in the hard rule; the entropic form is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Vector = np.ndarray[Any, Any]

TEMPERATURE = 0.01
_LEAST_SHARE = 1e-4
"""What a model that the plan does not use is priced to get at most."""


def soft_shares(scores: Vector, prices: Vector, temperature: float = TEMPERATURE) -> Vector:
    """Probability of each model for each request.

    Args:
        scores: (requests, models).
        prices: (models,).
        temperature: In units of the score.

    Returns:
        (requests, models), rows summing to 1.
    """
    exponent = (scores - prices) / temperature
    weight = np.exp(exponent - exponent.max(axis=1, keepdims=True))
    return np.asarray(weight / weight.sum(axis=1, keepdims=True))


def soft_prices(
    scores: Vector, shares: Vector, temperature: float = TEMPERATURE, *, tolerance: float = 1e-6, rounds: int = 10_000
) -> Vector:
    """Prices with which the mean of ``soft_shares`` over requests is the wanted shares.

    Args:
        scores: (requests, models).
        shares: (models,) summing to 1; a share of 0 is taken as one in ten thousand.
        temperature: In units of the score.
        tolerance: Largest sum of absolute differences of the shares at which to stop.
        rounds: Iterations at most.

    Returns:
        (models,) with the share-weighted mean 0.
    """
    wanted = np.maximum(np.asarray(shares, dtype=float), _LEAST_SHARE)
    wanted /= wanted.sum()
    prices = scores.mean(axis=0) - temperature * np.log(wanted)
    for _ in range(rounds):
        got = soft_shares(scores, prices, temperature).mean(axis=0)
        if np.abs(got - wanted).sum() <= tolerance:
            break
        prices = prices + temperature * np.log(np.maximum(got, 1e-300) / wanted)
    return np.asarray(prices - wanted @ prices)


def class_prices(
    quality: Mapping[str, float], shares: Mapping[str, float], congestion: Mapping[str, float], temperature: float = TEMPERATURE
) -> dict[str, float]:
    """Prices of the models for one class, all of whose requests have the class's score.

    Args:
        quality: Score by model, of every model that the class may go to.
        shares: Fraction by model of what is served; models that are not named get nothing.
        congestion: What a request of the class costs the others on a model, from the plan's linear program.
        temperature: In units of the score.

    Returns:
        Price by model. Their share-weighted mean is that of the congestion, so that they speak of the same scarcity; a model
        that is not used costs at least its congestion.
    """
    total = sum(shares.values())
    if total <= 0:
        return {name: congestion.get(name, 0.0) for name in sorted(quality)}
    share = {name: shares.get(name, 0.0) / total for name in sorted(quality)}
    raw = {name: quality[name] - temperature * float(np.log(max(part, _LEAST_SHARE))) for name, part in share.items()}
    shift = sum(part * (raw[name] - congestion.get(name, 0.0)) for name, part in share.items())
    return {name: raw[name] - shift if share[name] > 0 else max(raw[name] - shift, congestion.get(name, 0.0)) for name in share}
