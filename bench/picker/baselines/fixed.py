"""Routers that choose the model first, without a look at the load, and the instance of it afterwards."""

from __future__ import annotations

import numpy as np
from numba import njit

from virtualfleet.engines import NOBODY, Fleet, advance, send, waiting_now

ANY_MODEL = -1
ROUND_ROBIN, SHORTEST_QUEUE, SCORED = 0, 1, 2
"""How the instance is chosen: in turn; fewest requests; or as llm-d's scheduler does by default, by a sum of scores for a short
queue (2), free KV memory (2) and the share of the prompt whose beginning was sent there before (3)."""
QUEUE_WEIGHT, KV_WEIGHT, PREFIX_WEIGHT = 2.0, 2.0, 3.0


@njit
def _prefix_share(seen: np.ndarray, i: int, blocks: np.ndarray) -> float:
    hits = 0
    for block in blocks:
        if block < 0 or not seen[i, block]:
            break
        hits += 1
    return hits / max(1, (blocks >= 0).sum())


@njit
def _scores(
    f: Fleet, now_s: float, kv_tokens: np.ndarray, seen: np.ndarray, blocks: np.ndarray, open_to: np.ndarray
) -> np.ndarray:
    instances = len(open_to)
    queue = np.zeros(instances)
    for i in range(instances):
        queue[i] = waiting_now(f, i, now_s)[0]
    shortest, longest = np.inf, -np.inf
    for i in range(instances):
        if open_to[i]:
            shortest, longest = min(shortest, queue[i]), max(longest, queue[i])
    scores = np.full(instances, -np.inf)
    for i in range(instances):
        if open_to[i]:
            short = 1.0 if longest == shortest else (longest - queue[i]) / (longest - shortest)
            free = 1 - min(1.0, f.kv[i] / kv_tokens[i])
            scores[i] = QUEUE_WEIGHT * short + KV_WEIGHT * free + PREFIX_WEIGHT * _prefix_share(seen, i, blocks)
    return scores


@njit
def run(
    f: Fleet, model: np.ndarray, ready_s: np.ndarray, way: int, draw: np.ndarray, kv_tokens: np.ndarray, blocks: np.ndarray,
    kinds: int,
) -> None:  # fmt: skip
    """Send every request to an instance of its model and serve all to the end.

    Args:
        f: Idle engines.
        model: (n,) tier, or ANY_MODEL.
        ready_s: (n,) ascending: when the model is known.
        way: ROUND_ROBIN, SHORTEST_QUEUE or SCORED.
        draw: (n,) in [0, 1), for equal scores.
        kv_tokens: (instances,)
        blocks: (n, k) numbers of the leading blocks of each prompt, negative beyond its end.
        kinds: Blocks there are.
    """
    instances = len(f.end_s)
    turn = np.zeros(f.output.shape[1] + 1, dtype=np.int64)
    seen = np.zeros((instances, max(1, kinds)), dtype=np.bool_)
    open_to = np.zeros(instances, dtype=np.bool_)
    for r in range(len(model)):
        now_s = ready_s[r]
        advance(f, now_s)
        for i in range(instances):
            open_to[i] = model[r] in (ANY_MODEL, f.model[i])
        first = turn[model[r]]
        if way == SCORED:
            scores, first = _scores(f, now_s, kv_tokens, seen, blocks[r], open_to), int(draw[r] * instances)
        elif way == SHORTEST_QUEUE:
            scores, first = -(f.running + f.waiting).astype(np.float64), int(draw[r] * instances)
        else:
            scores = np.zeros(instances)
        best = NOBODY
        for step in range(instances):
            i = (first + step) % instances
            if open_to[i] and (best == NOBODY or scores[i] > scores[best]):
                best = i
        turn[model[r]] = best + 1
        for block in blocks[r]:
            if block >= 0:
                seen[best, block] = True
        send(f, r, best, now_s)
    advance(f, np.inf)
