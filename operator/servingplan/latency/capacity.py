"""How much load one replica takes within its SLO.

A replica runs n requests at once. A step computes one token for each of them and spends the rest of its token budget on
prompts, so with prompt work w per request arriving at rate u, the mean step is

    T(n) = T_d(n) / (1 - u w),    T_d(n) = alpha + max(floor, beta n) + gamma n c,    c = i + E[o^2] / 2o

where c is the mean context of a running request: longer outputs are running more of the time, hence E[o^2]. Little's law,
n = u o T(n), gives n; the largest batch B = min(max_num_seqs, KV / c) then gives the largest stable rate

    u_B = B / (o T_d(B) + B w).

Time to first token is the rest of the running step, one further step (the engine schedules asynchronously, so an arrival
joins the step after next), the wait behind other prompts (M/G/1 on prompt work), the wait for a slot (Sakasegawa's
approximation of M/M/B) and the prompt's own steps. A percentile adds the parts' deviations by root of the sum of squares,
because they are nearly independent; adding percentiles would count the tail several times.

The form is trusted up to ``MAX_UTILIZATION`` of the stable rate: beyond it, closed forms of this kind miss simulated tails by
factors. Measured points instead of coefficients are interpolated, never extrapolated: the last one is a hard cap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from servingplan.latency.profile import Bound, EngineProfile, Point, Slo, StepTime, TokenMix

MAX_UTILIZATION = 0.85
_BISECTIONS = 40


@dataclass(frozen=True, slots=True)
class Latency:
    """Latency at one load, in seconds.

    Attributes:
        ttft_excess_s: Scale of the exponential tail of the time to first token above its mean, for percentiles.
    """

    ttft_mean_s: float
    ttft_excess_s: float
    inter_token_s: float
    e2e_mean_s: float

    def ttft_s(self, percentile: float | None) -> float:
        """Time to first token at a percentile between 0 and 100, or its mean for None."""
        if percentile is None:
            return self.ttft_mean_s
        return self.ttft_mean_s + self.ttft_excess_s * _tail(percentile)

    def e2e_s(self, percentile: float | None) -> float:
        """Time to the last token for an output of mean length; only its first token is random."""
        return self.e2e_mean_s + self.ttft_s(percentile) - self.ttft_mean_s


def _tail(percentile: float) -> float:
    """How many scales above its mean an exponential's percentile lies."""
    return max(0.0, math.log(100.0 / (100.0 - percentile)) - 1.0)


@lru_cache(maxsize=4096)
def stable_rate_rps(profile: EngineProfile, mix: TokenMix) -> float:
    """The rate at which queues start to grow without end, in requests per second; 0 where no request fits."""
    if profile.step is None:
        return max(_rate_of(point, mix) for point in _nearest(profile.points, mix))
    batch = _batch(profile, mix)
    if batch < 1:
        return 0.0
    step = profile.step
    work_s = (step.beta_s + step.gamma_s) * mix.prompt_tokens
    return batch / (mix.output_tokens * _decode_step_s(step, batch, mix) + batch * work_s)


@lru_cache(maxsize=65536)
def capacity_rps(profile: EngineProfile, mix: TokenMix, slo: Slo) -> float:
    """The largest rate at which one replica keeps the SLO, in requests per second; 0 where it cannot at any rate."""
    low, high = 0.0, MAX_UTILIZATION * stable_rate_rps(profile, mix)
    if high <= 0 or not _keeps(profile, mix, slo, high * 1e-6):
        return 0.0
    if _keeps(profile, mix, slo, high):
        return high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if _keeps(profile, mix, slo, middle) else (low, middle)
    return low


def latency(profile: EngineProfile, mix: TokenMix, rate_rps: float) -> Latency:
    """Latency of one replica at a rate below its stable one.

    Args:
        profile: The replica.
        mix: Lengths of the requests it gets.
        rate_rps: Requests per second to this replica; clamped to 99.9 % of the stable rate.
    """
    rate_rps = min(rate_rps, 0.999 * stable_rate_rps(profile, mix))
    if profile.step is None:
        return _interpolated(_nearest(profile.points, mix), mix, rate_rps)
    return _modelled(profile, profile.step, mix, rate_rps)


def _keeps(profile: EngineProfile, mix: TokenMix, slo: Slo, rate_rps: float) -> bool:
    found = latency(profile, mix, rate_rps)

    def within(bound: Bound | None, value_s: float) -> bool:
        return bound is None or value_s <= bound.seconds

    return (
        within(slo.ttft, found.ttft_s(slo.ttft.percentile) if slo.ttft else 0.0)
        and within(slo.inter_token, found.inter_token_s)
        and within(slo.e2e, found.e2e_s(slo.e2e.percentile) if slo.e2e else 0.0)
    )


def _context_tokens(mix: TokenMix) -> float:
    return mix.prompt_tokens + mix.output_tokens * (1 + mix.output_cv**2) / 2


def _batch(profile: EngineProfile, mix: TokenMix) -> float:
    if profile.kv_tokens is None:
        return float(profile.max_num_seqs)
    if profile.kv_tokens < mix.prompt_tokens + mix.output_tokens:
        return 0.0
    return min(float(profile.max_num_seqs), profile.kv_tokens / _context_tokens(mix))


