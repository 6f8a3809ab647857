"""The fleet that every router is compared on: thirteen instances of four sizes, as in the RouteBalance paper (2606.17949).

The coefficients of an engine step are fitted to that paper's published medians of time to first token and time per output
token; nothing here is a measurement of ours. Prices are those the paper quotes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Tier:
    """Instances of one model on one kind of GPU.

    A step takes ``fixed_s + sequence_s * sequences + kv_s * KV tokens held + prefill_s * prompt tokens`` seconds.

    Attributes:
        name: Size of the model.
        instances: How many there are.
        fixed_s, sequence_s, kv_s, prefill_s: The step.
        kv_tokens: Tokens that fit in the memory; only reported, it limits nobody here.
        input_price, output_price: Dollars per token.
        prior_tpot_s: The constant time per output token of RouteBalance's fourth arm.
    """

    name: str
    instances: int
    fixed_s: float
    sequence_s: float
    kv_s: float
    prefill_s: float
    kv_tokens: int
    input_price: float
    output_price: float
    prior_tpot_s: float


TIERS = (
    Tier("3b", 3, 9.6e-3, 0.055e-3, 6e-8, 0.095e-3, 278_000, 0.06e-6, 0.06e-6, 12.3e-3),
    Tier("7b", 5, 18.8e-3, 0.10e-3, 12e-8, 0.17e-3, 56_000, 0.07e-6, 0.07e-6, 20.6e-3),
    Tier("14b", 3, 14.6e-3, 0.10e-3, 8e-8, 0.33e-3, 217_000, 0.15e-6, 0.15e-6, 18.4e-3),
    Tier("72b", 2, 39.7e-3, 0.17e-3, 10e-8, 0.13e-3, 436_000, 0.38e-6, 0.40e-6, 47.4e-3),
)
NAMES = tuple(tier.name for tier in TIERS)
MODEL_OF = np.repeat(np.arange(len(TIERS)), [tier.instances for tier in TIERS])
"""(instances,) which tier an instance belongs to."""
ADDRESSES = tuple(f"10.0.{model}.{at}:8000" for at, model in enumerate(MODEL_OF))
BATCHED_TOKENS = 2048
"""Prompt tokens that one step takes at most, unless a single prompt is longer."""
SLOTS = {"B256": 256, "B32": 32}


def by_tier(field: str) -> np.ndarray:
    """(tiers,) one attribute of all tiers."""
    return np.array([float(getattr(tier, field)) for tier in TIERS])


def by_instance(field: str) -> np.ndarray:
    """(instances,) one attribute of the tier of each instance."""
    return by_tier(field)[MODEL_OF]


def cost(prompt_tokens: np.ndarray, output_tokens: np.ndarray) -> np.ndarray:
    """Dollars of answering prompts, (n,), with answers of (n, tiers) tokens: (n, tiers)."""
    return prompt_tokens[:, None] * by_tier("input_price") + output_tokens * by_tier("output_price")
