"""One measurement from the first look at the server to the last level.

A lone request at each pair of lengths comes first: it shows that the server can be measured at all, warms it up, and gives
the times by which the levels are planned. Each level gets the part of the remaining time that its requests' length asks
for. A pair of lengths is done with when the server is saturated by it.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from servingplan.profiling import limits
from servingplan.profiling.client import Client
from servingplan.profiling.errors import ProfilingError, ShedError
from servingplan.profiling.exchange import Sample
from servingplan.profiling.levels import Lengths, Level, default_lengths, ladder
from servingplan.profiling.loops import Driver
from servingplan.profiling.measured import Measured, measured, saturation
from servingplan.profiling.progress import Progress
from servingplan.profiling.prompts import Prompts

_WARM_CYCLES, _FEWEST_CYCLES, _FEWEST_REQUESTS = 1.5, 1.5, 5.5
_WARM_REQUESTS = 2
_PREFIX_CACHED = 0.02
_LATE = 0.05
_LOOKS, _LOOK_S = 10, 0.1
_SPLIT_TOKENS = 12_288
"""Longer than the token budgets that vLLM sets by itself."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user asked for.

    Attributes:
        clients, rates: Levels; one of the two is empty.
        lengths: Pairs; empty for the defaults.
        duration_s: Longest time of the whole measurement.
        seed: Of phases, output lengths and arrivals.
    """

    clients: tuple[int, ...] = ()
    rates: tuple[float, ...] = ()
    lengths: tuple[Lengths, ...] = ()
    duration_s: float = 160.0
    seed: int = 0


@dataclass(slots=True)
class Run:
    """What was measured, up to the present.

    Attributes:
        levels: In the order measured.
        notes: Sentences about what was left out, and why.
        kv_tokens, max_num_seqs, max_num_batched_tokens: Limits of the engine as far as they show.
        max_model_len: Longest sequence; None where the server does not say.
        seconds: How long it took.
        stopped: Whether the user ended it.
        failure: Why it ended early; empty where it did not.
    """

    levels: list[Measured] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    kv_tokens: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_model_len: int | None = None
    seconds: float = 0.0
    stopped: bool = False
    failure: str = ""


async def measure(client: Client, wish: Wish, run: Run, progress: Progress, stop: asyncio.Event) -> None:
    """Measures a server and fills `run` as it goes, so that an end at any moment leaves what there is.

    Args:
        client: The server.
        wish: What to measure.
        run: Filled.
        progress: Told how far it is.
        stop: Ends the measurement when set.

    Raises:
        ProfilingError: The server cannot be measured, and nothing has been.
    """
    begun_s = time.perf_counter()
    try:
        await _Measurement(client, wish, run, progress, stop, begun_s).all()
    except ProfilingError as error:
        if not run.levels:
            raise
        run.failure = str(error)
    finally:
        run.stopped = stop.is_set()
        run.seconds = time.perf_counter() - begun_s


@dataclass(slots=True)
class _Measurement:
    client: Client
    wish: Wish
    run: Run
    progress: Progress
    stop: asyncio.Event
    begun_s: float
    prompts: Prompts = field(init=False)
    source: random.Random = field(init=False)
    alone: dict[Lengths, Sample] = field(default_factory=dict)
    saturated: dict[Lengths, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.source = random.Random(self.wish.seed)
        # Never seeded: the prompts of a second run must not be found in the cache of the first.
        self.prompts = Prompts(random.Random())

    async def all(self) -> None:
        """From the first look to the last level."""
        card = await self.client.card()
        self.run.max_model_len = card.max_model_len
        page = await self.client.metrics()
        self.run.kv_tokens = limits.kv_tokens(page)
        if limits.gauges(page).inside:
            self._note("The server has requests of others: what is measured is what they leave over.")
        lengths = self._lengths(card.max_model_len)
        for number, pair in enumerate(lengths):
            self.progress.level(f"warming up at {pair}", 0.0)
            self.alone[pair] = await self._alone(pair, first=number == 0)
        await self._budget(max(lengths, key=lambda pair: pair.prompt_tokens))
        levels = ladder(lengths, clients=self.wish.clients, rates=self.wish.rates, kv_tokens=self.run.kv_tokens)
        if crowded := len(lengths) * len(self.wish.clients) - len([level for level in levels if level.clients]):
            self._note(f"{crowded} levels were left out, because their requests do not fit in the KV cache together.")
        for place, level in enumerate(levels):
            if self.stop.is_set():
                return
            if level.lengths not in self.saturated:
                await self._level(level, levels[place + 1 :])

    def _lengths(self, max_model_len: int | None) -> tuple[Lengths, ...]:
        lengths = self.wish.lengths or default_lengths(max_model_len)
        for pair in lengths:
            if max_model_len is not None and pair.total_tokens > max_model_len:
                raise ProfilingError(
                    f"lengths {pair} come to {pair.total_tokens} tokens with the spread of outputs, the model takes"
                    f" {max_model_len}: give shorter --lengths"
                )
        if not lengths:
            raise ProfilingError(f"the model takes {max_model_len} tokens, too few to measure anything: give --lengths")
        return lengths

    async def _alone(self, pair: Lengths, *, first: bool) -> Sample:
        """A lone request, the last of a few; settles on the first whether prompts may be token numbers."""
        sample = None
        for attempt in range(_WARM_REQUESTS):
            try:
                sample = await self.client.complete(self.prompts.make(pair.prompt_tokens), pair.output_tokens)
            except ProfilingError as error:
                if not first or attempt or self.prompts.text or "refuses the request" not in str(error):
                    raise
                self.prompts.text = True
                try:
                    sample = await self.client.complete(self.prompts.make(pair.prompt_tokens), pair.output_tokens)
                except ProfilingError:
                    raise error from None
                self.run.notes.append(
                    "The server takes no prompts of token numbers: it was sent words, and the lengths are those it counted."
                )
        assert sample is not None
        return sample

    async def _budget(self, pair: Lengths) -> None:
        """Sends one long prompt alone and looks in how many steps it was computed."""
        before = limits.steps(await self.client.metrics())
        if before is None:
            return
        longest = pair.prompt_tokens
        if self.run.max_model_len is not None:
            longest = max(longest, min(_SPLIT_TOKENS, self.run.max_model_len - 2))
        sample = await self.client.complete(self.prompts.make(longest), 2)
        after = limits.steps(await self.client.metrics())
        if after is not None and len(after.buckets) == len(before.buckets):
            self.run.max_num_batched_tokens = limits.budget_from_steps(before, after, sample.prompt_tokens)

    async def _level(self, level: Level, later: Sequence[Level]) -> None:
        cycle_s = self._cycle_s(level)
        left_s = self.wish.duration_s - (time.perf_counter() - self.begun_s)
        needed_s = _cycles(level) * cycle_s
        waiting_s = sum(_cycles(other) * self._cycle_s(other) for other in later if other.lengths not in self.saturated)
        share_s = left_s * needed_s / (needed_s + waiting_s)
        limit_s = max(share_s, min(left_s, needed_s))
        if limit_s < needed_s:
            self._note(f"Not measured for want of time: {level}; it would have taken about {needed_s:.0f} s.")
            return
        self.progress.level(str(level), self._done())
        driver = Driver(self.client, self.prompts, self.source, self.stop, lambda _: self.progress.advance(self._done()))
        try:
            if level.clients:
                course = await driver.closed(level, stagger_s=self._stagger_s(level, cycle_s), limit_s=limit_s)
            else:
                in_flight = level.rate_rps * cycle_s
                course = await driver.open(level, warm_s=min(2 * cycle_s, limit_s / 3), limit_s=limit_s, in_flight=in_flight)
        except ShedError as error:
            if not self.run.levels:
                raise
            self._saturate(level, f"at {level} {error}")
            return
        gauges = limits.gauges(course.page)
        found = measured(level, course, gauges)
        await self._wait_idle()
        if found is None:
            if course.overloaded:
                self._saturate(level, f"at {level.rate_rps:g} requests/s requests pile up")
            elif not self.stop.is_set():
                self._note(f"Too few requests ended to say anything: {level}.")
            return
        self._keep(found, gauges)

    async def _wait_idle(self) -> None:
        """Waits until the server has forgotten the requests that were given up."""
        for _ in range(_LOOKS):
            if not limits.gauges(await self.client.metrics()).inside:
                return
            await asyncio.sleep(_LOOK_S)

    def _keep(self, found: Measured, gauges: limits.Gauges) -> None:
        self.run.levels.append(found)
        self.progress.say(line(found))
        if gauges.slots is not None and found.level.clients > gauges.slots:
            self.run.max_num_seqs = gauges.slots
        if found.cached > _PREFIX_CACHED:
            self._note(f"At {found.level} {100 * found.cached:.0f} % of the prompts came from a cache: prefill looks too fast.")
        if found.lag_s > _LATE * found.ttft.mean and not found.starved:
            self._note(f"At {found.level} this client was {1e3 * found.lag_s:.1f} ms late on the average: its machine is busy.")
        if found.starved:
            self._saturate(found.level, f"at {found.level} this client was short of CPU and would have measured itself")
        elif reason := saturation([one for one in self.run.levels if one.level.lengths == found.level.lengths]):
            self._saturate(found.level, reason)

    def _saturate(self, level: Level, reason: str) -> None:
        self.saturated[level.lengths] = reason
        self._note(f"No more load on requests of {level.lengths} tokens: {reason}.")

    def _note(self, text: str) -> None:
        self.run.notes.append(text)
        self.progress.say(text)

    def _done(self) -> float:
        return min(1.0, (time.perf_counter() - self.begun_s) / self.wish.duration_s)

    def _cycle_s(self, level: Level) -> float:
        """About how long a request takes at this load: as at the last load measured, and the prompts of more clients."""
        alone = self.alone[level.lengths]
        seen = [one for one in self.run.levels if one.level.lengths == level.lengths]
        if not level.clients:
            return seen[-1].e2e.mean if seen else alone.e2e_s
        if not seen:
            return alone.e2e_s + (level.clients - 1) * alone.ttft_s
        growth = max(0.0, seen[-1].e2e.mean - alone.e2e_s) / max(1, seen[-1].level.clients - 1)
        guess = seen[-1].e2e.mean + (level.clients - seen[-1].level.clients) * max(growth, alone.ttft_s / 2)
        return min(guess, seen[-1].e2e.mean * math.ceil(level.clients / seen[-1].level.clients))

    def _stagger_s(self, level: Level, cycle_s: float) -> float:
        return min(cycle_s, level.clients * self.alone[level.lengths].ttft_s)


def _cycles(level: Level) -> float:
    """Requests' times that a level needs at least: for the first ones to end, and for enough others after them."""
    if level.rate_rps:
        return _WARM_CYCLES + _FEWEST_CYCLES
    warm = _WARM_CYCLES if level.clients > 1 else 0.0
    return warm + max(_FEWEST_CYCLES, _FEWEST_REQUESTS / level.clients)


def line(found: Measured) -> str:
    """One level in one line."""
    return (
        f"{found.level!s:62} {found.requests:5} requests"
        f"  TTFT {1e3 * found.ttft.mean:8.1f} ms +- {100 * found.ttft.relative:4.1f} %"
        f"  inter-token {1e3 * found.tpot.mean:7.2f} ms +- {100 * found.tpot.relative:4.1f} %"
        f"  {found.throughput_rps:7.3g} requests/s{'' if found.steady else '  not steady'}"
    )
