"""What arrives: real prompts, drawn anew for each seed, at the times of the Azure trace of conversations or at random."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from together import service
from together.service import CLASSES, MODELS, TIERS
from virtual import traffic
from virtual.traffic import Requests

ARRIVALS = ("azure", "poisson")


@dataclass(frozen=True, slots=True)
class Asked:
    """One run's requests; columns of models are in the order of `service.MODELS`.

    Attributes:
        requests: Arrivals, classes and prompt lengths; answers as long as their mean over the models.
        quality: (n, models) true scores.
        output_tokens: (n, models)
        predicted_quality, predicted_tokens: (n, models) by an estimator that has not seen the prompt.
    """

    requests: Requests
    quality: np.ndarray
    output_tokens: np.ndarray
    predicted_quality: np.ndarray
    predicted_tokens: np.ndarray

    def __len__(self) -> int:
        return len(self.requests.arrival_s)

    def outputs(self) -> dict[str, np.ndarray]:
        """(n,) lengths of the answers by pool."""
        return {model.pool: self.output_tokens[:, at] for at, model in enumerate(MODELS)}


def draw(kind: str, rate_rps: float, seconds: float, begin_s: float, seed: int) -> Asked:
    """The requests of a seed.

    Args:
        kind: One of ARRIVALS.
        rate_rps: Mean rate; of the Azure trace over all of it, not over the stretch that is drawn.
        seconds: How long they come.
        begin_s: When they begin.
        seed: The same gives the same requests.
    """
    chance = np.random.default_rng([seed, 11])
    if kind == "azure":
        arrival_s = traffic.azure("conv", rate_rps, seconds, chance)[0]
    else:
        arrival_s = traffic.poisson(lambda t: np.full(len(t), rate_rps), rate_rps, seconds, chance)
    pool = service.prompts()
    rows = np.random.default_rng([seed, 12]).integers(len(pool.task), size=len(arrival_s))
    tokens = pool.output_tokens[rows][:, TIERS]
    mean_tokens = np.maximum(1, np.round(tokens.mean(axis=1))).astype(int)
    requests = Requests(arrival_s + begin_s, service.kinds()[rows], pool.prompt_tokens[rows], mean_tokens, CLASSES)
    return Asked(
        requests,
        pool.quality[rows][:, TIERS],
        tokens,
        pool.predicted_quality[rows][:, TIERS],
        pool.predicted_tokens[rows][:, TIERS],
    )
