"""What runs with and without correction come to, as printed tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from virtual import service
from virtual.analysis import Window, interval, kept_share
from virtual.forecast import Compared
from virtual.scenes import BEGIN_S, SPEEDS, Result

SETTLED_CYCLES = 10
CYCLE_S = 60.0


@dataclass(frozen=True, slots=True)
class Group:
    """Windows that are judged together."""

    title: str
    holds: Callable[[Result, Window], bool]


def groups() -> list[Group]:
    """All windows, and those of every class on every pool of either speed."""

    def group(name: str, pool: str, kind: str, speed: float) -> Group:
        return Group(
            f"{name} on {service.titles()[pool]}, x{speed}",
            lambda run, window: (window.request_class, window.pool, run.speed[kind]) == (name, pool, speed),
        )

    parts = [
        group(name, pool, kind, speed) for name in service.SLO_S for pool, kind in service.pools().items() for speed in SPEEDS
    ]
    return [Group("all", lambda _run, _window: True), *parts]


def window_table(off: Sequence[Result], on: Sequence[Result]) -> dict[str, tuple[list[float], list[float]]]:
    """Prints the windows kept after ten cycles; gives the share of every seed, without and with correction."""
    print(f"{'windows kept after 10 cycles':32}{'declared':>28}{'corrected':>28}   (95 % over seeds)")
    shares = {}
    for group in groups():
        cells, values = [], []
        for runs in (off, on):
            counts = [kept_share(window for window in _settled(run) if group.holds(run, window)) for run in runs]
            each = [kept / total for kept, total in counts if total]
            kept, total = (sum(count[at] for count in counts) for at in (0, 1))
            low, high = interval(each)
            said = f" ({100 * low:.0f}-{100 * high:.0f})" if len(each) > 1 else ""
            cells.append(f"{100 * kept / total:.1f} % of {total}{said}" if total else "none")
            values.append(each)
        if any(values):
            print(f"{group.title:32}" + "".join(f"{cell:>28}" for cell in cells))
            shares[group.title] = (values[0], values[1])
    early = [kept_share(window for window in run.windows if window.minute < SETTLED_CYCLES) for run in on]
    settled = [window for run in on for window in _settled(run)]
    few = sum(window.requests < 20 for window in settled)
    print(f"corrected, in the first 10 cycles: {100 * sum(k for k, _ in early) / max(1, sum(n for _, n in early)):.1f} %")
    print(f"corrected: {sum(w.requests for w in settled)} requests in {len(settled)} windows, {few} of them with fewer than 20")
    return shares


def _settled(run: Result) -> list[Window]:
    return [window for window in run.windows if window.minute >= SETTLED_CYCLES]


def error_table(off: Sequence[Result], on: Sequence[Result]) -> None:
    """Prints how far the predicted mean TTFT was from the measured one after ten cycles."""
    print(f"{'mean TTFT predicted / observed':42}{'a minute':>10}{'all minutes':>20}{'bias':>9}{'minutes':>9}")
    for title, runs in (("declared", off), ("corrected", on)):
        for pool, kind in service.pools().items():
            for speed in SPEEDS:
                mine = [_errors(run, pool) for run in runs if run.speed[kind] == speed]
                single = np.concatenate([np.zeros(0), *(each for each, _ in mine)])
                signed = np.array([whole for each, whole in mine if len(each)])
                if not len(signed):
                    continue
                low, high = interval(np.abs(signed))
                print(
                    f"{f'{title}, {service.titles()[pool]}, x{speed}':42}{100 * np.median(np.abs(single)):>8.1f} %"
                    f"{100 * np.mean(np.abs(signed)):>9.1f} % ({100 * low:.0f}-{100 * high:.0f}){100 * np.mean(signed):>+9.1f}"
                    f"{len(single):>9}"
                )


def _errors(run: Result, pool: str) -> tuple[np.ndarray, float]:
    """Relative errors of single minutes, and that of the mean over all of a run's requests."""
    mine = [one for one in run.run.compared if one.pool == pool and one.now_s >= BEGIN_S + CYCLE_S * SETTLED_CYCLES]
    mine = [one for one in mine if one.observed_mean_s > 0]
    if not mine:
        return np.zeros(0), 0.0
    predicted, observed = (sum(one.requests * value(one) for one in mine) for value in (_predicted, _observed))
    return np.array([one.predicted_mean_s / one.observed_mean_s - 1 for one in mine]), predicted / observed - 1


def _predicted(one: Compared) -> float:
    return one.predicted_mean_s


def _observed(one: Compared) -> float:
    return one.observed_mean_s


def by_cycle(runs: Sequence[Result], cycles: int) -> np.ndarray:
    """(runs x pools, cycles) absolute relative error of the predicted mean TTFT; NaN where there is none."""
    rows = np.full((len(runs) * len(service.pools()), cycles), np.nan)
    for row, (run, pool) in enumerate((run, pool) for run in runs for pool in service.pools()):
        for one in run.run.compared:
            cycle = int((one.now_s - BEGIN_S) // CYCLE_S) - 1
            if one.pool == pool and 0 <= cycle < cycles and one.observed_mean_s > 0:
                rows[row, cycle] = abs(one.predicted_mean_s / one.observed_mean_s - 1)
    return rows


def cost_lines(off: Sequence[Result], on: Sequence[Result]) -> None:
    """Prints what was served, refused and lost, with how many GPUs, and what it cost to find out."""
    for title, runs in (("declared", off), ("corrected", on)):
        ticks = [[tick for tick in run.run.ticks if BEGIN_S <= tick.now_s <= run.until_s] for run in runs]
        gpus = np.mean([np.mean([tick.units for tick in each]) for each in ticks])
        moves = np.mean([sum(a.target != b.target for a, b in pairwise(each)) for each in ticks])
        print(
            f"{title}: {sum(run.requests for run in runs)} requests, {sum(run.refused for run in runs)} refused by the plan,"
            f" {sum(run.unserved for run in runs)} failed; {gpus:.1f} GPUs, {moves:.1f} changes of replicas a run;"
            f" {np.mean([run.seconds for run in runs]):.0f} s a run,"
            f" longest decision {max(tick.seconds for each in ticks for tick in each):.2f} s"
        )
