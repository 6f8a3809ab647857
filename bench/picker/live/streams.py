"""Many streams at once, long bodies, clients that go away, and clients that speak HTTP/2."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from live import figures, stack
from live.process import wait_until
from live.relay import relay
from live.sender import Sender, sending
from live.traffic import Plan

IN_FLIGHT, LEDGER = "servingplan_picker_requests_in_flight", "servingplan_picker_in_flight"
LARGE_BYTES = 10 * 1024 * 1024
_SAMPLE_S = 2.0
_RAMP_S = 12.0


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of the processes while streams are held.

    Attributes:
        at_s: When it was looked at.
        rss_mb: By process, one value a look.
        ends: How the streams ended.
        ttft_p99_ms: Of the streams begun after the ramp.
    """

    arm: str
    at_s: np.ndarray
    rss_mb: dict[str, np.ndarray]
    ends: dict[str, int]
    ttft_p99_ms: float

    def growth(self, name: str) -> tuple[float, float, float]:
        """MB at the begin and the end of the time after the ramp (means of a fifth each), and MB a minute in between."""
        settled = self.at_s > 2 * _RAMP_S if self.at_s[-1] > 4 * _RAMP_S else self.at_s > _RAMP_S
        at_s, rss_mb = self.at_s[settled], self.rss_mb[name][settled]
        fifth = max(1, len(rss_mb) // 5)
        slope = float(np.polyfit(at_s, rss_mb, 1)[0]) * 60 if len(at_s) > 1 else float("nan")
        return float(rss_mb[:fifth].mean()), float(rss_mb[-fifth:].mean()), slope


@contextmanager
def scene(folder: Path, arm: stack.Arm, *, engines: bool = False) -> Iterator[tuple[stack.Pods, stack.Router, Sender]]:
    """Thirteen pods, one router, one load process."""
    with (
        stack.pods(folder / "pods", 13, engines=engines) as fleet,
        sending(folder / "pods") as sender,
        stack.routers(folder / arm.name, arm, fleet) as routers,
    ):
        yield fleet, routers[0], sender


def hold(folder: Path, arm: stack.Arm, seconds: float, streams: int = 1000) -> Memory:
    """So many streams at any time, each of half a minute at a token a second."""
    plan = Plan(((seconds, 0.0),), streams=streams, body_bytes=4096, output_tokens=30.0, pace_s=1.0, patience_s=120.0)
    with scene(folder, arm) as (_, router, sender):
        looks: list[tuple[float, dict[str, float]]] = []
        sender.begin([router], plan)
        began_s = time.monotonic()
        while (at_s := time.monotonic() - began_s) < seconds + 10.0:
            looks.append((at_s, {name: each.rss_mb for name, each in router.usage().items()}))
            time.sleep(_SAMPLE_S)  # the pace of looking
        rows, _ = sender.finish()
    settled = rows[rows["sent_s"] > _RAMP_S]
    return Memory(
        arm.name,
        np.array([at_s for at_s, _ in looks]),
        {name: np.array([rss[name] for _, rss in looks]) for name in looks[0][1]},
        figures.ends(rows),
        figures.percentile(figures.ttft_ms(settled), 99),
    )


def words(memory: Memory) -> str:
    """One line a process."""
    lines = [f"{memory.arm}: streams ended {memory.ends}, TTFT p99 {memory.ttft_p99_ms:.1f} ms"]
    for name in memory.rss_mb:
        begin, end, slope = memory.growth(name)
        lines.append(f"  {name}: {begin:.1f} MB -> {end:.1f} MB, {slope:+.2f} MB a minute")
    return "\n".join(lines)


def large_bodies(folder: Path, arms: Sequence[stack.Arm], count: int = 10) -> str:
    """Bodies of 10 MB, one after the other."""
    lines = [f"bodies of {LARGE_BYTES / 2**20:g} MB, {count} each"]
    for arm in arms:
        with scene(folder, arm) as (_, router, sender):
            plan = Plan(((float(count), 1.0),), stream=False, body_bytes=LARGE_BYTES)
            before = router.usage()
            rows, _ = sender.send([router], plan)
            after = router.usage()
            rss = ", ".join(f"{name} {each.rss_mb:.0f} MB" for name, each in after.items())
            cpu_ms = {name: (after[name].cpu_s - before[name].cpu_s) / max(1, len(rows)) * 1e3 for name in after}
            times = figures.whole_ms(rows)
            lines.append(
                f"  {arm.name:15} p50 {figures.percentile(times, 50):6.1f} ms  max {max(times, default=np.nan):6.1f} ms  "
                f"{figures.ends(rows)}  CPU ms a request {{{', '.join(f'{k}: {v:.0f}' for k, v in cpu_ms.items())}}}  RSS {rss}"
            )
    return "\n".join(lines)


def aborts(folder: Path, arm: stack.Arm, seconds: float = 10.0) -> str:
    """Half of the clients go away, before or amid the answer; what is in flight must come back to nothing."""
    plan = Plan(((seconds, 60.0),), output_tokens=20.0, pace_s=0.1, abort_share=0.5, abort_after_s=0.5, body_bytes=4096, seed=3)
    with scene(folder, arm) as (fleet, router, sender):
        rows, _ = sender.send([router], plan)
        ended_s = time.monotonic()
        wait_until(lambda: not any(look["load"][0] for look in fleet.order("look").values()), "no pod has a request left", 10.0)
        pods_s = time.monotonic() - ended_s
        wait_until(lambda: router.metric(IN_FLIGHT) == router.metric(LEDGER) == 0, "nothing is in flight at the picker", 10.0)
        picker_s = time.monotonic() - ended_s
    return (
        f"client aborts: {figures.ends(rows)}; nothing left at the pods after {pods_s:.2f} s and at the picker after "
        f"{picker_s:.2f} s"
    )


def versions(folder: Path, arms: Sequence[stack.Arm], rate_rps: float = 100.0, seconds: float = 10.0) -> str:
    """Clients of HTTP/1.1 and HTTP/2, streams with clients that go away among them; both come by way of a relay."""
    lines = [f"HTTP versions at {rate_rps:g} req/s, a tenth of the clients goes away"]
    for arm in arms:
        with scene(folder, arm) as (_, router, sender):
            for version in (1, 2):
                with relay(folder, router, version) as port:
                    plan = Plan(((seconds, rate_rps),), output_tokens=5.0, pace_s=0.05, abort_share=0.1, abort_after_s=0.1)
                    sender.begin_at([port], plan)
                    rows, _ = sender.finish()
                spoken = Counter(line.get("protocol") for line in router.log_lines())
                ttft = figures.ttft_ms(rows)
                lines.append(
                    f"  {arm.name:15} HTTP/{version}  TTFT p50 {figures.percentile(ttft, 50):6.2f} ms  "
                    f"p99 {figures.percentile(ttft, 99):6.2f} ms  {figures.ends(rows)}  router has seen {dict(spoken)}"
                )
    return "\n".join(lines)
