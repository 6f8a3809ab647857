"""The fleet as a plan would describe it to the picker: step coefficients fitted to steps that were seen.

The picker's engine takes ``alpha + max(floor, beta * tokens computed) + gamma * KV tokens``; the simulated one prices
sequences and prompt tokens apart. So the picker works with a model that is a little wrong, as it does in a cluster.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy.optimize import nnls

from servingplan.routing.fleet import Endpoint, Engine
from virtualfleet.tiers import ADDRESSES, BATCHED_TOKENS, MODEL_OF, TIERS, Tier

_CONTEXT_TOKENS = 350
_SEQUENCES = np.array([1, 2, 4, 8, 12, 16, 24, 32, 48])
_PROMPTS = np.array([0, 0, 0, 40, 80, 160, 320, 640])
_FLOORS = np.linspace(0, 0.95, 39)


def true_step_s(tier: Tier, sequences: np.ndarray, kv_tokens: np.ndarray, prompt_tokens: np.ndarray) -> np.ndarray:
    return tier.fixed_s + tier.sequence_s * sequences + tier.kv_s * kv_tokens + tier.prefill_s * prompt_tokens


@cache
def fitted(tier: Tier) -> tuple[float, float, float, float, float]:
    """Alpha, beta, gamma, floor in seconds, and the root mean square of the relative error."""
    sequences, prompts = (axis.ravel().astype(float) for axis in np.meshgrid(_SEQUENCES, _PROMPTS))
    kv = _CONTEXT_TOKENS * sequences + prompts
    seen_s = true_step_s(tier, sequences, kv, prompts)
    best = (np.inf, np.zeros(3), 0.0)
    for floor_tokens in _FLOORS * (tier.fixed_s / tier.prefill_s):
        tokens = np.maximum(floor_tokens, sequences + prompts)
        columns = np.column_stack([np.ones_like(tokens), tokens, kv])
        found, error = nnls(columns / seen_s[:, None], np.ones_like(seen_s))
        if error < best[0]:
            best = error, found, floor_tokens
    error, (alpha_s, beta_s, gamma_s), floor_tokens = best
    return alpha_s, beta_s, gamma_s, beta_s * floor_tokens, error / len(seen_s) ** 0.5


def endpoints(slots: int) -> list[Endpoint]:
    """The fleet, a pool per tier."""
    engines = [_engine(tier, slots) for tier in TIERS]
    return [Endpoint(address, engines[model]) for address, model in zip(ADDRESSES, MODEL_OF, strict=True)]


def _engine(tier: Tier, slots: int) -> Engine:
    alpha_s, beta_s, gamma_s, floor_s, _ = fitted(tier)
    prices = tier.input_price, tier.output_price
    return Engine(tier.name, tier.name, alpha_s, beta_s, gamma_s, floor_s, slots, BATCHED_TOKENS, None, *prices)
