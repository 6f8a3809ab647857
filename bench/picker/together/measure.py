"""What is measured of a run: targets kept, quality, refusals, GPUs, and how far the realised shares are from the plan's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from together.service import CLASSES, MODELS, SLO_S, cost_per_hour
from together.trace import Asked
from virtual.drive import Tick
from virtual.engines import Outcome

MINUTE_S = 60.0
PERCENTILE = 0.95
SETTLED_MINUTES = 10


@dataclass(frozen=True, slots=True)
class Measured:
    """A run.

    Attributes:
        windows: Share of the minutes of a class in which 95 % of what was asked got its first token within the target, so that
            refused requests are late ones.
        windows_served: The same, of what was served.
        windows_settled: As `windows`, of the minutes in which the profiles have been corrected for a while.
        windows_by_class: As `windows`, by class.
        within: Share of all requests that got their first token within the target.
        within_served: Share of those that were served.
        quality: Mean true score, 0 for what was refused.
        quality_settled: As `quality`, from minute `SETTLED_MINUTES` on.
        quality_served: Mean true score of what was answered.
        refused: Share of all requests, whoever refused them.
        gpu_hours: Accelerators held, by the hour.
        cost: Of them.
        mix: (models,) shares of what was answered.
        distance: (minutes,) half the sum of differences between the realised and the planned shares of the models, the mean
            over classes by requests; the planned ones are those of the table in force.
        noise: (minutes,) what `distance` would be by chance alone if every request were drawn by the planned shares.
        chosen_s: Seconds after the first request at which a plan first was made with what pickers chose; NaN for never.
        changes: Changes of the wanted replicas.
        requests: How many.
        seconds: Processor time.
    """

    windows: float
    windows_served: float
    windows_settled: float
    windows_by_class: dict[str, float]
    within: float
    within_served: float
    quality: float
    quality_settled: float
    quality_served: float
    refused: float
    gpu_hours: float
    cost: float
    mix: np.ndarray
    distance: np.ndarray
    noise: np.ndarray
    chosen_s: float
    changes: int
    requests: int
    seconds: float


def measured(asked: Asked, outcome: Outcome, ticks: Sequence[Tick], begin_s: float, until_s: float, seconds: float) -> Measured:
    """Sums a run up."""
    requests, served = asked.requests, outcome.pool >= 0
    model = models_of(outcome)
    ttft_s = np.where(served, outcome.ttft_s, np.inf)
    target_s = np.array([SLO_S[name] for name in CLASSES])[requests.kind]
    within = ttft_s <= target_s
    score = np.where(served, asked.quality[np.arange(len(asked)), np.maximum(model, 0)], 0.0)
    minute = ((requests.arrival_s - begin_s) // MINUTE_S).astype(int)
    kept = windows(minute, requests.kind, within, np.ones_like(served))
    settled = windows(minute, requests.kind, within, minute >= SETTLED_MINUTES)
    inside = [tick for tick in ticks if begin_s <= tick.now_s <= until_s]
    distance, noise = distances(requests.kind, minute, model, requests.arrival_s, ticks)
    hours = (until_s - begin_s) / 3600
    moved = sum(one.target != other.target for one, other in pairwise(inside))
    return Measured(
        windows=float(np.mean(np.concatenate(list(kept.values())))),
        windows_served=float(np.mean(np.concatenate(list(windows(minute, requests.kind, within, served).values())))),
        windows_settled=float(np.mean(np.concatenate(list(settled.values())))) if minute.max() >= SETTLED_MINUTES else np.nan,
        windows_by_class={name: float(np.mean(values)) for name, values in kept.items()},
        within=float(within.mean()),
        within_served=float(within[served].mean()),
        quality=float(score.mean()),
        quality_settled=float(score[minute >= SETTLED_MINUTES].mean()) if minute.max() >= SETTLED_MINUTES else np.nan,
        quality_served=float(score[served].mean()),
        refused=float(1 - served.mean()),
        gpu_hours=hours * float(np.mean([tick.units for tick in inside])),
        cost=hours * float(np.mean([cost_per_hour(tick.asked) for tick in inside])),
        mix=np.bincount(model[served], minlength=len(MODELS)) / max(1, served.sum()),
        distance=distance,
        noise=noise,
        chosen_s=next((tick.now_s - begin_s for tick in ticks if any("pickers send" in said for said in tick.news)), np.nan),
        changes=moved,
        requests=len(asked),
        seconds=seconds,
    )


def models_of(outcome: Outcome) -> np.ndarray:
    """(n,) index of the model that answers, -1 for none."""
    at = {model.pool: index for index, model in enumerate(MODELS)}
    of_pool = np.array([at[pool] for pool in outcome.pools])
    return np.where(outcome.pool >= 0, of_pool[np.maximum(outcome.pool, 0)], -1)


def windows(minute: np.ndarray, kind: np.ndarray, within: np.ndarray, counted: np.ndarray) -> dict[str, np.ndarray]:
    """By class whether each of its minutes kept the target for so many of its counted requests as the percentile says."""
    found = {}
    for at, name in enumerate(CLASSES):
        mine = counted & (kind == at)
        total = np.bincount(minute[mine])
        good = np.bincount(minute[mine], weights=within[mine])
        busy = total > 0
        found[name] = good[busy] >= PERCENTILE * total[busy]
    return found


def distances(
    kind: np.ndarray, minute: np.ndarray, model: np.ndarray, arrival_s: np.ndarray, ticks: Sequence[Tick]
) -> tuple[np.ndarray, np.ndarray]:
    """By minute: the distance of the realised shares from those of the tables in force, and what chance alone would give."""
    begun_s = np.array([tick.now_s for tick in ticks])
    # A table is followed from the tick on at which it is published.
    at = np.maximum(np.searchsorted(begun_s, arrival_s, side="right") - 1, 0)
    planned = np.array([[_shares(tick, name) for name in CLASSES] for tick in ticks])[at, kind]
    minutes = int(minute.max()) + 1
    apart, chance = np.zeros(minutes), np.zeros(minutes)
    for each in range(minutes):
        now = (minute == each) & (model >= 0)
        for which in range(len(CLASSES)):
            mine = now & (kind == which)
            if not mine.any():
                continue
            part, wanted = mine.sum() / now.sum(), planned[mine].mean(axis=0)
            realised = np.bincount(model[mine], minlength=len(MODELS)) / mine.sum()
            apart[each] += part * np.abs(realised - wanted).sum() / 2
            # The mean absolute deviation of a share drawn so often, by its normal limit.
            spread = np.sqrt(2 / np.pi * wanted * (1 - wanted) / mine.sum())
            chance[each] += part * spread.sum() / 2
    return apart, chance


def _shares(tick: Tick, name: str) -> list[float]:
    weights = tick.weights.get(name, {})
    total = sum(weights.values())
    return [weights.get(model.pool, 0.0) / total if total else 0.0 for model in MODELS]
