"""What the picker costs a request: the whole way through Envoy to pods that answer at once.

The arms run one after the other in every round, each on an Envoy and a picker of its own that are started for it, so that
no other arm's picker looks at pods meanwhile. Latencies are from sending to the last byte; CPU is what the kernel counted
for the process during the cell.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from live import figures, stack
from live.figures import Spread
from live.process import busy_s, usage
from live.sender import Sender, sending
from live.traffic import End, Plan

WARM_UP = Plan(((1.0, 50.0), (1.0, 200.0)), stream=False)
LIMIT_MS = 20.0


@dataclass(slots=True)
class Cell:
    """One arm at one rate, over the rounds.

    Attributes:
        whole_ms: Latencies of each round.
        picker_us, envoy_us: CPU a request.
        lag_ms: 99th percentile of the generator's own delay.
        others: Cores that were busy with anything but the harness.
        failed: Requests without a whole answer.
        causes: What the router's access log says of answers that were not 200.
        unasked: Requests that went by the weights because the picker did not answer in time.
        sent: All requests.
    """

    arm: str
    pods: int
    rate_rps: float
    whole_ms: list[np.ndarray] = field(default_factory=list)
    picker_us: list[float] = field(default_factory=list)
    envoy_us: list[float] = field(default_factory=list)
    lag_ms: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)
    failed: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    unasked: int = 0
    sent: int = 0

    def percentile(self, percent: float) -> Spread:
        """Of the whole request, in ms."""
        return Spread.of(figures.percentile(values, percent) for values in self.whole_ms)


@dataclass(slots=True)
class Idle:
    """An arm without load: share of a core; and its memory when all load is over."""

    arm: str
    pods: int
    cpu: list[float] = field(default_factory=list)
    rss_mb: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Result:
    """Everything that the overhead runs found."""

    cells: dict[tuple[str, int, float], Cell] = field(default_factory=dict)
    idle: dict[tuple[str, int], Idle] = field(default_factory=dict)
    highest_rps: dict[tuple[str, int], list[float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Options:
    """How much is measured.

    Attributes:
        ceilings: Rates to climb for the highest with a p99 below `LIMIT_MS`; none to leave that out.
    """

    arms: Sequence[stack.Arm]
    pods: Sequence[int] = (13, 50)
    rates_rps: Sequence[float] = (50, 200, 500, 1000)
    seconds: float = 10.0
    idle_s: float = 10.0
    rounds: int = 3
    ceilings: Sequence[float] = ()
    seed: int = 0


def run(folder: Path, options: Options) -> Result:
    """All cells, printing each as it ends."""
    result = Result()
    for number in range(options.rounds):
        for count in options.pods:
            with stack.pods(folder / "pods", count, engines=False) as fleet, sending(folder / "pods") as sender:
                # Every other round backwards: what the box does beside us must not always meet the same arm.
                arms = list(options.arms)[:: -1 if number % 2 else 1]
                for arm in arms:
                    with stack.routers(folder / arm.name, arm, fleet) as routers:
                        _measure(result, arm.name, count, (routers[0], fleet, sender), options, number)
    return result


def _measure(
    result: Result,
    arm: str,
    count: int,
    scene: tuple[stack.Router, stack.Pods, Sender],
    options: Options,
    number: int,
) -> None:
    router, fleet, sender = scene
    sender.send([router], WARM_UP)
    _idle(result.idle.setdefault((arm, count), Idle(arm, count)), router, options.idle_s)
    for rate_rps in options.rates_rps:
        key = (arm, count, rate_rps)
        cell = result.cells.setdefault(key, Cell(*key))
        _load(cell, router, fleet, sender, options.seconds, options.seed + 1000 * number)
        print(f"  round {number}  {arm:15} {count:3} pods {rate_rps:6g}/s  {_words(cell)}", flush=True)
    if router.picker:
        result.idle[arm, count].rss_mb.append(usage(router.picker.pid).rss_mb)
    if options.ceilings:
        highest = _climb(router, sender, options, number)
        result.highest_rps.setdefault((arm, count), []).append(highest)
        print(f"  round {number}  {arm:15} {count:3} pods  p99 < {LIMIT_MS:g} ms up to {highest:g}/s", flush=True)


def _idle(idle: Idle, router: stack.Router, seconds: float) -> None:
    if not router.picker or not seconds:
        return
    before, began_s = usage(router.picker.pid), time.monotonic()
    time.sleep(seconds)  # the time is what is measured over
    after = usage(router.picker.pid)
    idle.cpu.append((after.cpu_s - before.cpu_s) / (time.monotonic() - began_s))


def _load(cell: Cell, router: stack.Router, pods: stack.Pods, sender: Sender, seconds: float, seed: int) -> None:
    plan = Plan(((seconds, cell.rate_rps),), stream=False, seed=seed)
    before, unasked = _taken(router, pods), router.unasked()
    rows, sending_s = sender.send([router], plan)
    used_s = {name: value - before[name] for name, value in _taken(router, pods).items()}
    wall_s, busy_s = used_s.pop("wall"), used_s.pop("busy")
    cell.whole_ms.append(figures.whole_ms(rows))
    cell.picker_us.append(used_s.get("picker", math.nan) / max(1, len(rows)) * 1e6)
    cell.envoy_us.append(used_s["envoy"] / max(1, len(rows)) * 1e6)
    cell.lag_ms.append(figures.percentile(figures.lag_ms(rows), 99))
    cell.others.append((busy_s - sum(used_s.values()) - sending_s) / wall_s)
    if failed := int(np.sum(rows["end"] != End.WHOLE)):
        cell.failed += failed
        refused = (line for line in router.log_lines() if line.get("status") != 200)
        cell.causes.update(f"{line.get('status')} {line.get('flags')} {line.get('details')}" for line in refused)
    cell.unasked += router.unasked() - unasked
    cell.sent += len(rows)


def _taken(router: stack.Router, pods: stack.Pods) -> dict[str, float]:
    """CPU seconds so far of each process and of the machine, and the time."""
    own = {name: each.cpu_s for name, each in router.usage().items()}
    return {**own, "pods": usage(pods.pid).cpu_s, "busy": busy_s(), "wall": time.monotonic()}


def _words(cell: Cell) -> str:
    last = cell.whole_ms[-1]
    return (
        f"p50 {figures.percentile(last, 50):6.2f} ms  p99 {figures.percentile(last, 99):7.2f} ms  "
        f"picker {cell.picker_us[-1]:5.0f} us  envoy {cell.envoy_us[-1]:5.0f} us  lag p99 {cell.lag_ms[-1]:5.2f} ms  "
        f"others {cell.others[-1]:4.2f} cores  failed {cell.failed}, unasked {cell.unasked}, of {cell.sent}"
        + (f" {dict(cell.causes)}" if cell.causes else "")
    )


def _climb(router: stack.Router, sender: Sender, options: Options, number: int) -> float:
    """The highest rate whose p99 stays below the limit, twice looked at before it is given up."""
    highest = 0.0
    for rate_rps in options.ceilings:
        for again in range(2):
            plan = Plan(((options.seconds, rate_rps),), stream=False, seed=options.seed + 7 + again + 1000 * number)
            unasked = router.unasked()
            rows, _ = sender.send([router], plan)
            answered = np.all(rows["end"] == End.WHOLE) and router.unasked() == unasked
            if answered and figures.percentile(figures.whole_ms(rows), 99) < LIMIT_MS:
                highest = rate_rps
                break
        else:
            return highest
    return highest


def table(result: Result) -> str:
    """The result as people read it: the median over the rounds, and the lowest and highest round in brackets."""
    lines = ["whole request, ms; CPU a request, us; median over rounds [lowest, highest]"]
    lines.append(
        f"{'pods':>4} {'req/s':>6}  {'arm':15}  {'p50':>18}  {'p99':>22}  {'picker us':>18}  {'envoy us':>18}  "
        f"{'lag p99':>8}  {'others':>6}  failed  unasked  of"
    )
    for (arm, count, rate_rps), cell in sorted(result.cells.items(), key=lambda each: (each[0][1], each[0][2])):
        lines.append(
            f"{count:4} {rate_rps:6g}  {arm:15}  {cell.percentile(50).text(2):>18}  {cell.percentile(99).text(2):>22}  "
            f"{Spread.of(cell.picker_us).text(0):>18}  {Spread.of(cell.envoy_us).text(0):>18}  "
            f"{Spread.of(cell.lag_ms).middle:8.2f}  {Spread.of(cell.others).middle:6.2f}  {cell.failed:6}  {cell.unasked:7}  "
            f"{cell.sent}"
        )
    for (arm, count), idle in result.idle.items():
        if idle.cpu:
            cpu = Spread.of(100 * value for value in idle.cpu)
            lines.append(f"idle, {count} pods, {arm}: {cpu.text(1)} % of a core, RSS {Spread.of(idle.rss_mb).text(0)} MB")
    for (arm, count), rates in result.highest_rps.items():
        lines.append(f"highest rate with p99 < {LIMIT_MS:g} ms, {count} pods, {arm}: {Spread.of(rates).text(0)} req/s")
    return "\n".join(lines)


TARGETS = {(200.0, 50): 3.0, (200.0, 99): 8.0, (500.0, 99): 12.0}
"""Milliseconds by rate and percentile, with 50 pods and the predictor on."""

CPU_TARGET_US = (500.0, 900.0)
"""Rate, and CPU of the picker a request."""


def verdict(result: Result) -> str:
    """Each target with what was found."""
    lines = []
    for (rate_rps, percent), limit_ms in TARGETS.items():
        if cell := result.cells.get((stack.PREDICTING, 50, rate_rps)):
            found = cell.percentile(percent)
            lines.append(_target(f"p{percent} at {rate_rps:g}/s", found, limit_ms, "ms"))
    if cell := result.cells.get((stack.PREDICTING, 50, CPU_TARGET_US[0])):
        lines.append(_target(f"picker CPU at {CPU_TARGET_US[0]:g}/s", Spread.of(cell.picker_us), CPU_TARGET_US[1], "us"))
    if idle := result.idle.get((stack.PREDICTING, 50)):
        lines.append(_target("idle", Spread.of(100 * value for value in idle.cpu), 6.0, "% of a core"))
        lines.append(_target("RSS", Spread.of(idle.rss_mb), 250.0, "MB"))
    return "\n".join(lines)


def _target(name: str, found: Spread, limit: float, unit: str) -> str:
    word = "met" if found.middle <= limit else "NOT met"
    return f"{name}: {found.text(1)} {unit}, target <= {limit:g}: {word}"
