"""Figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import matplotlib as mpl
import numpy as np

from virtualfleet.frontier import interval
from virtualfleet.outcome import Point

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

INK, FAINT = "#333333", "#9aa3ad"
COLOURS = {
    "servingplan": "#c0392b",
    "RouteBalance minmax": "#1f5a94",
    "RouteBalance raw": "#5aa0d8",
    "RouteBalance both": "#12395e",
    "BEST-Route-like": "#3b7d4f",
    "Avengers-Pro-like": "#7a4f9a",
    "fixed shares, shortest queue": "#b8862b",
    "fixed shares, llm-d-like": "#8a6d3b",
    "round robin": "#777777",
    "shortest queue": "#222222",
}
_SHOWN = "30"


class Cell(Protocol):
    points: dict[str, list[Point]]
    volumes: dict[str, tuple[float, float]]


def frontier(name: str, cells: Mapping[str, Sequence[Cell]], ours: str, path: Path) -> None:
    """Quality against the p95 and against dollars, and the ratio of hypervolumes by arrivals.

    Args:
        name: Of the set of prompts.
        cells: By arrivals, one per seed.
        ours: The router that the others are held against.
        path: Of the PNG.
    """
    figure, (slow, dear, ratio) = plt.subplots(1, 3, figsize=(19, 6.2), layout="constrained", width_ratios=(1.15, 1.15, 1))
    come = _SHOWN if _SHOWN in cells else next(iter(cells))
    for axis, key, factor, label in (
        (slow, "e2e_p95_s", 1.0, "p95 end to end, s"),
        (dear, "cost", 1e5, "dollars per 100,000 requests"),
    ):
        for router in COLOURS:
            if router in cells[come][0].points and router != "RouteBalance both":
                _envelope(axis, cells[come], router, key, factor, thick=router == ours)
        axis.set(xlabel=label, xscale="log" if key == "e2e_p95_s" else "linear")
        axis.set_ylabel("mean score")
        _plain(axis)
    slow.xaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
    slow.xaxis.set_minor_formatter(mpl.ticker.FormatStrFormatter("%g"))
    slow.set_title(f"Best score within a p95, {come} req/s", loc="left", fontsize=11, color=INK)
    dear.set_title("Best score within a cost", loc="left", fontsize=11, color=INK)
    dear.legend(frameon=False, fontsize=9, loc="lower right")
    _ratios(ratio, cells, ours)
    seeds = len(cells[come])
    figure.suptitle(
        f"{name}: 13 simulated instances, real scores, {seeds} seeds; dots are settings, lines what is not dominated",
        x=0.01, ha="left", fontsize=13, color=INK,
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _envelope(axis: Axes, cells: Sequence[Cell], router: str, key: str, factor: float, *, thick: bool) -> None:
    """Settings as means over seeds, and the best quality that is reached within each value of `key`."""
    by_setting = [[one.points[router][at] for one in cells] for at in range(len(cells[0].points[router]))]
    x = np.array([np.mean([getattr(point, key) for point in points]) for points in by_setting]) * factor
    y = np.array([np.mean([point.quality for point in points]) for points in by_setting])
    colour = COLOURS[router]
    axis.plot(x, y, "o", ms=3.5 if thick else 3, color=colour, alpha=0.35, mew=0)
    order = np.lexsort((-y, x))
    best = np.maximum.accumulate(y[order])
    kept = np.flatnonzero(np.diff(np.concatenate([[-np.inf], best])) > 0)
    style = {"lw": 2.4, "zorder": 5} if thick else {"lw": 1.3}
    if len(kept) == 1:
        axis.plot(x[order][kept], best[kept], "D", ms=7, color=colour, label=router)
    else:
        axis.plot(x[order][kept], best[kept], color=colour, label=router, **style)


def _ratios(axis: Axes, cells: Mapping[str, Sequence[Cell]], ours: str) -> None:
    names = list(cells)
    against = ("RouteBalance minmax", "RouteBalance raw", "RouteBalance both")
    for at, router in enumerate(against):
        for column, name in enumerate(names):
            mean, low, high = interval([one.volumes[ours][0] / one.volumes[router][0] for one in cells[name]])
            x = column + 0.2 * (at - 1)
            axis.plot([x, x], [low, high], color=COLOURS[router], lw=5, alpha=0.45, solid_capstyle="butt")
            axis.plot(x, mean, "o", color=COLOURS[router], ms=7, label=router if column == 0 else None)
    axis.axhline(1, color=FAINT, lw=1)
    axis.set_xticks(range(len(names)), [f"{name} req/s" if name[0].isdigit() else name for name in names])
    axis.set_xlim(-0.5, len(names) - 0.5)
    axis.set_title("Hypervolume of servingplan over that of", loc="left", fontsize=11, color=INK)
    axis.legend(frameon=False, fontsize=9)
    _plain(axis)


def burst(series: Mapping[str, np.ndarray], rate: tuple[np.ndarray, np.ndarray], path: Path, title: str) -> None:
    """Times to first token through bursts, over the arrivals.

    Args:
        series: By router, (m, 4): seconds, and the median, p90 and p99 of the requests that arrive then.
        rate: Seconds, and requests per second.
        path: Of the PNG.
        title: Over everything.
    """
    figure, axes = plt.subplots(
        1 + len(series), 1, figsize=(13, 2.2 + 1.9 * len(series)), sharex=True, layout="constrained",
        height_ratios=(0.7, *(1 for _ in series)),
    )  # fmt: skip
    axes[0].fill_between(rate[0], rate[1], step="post", color="#c9ced4", lw=0)
    axes[0].set_ylabel("arrivals, req/s")
    top = max(np.nanmax(values[:, 3]) for values in series.values())
    for axis, (router, values) in zip(axes[1:], series.items(), strict=True):
        colour = COLOURS.get(router, INK)
        axis.fill_between(values[:, 0], values[:, 1], values[:, 3], color=colour, alpha=0.18, lw=0)
        axis.plot(values[:, 0], values[:, 2], color=colour, lw=0.9, alpha=0.7)
        axis.plot(values[:, 0], values[:, 1], color=colour, lw=1.9)
        axis.set(yscale="log", ylim=(0.01, 1.3 * top))
        axis.yaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
        axis.yaxis.set_minor_formatter(mpl.ticker.NullFormatter())
        axis.set_ylabel("first token, s")
        axis.set_title(f"{router}: median, p90, and up to the p99", loc="left", fontsize=10, color=INK)
    axes[-1].set_xlabel("seconds")
    for axis in axes:
        _plain(axis)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _plain(axis: Axes) -> None:
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(colors=INK)
