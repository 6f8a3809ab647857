"""What a run shows: windows that kept their target, errors of the predictor, and how replicas moved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from virtual.engines import Outcome

MINUTE_S = 60.0


@dataclass(frozen=True, slots=True)
class Window:
    """One minute of one class on one pool.

    Attributes:
        minute: Since requests began.
        requests: That arrived in it and were sent there.
        p95_s: Of their time to first token.
        bound_s: The target.
    """

    request_class: str
    pool: str
    minute: int
    requests: int
    p95_s: float
    mean_s: float
    bound_s: float

    @property
    def kept(self) -> bool:
        """Whether the 95th percentile was within the target."""
        return self.p95_s <= self.bound_s


def windows(outcome: Outcome, bounds_s: Mapping[str, float], begin_s: float, until_s: float) -> list[Window]:
    """Every minute in which a class sent anything to a pool, by arrival."""
    requests, ttft_s = outcome.requests, outcome.ttft_s
    minute = ((requests.arrival_s - begin_s) // MINUTE_S).astype(int)
    inside = (minute >= 0) & (requests.arrival_s < until_s) & (outcome.pool >= 0)
    found = []
    for kind, name in enumerate(requests.classes):
        for at, pool in enumerate(outcome.pools):
            mine = inside & (requests.kind == kind) & (outcome.pool == at)
            for each in np.unique(minute[mine]):
                waited_s = ttft_s[mine & (minute == each)]
                p95_s = float(np.quantile(waited_s, 0.95, method="higher"))
                found.append(Window(name, pool, int(each), len(waited_s), p95_s, float(np.mean(waited_s)), bounds_s[name]))
    return found


def kept_share(found: Iterable[Window]) -> tuple[int, int]:
    """Windows that kept their target, and all."""
    listed = list(found)
    return sum(window.kept for window in listed), len(listed)


def interval(values: Sequence[float] | np.ndarray, seed: int = 1, draws: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of a mean."""
    if len(values) < 2:
        return (float("nan"), float("nan"))
    source, values = np.random.default_rng(seed), np.asarray(values)
    means = values[source.integers(0, len(values), (draws, len(values)))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


@dataclass(frozen=True, slots=True)
class Change:
    """A change of the wanted replicas of one pool."""

    now_s: float
    pool: str
    before: int
    after: int


def changes(times_s: Sequence[float], targets: Sequence[Mapping[str, int]]) -> list[Change]:
    """Every change from one look to the next."""
    found = []
    for (_, before), (now_s, after) in pairwise(zip(times_s, targets, strict=True)):
        found += [
            Change(now_s, pool, before.get(pool, 0), after.get(pool, 0))
            for pool in sorted(before.keys() | after.keys())
            if before.get(pool, 0) != after.get(pool, 0)
        ]
    return found


def returns(found: Sequence[Change], dwell_s: float) -> list[tuple[Change, Change]]:
    """Pairs of changes by which a pool left a number of replicas and was back at it, or beyond, within the dwell (A-B-A)."""
    back = []
    for at, one in enumerate(found):
        for other in found[at + 1 :]:
            if other.now_s - one.now_s >= dwell_s:
                break
            rose = one.after > one.before
            if other.pool == one.pool and (other.after <= one.before if rose else other.after >= one.before):
                back.append((one, other))
                break
    return back


def moved_units(found: Sequence[Change], units: Mapping[str, int], cycle_s: float, until_s: float) -> np.ndarray:
    """(cycles,) accelerator units that were started or stopped, whichever is more: one that changes its setup moves once."""
    cycles = int(np.ceil(until_s / cycle_s)) + 1
    started, stopped = np.zeros(cycles), np.zeros(cycles)
    for change in found:
        delta = units[change.pool] * (change.after - change.before)
        (started if delta > 0 else stopped)[int(change.now_s // cycle_s)] += abs(delta)
    return np.maximum(started, stopped)


def slope(times_h: np.ndarray, values: np.ndarray, *, blocks: int = 12, draws: int = 2000) -> tuple[float, float, float]:
    """Least-squares slope and its 95 % interval; residuals are drawn in blocks, since neighbours are alike."""
    centred = (times_h - times_h.mean()) / np.sum((times_h - times_h.mean()) ** 2)
    found = float(centred @ values)
    left = values - values.mean() - found * (times_h - times_h.mean())
    size, source = max(1, len(values) // blocks), np.random.default_rng(1)
    starts = source.integers(0, len(left) - size + 1, (draws, -(-len(left) // size)))
    drawn = (starts[:, :, None] + np.arange(size)).reshape(draws, -1)[:, : len(left)]
    low, high = np.quantile(found + left[drawn] @ centred, (0.025, 0.975))
    return found, float(low), float(high)
