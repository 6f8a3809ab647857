"""Engines that several hands feed, in virtual time.

`replay` wants all requests beforehand. Here an engine is opened, offered requests as a router chooses it, and advanced from
one time to the next; what it does is the same to the last bit. Prefix caching is off.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from servingplan.sim import engine
from servingplan.sim.engine import (
    ARRIVED,
    BLOCK_TOKENS,
    COMPOSED,
    FINISHED,
    FIRST_REQUEST,
    FREE_BLOCKS,
    N_RUNNING,
    N_WAITING,
    OUTPUTS,
    PIPELINE_DEPTH,
    PREEMPTIONS,
    REQUEST_COLUMNS,
    REQUEST_TIMES,
    Limits,
    Shape,
    StepCost,
    compose,
    deliver,
    enqueue,
    in_flight_steps,
    next_end_s,
)
from servingplan.sim.replay import WITHOUT_REFCOUNTS, Replica

_ROWS = 1024
_FIRSTS, _ENDED = 0, 1


@dataclass(frozen=True, slots=True)
class Progress:
    """What an engine brought forth since it was last asked, by the numbers that `Engine.offer` gave.

    Attributes:
        first: (n,) requests that got their first token.
        first_token_s: (n,) when.
        finished: (m,) requests that got their last token.
        finished_s: (m,) when.
    """

    first: np.ndarray
    first_token_s: np.ndarray
    finished: np.ndarray
    finished_s: np.ndarray


class Engine:
    """One engine, resumable; empty at first.

    Args:
        replica: Speed and limits.
        longest_tokens: Prompt and output together of the longest request that will be offered.
        opened_s: Time at which it begins.
    """

    def __init__(self, replica: Replica, *, longest_tokens: int = 32_768, opened_s: float = 0.0) -> None:
        self._cost = StepCost(*map(float, replica.cost))
        self._limits = Limits(replica.max_num_seqs, replica.max_num_batched_tokens, 0)
        self._longest = min(longest_tokens, (replica.kv_blocks - 1) * BLOCK_TOKENS)
        shape = Shape(_ROWS, replica.kv_blocks, replica.max_num_seqs, -(-self._longest // BLOCK_TOKENS), 0)
        self._state: Any = engine.build(_ints, np.zeros, lambda n, m: np.zeros((n, m), dtype=np.int64), shape)
        self._offered = FIRST_REQUEST
        self._until_s = opened_s
        self._news, self._news_count = np.zeros((2, FIRST_REQUEST + _ROWS), dtype=np.int64), np.zeros(2, dtype=np.int64)

    def offer(self, arrival_s: float, prompt_tokens: int, output_tokens: int) -> int:
        """Give the engine a request.

        Args:
            arrival_s: Not before the last offer, nor before what the engine was advanced to.
            prompt_tokens: At least 1.
            output_tokens: At least 1.

        Returns:
            The number by which `Progress` names it: 0 for the first, 1 for the next, and so on.

        Raises:
            ValueError: if it comes too late, has an empty length, or could never fit.
        """
        e, r = self._state, self._offered
        before_s = max(self._until_s, e.arrival_s[r - 1] if r > FIRST_REQUEST else self._until_s)
        if arrival_s < before_s:
            raise ValueError(f"a request of {arrival_s} s was offered after one of {before_s} s")
        if min(prompt_tokens, output_tokens) < 1:
            raise ValueError("a request needs at least one prompt token and one output token")
        if prompt_tokens + output_tokens > self._longest:
            raise ValueError(f"a request of {prompt_tokens + output_tokens} tokens never fits in {self._longest}")
        if r == len(e.status):
            self._grow()
            e = self._state
        e.arrival_s[r], e.prompt[r], e.output[r] = arrival_s, prompt_tokens, output_tokens
        e.scheduled_s[r] = e.first_token_s[r] = e.finished_s[r] = -1.0
        self._offered += 1
        return r - FIRST_REQUEST

    def offer_all(self, arrival_s: Sequence[float], prompt_tokens: Sequence[int], output_tokens: Sequence[int]) -> None:
        """Give the engine several requests, as by `offer`."""
        for each in zip(arrival_s, prompt_tokens, output_tokens, strict=True):
            self.offer(float(each[0]), int(each[1]), int(each[2]))

    def advance(self, until_s: float) -> None:
        """Let everything happen that happens before `until_s`; news pile up until `collect`."""
        self._until_s = max(self._until_s, until_s)
        _advance_compiled(self._state, self._cost, self._limits, self._offered, until_s, self._news, self._news_count)

    def collect(self) -> Progress:
        """What has happened since the last call."""
        e = self._state
        first, ended = (self._news[row, : self._news_count[row]].copy() for row in (_FIRSTS, _ENDED))
        self._news_count[:] = 0
        return Progress(first - FIRST_REQUEST, e.first_token_s[first], ended - FIRST_REQUEST, e.finished_s[ended])

    @property
    def running(self) -> int:
        """Requests that run."""
        return int(self._state.counts[N_RUNNING])

    @property
    def waiting(self) -> int:
        """Requests that wait, with those that the engine has not noticed yet."""
        return int(self._state.counts[N_WAITING]) + self._offered - int(self._state.counts[ARRIVED])

    @property
    def kv_usage(self) -> float:
        """Share of the usable KV blocks that are held."""
        usable = len(self._state.refs) - 1
        return (usable - int(self._state.counts[FREE_BLOCKS])) / usable

    @property
    def steps(self) -> int:
        """Steps composed so far."""
        return int(self._state.counts[COMPOSED])

    @property
    def preemptions(self) -> int:
        """Preemptions so far."""
        return int(self._state.counts[PREEMPTIONS])

    def unfinished(self) -> np.ndarray:
        """Numbers of the requests that have not got their last token."""
        status = np.asarray(self._state.status)[FIRST_REQUEST : self._offered]
        return np.flatnonzero(status != FINISHED)

    def _grow(self) -> None:
        """Makes room for as many requests again."""
        e, more = self._state, len(self._state.status)
        columns = {name: np.concatenate([getattr(e, name), _ints(more)]) for name in REQUEST_COLUMNS}
        columns |= {name: np.concatenate([getattr(e, name), np.zeros(more)]) for name in REQUEST_TIMES}
        self._state = e._replace(**columns)
        self._news = np.concatenate([self._news, np.zeros((2, more), dtype=np.int64)], axis=1)


def _ints(n: int) -> Any:
    return np.zeros(n, dtype=np.int64)


def _advance(
    e: engine.Engine,
    cost: StepCost,
    limits: Limits,
    offered: int,
    until_s: float,
    news: Any,
    news_count: Any,
) -> None:
    """`engine.run`, cut where a request may still come: just before a time, after composing as far as was known then."""
    while True:
        if in_flight_steps(e) > 0:
            now_s = next_end_s(e)
        elif e.counts[ARRIVED] < offered:
            now_s = e.arrival_s[e.counts[ARRIVED]]
        else:
            return
        if now_s >= until_s:
            return
        if in_flight_steps(e) > 0:
            deliver(e, now_s)
            for i in range(e.counts[OUTPUTS]):
                r = e.outputs[i]
                if e.generated[r] == 1:
                    news[_FIRSTS][news_count[_FIRSTS]] = r
                    news_count[_FIRSTS] += 1
                if e.status[r] == FINISHED:
                    news[_ENDED][news_count[_ENDED]] = r
                    news_count[_ENDED] += 1
        while e.counts[ARRIVED] < offered and e.arrival_s[e.counts[ARRIVED]] <= now_s:
            enqueue(e, e.counts[ARRIVED])
            e.counts[ARRIVED] += 1
        while in_flight_steps(e) < PIPELINE_DEPTH and compose(e, cost, limits, now_s):
            pass


_advance_compiled = njit(**WITHOUT_REFCOUNTS, cache=True)(_advance)
