"""Latency of a replica with known coefficients at a few loads, from which all others are interpolated.

Each load is solved once for all the requests that share the replica; what a class adds is its own prompts. Between two loads
every latency is taken to be linear in 1 / (1.1 - load), which queues nearly are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from servingplan.latency.backlog import Arrivals, Backlog, backlog, unloaded
from servingplan.latency.decode import Running, decode_step_s, running, stable_step_rate_rps
from servingplan.latency.distribution import Gridded, Weighted
from servingplan.latency.mix import TokenMix, output_gaps, prompt_lengths
from servingplan.latency.profile import EngineProfile, StepTime

LOADS = (0.0, 0.02, 0.06, 0.12, 0.25, 0.4, 0.5, 0.6, 0.7, 0.78, 0.85, 0.92, 0.97, 0.99)
"""Fractions of the stable rate that are solved."""

MAX_UTILIZATION = 0.85
"""Fraction of the stable rate beyond which no plan loads a setup."""


@dataclass(frozen=True, slots=True)
class Replica:
    """Who serves whom.

    Attributes:
        mix: All requests that share the replica.
    """

    profile: EngineProfile
    step: StepTime
    mix: TokenMix
    arrival_cv: float


@dataclass(frozen=True, slots=True)
class AtLoad:
    """Latency of one class at one load.

    Attributes:
        inter_token_s: Mean over requests of the mean time between a request's tokens.
        decode_s: Mean time from the first to the last token.
        stretch: Seconds of decode that a second of waiting for the first token adds, by the prompts that arrive meanwhile.
    """

    ttft: Gridded | Weighted
    inter_token_s: float
    decode_s: float
    stretch: float


def place(load: float) -> tuple[int, float]:
    """The solved load below a load, and which share of the way to the next one it lies."""
    below = max(at for at, value in enumerate(LOADS[:-1]) if value <= load)
    low, high = (1 / (1.1 - value) for value in LOADS[below : below + 2])
    return below, min(1.0, (1 / (1.1 - load) - low) / (high - low))


def load_at(below: int, share: float) -> float:
    """The load a share of the way from a solved load to the next."""
    low, high = (1 / (1.1 - value) for value in LOADS[below : below + 2])
    return 1.1 - 1 / (low + share * (high - low))


@lru_cache(maxsize=4096)
def at_load(replica: Replica, mix: TokenMix, index: int) -> AtLoad:
    """Latency of the requests of `mix` at one of the solved loads."""
    if LOADS[index] == 0:
        return _alone(replica, mix)
    state, queue = running_at(replica, index), _queue(replica, index)
    first = queue.first_token(*prompt_lengths(mix))
    step_s = queue.mean_step_s
    stretch = max(0.0, step_s / state.decode_s - 1)
    # Prompts that arrive while a request waits are computed while it decodes, those of its last steps after it has ended.
    behind_s = (2 if replica.profile.asynchronous else 1) * step_s
    held_back_s = np.maximum(0.0, first.cell_s * np.arange(len(first.masses)) - behind_s) * stretch
    # So are those right behind it in a burst.
    beside = (max(1.0, replica.arrival_cv) ** 2 - 1) / 2 * replica.mix.prompt_tokens
    held_back_s += beside * (replica.step.beta_s + replica.step.gamma_s) * (1 + stretch)
    slack_s = float(queue.steps_s[-1]) - step_s
    # Steps are longer by the request itself for as long as it runs.
    itself_s = decode_step_s(replica.step, state.batch + 1, replica.mix) - state.decode_s
    gap_s = step_s + itself_s * (1 + stretch)
    gaps, weights = output_gaps(mix)
    # A step holds no more than its budget, so not all of them are.
    longer_s = first.masses @ np.minimum(slack_s * gaps, held_back_s[:, None]) * weights
    return AtLoad(
        ttft=first.delayed(state.slot_wait, state.slot_wait_s),
        inter_token_s=gap_s + float((longer_s / gaps).sum() / weights.sum()),
        decode_s=max(0.0, mix.output_tokens - 1) * gap_s + float(longer_s.sum()),
        stretch=stretch,
    )


def _alone(replica: Replica, mix: TokenMix) -> AtLoad:
    state = running_at(replica, 0)
    first = unloaded(*prompt_lengths(mix), state.prefill(replica.profile, replica.step))
    gap_s = decode_step_s(replica.step, 1.0, mix)
    return AtLoad(first, gap_s, max(0.0, mix.output_tokens - 1) * gap_s, 0.0)


@lru_cache(maxsize=4096)
def running_at(replica: Replica, index: int) -> Running:
    """The running requests at one of the solved loads."""
    rate_rps = LOADS[index] * stable_step_rate_rps(replica.profile, replica.step, replica.mix)
    return running(replica.profile, replica.step, replica.mix, rate_rps, replica.arrival_cv)


@lru_cache(maxsize=256)
def _queue(replica: Replica, index: int) -> Backlog:
    rate_rps = LOADS[index] * stable_step_rate_rps(replica.profile, replica.step, replica.mix)
    state = running_at(replica, index)
    batch = (1 + max(1.0, replica.arrival_cv) ** 2) / 2
    prompts, weights = prompt_lengths(replica.mix)
    return backlog(Arrivals(prompts, weights, rate_rps, batch), state.prefill(replica.profile, replica.step), state.idle)
