"""The engine against the wall clock.

A step that is composed has an end in engine time; the driver sleeps until then, delivers its tokens and composes the
next. Lateness of the machine does not accumulate: the next step is counted from the end of the last, not from the
moment the process woke. An idle engine sleeps on an event.
"""

import asyncio
from collections.abc import Callable, Sequence

from servingplan.sim import engine
from servingplan.sim.engine import BLOCK_TOKENS, FINISHED, FIRST_REQUEST, Limits, Shape, StepCost

RESYNC_S = 0.25
"""A process later than this (stopped, or starved of CPU) counts from the present again instead of catching up."""


class Ticket:
    """One request in the engine, as its handler sees it.

    Args:
        prompt_tokens, output_tokens: lengths.
        arrival_s: event-loop time of arrival.
        every_token: whether the handler wants to know of every token, or of the end alone.

    Attributes:
        generated: tokens delivered so far.
        done: no more will come.
        aborted: it ended before its last token.
        cached_tokens: prompt tokens found in the prefix cache.
        preemptions: times it lost its KV blocks.
        arrival_s, scheduled_s, first_token_s, last_token_s: event-loop times.
    """

    def __init__(self, prompt_tokens: int, output_tokens: int, arrival_s: float, *, every_token: bool) -> None:
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.arrival_s = arrival_s
        self.scheduled_s = self.first_token_s = self.last_token_s = arrival_s
        self.generated = self.cached_tokens = self.preemptions = 0
        self.done = self.aborted = False
        self.row = -1
        self._every_token = every_token
        self._news = asyncio.Event()

    async def tokens(self) -> int:
        """Wait for news (tokens, or the end); how many tokens there are by now."""
        await self._news.wait()
        self._news.clear()
        return self.generated

    def notify(self) -> None:
        """Wake the handler, if it wants this news."""
        if self.done or self._every_token:
            self._news.set()


