"""One run's requests: prompts drawn with replacement, and when they come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from virtualfleet import arrivals, tiers
from virtualfleet.prompts import Prompts

Arrivals = Callable[[int, np.random.Generator], np.ndarray]
"""Of a number of requests, the seconds at which they arrive."""
REQUESTS = {"llmrouter": 3534, "zeroeval": 2070}


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests in order of arrival; columns as in `Prompts`.

    Attributes:
        arrival_s: (n,) at the router.
        draw: (n,) in [0, 1), for ties.
        prompt: (n,) row of the pool of prompts.
        cost: (n, tiers) dollars if that tier answers.
        seed: What it was drawn with.
    """

    arrival_s: np.ndarray
    draw: np.ndarray
    prompt: np.ndarray
    prompt_tokens: np.ndarray
    blocks: np.ndarray
    quality: np.ndarray
    output_tokens: np.ndarray
    predicted_quality: np.ndarray
    predicted_tokens: np.ndarray
    cost: np.ndarray
    seed: int

    def __len__(self) -> int:
        return len(self.arrival_s)


def draw(prompts: Prompts, come: Arrivals, seed: int, count: int | None = None) -> Workload:
    """A bootstrap sample of prompts; the same seed gives the same prompts whatever the arrivals."""
    count = count or REQUESTS[prompts.name]
    rows = np.random.default_rng([seed, 1]).integers(len(prompts.task), size=count)
    arrival_s = come(count, np.random.default_rng([seed, 2]))
    tokens = prompts.output_tokens[rows]
    return Workload(
        arrival_s,
        np.random.default_rng([seed, 3]).random(count),
        rows,
        prompts.prompt_tokens[rows],
        prompts.blocks[rows],
        prompts.quality[rows],
        tokens,
        prompts.predicted_quality[rows],
        prompts.predicted_tokens[rows],
        tiers.cost(prompts.prompt_tokens[rows], tokens),
        seed,
    )


def poisson(rate_rps: float) -> Arrivals:
    return lambda count, chance: arrivals.poisson(rate_rps, count, chance)


def square(high_rps: float, low_rps: float) -> Arrivals:
    return lambda count, chance: arrivals.square(high_rps, low_rps, count, chance)


def gamma(rate_rps: float) -> Arrivals:
    return lambda count, chance: arrivals.gamma(rate_rps, count, chance)