def _decode_step_s(step: StepTime, batch: float, mix: TokenMix) -> float:
    return step.alpha_s + max(step.floor_s, step.beta_s * batch) + step.gamma_s * batch * _context_tokens(mix)


def _modelled(profile: EngineProfile, step: StepTime, mix: TokenMix, rate_rps: float) -> Latency:
    stable_rps = stable_rate_rps(profile, mix)
    batch = _batch(profile, mix)
    work_s = (step.beta_s + step.gamma_s) * mix.prompt_tokens
    busy = 1.0 - rate_rps * work_s
    running = _running(step, mix, rate_rps, batch, busy)
    decode_s = _decode_step_s(step, running, mix)
    step_s = decode_s / busy

    # A chunk of prompt comes with a decode step of its own: the budget sets how many.
    token_s = step.beta_s + step.gamma_s + decode_s / profile.max_num_batched_tokens
    own_s = step.beta_s * mix.prompt_tokens + math.ceil(mix.prompt_tokens / profile.max_num_batched_tokens) * decode_s
    prompt_load = min(0.999, rate_rps * token_s * mix.prompt_tokens)
    prompt_wait_s = prompt_load * token_s * mix.prompt_tokens * (1 + mix.prompt_cv**2) / (2 * (1 - prompt_load))

    load = rate_rps / stable_rps
    waiting = load ** math.sqrt(2 * (batch + 1))
    slot_scale_s = 1 / (stable_rps - rate_rps)
    slot_wait_s = waiting * slot_scale_s

    deviations_s = (
        step_s / 2,
        step.beta_s * mix.prompt_tokens * mix.prompt_cv,
        prompt_wait_s * math.sqrt(max(1.0, 2 / max(prompt_load, 1e-9) - 1)) if prompt_wait_s > 0 else 0.0,
        slot_scale_s * math.sqrt(waiting * (2 - waiting)),
    )
    ttft_s = 1.5 * step_s + own_s + prompt_wait_s + slot_wait_s
    return Latency(
        ttft_mean_s=ttft_s,
        ttft_excess_s=math.sqrt(sum(value**2 for value in deviations_s)),
        inter_token_s=step_s,
        e2e_mean_s=ttft_s + max(0.0, mix.output_tokens - 1) * step_s,
    )


def _running(step: StepTime, mix: TokenMix, rate_rps: float, batch: float, busy: float) -> float:
    """Requests in the batch, by Little's law; linear in n on either side of the weight-read floor."""
    flow = rate_rps * mix.output_tokens / busy
    per_request_s = step.gamma_s * _context_tokens(mix)
    floored = flow * (step.alpha_s + step.floor_s) / max(1e-12, 1 - flow * per_request_s)
    if flow * per_request_s < 1 and step.beta_s * floored <= step.floor_s:
        return min(batch, floored)
    slope = flow * (per_request_s + step.beta_s)
    return min(batch, flow * step.alpha_s / (1 - slope)) if slope < 1 else batch


def _nearest(points: tuple[Point, ...], mix: TokenMix) -> tuple[Point, ...]:
    """The ladder of concurrencies measured at the lengths nearest to the mix, in the order of concurrency."""

    def distance(point: Point) -> tuple[float, int, int]:
        apart = abs(math.log(point.prompt_tokens / mix.prompt_tokens))
        apart += abs(math.log(point.output_tokens / mix.output_tokens))
        return apart, point.prompt_tokens, point.output_tokens

    best = min(points, key=distance)
    lengths = (best.prompt_tokens, best.output_tokens)
    ladder = [point for point in points if (point.prompt_tokens, point.output_tokens) == lengths]
    return tuple(sorted(ladder, key=lambda point: point.concurrency))


def _rate_of(point: Point, mix: TokenMix) -> float:
    """Rate of the measured loop, scaled by tokens where the mix's lengths differ from the measured ones."""
    cycle_s = point.ttft_s + max(0, point.output_tokens - 1) * point.tpot_s
    scale = (point.prompt_tokens + point.output_tokens) / (mix.prompt_tokens + mix.output_tokens)
    return point.concurrency / cycle_s * scale


def _interpolated(ladder: tuple[Point, ...], mix: TokenMix, rate_rps: float) -> Latency:
    rates, ttfts, tpots = [0.0], [ladder[0].ttft_s], [ladder[0].tpot_s]
    for point in ladder:
        # A noisy ladder is made monotone from below: a slower point at a lower rate is believed.
        if (rate := _rate_of(point, mix)) > rates[-1]:
            rates.append(rate)
            ttfts.append(max(ttfts[-1], point.ttft_s))
            tpots.append(max(tpots[-1], point.tpot_s))
    ttft_s = _piecewise(rates, ttfts, rate_rps)
    tpot_s = _piecewise(rates, tpots, rate_rps)
    return Latency(
        ttft_mean_s=ttft_s,
        # Means say nothing of tails; an exponential one is assumed, which errs on the safe side below saturation.
        ttft_excess_s=ttft_s,
        inter_token_s=tpot_s,
        e2e_mean_s=ttft_s + max(0.0, mix.output_tokens - 1) * tpot_s,
    )


def _piecewise(xs: list[float], ys: list[float], x: float) -> float:
    for left in range(len(xs) - 1):
        if x <= xs[left + 1]:
            return ys[left] + (ys[left + 1] - ys[left]) * (x - xs[left]) / (xs[left + 1] - xs[left])
    return ys[-1]
