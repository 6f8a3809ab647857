"""RouteBalance (arXiv 2606.17949) as its released code decides, written from a description of it.

Requests are gathered into small batches. For each batch all instances are asked for their state; then, longest expected answer
first, each request goes to the instance with the highest

    S = wq Q + wc (1 - C / max C) + wl (1 - T / max T) + wb (1 - U / max U),

the maxima taken over the request's candidates. Ties go to the instance with fewer requests, or (an option of its ablation) to
the one with the lower T, then to the one that was assigned to least recently. The state of the chosen instance is counted up
within the batch and forgotten with the next poll. An instance whose state could not be read looks idle; that can be
switched off, and it is left out then.

The paper trains trees to predict the time per output token. Here that prediction is the true step time at the batch the request
would join, which no trained model betters. Computing takes no time.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from virtualfleet.engines import NOBODY, Fleet, advance, send, waiting_now
from virtualfleet.tiers import by_tier

# What calls the engines is not cached on disk: numba would not notice when they change.

SMALLEST = 1e-8
SHORTEST_TPOT_S = 1e-3
ASSUMED_SLOTS = 256
LEAST_PICKED = -1
STATIC_TPOT_S = by_tier("prior_tpot_s")


class Rule(NamedTuple):
    """How it decides.

    Attributes:
        quality, latency, cost, balance: Weights; they need not sum to 1.
        minmax: Whether quality is stretched to 0..1 over the request's candidates, as in the deployed settings; the paper has
            it raw.
        ties_by_latency: In place of the number of requests.
        static: Whether the time per output token is a constant of the tier.
        empty_is_idle: Whether an instance that did not answer counts as idle.
    """

    quality: float = 0.33
    latency: float = 0.33
    cost: float = 0.33
    balance: float = 0.0
    minmax: bool = True
    ties_by_latency: bool = False
    static: bool = False
    empty_is_idle: bool = True


class State(NamedTuple):
    """What is known of the instances, (instances,) each.

    Attributes:
        answered: 1 where the last poll got an answer.
        running, waiting: Requests.
        pending_decode, pending_prefill: Tokens still expected from, and prompt tokens not computed for, those requests.
        kv: Tokens held.
        slots: Sequences that run at once.
        picked: Number of the pick that went there last, LEAST_PICKED if none did.
    """

    answered: np.ndarray
    running: np.ndarray
    waiting: np.ndarray
    pending_decode: np.ndarray
    pending_prefill: np.ndarray
    kv: np.ndarray
    slots: np.ndarray
    picked: np.ndarray


class Costs(NamedTuple):
    """Prices per tier and steps per instance.

    Attributes:
        model: (instances,) tier.
        input_price, output_price: (tiers,) dollars per token.
        static_s: (tiers,) constant time per output token.
        fixed_s, sequence_s, kv_s: (instances,) the step.
    """

    model: np.ndarray
    input_price: np.ndarray
    output_price: np.ndarray
    static_s: np.ndarray
    fixed_s: np.ndarray
    sequence_s: np.ndarray
    kv_s: np.ndarray


def costs(fleet: Fleet) -> Costs:
    """Of the fleet as it really is."""
    prices = by_tier("input_price"), by_tier("output_price")
    return Costs(fleet.model, *prices, STATIC_TPOT_S, fleet.fixed_s, fleet.sequence_s, fleet.kv_s)


def unknown(instances: int, slots: int) -> State:
    """Nothing answered and nothing picked yet."""
    zeros = [np.zeros(instances, dtype=np.int64) for _ in range(4)]
    floats = [np.zeros(instances) for _ in range(2)]
    everywhere = np.full(instances, slots, dtype=np.int64), np.full(instances, LEAST_PICKED, dtype=np.int64)
    return State(zeros[0], zeros[1], zeros[2], floats[0], zeros[3], floats[1], *everywhere)


@njit(cache=True)
def _latency_s(rule: Rule, costs: Costs, state: State, i: int, prompt: int, tokens: np.ndarray) -> float:
    """The end-to-end time that it expects of one request on one instance."""
    running, waiting, slots = 0, 0, ASSUMED_SLOTS
    pending_decode, held = 0.0, 0.0
    if state.answered[i]:
        running, waiting, slots = state.running[i], state.waiting[i], state.slots[i]
        pending_decode, held = state.pending_decode[i], state.kv[i] + state.pending_prefill[i]
    model = costs.model[i]
    if rule.static:
        tpot_s = costs.static_s[model]
    else:
        context = held + prompt + tokens.max() / 2
        tpot_s = costs.fixed_s[i] + costs.sequence_s[i] * min(running + waiting + 1, slots) + costs.kv_s[i] * context
    tpot_s = max(tpot_s, SHORTEST_TPOT_S)
    if running < slots and waiting == 0:
        return max(1, int(tokens[model])) * tpot_s
    return (pending_decode / max(running, 1) + tokens[model]) * tpot_s


@njit(cache=True)
def pick(rule: Rule, costs: Costs, state: State, prompt: int, quality: np.ndarray, tokens: np.ndarray) -> int:
    """Where one request goes.

    ``prompt`` is in tokens; ``quality`` and ``tokens`` are (tiers,) predictions.

    Returns:
        An instance, or NOBODY if none answered and such are left out.
    """
    instances = len(costs.model)
    latency_s, cost, load, usage = np.zeros((4, instances))
    candidate = np.zeros(instances, dtype=np.bool_)
    low, high = np.inf, -np.inf
    for i in range(instances):
        candidate[i] = state.answered[i] > 0 or rule.empty_is_idle
        if not candidate[i]:
            continue
        model = costs.model[i]
        latency_s[i] = _latency_s(rule, costs, state, i, prompt, tokens)
        cost[i] = prompt * costs.input_price[model] + tokens[model] * costs.output_price[model]
        if state.answered[i]:
            load[i] = state.running[i] + state.waiting[i]
        usage[i] = load[i] / state.slots[i]
        low, high = min(low, quality[model]), max(high, quality[model])
    most_s, most_cost, most_used = latency_s.max(), cost.max(), usage.max()
    best, best_score = NOBODY, -np.inf
    for i in range(instances):
        if not candidate[i]:
            continue
        worth = quality[costs.model[i]]
        if rule.minmax:
            worth = (worth - low) / (high - low + SMALLEST)
        score = rule.quality * worth
        score += rule.cost * (1 - cost[i] / (most_cost + SMALLEST))
        score += rule.latency * (1 - latency_s[i] / (most_s + SMALLEST))
        score += rule.balance * (1 - usage[i] / (most_used + SMALLEST))
        if score < best_score:
            continue
        tie = latency_s if rule.ties_by_latency else load
        if score > best_score or tie[i] < tie[best] or (tie[i] == tie[best] and state.picked[i] < state.picked[best]):
            best, best_score = i, score
    return best


@njit(cache=True)
def assign(
    rule: Rule, costs: Costs, state: State, stamp: int, prompt: np.ndarray, quality: np.ndarray, tokens: np.ndarray
) -> np.ndarray:
    """Where a batch goes, (k,); the state is counted up on the way.

    ``stamp`` is a number above all in ``state.picked``, ``prompt`` (k,) tokens; ``quality`` and ``tokens`` are (k, tiers)
    predictions.
    """
    longest = np.zeros(len(prompt))
    for r in range(len(prompt)):
        longest[r] = tokens[r].max()
    chosen = np.full(len(prompt), NOBODY)
    for r in np.argsort(-longest, kind="mergesort"):
        i = pick(rule, costs, state, prompt[r], quality[r], tokens[r])
        chosen[r] = i
        if i == NOBODY:
            continue
        state.waiting[i] += 1
        state.pending_prefill[i] += prompt[r]
        state.pending_decode[i] += longest[r]
        state.picked[i] = stamp
        stamp += 1
    return chosen


@njit
def poll(f: Fleet, state: State, longest: np.ndarray, now_s: float, silent: np.ndarray) -> None:
    """Overwrite the state by what the instances say; `silent` ones (1) say nothing."""
    for i in range(len(f.end_s)):
        state.answered[i] = 1 - silent[i]
        state.running[i], state.kv[i] = f.running[i], f.kv[i]
        state.waiting[i], state.pending_prefill[i] = waiting_now(f, i, now_s)
        pending = 0.0
        for at in range(f.running[i]):
            r = f.batch[i, at]
            pending += max(0.0, longest[r] - f.emitted[r])
        r = f.head[i]
        while r != NOBODY and f.sent_s[r] <= now_s:
            pending += longest[r]
            r = f.following[r]
        state.pending_decode[i] = pending
        if silent[i]:
            state.running[i], state.waiting[i], state.pending_prefill[i] = 0, 0, 0
            state.pending_decode[i], state.kv[i] = 0.0, 0.0


@njit(cache=True)
def limits(state: State) -> tuple[int, float]:
    """The size and the seconds of the next batch, by the share of instances where requests wait."""
    share = (state.waiting > 0).mean()
    if share < 0.3:
        return 4, 0.05
    if share < 0.7:
        return 16, 0.1
    return 32, 0.2


@njit
def run(
    f: Fleet, rule: Rule, costs: Costs, state: State, arrival_s: np.ndarray, quality: np.ndarray, tokens: np.ndarray,
    extra_s: float, silent: np.ndarray,
) -> float:  # fmt: skip
    """Route all requests and serve them to the end.

    ``arrival_s`` is (n,); ``quality`` and ``tokens`` are (n, tiers) predictions; ``extra_s`` lies between a decision and the
    instance; ``silent`` (instances,) is 1 for those that never answer a poll.

    Returns:
        Seconds that requests were held by the router, on average, without `extra_s`.
    """
    n = len(arrival_s)
    longest = np.zeros(n)
    for r in range(n):
        longest[r] = tokens[r].max()
    size, window_s, free_s, held_s = 8, 0.1, 0.0, 0.0
    begin = 0
    while begin < n:
        first_s = max(arrival_s[begin], free_s)
        deadline_s = first_s + window_s
        end = begin + 1
        while end - begin < size and end < n and arrival_s[end] <= deadline_s:
            end += 1
        now_s = max(first_s, arrival_s[end - 1]) if end - begin == size else deadline_s
        advance(f, now_s)
        poll(f, state, longest, now_s, silent)
        size, window_s = limits(state)
        chosen = assign(rule, costs, state, begin, f.prompt[begin:end], quality[begin:end], tokens[begin:end])
        for at in range(end - begin):
            send(f, begin + at, chosen[at], now_s + extra_s)
            held_s += now_s - arrival_s[begin + at]
        begin, free_s = end, now_s
    advance(f, np.inf)
    return held_s / n
