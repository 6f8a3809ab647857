"""A simulated replica whose true speed its profile does not know, its requests, and the windows that are seen of it."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from servingplan.calibration.readings import Histogram
from servingplan.calibration.setup import Sample
from servingplan.latency.capacity import stable_rate_rps
from servingplan.latency.profile import Bound, EngineProfile, StepTime, TokenMix
from servingplan.sim import coefficients
from servingplan.sim.engine import StepCost
from servingplan.sim.replay import Outcome, Replica, Workload, replay

TRACES = Path(os.environ.get("SERVINGPLAN_DATA", Path(__file__).parents[3] / "shared/data")) / "traces"
CYCLE_S, SCRAPE_S, CYCLES = 60.0, 15.0, 30
LOADS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
JUDGED_AT = (0.3, 0.5, 0.7, 0.8)
P95 = Bound(1.0, 95.0)

_BLOCK = 3
"""Cycles for which Poisson arrivals keep their load."""
_TTFT_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560)
_GAP_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)


@dataclass(frozen=True, slots=True)
class World:
    """A replica, its requests, and how far its profile is from it."""

    profile: EngineProfile
    truth: EngineProfile
    pairs: np.ndarray
    times_s: np.ndarray
    mix: TokenMix


def made(replica: tuple[str, str, int, int], trace: str, factors: tuple[float, float, float]) -> World:
    model, accelerator, parallel, slots = replica
    known = coefficients.profile(model, accelerator, parallel)
    cost = known.cost
    step = StepTime(cost.alpha_s, cost.beta_s, cost.gamma_s, cost.floor_s)
    profile = EngineProfile(step=step, max_num_seqs=slots, max_num_batched_tokens=2048, kv_tokens=known.kv_tokens)
    a, b, g = factors
    truth = replace(profile, step=StepTime(a * step.alpha_s, b * step.beta_s, g * step.gamma_s, a * step.floor_s))
    return World(profile, truth, *traced(trace))


@lru_cache
def traced(trace: str) -> tuple[np.ndarray, np.ndarray, TokenMix]:
    path = TRACES / f"AzureLLMInferenceTrace_{trace}.csv"
    pairs = np.loadtxt(path, delimiter=",", skiprows=1, usecols=(1, 2), dtype=int)
    stamps = np.loadtxt(path, delimiter=",", skiprows=1, usecols=0, dtype="datetime64[ns]")
    times_s = (stamps - stamps[0]) / np.timedelta64(1, "s")
    return pairs, times_s, TokenMix.of([(float(prompt), float(output)) for prompt, output in pairs])


def simulated(world: World, arrival_s: np.ndarray, pairs: np.ndarray) -> Outcome:
    step = world.truth.step
    cost = StepCost(alpha_s=step.alpha_s, floor_s=step.floor_s, beta_s=step.beta_s, gamma_s=step.gamma_s)
    replica = Replica(cost, world.truth.kv_tokens // 16 + 1, world.truth.max_num_seqs, world.truth.max_num_batched_tokens)
    return replay(Workload(arrival_s, pairs[:, 0], pairs[:, 1]), replica)


def stationary_s(world: World) -> np.ndarray:
    """(loads,) true mean time to first token at fixed loads, of long runs."""
    found = []
    for load in JUDGED_AT:
        chance = np.random.default_rng(1000)
        rate_rps = load * stable_rate_rps(world.truth, world.mix)
        pairs = world.pairs[chance.integers(len(world.pairs), size=60_000)]
        outcome = simulated(world, np.cumsum(chance.exponential(1 / rate_rps, len(pairs))), pairs)
        found.append(float(outcome.ttft_s[1000:].mean()))
    return np.array(found)


def requests(world: World, arrivals: str, chance: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(n,) times of arrival over all cycles, and (n, 2) lengths."""
    stable_rps = stable_rate_rps(world.truth, world.mix)
    if arrivals == "Azure":
        # A piece of the trace, replayed so fast that it fills the middle of the loads on average.
        count = int(np.mean(LOADS) * stable_rps * CYCLES * CYCLE_S)
        start = chance.integers(len(world.times_s))
        at = (start + np.arange(count)) % len(world.times_s)
        laps = (start + np.arange(count)) // len(world.times_s)
        times_s = world.times_s[at] + laps * (world.times_s[-1] + 1.0)
        times_s -= times_s[0]
        return times_s * (CYCLES * CYCLE_S / times_s[-1]), world.pairs[at]
    parts = []
    for block in range(CYCLES // _BLOCK):
        rate_rps = chance.choice(LOADS) * stable_rps
        length_s = _BLOCK * CYCLE_S
        count = chance.poisson(rate_rps * length_s)
        parts.append(block * length_s + np.sort(chance.uniform(0, length_s, count)))
    arrival_s = np.concatenate(parts)
    return arrival_s, world.pairs[chance.integers(len(world.pairs), size=len(arrival_s))]


def window(world: World, outcome: Outcome, pairs: np.ndarray, cycle: int) -> tuple[Sample | None, np.ndarray]:
    start, end = cycle * CYCLE_S, (cycle + 1) * CYCLE_S
    first = (outcome.first_token_s >= start) & (outcome.first_token_s < end)
    done = (outcome.finished_s >= start) & (outcome.finished_s < end) & (pairs[:, 1] > 1)
    ttft_s = outcome.ttft_s[first]
    if len(ttft_s) < 30:
        return None, ttft_s
    waiting = outcome.waiting[int(start) : int(end)]
    ahead, behind = waiting[:5].mean(), waiting[-5:].mean()
    sample = Sample(
        replicas=1,
        rate_rps=len(ttft_s) / CYCLE_S,
        mix=world.mix,
        arrival_cv=1.0,
        requests=len(ttft_s),
        ttft=histogram(ttft_s, _TTFT_S),
        inter_token=histogram(outcome.inter_token_s[done], _GAP_S, pairs[done, 1] - 1),
        bounds=(("ttft", P95),),
        work=float(pairs[done, 0].mean() / world.mix.prompt_tokens),
        growing=bool(behind - ahead > max(3.0, 0.03 * len(ttft_s))),
        draining=bool(ahead - behind > max(3.0, 0.03 * len(ttft_s))),
        unevenness=unevenness(outcome.first_token_s[first] - outcome.ttft_s[first] - start),
    )
    return sample, ttft_s


def unevenness(times_s: np.ndarray) -> float:
    counts, _ = np.histogram(times_s, bins=np.arange(0, CYCLE_S + 1, SCRAPE_S))
    # Where all were left over from before, nothing is known but that it was a burst.
    return float(max(0.0, counts.var(ddof=1) - counts.mean()) ** 0.5 / counts.mean()) if counts.any() else 10.0


def steady(world: World, sample: Sample) -> bool:
    """Whether a window is one of a queue that may be called stationary, by the truth."""
    busiest = sample.offered_rps * (1 + 2 * sample.unevenness)
    return not (sample.growing or sample.draining) and busiest <= 0.9 * stable_rate_rps(world.truth, world.mix)


def histogram(values_s: np.ndarray, edges: tuple[float, ...], weights: np.ndarray | None = None) -> Histogram:
    weights = np.ones(len(values_s)) if weights is None else weights
    at = np.searchsorted(edges, values_s)
    counts = np.bincount(at, weights, len(edges) + 1)
    return Histogram((*map(float, edges), float("inf")), tuple(counts.tolist()), float(values_s @ weights))
