"""What the demo does with a plan, in order: apply it, load it, change its target under load, see it settle."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from testbed.demo.live import Display
from testbed.demo.story import Story
from testbed.demo.view import Snapshot
from testbed.demo.watch import Watch
from testbed.load import LoadClass, Record, send

READY_WITHIN_S = 120.0
SETTLED_WITHIN_S = 120.0
STEADY_S = 45.0
_LOOK_EVERY_S = 1.5
_TABLE_EVERY_S = 0.1
_LONGEST_LOAD_S = 400.0
_PATIENCE_S = 150.0
_PLANNED_CV = 1.0
"""What the API takes where a plan gives no coefficient of variation."""


def load_classes(spec: Mapping[str, Any]) -> list[LoadClass]:
    """The requests that a plan expects, in the shares that it expects."""

    def lengths(of: Mapping[str, Any]) -> tuple[float, float]:
        return float(of["mean"]), float(of.get("cv", _PLANNED_CV))

    found = []
    for entry in spec["requestClasses"]:
        (prompt, prompt_cv), (output, output_cv) = lengths(entry["promptTokens"]), lengths(entry["outputTokens"])
        found.append(
            LoadClass(
                name=entry["name"],
                share=float(entry["rate"]),
                prompt_tokens=prompt,
                output_tokens=output,
                prompt_cv=prompt_cv,
                output_cv=output_cv,
                headers=entry.get("match", {}).get("headers", {}),
            )
        )
    return found


@dataclass(slots=True)
class Play:
    """One performance.

    Attributes:
        plan: The manifest as it was read.
        target_s: The TTFT that is asked for later.
        looks, records: What is seen on the way.
    """

    watch: Watch
    display: Display
    plan: Mapping[str, Any]
    target_s: str
    seed: int
    looks: list[Snapshot] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)

    async def bring_up(self, manifest: Path) -> Snapshot:
        """Apply the manifest and wait until the plan is served.

        Raises:
            DemoError: The plan was refused, or is not Ready in time.
        """
        await self.watch.kubectl("create", "namespace", self.watch.namespace)
        await self.watch.kubectl("apply", f"--namespace={self.watch.namespace}", f"--filename={manifest}")
        return await self.watch.wait_for(_is_served, "Ready=True", READY_WITHIN_S, self.display.seen)

    async def perform(self, before: Snapshot) -> Story:
        """Load, change, settle, load on; returns when every request has ended.

        Raises:
            DemoError: The changed plan is not Ready in time.
        """
        nodes = await self.watch.nodes()
        url = f"http://{before.address}"
        stop = asyncio.Event()
        load_from_s = time.time()
        busy = Busy()
        self.display.say(f"load: {self._rate_rps:g} requests per second through {url}")
        load = asyncio.create_task(self._load(url, stop))
        try:
            before = await self._steady(STEADY_S)
            self.display.say(f"under load: TTFT target {before.ttft_slo_s:g} s becomes {self.target_s} s")
            changed_s = time.time()
            await self._patch()
            settled, rerouted_s = await asyncio.gather(self._settled(before), _rerouted(url, before.generation))
            self.display.say("load on the new plan")
            after = await self._steady(STEADY_S)
            load_until_s = time.time()
            busy_part = busy.part()
        finally:
            stop.set()
            self.display.say("waiting for the last answers")
            await load
        return Story(
            models=tuple(model["name"] for model in self.plan["spec"]["models"]),
            nodes=nodes,
            before=before,
            after=after,
            looks=tuple(self.looks),
            records=tuple(self.records),
            load_from_s=load_from_s,
            changed_s=changed_s,
            rerouted_s=rerouted_s,
            settled_s=settled.at_s,
            load_until_s=load_until_s,
            machine_busy=busy_part,
        )

    @property
    def _rate_rps(self) -> float:
        return sum(each.share for each in self._classes)

    @property
    def _classes(self) -> Sequence[LoadClass]:
        return load_classes(self.plan["spec"])

    async def _load(self, url: str, stop: asyncio.Event) -> None:
        sent = send(
            url, self._classes, self._rate_rps, duration_s=_LONGEST_LOAD_S, seed=self.seed,
            patience_s=_PATIENCE_S, stop=stop, on_record=self.display.ended,
        )  # fmt: skip
        self.records += await sent

    async def _steady(self, seconds: float) -> Snapshot:
        end_s = time.monotonic() + seconds
        while True:
            self._look(await self.watch.snapshot())
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                return self.looks[-1]
            await asyncio.sleep(min(_LOOK_EVERY_S, left_s))

    async def _settled(self, before: Snapshot) -> Snapshot:
        def done(found: Snapshot) -> bool:
            return found.generation > before.generation and _is_served(found)

        return await self.watch.wait_for(done, "Ready=True after the change", SETTLED_WITHIN_S, self._look)

    def _look(self, found: Snapshot) -> None:
        self.looks.append(found)
        self.display.seen(found)

    async def _patch(self) -> None:
        change = json.dumps({"spec": {"slo": {"ttft": {"seconds": self.target_s}}}})
        named = ("modelservingplan", self.watch.plan, f"--namespace={self.watch.namespace}")
        await self.watch.kubectl("patch", *named, "--type=merge", f"--patch={change}")


def _is_served(found: Snapshot) -> bool:
    return found.ready and found.address != ""


async def _rerouted(url: str, generation: int) -> float:
    """The moment at which a router first says that it serves a later generation of the plan."""
    timeout = aiohttp.ClientTimeout(total=2)
    async with asyncio.timeout(SETTLED_WITHIN_S), aiohttp.ClientSession(timeout=timeout) as session:
        while True:
            with suppress(aiohttp.ClientError):
                async with session.get(f"{url}/-/table") as answer:
                    if (await answer.json())["generation"] > generation:
                        return time.time()
            await asyncio.sleep(_TABLE_EVERY_S)


class Busy:
    """How busy the machine is: a figure measured on a machine without time to spare says nothing of the plan."""

    def __init__(self) -> None:
        self._idle, self._all = _ticks()

    def part(self) -> float:
        """Busy part of all processors since the beginning."""
        idle, every = _ticks()
        return 1 - (idle - self._idle) / max(1, every - self._all)


def _ticks() -> tuple[int, int]:
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return fields[3] + fields[4], sum(fields)
