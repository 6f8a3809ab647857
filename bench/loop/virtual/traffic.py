"""Requests that arrive: the Azure traces, Poisson arrivals at any rate, and the lengths of both."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

TRACES = Path(os.environ.get("SERVINGPLAN_DATA", Path(__file__).parents[4] / "shared/data")) / "traces"
LONGEST_TOKENS = 16_384
_JITTER_S = 1.0
_NEIGHBOURS = 50


@dataclass(frozen=True, slots=True)
class Trace:
    """An hour of a real service.

    Attributes:
        time_s: (n,) ascending, from 0.
        prompt_tokens: (n,)
        output_tokens: (n,)
    """

    time_s: np.ndarray
    prompt_tokens: np.ndarray
    output_tokens: np.ndarray

    @property
    def rate_rps(self) -> float:
        """Mean rate."""
        return len(self.time_s) / float(self.time_s[-1])

    def sample(self, pairs: int, chance: np.random.Generator | None = None) -> list[dict[str, int]]:
        """So many of its requests as a plan's ``lengths``: at random, or evenly over its prompt lengths."""
        order = np.lexsort((self.output_tokens, self.prompt_tokens))
        places = (np.arange(pairs) + 0.5) / pairs if chance is None else chance.random(pairs)
        picked = order[(places * len(order)).astype(int)]
        return [
            {"promptTokens": int(prompt), "outputTokens": int(output)}
            for prompt, output in zip(self.prompt_tokens[picked], self.output_tokens[picked], strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Requests:
    """What arrives, in order of arrival.

    Attributes:
        arrival_s: (n,) ascending.
        kind: (n,) index into `classes`.
        prompt_tokens: (n,) at least 1.
        output_tokens: (n,) at least 1.
        classes: Names of the request classes.
    """

    arrival_s: np.ndarray
    kind: np.ndarray
    prompt_tokens: np.ndarray
    output_tokens: np.ndarray
    classes: tuple[str, ...]


@lru_cache(maxsize=4)
def trace(name: str) -> Trace:
    """The Azure trace ``conv`` or ``code``."""
    path = TRACES / f"AzureLLMInferenceTrace_{name}.csv"
    rows = np.genfromtxt(path, delimiter=",", skip_header=1, dtype=None, encoding="utf-8")
    stamps = np.array([row[0] for row in rows], dtype="datetime64[ns]")
    time_s = (stamps - stamps[0]).astype(np.int64) / 1e9
    prompt, output = (np.array([max(1, int(row[column])) for row in rows]) for column in (1, 2))
    return Trace(time_s, np.minimum(prompt, LONGEST_TOKENS // 2), np.minimum(output, LONGEST_TOKENS // 2))


def azure(name: str, rate_rps: float, seconds: float, chance: np.random.Generator) -> tuple[np.ndarray, ...]:
    """A stretch of a trace from a random place on, at another mean rate over the whole trace.

    Time is left as it is, so that bursts last as long as they did. Where the rate is raised, a request comes several times
    within a second or so, each time with the lengths of a neighbour; where it is lowered, requests are left out at random.

    Returns:
        (n,) arrival times from 0, (n,) prompt tokens, (n,) output tokens.
    """
    whole = trace(name)
    span_s = float(whole.time_s[-1])
    begun_s = chance.uniform(0, span_s)
    rounds = int(np.ceil((begun_s + seconds) / span_s)) + 1
    factor = rate_rps / whole.rate_rps
    times, places = [], []
    for each in range(rounds):
        copies = int(factor) + (chance.random(len(whole.time_s)) < factor % 1)
        place = np.repeat(np.arange(len(whole.time_s)), copies)
        moved = chance.uniform(-_JITTER_S, _JITTER_S, len(place)) if factor > 1 else 0.0
        times.append(whole.time_s[place] + each * span_s - begun_s + moved)
        if factor > 1:
            place = np.clip(place + chance.integers(-_NEIGHBOURS, _NEIGHBOURS + 1, len(place)), 0, len(whole.time_s) - 1)
        places.append(place)
    arrival_s, place = np.concatenate(times), np.concatenate(places)
    inside = (arrival_s >= 0) & (arrival_s < seconds)
    order = np.argsort(arrival_s[inside], kind="stable")
    arrival_s, place = arrival_s[inside][order], place[inside][order]
    return arrival_s, whole.prompt_tokens[place], whole.output_tokens[place]


def poisson(
    rate_rps: Callable[[np.ndarray], np.ndarray], most_rps: float, seconds: float, chance: np.random.Generator
) -> np.ndarray:
    """(n,) arrival times of a Poisson process whose rate hangs on the time and never exceeds `most_rps`, by thinning."""
    n = chance.poisson(most_rps * seconds)
    arrival_s = np.sort(chance.uniform(0, seconds, n))
    return arrival_s[chance.uniform(0, most_rps, n) < rate_rps(arrival_s)]


def with_lengths(name: str, arrival_s: np.ndarray, chance: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Arrivals with lengths drawn from a trace."""
    whole = trace(name)
    place = chance.integers(0, len(whole.time_s), len(arrival_s))
    return arrival_s, whole.prompt_tokens[place], whole.output_tokens[place]


def merged(by_class: dict[str, tuple[np.ndarray, ...]], begin_s: float = 0.0) -> Requests:
    """Several classes as one stream that begins at `begin_s`."""
    arrival_s = np.concatenate([columns[0] for columns in by_class.values()]) + begin_s
    order = np.argsort(arrival_s, kind="stable")
    kind = np.repeat(np.arange(len(by_class)), [len(columns[0]) for columns in by_class.values()])
    prompt, output = (np.concatenate([columns[at] for columns in by_class.values()]) for at in (1, 2))
    return Requests(arrival_s[order], kind[order], prompt[order], output[order], tuple(by_class))