class Driver:
    """Runs one engine in wall-clock time.

    Args:
        cost: step-time coefficients.
        limits: scheduler limits.
        kv_blocks: KV blocks, vLLM's ``num_gpu_blocks``.
        max_model_len: longest prompt and output together.
        on_token: called with each request that got a token, and the seconds since its last.
        on_step: called with the tokens computed in each step.
    """

    def __init__(
        self,
        cost: StepCost,
        limits: Limits,
        kv_blocks: int,
        max_model_len: int,
        *,
        on_token: Callable[[Ticket, float], None],
        on_step: Callable[[int], None],
    ) -> None:
        self.engine = engine.build(
            lambda n: [0] * n,
            lambda n: [0.0] * n,
            lambda n, _: [{} for _ in range(n)],  # filled as needed: a thousand long sequences seldom run at once
            Shape(0, kv_blocks, limits.max_num_seqs, -(-max_model_len // BLOCK_TOKENS), 0),
        )
        self._cost = cost
        self._limits = limits
        self._on_token = on_token
        self._on_step = on_step
        self._tickets: list[Ticket | None] = [None] * FIRST_REQUEST
        self._free_rows: list[int] = []
        self._retired_rows: list[int] = []
        self._hash_room: list[int] = [0] * FIRST_REQUEST
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def kv_usage(self) -> float:
        """Share of the KV blocks held by requests."""
        usable = len(self.engine.refs) - 1
        return 1 - self.engine.counts[engine.FREE_BLOCKS] / usable

    async def idle(self) -> None:
        """Wait until no request is in the engine."""
        await self._idle.wait()

    def submit(
        self, prompt_tokens: int, output_tokens: int, block_hashes: Sequence[int] = (), *, every_token: bool = True
    ) -> Ticket:
        """Put a request in the waiting queue; the scheduler sees it at the next step boundary."""
        ticket = Ticket(prompt_tokens, output_tokens, asyncio.get_running_loop().time(), every_token=every_token)
        ticket.row = r = self._row()
        e = self.engine
        e.prompt[r], e.output[r] = prompt_tokens, output_tokens
        e.arrival_s[r] = ticket.arrival_s
        self._store_hashes(r, block_hashes)
        self._tickets[r] = ticket
        engine.enqueue(e, r)
        self._work.set()
        self._idle.clear()
        return ticket

    def abort(self, ticket: Ticket) -> None:
        """End a request; its blocks are free at once. Nothing happens to one that is done."""
        if ticket.done:
            return
        r = ticket.row
        engine.finish(self.engine, r, asyncio.get_running_loop().time())
        ticket.aborted = True
        self._retire(ticket)
        ticket.notify()

    def abort_all(self) -> None:
        """Abort every request."""
        for ticket in [t for t in self._tickets if t is not None]:
            self.abort(ticket)

    async def run(self) -> None:
        """Drive the engine for ever."""
        loop = asyncio.get_running_loop()
        e = self.engine
        now_s = loop.time()
        while True:
            while engine.in_flight_steps(e) < engine.PIPELINE_DEPTH:
                if not engine.compose(e, self._cost, self._limits, now_s):
                    break
            if engine.in_flight_steps(e) == 0:
                self._work.clear()
                await self._work.wait()
                now_s = loop.time()
                continue
            end_s = engine.next_end_s(e)
            # Sleeping even when late lets the handlers of the last step's tokens run.
            await asyncio.sleep(max(0.0, end_s - loop.time()))
            now_s = end_s if loop.time() - end_s < RESYNC_S else loop.time()
            self._deliver(now_s)

    def _deliver(self, now_s: float) -> None:
        e = self.engine
        self._on_step(e.batch_tokens[e.counts[engine.DELIVERED] % engine.PIPELINE_DEPTH])
        engine.deliver(e, now_s)
        for i in range(e.counts[engine.OUTPUTS]):
            r = e.outputs[i]
            ticket = self._tickets[r]
            assert ticket is not None, "aborted requests get no tokens"
            self._update(ticket, now_s)
        self._retired_rows = [r for r in self._retired_rows if not self._recycle(r)]

    def _update(self, ticket: Ticket, now_s: float) -> None:
        e, r = self.engine, ticket.row
        since_s = now_s - ticket.last_token_s
        ticket.generated = e.generated[r]
        ticket.last_token_s = now_s
        if ticket.generated == 1:
            ticket.first_token_s = now_s
            ticket.scheduled_s = max(ticket.arrival_s, e.scheduled_s[r])
            ticket.cached_tokens = e.cached[r]
        ticket.preemptions = e.preempted[r]
        if e.status[r] == FINISHED:
            self._retire(ticket)
        self._on_token(ticket, since_s)
        ticket.notify()

    def _retire(self, ticket: Ticket) -> None:
        ticket.done = True
        self._tickets[ticket.row] = None
        if not self._recycle(ticket.row):
            self._retired_rows.append(ticket.row)
        if self.engine.counts[engine.N_RUNNING] + self.engine.counts[engine.N_WAITING] == 0:
            self._idle.set()

    def _row(self) -> int:
        e = self.engine
        if self._free_rows:
            r = self._free_rows.pop()
        else:
            r = len(e.status)
            for name in (*engine.REQUEST_COLUMNS, *engine.REQUEST_TIMES):
                getattr(e, name).append(0)
            self._tickets.append(None)
            self._hash_room.append(0)
        for name in engine.REQUEST_COLUMNS:
            if name != "hash_start":
                getattr(e, name)[r] = 0
        for name in engine.REQUEST_TIMES:
            getattr(e, name)[r] = -1.0
        return r

    def _recycle(self, r: int) -> bool:
        """Free row `r` unless a step under way still names it."""
        if self.engine.in_flight[r]:
            return False
        self._free_rows.append(r)
        return True

    def _store_hashes(self, r: int, block_hashes: Sequence[int]) -> None:
        e = self.engine
        n = len(block_hashes)
        if n > self._hash_room[r]:
            self._hash_room[r] = 2 * n
            e.hash_start[r] = len(e.hashes)
            e.hashes.extend([0] * (2 * n))
        e.hash_count[r] = n
        e.hashes[e.hash_start[r] : e.hash_start[r] + n] = [h & engine.KEY_MASK for h in block_hashes]
