"""Engines with continuous batching, step by step in virtual time, compiled.

A step takes all running sequences one token further and computes the whole prompts of those that it admits, first come first
served, while slots and the token budget of a step last; a prompt's first token comes at the step's end. Left out: chunked
prefill, preemption, limits of KV memory, prefix caching, and the time on the network.

Requests are rows of one state for the whole fleet. Times of first tokens and ends stand in the rows; a log tells in which
order they became known.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from virtualfleet.tiers import BATCHED_TOKENS, MODEL_OF, by_instance

FIRST, ENDED = 0, 1
"""What a line of the log tells."""
NOBODY = -1


class Fleet(NamedTuple):
    """Whole state of the engines, as columns.

    Attributes:
        fixed_s, sequence_s, kv_s, prefill_s: (instances,) the step.
        model: (instances,) index of the tier.
        slots: (1,) sequences that run at once, on every instance.
        end_s: (instances,) end of the step under way, infinite when idle.
        batch: (instances, slots) requests that run; `running` of them.
        running, waiting: (instances,)
        kv: (instances,) tokens held by running requests.
        head, tail: (instances,) of the queue of requests that were sent and do not run yet.
        following: (requests,) the next of the queue.
        prompt: (requests,) tokens.
        output: (requests, tiers) tokens that each model answers with.
        sent_s: (requests,) when a request reaches its instance.
        instance: (requests,) where it was sent, NOBODY before.
        emitted: (requests,) tokens so far.
        first_s, ended_s: (requests,) NaN until it happens.
        log_s, log_request, log_kind: (2 * requests,) what happened; by instance in order of time.
        logged: (1,) lines of the log.
    """

    fixed_s: np.ndarray
    sequence_s: np.ndarray
    kv_s: np.ndarray
    prefill_s: np.ndarray
    model: np.ndarray
    slots: np.ndarray
    end_s: np.ndarray
    batch: np.ndarray
    running: np.ndarray
    waiting: np.ndarray
    kv: np.ndarray
    head: np.ndarray
    tail: np.ndarray
    following: np.ndarray
    prompt: np.ndarray
    output: np.ndarray
    sent_s: np.ndarray
    instance: np.ndarray
    emitted: np.ndarray
    first_s: np.ndarray
    ended_s: np.ndarray
    log_s: np.ndarray
    log_request: np.ndarray
    log_kind: np.ndarray
    logged: np.ndarray


def build(prompt_tokens: np.ndarray, output_tokens: np.ndarray, slots: int) -> Fleet:
    """An idle fleet of `MODEL_OF` that is going to get requests of (n,) prompt and (n, tiers) output tokens."""
    instances, n = len(MODEL_OF), len(prompt_tokens)

    def ints(size: int, value: int = 0) -> np.ndarray:
        return np.full(size, value, dtype=np.int64)

    return Fleet(
        by_instance("fixed_s"),
        by_instance("sequence_s"),
        by_instance("kv_s"),
        by_instance("prefill_s"),
        MODEL_OF.astype(np.int64),
        ints(1, slots),
        np.full(instances, np.inf),
        np.zeros((instances, slots), dtype=np.int64),
        ints(instances),
        ints(instances),
        ints(instances),
        ints(instances, NOBODY),
        ints(instances, NOBODY),
        ints(n, NOBODY),
        np.ascontiguousarray(prompt_tokens, dtype=np.int64),
        np.ascontiguousarray(output_tokens, dtype=np.int64),
        np.full(n, np.nan),
        ints(n, NOBODY),
        ints(n),
        np.full(n, np.nan),
        np.full(n, np.nan),
        np.zeros(2 * n),
        ints(2 * n),
        ints(2 * n),
        ints(1),
    )


@njit(cache=True)
def send(f: Fleet, request: int, instance: int, at_s: float) -> None:
    """Let a request reach an instance at a time that is neither past nor before that of the one sent there last."""
    f.sent_s[request], f.instance[request] = at_s, instance
    if f.head[instance] == NOBODY:
        f.head[instance] = request
    else:
        f.following[f.tail[instance]] = request
    f.tail[instance] = request
    f.waiting[instance] += 1


@njit(cache=True)
def _log(f: Fleet, at_s: float, request: int, kind: int) -> None:
    line = f.logged[0]
    f.log_s[line], f.log_request[line], f.log_kind[line] = at_s, request, kind
    f.logged[0] = line + 1


@njit(cache=True)
def _begin(f: Fleet, i: int, now_s: float) -> None:
    """Compose the step that starts now."""
    prompts = 0
    while f.head[i] != NOBODY and f.running[i] < f.slots[0]:
        r = f.head[i]
        if f.sent_s[r] > now_s or (prompts > 0 and prompts + f.prompt[r] > BATCHED_TOKENS):
            break
        f.head[i] = f.following[r]
        f.batch[i, f.running[i]] = r
        f.running[i] += 1
        f.waiting[i] -= 1
        f.kv[i] += f.prompt[r]
        prompts += f.prompt[r]
    if f.running[i] == 0:
        f.end_s[i] = np.inf
        return
    f.end_s[i] = now_s + f.fixed_s[i] + f.sequence_s[i] * f.running[i] + f.kv_s[i] * f.kv[i] + f.prefill_s[i] * prompts


@njit(cache=True)
def _end(f: Fleet, i: int) -> None:
    """Hand out the tokens of the step under way."""
    now_s, model, at = f.end_s[i], f.model[i], 0
    while at < f.running[i]:
        r = f.batch[i, at]
        f.emitted[r] += 1
        f.kv[i] += 1
        if f.emitted[r] == 1:
            f.first_s[r] = now_s
            _log(f, now_s, r, FIRST)
        if f.emitted[r] < f.output[r, model]:
            at += 1
            continue
        f.ended_s[r] = now_s
        _log(f, now_s, r, ENDED)
        f.kv[i] -= f.prompt[r] + f.emitted[r]
        f.running[i] -= 1
        f.batch[i, at] = f.batch[i, f.running[i]]


@njit(cache=True)
def advance(f: Fleet, until_s: float) -> int:
    """Let time pass; the lines of the log by now.

    What is sent at the very moment of `until_s` has not begun: requests sent at the same time share a step.
    """
    for i in range(len(f.end_s)):
        while True:
            if f.running[i] > 0 and f.end_s[i] <= until_s:
                now_s = f.end_s[i]
                _end(f, i)
                _begin(f, i, now_s)
            elif f.running[i] == 0 and f.head[i] != NOBODY and f.sent_s[f.head[i]] < until_s:
                _begin(f, i, f.sent_s[f.head[i]])
            else:
                break
    return f.logged[0]


@njit(cache=True)
def waiting_now(f: Fleet, i: int, now_s: float) -> tuple[int, int]:
    """Requests that have reached an instance and do not run yet, and their prompt tokens."""
    count, tokens, r = 0, 0, f.head[i]
    while r != NOBODY and f.sent_s[r] <= now_s:
        count += 1
        tokens += f.prompt[r]
        r = f.following[r]
    return count, tokens
