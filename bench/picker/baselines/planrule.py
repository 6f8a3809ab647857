"""The picker's rule with perfect knowledge: the engines' true steps, queues and tokens, no scrape, no ledger, no delay.

What it gains over the picker is what the picker's knowledge of the fleet costs. Without windows, corrections and constraints.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from virtualfleet.engines import Fleet, advance, send, waiting_now


@njit
def _to_come(f: Fleet, i: int, tokens: np.ndarray, now_s: float) -> float:
    """Mean predicted tokens still to come of a request on an instance."""
    total, count, model = 0.0, 0, f.model[i]
    for at in range(f.running[i]):
        r = f.batch[i, at]
        total += max(1.0, tokens[r, model] - f.emitted[r])
        count += 1
    r = f.head[i]
    while r >= 0 and f.sent_s[r] <= now_s:
        total += tokens[r, model]
        count += 1
        r = f.following[r]
    return total / max(1, count)


@njit
def run(
    f: Fleet, arrival_s: np.ndarray, quality: np.ndarray, tokens: np.ndarray, cost: np.ndarray, per_dollar: float,
    per_second: float, scale_s: float, guard_s: float,
) -> None:  # fmt: skip
    """Route all requests and serve them to the end.

    ``arrival_s`` is (n,); ``quality``, ``tokens`` and ``cost`` are (n, tiers) predictions and dollars of the predicted tokens;
    prices are at power 2; ``guard_s`` bounds the time to first token, and nobody is shed.
    """
    instances, slots = len(f.end_s), f.slots[0]
    picked = np.full(instances, -1, dtype=np.int64)
    for r in range(len(arrival_s)):
        now_s = arrival_s[r]
        advance(f, now_s)
        best, best_score = -1, -np.inf
        for i in range(instances):
            model = f.model[i]
            length, prompt = tokens[r, model], f.prompt[r]
            queued, queued_tokens = waiting_now(f, i, now_s)
            n = f.running[i] + queued
            context = f.kv[i] + queued_tokens + prompt + length / 2
            step_s = f.fixed_s[i] + f.sequence_s[i] * min(n + 1, slots) + f.kv_s[i] * context
            over = max(0, n + 1 - slots)
            wait_s = over * 2 * _to_come(f, i, tokens, now_s) * step_s / slots if over else 0.0
            first_s = 1.5 * step_s + f.prefill_s[i] * (prompt + queued_tokens) + wait_s
            end_s = first_s + length * step_s
            longer_s = length * (f.sequence_s[i] + f.kv_s[i] * (prompt + length / 2)) + f.prefill_s[i] * prompt
            added_s = min(n, slots) * longer_s + over * length * step_s / slots
            score = quality[r, model] - per_dollar * cost[r, model]
            score -= per_second * (end_s * end_s / scale_s + 2 * end_s / scale_s * added_s)
            if first_s > guard_s:
                score -= 1000 + 100 * first_s
            if score > best_score or (score == best_score and picked[i] < picked[best]):
                best, best_score = i, score
        picked[best] = r
        send(f, r, best, now_s)
    advance(f, np.inf)
