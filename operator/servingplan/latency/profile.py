"""What is known of a replica's speed, of the requests it gets, and of the latency they may expect."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

from servingplan.latency.correction import Correction
from servingplan.latency.mix import TokenMix, blend

__all__ = ["Bound", "Correction", "EngineProfile", "Point", "Slo", "StepTime", "TokenMix", "blend", "uncorrected"]

_RATIO_GRID = 0.002
"""In logarithms, so that a correction read back from its decimal form meets the curves that it met before."""


@dataclass(frozen=True, slots=True)
class StepTime:
    """Coefficients of the engine's step: alpha + max(floor, beta * computed tokens) + gamma * KV tokens read, in seconds."""

    alpha_s: float
    beta_s: float
    gamma_s: float
    floor_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Point:
    """One closed-loop measurement of a replica."""

    concurrency: int
    prompt_tokens: int
    output_tokens: int
    ttft_s: float
    tpot_s: float


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """How fast one replica is.

    Attributes:
        step: Fitted coefficients; None where only points are known.
        points: Measured points; empty where coefficients are known.
        max_num_seqs: Requests the engine runs at once.
        max_num_batched_tokens: Token budget of a step.
        kv_tokens: Tokens that fit in the KV cache; None where it is not known to bind.
        asynchronous: Whether a step is composed while the one before it runs, as vLLM does unless told otherwise.
        correction: What live measurements change in all this; None where nothing was learnt.
    """

    step: StepTime | None = None
    points: tuple[Point, ...] = ()
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    kv_tokens: int | None = None
    asynchronous: bool = True
    correction: Correction | None = None


@lru_cache(maxsize=2048)
def uncorrected(profile: EngineProfile) -> tuple[EngineProfile, float]:
    """A profile without correction, and the factor by which all its times are longer to be those of the corrected profile.

    Ratios between the factors of a step are in the profile, rounded to 0.1 %; what is common to them is in the factor.
    """
    if profile.correction is None:
        return profile, 1.0
    common, compute, read = profile.correction.step
    plain = replace(profile, correction=None)
    if profile.step is not None:
        step = replace(
            profile.step,
            beta_s=profile.step.beta_s * _on_grid(compute / common),
            gamma_s=profile.step.gamma_s * _on_grid(read / common),
        )
        plain = replace(plain, step=step)
    return plain, common


def _on_grid(ratio: float) -> float:
    return math.exp(_RATIO_GRID * round(math.log(ratio) / _RATIO_GRID))


@dataclass(frozen=True, slots=True)
class Bound:
    """A bound on one latency.

    Attributes:
        percentile: Between 0 and 100; None bounds the mean.
    """

    seconds: float
    percentile: float | None = 95.0


@dataclass(frozen=True, slots=True)
class Slo:
    """The latency that a class may expect; a bound of None is not asked for."""

    ttft: Bound | None = None
    inter_token: Bound | None = None
    e2e: Bound | None = None
