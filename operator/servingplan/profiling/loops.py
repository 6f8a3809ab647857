"""Loads: clients in a closed loop, or Poisson arrivals, for as long as it takes to know the means.

A closed loop starts out of step: clients begin at random moments and with a random part of an output, as if the loop had
long been running. What counts are the requests that end after every client's first has ended and before the level does.
Requests that are still running at the end of a level are given up, so that an overloaded server is left alone at once.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from servingplan.profiling.client import Client
from servingplan.profiling.exchange import Sample
from servingplan.profiling.levels import SPREAD, Level
from servingplan.profiling.prompts import Prompts
from servingplan.profiling.steady import settled, summary

DRIFT = 0.05
PRECISE_TTFT, PRECISE_TPOT = 0.03, 0.01
_FEWEST = 5
_CYCLES = 2
_PLENTY = 6
_LAG_EVERY_S = 0.02
_TICK_S = 1e-3
"""What an event loop oversleeps at rest: it waits for whole milliseconds."""
_OVERLOADED = 3.0


@dataclass(slots=True)
class Course:
    """What happened during one level.

    Attributes:
        samples: Requests that count, in the order in which they ended.
        others: Requests that were load only: the first ones, and those given up.
        counted_s: Time during which requests ended counted.
        sent: Requests sent during that time.
        steady: Whether the halves of the level agree.
        overloaded: An open loop whose requests pile up.
        page: The metrics page at its end, before requests were given up.
        lag_s: Delays of this process's own clock ticks.
        cpu: Share of one CPU that this process used.
    """

    samples: list[Sample] = field(default_factory=list)
    others: list[Sample] = field(default_factory=list)
    counted_s: float = 0.0
    sent: int = 0
    steady: bool = False
    overloaded: bool = False
    page: str = ""
    lag_s: list[float] = field(default_factory=list)
    cpu: float = 0.0


@dataclass(frozen=True, slots=True)
class Driver:
    """Puts loads on one server.

    Attributes:
        client: The server.
        prompts: Source of prompts.
        source: Randomness of phases, output lengths and arrivals.
        stop: Ends a level early when set.
        watch: Called now and then with the share of the level's time that has gone.
    """

    client: Client
    prompts: Prompts
    source: random.Random
    stop: asyncio.Event
    watch: Callable[[float], None] = lambda _: None

    async def closed(self, level: Level, *, stagger_s: float, limit_s: float) -> Course:
        """Runs a closed loop until its means are known or the time is up.

        Args:
            level: Clients and lengths.
            stagger_s: Time over which the clients' starts are spread.
            limit_s: Longest time, the start included.
        """
        course = Course()
        fresh = set(range(level.clients)) if level.clients > 1 else set()
        begun_s = time.perf_counter()
        counting_s = begun_s

        async def one(number: int) -> None:
            nonlocal counting_s
            if level.clients > 1:
                await asyncio.sleep(stagger_s * self.source.random())
            first = level.clients > 1
            while True:
                output = self._output(level) if not first else max(2, int(self.source.random() * self._output(level)))
                first = False
                course.sent += 0 if fresh else 1
                prompt = self.prompts.make(level.lengths.prompt_tokens)
                sample = await self.client.complete(prompt, output, course.others.append)
                if not fresh:
                    course.samples.append(sample)
                    continue
                course.others.append(sample)
                fresh.discard(number)
                if not fresh:
                    counting_s = time.perf_counter()

        def enough() -> bool:
            ended, least = len(course.samples), max(_FEWEST, _CYCLES * level.clients)
            return ended >= least and (ended >= _PLENTY * least or _known(course.samples))

        async with _measured(course):
            await self._until(course, enough, [one(number) for number in range(level.clients)], begun_s, limit_s)
        course.counted_s = time.perf_counter() - counting_s if not fresh else 0.0
        course.steady = _steady(course.samples)
        return course

    async def open(self, level: Level, *, warm_s: float, limit_s: float, in_flight: float) -> Course:
        """Sends independent requests at a rate until the means are known, the time is up, or they pile up.

        Args:
            level: Rate and lengths.
            warm_s: Time until requests count.
            limit_s: Longest time, the start included.
            in_flight: Requests that would be under way by Little's law if latency did not rise.
        """
        course = Course()
        begun_s = time.perf_counter()
        under_way: set[asyncio.Task[None]] = set()
        failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def one() -> None:
            prompt = self.prompts.make(level.lengths.prompt_tokens)
            sample = await self.client.complete(prompt, self._output(level), course.others.append)
            (course.samples if sample.last_s >= begun_s + warm_s else course.others).append(sample)

        def ended(task: asyncio.Task[None]) -> None:
            under_way.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None and not failed.done():
                failed.set_exception(error)

        async def arrivals() -> None:
            due_s = begun_s
            while True:
                due_s += self.source.expovariate(level.rate_rps)
                await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
                course.sent += int(due_s >= begun_s + warm_s)
                task = asyncio.create_task(one())
                under_way.add(task)
                task.add_done_callback(ended)

        def enough() -> bool:
            course.overloaded = len(under_way) > 12 + _OVERLOADED * in_flight
            return course.overloaded or (len(course.samples) >= _PLENTY * _FEWEST and _known(course.samples))

        async def failure() -> None:
            await failed

        try:
            async with _measured(course):
                await self._until(course, enough, [arrivals(), failure()], begun_s, limit_s)
        finally:
            await _cancel(list(under_way))
        course.counted_s = max(0.0, time.perf_counter() - begun_s - warm_s)
        course.steady = not course.overloaded and _steady(course.samples)
        return course

    def _output(self, level: Level) -> int:
        mean = level.lengths.output_tokens
        spread = int(SPREAD * mean)
        return self.source.randint(mean - spread, mean + spread)

    async def _until(
        self, course: Course, enough: Callable[[], bool], work: list[Awaitable[None]], begun_s: float, limit_s: float
    ) -> None:
        """Runs the work until there is enough, the time is up, or the run is stopped; raises what the work raises."""
        tasks = [asyncio.ensure_future(item) for item in work]
        try:
            while not self.stop.is_set() and not enough():
                gone_s = time.perf_counter() - begun_s
                self.watch(min(1.0, gone_s / limit_s))
                if gone_s >= limit_s:
                    break
                patience_s = min(0.2, limit_s - gone_s)
                done, _ = await asyncio.wait(tasks, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            course.page = await self.client.metrics()
        finally:
            await _cancel(tasks)


def _known(samples: list[Sample]) -> bool:
    """Whether both means are steady and precise."""
    if not _steady(samples):
        return False
    ttft, tpot = summary([s.ttft_s for s in samples]), summary([s.tpot_s for s in samples])
    return ttft.relative <= PRECISE_TTFT and tpot.relative <= PRECISE_TPOT


def _steady(samples: list[Sample]) -> bool:
    return settled([s.ttft_s for s in samples], 2 * DRIFT) and settled([s.tpot_s for s in samples], DRIFT)


async def _cancel(tasks: list[asyncio.Future[None]] | list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def _measured(course: Course) -> AsyncIterator[None]:
    """Notes how late this process is and how much CPU it takes: a client short of CPU measures itself."""
    begun_s, cpu_s = time.perf_counter(), time.process_time()

    async def tick() -> None:
        while True:
            due_s = time.perf_counter() + _LAG_EVERY_S
            await asyncio.sleep(_LAG_EVERY_S)
            course.lag_s.append(max(0.0, time.perf_counter() - due_s - _TICK_S))

    ticking = asyncio.create_task(tick())
    try:
        yield
    finally:
        ticking.cancel()
        with suppress(asyncio.CancelledError):
            await ticking
        course.cpu = (time.process_time() - cpu_s) / max(1e-9, time.perf_counter() - begun_s)
