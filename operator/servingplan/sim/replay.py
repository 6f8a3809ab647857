"""Replay of a list of requests in virtual time, compiled.

The scheduling functions of `servingplan.sim.engine` are compiled by numba as they stand; the first call of a fresh
installation takes some seconds, later ones load the result from numba's cache. ``compiled=False`` interprets the same
functions on plain lists.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numba.extending import register_jitable

from servingplan.sim import engine
from servingplan.sim.engine import BLOCK_TOKENS, FIRST_REQUEST, Engine, Limits, Shape, StepCost

# Reference counts of the engine's columns would cost nine tenths of the time, and nothing here allocates.
WITHOUT_REFCOUNTS: dict[str, Any] = {"_nrt": False}
for _function in engine.COMPILED:
    register_jitable(**WITHOUT_REFCOUNTS)(_function)
_run_compiled = njit(**WITHOUT_REFCOUNTS, cache=True)(engine.run)

_SERIES_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests to replay, in order of arrival.

    Attributes:
        arrival_s: (n,) ascending.
        prompt_tokens: (n,) at least 1.
        output_tokens: (n,) at least 1.
        block_hashes: per request the keys of its leading full prompt blocks, equal where prompts begin alike; or None.
    """

    arrival_s: np.ndarray
    prompt_tokens: np.ndarray
    output_tokens: np.ndarray
    block_hashes: Sequence[Sequence[int]] | None = None


@dataclass(frozen=True, slots=True)
class Replica:
    """One engine: step cost, scheduler limits and KV blocks (with vLLM's null block, as ``num_gpu_blocks``)."""

    cost: StepCost
    kv_blocks: int
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    prefix_caching: bool = True


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a replay gives.

    Attributes:
        scheduled_s: (n,) first time in a step.
        first_token_s: (n,)
        finished_s: (n,)
        ttft_s: (n,) from arrival to first token.
        e2e_s: (n,) from arrival to last token.
        inter_token_s: (n,) mean time between a request's tokens; NaN for outputs of one token.
        cached_tokens: (n,) prompt tokens found in the prefix cache at first admission.
        preempted: (n,) times preempted.
        tick_s: interval of the series, from the time 0 of the arrivals.
        running, waiting, kv_usage: (ticks,) requests, requests, share of the usable KV blocks held.
        steps: engine steps.
    """

    scheduled_s: np.ndarray
    first_token_s: np.ndarray
    finished_s: np.ndarray
    ttft_s: np.ndarray
    e2e_s: np.ndarray
    inter_token_s: np.ndarray
    cached_tokens: np.ndarray
    preempted: np.ndarray
    tick_s: float
    running: np.ndarray
    waiting: np.ndarray
    kv_usage: np.ndarray
    steps: int


def replay(workload: Workload, replica: Replica, *, tick_s: float = 1.0, compiled: bool = True) -> Outcome:
    """Replay a workload on one replica.

    Raises:
        ValueError: if arrivals are not ascending, a length is below 1, or a request can never fit in the KV blocks.
    """
    _check(workload, replica)
    e = _load(workload, replica, compiled=compiled)
    limits = Limits(replica.max_num_seqs, replica.max_num_batched_tokens, int(replica.prefix_caching))
    cost = StepCost(*map(float, replica.cost))  # one signature to compile, however the caller wrote its zeros
    clock_s = np.zeros(1) if compiled else [0.0]
    run: Any = _run_compiled if compiled else engine.run
    parts = []
    done = False
    while not done:
        seen = int(e.counts[engine.TICKS])
        series = np.zeros((_SERIES_ROWS, 3), dtype=np.int64)
        done = run(e, cost, limits, clock_s, tick_s, series)
        parts.append(series[: int(e.counts[engine.TICKS]) - seen])
    return _outcome(e, np.concatenate(parts), tick_s)


def _check(workload: Workload, replica: Replica) -> None:
    if np.any(np.diff(workload.arrival_s) < 0):
        raise ValueError("arrivals are not in ascending order")
    if min(np.min(workload.prompt_tokens), np.min(workload.output_tokens)) < 1:
        raise ValueError("a request needs at least one prompt token and one output token")
    longest = int(np.max(workload.prompt_tokens + workload.output_tokens))
    usable = (replica.kv_blocks - 1) * BLOCK_TOKENS
    if longest > usable:
        raise ValueError(f"a request of {longest} tokens never fits in {usable} tokens of KV cache")


def _load(workload: Workload, replica: Replica, *, compiled: bool) -> Engine:
    n = len(workload.arrival_s)
    longest = int(np.max(workload.prompt_tokens + workload.output_tokens))
    shape = Shape(
        requests=n,
        kv_blocks=replica.kv_blocks,
        max_num_seqs=replica.max_num_seqs,
        blocks_per_sequence=-(-longest // BLOCK_TOKENS),
        hashes=sum(len(keys) for keys in workload.block_hashes or ()),
    )
    if compiled:
        e = engine.build(lambda k: np.zeros(k, dtype=np.int64), np.zeros, lambda k, m: np.zeros((k, m), dtype=np.int64), shape)
    else:
        e = engine.build(lambda k: [0] * k, lambda k: [0.0] * k, lambda k, m: [[0] * m for _ in range(k)], shape)
    requests = slice(FIRST_REQUEST, None)
    e.arrival_s[requests] = workload.arrival_s if compiled else [float(t) for t in workload.arrival_s]
    e.prompt[requests] = workload.prompt_tokens if compiled else [int(k) for k in workload.prompt_tokens]
    e.output[requests] = workload.output_tokens if compiled else [int(k) for k in workload.output_tokens]
    for times in (e.scheduled_s, e.first_token_s, e.finished_s):
        times[requests] = [-1.0] * n
    if workload.block_hashes is not None:
        _load_hashes(e, workload.block_hashes, workload.prompt_tokens)
    return e


def _load_hashes(e: Engine, hashes: Sequence[Sequence[int]], prompt_tokens: np.ndarray) -> None:
    at = 0
    for r, (keys, tokens) in enumerate(zip(hashes, prompt_tokens, strict=True), FIRST_REQUEST):
        full = min(len(keys), int(tokens) // BLOCK_TOKENS)
        e.hash_start[r], e.hash_count[r] = at, full
        e.hashes[at : at + full] = [key & engine.KEY_MASK for key in keys[:full]]
        at += full


def _outcome(e: Engine, series: np.ndarray, tick_s: float) -> Outcome:
    def column(values: Sequence[float]) -> np.ndarray:
        return np.asarray(values)[FIRST_REQUEST:]

    arrival_s, first_s, finished_s = column(e.arrival_s), column(e.first_token_s), column(e.finished_s)
    gaps = column(e.output) - 1
    return Outcome(
        scheduled_s=column(e.scheduled_s),
        first_token_s=first_s,
        finished_s=finished_s,
        ttft_s=first_s - arrival_s,
        e2e_s=finished_s - arrival_s,
        inter_token_s=np.where(gaps > 0, (finished_s - first_s) / np.maximum(gaps, 1), np.nan),
        cached_tokens=column(e.cached),
        preempted=column(e.preempted),
        tick_s=tick_s,
        running=series[:, 0],
        waiting=series[:, 1],
        kv_usage=series[:, 2] / (len(e.refs) - 1),
        steps=int(e.counts[engine.COMPOSED]),
    )
