"""The closed form against an engine that shares no code with it, in virtual time."""

from __future__ import annotations

import numpy as np
import pytest

from servingplan.latency.capacity import latency, stable_rate_rps
from servingplan.latency.profile import EngineProfile, StepTime, TokenMix
from servingplan.sim.engine import StepCost
from servingplan.sim.replay import Replica, Workload, replay

KV_TOKENS = 400_000
REQUESTS = 20_000
WARM_UP = 500


def lengths(chance: np.random.Generator, mean: float, cv: float) -> np.ndarray:
    """Token counts of a lognormal distribution."""
    variance = np.log(1 + cv**2)
    drawn = chance.lognormal(np.log(mean) - variance / 2, np.sqrt(variance), REQUESTS)
    return np.maximum(1, np.round(drawn)).astype(int)


@pytest.mark.parametrize("load", [0.3, 0.5, 0.7])
@pytest.mark.parametrize(
    ("step", "mix"),
    [
        (StepTime(13.7e-3, 57e-6, 60e-9), TokenMix(1500, 300)),
        (StepTime(6.4e-3, 20.7e-6, 41e-9), TokenMix(500, 200)),
        (StepTime(9.4e-3, 34e-6, 28e-9), TokenMix(1500, 300, prompt_cv=0.5)),
    ],
    ids=["32B on two H100", "8B on one H100", "32B on four H100"],
)
def test_time_to_first_token_agrees_with_the_engine_below_saturation(step, mix, load):
    profile = EngineProfile(step=step, kv_tokens=KV_TOKENS)
    rate_rps = load * stable_rate_rps(profile, mix)
    chance = np.random.default_rng(1)
    workload = Workload(
        np.cumsum(chance.exponential(1 / rate_rps, REQUESTS)),
        lengths(chance, mix.prompt_tokens, mix.prompt_cv),
        lengths(chance, mix.output_tokens, mix.output_cv),
    )
    cost = StepCost(alpha_s=step.alpha_s, floor_s=step.floor_s, beta_s=step.beta_s, gamma_s=step.gamma_s)
    ttft_s = replay(workload, Replica(cost, kv_blocks=KV_TOKENS // 16)).ttft_s[WARM_UP:]
    predicted = latency(profile, mix, rate_rps)
    assert predicted.ttft_mean_s == pytest.approx(ttft_s.mean(), rel=0.10)
    assert predicted.ttft_s(95.0) == pytest.approx(np.quantile(ttft_s, 0.95), rel=0.20)
