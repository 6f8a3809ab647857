"""The running requests of a replica: how many there are, how long its steps are, and how often all slots are taken.

A step computes one token for each of n running requests and spends the rest of its token budget on prompts:

    T_d(n) = alpha + max(floor, beta n) + gamma n c,

where c is the mean context of a running request: longer outputs run more of the time, hence E[o^2] in it. The largest batch is
B = min(max_num_seqs, KV / c). A replica is stable up to the smaller of two rates: that at which B requests run all the time,
and that at which every step is full,

    1/u_B = o T_d(B) / B + w,    1/u_b = (i + o) (beta + alpha / b) + gamma (o c + i),

with w = (beta + gamma) i the work of a prompt and b the token budget. Both are sums over requests, so that the inverse rate of
a blend is the mean of those of its parts while one of the two binds.

Slots are a birth-death chain in n with the rate of departures of a batch of n. Prompts stop all decodes at once, so n varies
more than that chain does: a burst of work w also keeps back the d w departures of that time. The chain is flattened by that
factor, and, where KV binds, by the spread of the contexts. A request that finds all slots taken waits for an exponential time.
Preemption is not modelled: near the KV limit it costs more than this says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from servingplan.latency.backlog import Prefill
from servingplan.latency.mix import TokenMix, lengths
from servingplan.latency.profile import EngineProfile, StepTime

_KV_OF_PROMPT, _KV_OF_OUTPUT = 1.03, 1.18
"""KV memory that a request takes up over what it holds, where KV binds: prompts are admitted whole, so some memory is free, and
outputs that grow into a full cache preempt others, whose work is lost. Measured on the saturated simulator, within 2 %."""


@dataclass(frozen=True, slots=True)
class Running:
    """A replica's running requests at one rate.

    Attributes:
        batch: Mean number of decoding requests.
        decode_s: Time of a step without prompts.
        idle: Fraction of the time in which nothing runs.
        slot_wait: Probability that all slots are taken.
        slot_wait_s: Mean wait where they are.
    """

    batch: float
    decode_s: float
    idle: float
    slot_wait: float
    slot_wait_s: float

    def prefill(self, profile: EngineProfile, step: StepTime) -> Prefill:
        """The replica as its prompts see it."""
        return Prefill(
            fixed_s=self.decode_s,
            floor_tokens=max(0.0, step.floor_s / step.beta_s - self.batch) if step.beta_s > 0 else 0.0,
            compute_s=step.beta_s,
            read_s=step.gamma_s,
            budget=max(1.0, profile.max_num_batched_tokens - self.batch),
            asynchronous=profile.asynchronous,
        )


def context_tokens(mix: TokenMix) -> float:
    """Mean KV tokens of a running request."""
    return mix.held_token_steps / mix.output_tokens


def batch_limit(profile: EngineProfile, mix: TokenMix) -> float:
    """Requests that can run at once; 0 where one does not fit."""
    if profile.kv_tokens is None:
        return float(profile.max_num_seqs)
    if profile.kv_tokens < mix.prompt_tokens + mix.output_tokens:
        return 0.0
    growing = mix.held_token_steps - mix.prompt_output_product
    taken = (_KV_OF_PROMPT * mix.prompt_output_product + _KV_OF_OUTPUT * growing) / mix.output_tokens
    return min(float(profile.max_num_seqs), max(1.0, profile.kv_tokens / taken))


def _slots_there_are(profile: EngineProfile, mix: TokenMix) -> float:
    """Requests that fit at one moment, with no allowance for what a full cache loses over time."""
    if profile.kv_tokens is None:
        return float(profile.max_num_seqs)
    return min(float(profile.max_num_seqs), max(1.0, profile.kv_tokens / context_tokens(mix)))


def decode_step_s(step: StepTime, batch: float, mix: TokenMix) -> float:
    """Time of a step that decodes `batch` requests and no prompt."""
    return step.alpha_s + max(step.floor_s, step.beta_s * batch) + step.gamma_s * batch * context_tokens(mix)


def kv_growth(profile: EngineProfile, mix: TokenMix) -> float:
    """Share of the KV memory in use that running requests came to need after they were admitted; 0 where KV does not bind."""
    if profile.kv_tokens is None or batch_limit(profile, mix) >= profile.max_num_seqs:
        return 0.0
    return 1 - mix.prompt_output_product / mix.held_token_steps


@lru_cache(maxsize=2048)
def stable_step_rate_rps(profile: EngineProfile, step: StepTime, mix: TokenMix) -> float:
    """Requests per second at which the queue of a replica with these coefficients starts to grow without end."""
    batch = batch_limit(profile, mix)
    if batch <= 0:
        return 0.0
    return 1 / max(_slot_work_s(step, batch, mix), _budget_work_s(profile, step, mix))


def _prompt_s(profile: EngineProfile, step: StepTime, mix: TokenMix) -> float:
    """Time that a prompt takes when every step is full."""
    return mix.prompt_tokens * (step.beta_s + step.gamma_s + step.alpha_s / profile.max_num_batched_tokens)


def _slot_work_s(step: StepTime, batch: float, mix: TokenMix) -> float:
    return mix.output_tokens * decode_step_s(step, batch, mix) / batch + (step.beta_s + step.gamma_s) * mix.prompt_tokens


def _budget_work_s(profile: EngineProfile, step: StepTime, mix: TokenMix) -> float:
    tokens = mix.prompt_tokens + mix.output_tokens
    full_s = step.alpha_s + max(step.floor_s, step.beta_s * profile.max_num_batched_tokens)
    return tokens * full_s / profile.max_num_batched_tokens + step.gamma_s * (mix.held_token_steps + mix.prompt_tokens)


def running(profile: EngineProfile, step: StepTime, mix: TokenMix, rate_rps: float, arrival_cv: float) -> Running:
    """The running requests at a rate below the stable one."""
    limit = batch_limit(profile, mix)
    if rate_rps <= 0:
        return Running(0.0, decode_step_s(step, 0.0, mix), 1.0, 0.0, 0.0)
    work_s = (step.beta_s + step.gamma_s) * mix.prompt_tokens
    busy = max(1e-6, 1 - rate_rps * work_s)
    batch = min(limit, _batch(profile, step, mix, rate_rps, busy))
    slot_wait, slot_wait_s = _slots(profile, step, mix, rate_rps, arrival_cv)
    # A prompt holds back the decodes, so requests that arrive behind it end together: the longest of them ends the busy time.
    together = (1 + 1 / busy) / 2
    alone_s = (mix.output_tokens + 1) * decode_step_s(step, min(1.0, limit), mix)
    return Running(
        batch=batch,
        decode_s=decode_step_s(step, batch, mix),
        idle=busy * math.exp(-rate_rps * alone_s * together),
        slot_wait=slot_wait,
        slot_wait_s=slot_wait_s,
    )


def _batch(profile: EngineProfile, step: StepTime, mix: TokenMix, rate_rps: float, busy: float) -> float:
    """Decoding requests, by Little's law; linear in n on either side of the weight-read floor.

    Prompts that arrive while a request waits for its first token are computed while it decodes, which the mean step lacks.
    """
    flow = rate_rps * mix.output_tokens / busy
    read_s = step.gamma_s * context_tokens(mix)
    floored = flow * (step.alpha_s + step.floor_s) / max(1e-9, 1 - flow * read_s)
    slope = flow * read_s
    if slope >= 1 or step.beta_s * floored > step.floor_s:
        slope += flow * step.beta_s
        floored = flow * step.alpha_s / max(1e-9, 1 - slope)
    slope = min(slope, 0.999)
    return floored + rate_rps * _held_back_s(profile, step, mix, rate_rps, busy, floored) / (1 - slope)


def _held_back_s(profile: EngineProfile, step: StepTime, mix: TokenMix, rate_rps: float, busy: float, batch: float) -> float:
    """Time that a request's decode takes longer than its tokens times the mean step."""
    decode_s = decode_step_s(step, min(batch, batch_limit(profile, mix)), mix)
    token_s = step.beta_s + step.gamma_s + decode_s / profile.max_num_batched_tokens
    load = min(0.98, rate_rps * token_s * mix.prompt_tokens)
    wait_s = load * token_s * mix.prompt_tokens * (1 + mix.prompt_cv**2) / (2 * (1 - load))
    own_s = (step.beta_s + step.gamma_s) * mix.prompt_tokens + decode_s
    seen_later_s = 0.5 * decode_s / busy
    held_back_s = max(0.0, wait_s + own_s - seen_later_s) * (1 - busy) / busy
    full_s = decode_s + (step.beta_s + step.gamma_s) * profile.max_num_batched_tokens
    return min(held_back_s, max(0.0, mix.output_tokens - 1) * max(0.0, full_s - decode_s / busy))


