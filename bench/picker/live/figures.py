"""Percentiles and their spread."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from live.traffic import End

_DRAWS = 500
_BLOCK_S = 1.0


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over the rounds of a run.

    Attributes:
        middle: Median over the rounds.
        low, high: The lowest and the highest round.
    """

    middle: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Of one value a round."""
        every = [value for value in values if not math.isnan(value)]
        if not every:
            return cls(*[float("nan")] * 3)
        return cls(float(np.median(every)), min(every), max(every))

    def text(self, digits: int = 1) -> str:
        """As the tables print it."""
        return f"{self.middle:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def percentile(values: np.ndarray, percent: float) -> float:
    """A percentile of what is not NaN; NaN of nothing."""
    known = values[~np.isnan(values)]
    return float(np.percentile(known, percent)) if len(known) else float("nan")


def whole_ms(rows: np.ndarray) -> np.ndarray:
    """Milliseconds from sending to the end, of the requests that got a whole answer."""
    good = rows[rows["end"] == End.WHOLE]
    return np.asarray((good["end_s"] - good["sent_s"]) * 1e3)


def ttft_ms(rows: np.ndarray) -> np.ndarray:
    """Milliseconds from sending to the first token, of the requests that got one."""
    times = (rows["first_s"] - rows["sent_s"])[rows["status"] == 200] * 1e3
    return np.asarray(times[~np.isnan(times)])


def lag_ms(rows: np.ndarray) -> np.ndarray:
    """Milliseconds by which the generator was late."""
    return np.asarray((rows["sent_s"] - rows["planned_s"]) * 1e3)


def ratio(
    ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], figure: Callable[[np.ndarray], float], seed: int = 0
) -> Spread:
    """Ratio of a figure of two arms, with a 95 % interval.

    The arms ran next to each other in rounds, so the rounds are drawn in pairs, and the requests of each round in runs of
    neighbours, because the latencies of neighbours are alike.

    Args:
        ours: Values of each round, in the order of sending.
        theirs: The same of what it is compared with.
        figure: What is compared, such as a percentile.
        seed: Of the draws.
    """
    random = np.random.default_rng(seed)
    drawn = []
    for _ in range(_DRAWS):
        rounds = random.integers(0, len(ours), len(ours))
        above = figure(np.concatenate([_redrawn(ours[n], random) for n in rounds]))
        below = figure(np.concatenate([_redrawn(theirs[n], random) for n in rounds]))
        drawn.append(above / below)
    middle = figure(np.concatenate(ours)) / figure(np.concatenate(theirs))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Spread(float(middle), float(low), float(high))


def _redrawn(values: np.ndarray, random: np.random.Generator, block: int = 50) -> np.ndarray:
    if len(values) <= block:
        return values[random.integers(0, len(values), len(values))]
    begins = random.integers(0, len(values) - block, -(-len(values) // block))
    return np.asarray(values[(begins[:, None] + np.arange(block)).ravel()[: len(values)]])


def ends(rows: np.ndarray) -> dict[str, int]:
    """How many requests ended in which way."""
    return {end.name.lower(): int(np.sum(rows["end"] == end)) for end in End if np.any(rows["end"] == end)}


def windows(rows: np.ndarray, width_s: float = _BLOCK_S) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Middle, median and 95th percentile of the TTFT in ms, of the requests sent in each window of time."""
    known = rows[(rows["status"] == 200) & ~np.isnan(rows["first_s"])]
    number = (known["sent_s"] // width_s).astype(int)
    times = (known["first_s"] - known["sent_s"]) * 1e3
    found = [(n, times[number == n]) for n in np.unique(number)]
    at = np.array([(n + 0.5) * width_s for n, _ in found])
    median, high = (np.array([np.percentile(values, p) for _, values in found]) for p in (50, 95))
    return at, median, high
