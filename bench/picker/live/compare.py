"""TTFT of several ways of routing on the same requests, and its course through a burst and the death of a pod."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from live import figures, layout, stack
from live.sender import sending
from live.streams import scene
from live.traffic import End, Plan

_PATIENCE_S = 35.0
"""Longer than the longest answer of the slowest pod takes."""


def chats(pieces: tuple[tuple[float, float], ...], seed: int) -> Plan:
    """Chats as the layout's engines are made for."""
    return Plan(
        pieces,
        body_bytes=layout.PROMPT_BYTES,
        output_tokens=layout.OUTPUT_TOKENS,
        output_cv=layout.OUTPUT_CV,
        patience_s=_PATIENCE_S,
        seed=seed,
    )


def busiest(fleet: stack.Pods) -> str:
    """The pod with the most requests."""
    looks = fleet.order("look")
    return max(looks, key=lambda name: sum(looks[name]["load"][:2]))


def models(rows: np.ndarray) -> dict[str, float]:
    """Part of the answers by model, in the order of the tiers."""
    found = Counter(pod.decode().split("-")[0] for pod in rows["pod"] if pod)
    return {tier.model: found[tier.model] / max(1, found.total()) for tier in layout.TIERS}


def quality(rows: np.ndarray) -> float:
    """Mean score of the answers, by the mean of the class on each model."""
    scores = {tier.model: tier.quality["chat"] for tier in layout.TIERS}
    return sum(scores[model] * share for model, share in models(rows).items())


@dataclass(slots=True)
class Variant:
    """A way of routing that is compared with others.

    Attributes:
        page_age_s: Age of what pods' metrics pages tell.
    """

    name: str
    arm: stack.Arm
    page_age_s: float = 0.0


def compare(
    folder: Path, variants: Sequence[Variant], rounds: int, rate_rps: float = 30.0, seconds: float = 40.0, seed: int = 0
) -> str:
    """TTFT of variants on the same requests, in rounds next to each other; ratios to the first with 95 % intervals."""
    every: dict[str, list[np.ndarray]] = {variant.name: [] for variant in variants}
    for number in range(rounds):
        for variant in list(variants)[:: -1 if number % 2 else 1]:
            plan = chats(((seconds, rate_rps),), seed + number)
            with (
                stack.pods(folder / "pods", 13, engines=True) as fleet,
                sending(folder / "pods") as sender,
                stack.routers(folder / "routers", variant.arm, fleet) as routers,
            ):
                fleet.order("stale", age_s=variant.page_age_s)
                rows, _ = sender.send(routers, plan)
            every[variant.name].append(rows)
            print(
                f"  round {number}  {variant.name:20} TTFT p99 {figures.percentile(figures.ttft_ms(rows), 99):7.1f} ms",
                flush=True,
            )
    return _compared(every)


def _compared(every: Mapping[str, list[np.ndarray]]) -> str:
    names = list(every)
    base = [figures.ttft_ms(rows) for rows in every[names[0]]]
    lines = [f"{'variant':20}  TTFT mean     p50     p99 ms  quality  failed  p99 to {names[0]} [95 %]   mean to it [95 %]"]
    for name in names:
        rows = np.concatenate(every[name])
        ttft = figures.ttft_ms(rows)
        own = [figures.ttft_ms(each) for each in every[name]]
        tail = figures.ratio(own, base, lambda values: figures.percentile(values, 99))
        mean = figures.ratio(own, base, lambda values: float(np.mean(values)))
        failed = int(np.sum(rows["end"] != End.WHOLE))
        lines.append(
            f"{name:20}  {np.mean(ttft):9.1f}  {figures.percentile(ttft, 50):6.1f}  {figures.percentile(ttft, 99):9.1f}  "
            f"{quality(rows):7.3f}  {failed:6}  {tail.text(2):>24}  {mean.text(2):>18}"
        )
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Course:
    """A load with a burst and a pod's death, as one arm took it.

    Attributes:
        rows: One a request.
        pieces: Seconds and rates.
        kill_s: When the pod died.
    """

    arm: str
    rows: np.ndarray
    pieces: tuple[tuple[float, float], ...]
    kill_s: float
    victim: str


PIECES = ((20.0, 20.0), (12.0, 120.0), (28.0, 20.0), (30.0, 20.0))
"""Seconds and requests per second: calm, a burst, calm, and calm with a pod less."""


def course(folder: Path, arm: stack.Arm, pieces: tuple[tuple[float, float], ...] = PIECES, seed: int = 0) -> Course:
    """A burst, then the death of the busiest pod at the begin of the last piece."""
    plan = chats(pieces, seed)
    with scene(folder, arm, engines=True) as (fleet, router, sender):
        sender.begin([router], plan)
        began_s = time.monotonic()
        time.sleep(sum(seconds for seconds, _ in pieces[:-1]))  # the load until then
        victim = busiest(fleet)
        kill_s = time.monotonic() - began_s
        fleet.order("kill", [victim])
        rows, _ = sender.finish()
    return Course(arm.name, rows, pieces, kill_s, victim)


def save(found: Course, path: Path) -> None:
    """Keep a course for drawing it again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path.with_suffix(".npy"), found.rows)
    about = {"arm": found.arm, "pieces": found.pieces, "kill_s": found.kill_s, "victim": found.victim}
    path.with_suffix(".json").write_text(json.dumps(about))
