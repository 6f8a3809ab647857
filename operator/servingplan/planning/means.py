"""Mean latency as lines of the load, for an SLO on the mean over all requests.

RouterWise (arXiv 2604.10907, Eq. 6) bounds the request-weighted mean latency. With n replicas that share a load X evenly, the
sum over requests is n f(X/n) with f(u) = u l(u): the perspective of f, jointly convex in X and n where f is convex, so that its
chords are linear rows (``planning.program``) and neither enumeration nor a bilinear term is needed.

A class's own part, what it takes on an idle replica, is linear in its rate and exact per class. The rest is waiting for others:
it is taken from the mix that the setup serves, and its chords lie above it, so that a plan never promises less than the form
says. Every latency is raised by the margin of its load before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from servingplan.latency.capacity import MAX_UTILIZATION, Latency, latency, margin, stable_rate_rps
from servingplan.latency.profile import EngineProfile, TokenMix
from servingplan.planning.problem import ClassDemand

METRICS = ("ttft", "inter_token", "e2e")
_IDLE = 1e-3
"""Fraction of the stable rate at which nobody waits for anybody."""
# Denser towards the full load, where the curves bend.
_GRID = MAX_UTILIZATION * np.array([0, 0.08, 0.2, 0.35, 0.5, 0.6, 0.7, 0.77, 0.83, 0.875, 0.91, 0.94, 0.965, 0.985, 1.0])


@dataclass(frozen=True, slots=True)
class Means:
    """Latency of one setup as functions of its load.

    Attributes:
        utilization: Fraction of the stable rate at which the curves end.
        own_s: By metric and class, seconds on an idle replica, margin included.
        lines: By metric, (slope, intercept) of the chords of the waiting: requests that wait on one replica are at least
            slope * utilisation + intercept.
    """

    utilization: float
    own_s: dict[str, dict[str, float]]
    lines: dict[str, tuple[tuple[float, float], ...]]


def mean_lines(profile: EngineProfile, entries: Sequence[ClassDemand], mix: TokenMix) -> Means:
    """The lines of a setup for the classes that it may serve among a background."""
    cv = max(entry.arrival_cv for entry in entries)
    return _mean_lines(profile, tuple((entry.name, entry.mix) for entry in entries), mix, cv)


@lru_cache(maxsize=1024)
def _mean_lines(profile: EngineProfile, entries: tuple[tuple[str, TokenMix], ...], mix: TokenMix, cv: float) -> Means:
    raised = 1.0 + margin(profile, mix, float(_GRID[0]))
    own: dict[str, dict[str, float]] = {metric: {} for metric in METRICS}
    for name, alone in entries:
        idle = seconds_of(idle_latency(profile, alone))
        for metric in METRICS:
            own[metric][name] = raised * idle[metric]
    curves = {metric: np.zeros(len(_GRID)) for metric in METRICS}
    stable = stable_rate_rps(profile, mix)
    idle = seconds_of(idle_latency(profile, mix))
    for at, load in enumerate(_GRID):
        if load <= 0:
            continue
        loaded = seconds_of(latency(profile, mix, float(load) * stable, arrival_cv=cv))
        more = 1.0 + margin(profile, mix, float(load), cv)
        for metric in METRICS:
            curves[metric][at] = float(load) * stable * (more * loaded[metric] - raised * idle[metric])
    # Where slots run out the form ends early: no load is planned that it has no finite latency for.
    known = np.logical_and.accumulate(np.isfinite(np.sum(list(curves.values()), axis=0)))
    return Means(
        utilization=float(_GRID[known][-1]),
        own_s=own,
        lines={metric: chords(_GRID[known], np.maximum(0.0, curve[known])) for metric, curve in curves.items()},
    )


def chords(xs: np.ndarray, ys: np.ndarray) -> tuple[tuple[float, float], ...]:
    """(slope, intercept) of lines whose maximum is convex, increasing and nowhere below the points.

    A curve that is not convex, as measured ones may be, gives way to the lower hull of its points, raised until it covers them.
    """
    ys = np.maximum.accumulate(ys)
    hull: list[int] = []
    for at in range(len(xs)):
        while len(hull) > 1 and _turns_down(xs, ys, hull[-2], hull[-1], at):
            hull.pop()
        hull.append(at)
    lines = [(float((ys[j] - ys[i]) / (xs[j] - xs[i])), float(ys[i]), float(xs[i])) for i, j in pairwise(hull)]
    found = [(slope, y - slope * x) for slope, y, x in lines]
    lowest = np.max([slope * xs + intercept for slope, intercept in found], axis=0)
    lift = float(np.max(ys - lowest, initial=0.0))
    return tuple((slope, intercept + lift) for slope, intercept in found)


def _turns_down(xs: np.ndarray, ys: np.ndarray, a: int, b: int, c: int) -> bool:
    return bool((ys[b] - ys[a]) * (xs[c] - xs[b]) >= (ys[c] - ys[b]) * (xs[b] - xs[a]))


def seconds_of(found: Latency) -> dict[str, float]:
    """Means by metric."""
    return {"ttft": found.ttft_mean_s, "inter_token": found.inter_token_s, "e2e": found.e2e_mean_s}


@lru_cache(maxsize=4096)
def idle_latency(profile: EngineProfile, mix: TokenMix) -> Latency:
    """Latency of requests that wait for nobody."""
    return latency(profile, mix, _IDLE * stable_rate_rps(profile, mix))