def _slots(profile: EngineProfile, step: StepTime, mix: TokenMix, rate_rps: float, arrival_cv: float) -> tuple[float, float]:
    """Probability that all slots are taken, and the mean wait then."""
    limit = batch_limit(profile, mix)
    work_s = (step.beta_s + step.gamma_s) * mix.prompt_tokens
    busy = max(1e-6, 1 - rate_rps * work_s)
    n = np.arange(1, int(_slots_there_are(profile, mix)) + 1)
    decode_s = step.alpha_s + np.maximum(step.floor_s, step.beta_s * n) + step.gamma_s * context_tokens(mix) * n
    departures_rps = n / (work_s + 1.5 * decode_s + max(0.0, mix.output_tokens - 1) * decode_s / busy)
    # While requests wait for slots, as many prompts are computed as requests leave.
    last_rps = 1 / _slot_work_s(step, limit, mix)
    spread = _context_spread(mix) if limit < profile.max_num_seqs else 1.0
    # A prompt adds a request and holds back the departures of its time, its neighbours in a burst do so at once.
    burst = max(1.0, arrival_cv) ** 2
    held_back = rate_rps * work_s / busy
    variance = (burst * (1 + held_back) ** 2 + (held_back * mix.prompt_cv) ** 2 + 1) / 2
    flat = variance + spread - 1
    log_share = np.concatenate([[0.0], np.cumsum(np.log(rate_rps / departures_rps))]) / flat
    share = np.exp(log_share - log_share.max())
    more = (rate_rps / last_rps) ** (1 / flat)
    beyond = float(share[-1]) / (1 - more)
    slot_wait = beyond / (float(share[:-1].sum()) + beyond)
    # While prompts wait for the token budget, slots are not what they wait for.
    slot_wait *= max(0.0, 1 - rate_rps * _prompt_s(profile, step, mix))
    return slot_wait, spread * (1 + burst) / 2 / (last_rps - rate_rps)


@lru_cache(maxsize=1024)
def _context_spread(mix: TokenMix) -> float:
    """Mean square over squared mean of a running request's context."""
    prompts, outputs, weights = lengths(mix)
    square = float(weights @ (outputs * (prompts**2 + prompts * outputs + outputs**2 / 3)))
    return max(1.0, square / (mix.output_tokens * context_tokens(mix) ** 2))
