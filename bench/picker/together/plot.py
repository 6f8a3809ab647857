"""One figure: what each way attains, and how far the pickers are from the plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np

from together.measure import SETTLED_MINUTES, Measured
from together.run import ONLINE, REPLANNED, WAYS, WEIGHTS
from virtualfleet.frontier import interval

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

COLOURS = {WEIGHTS: "#8a6d3b", ONLINE: "#5aa0d8", REPLANNED: "#c0392b"}
INK, FAINT = "#333333", "#9aa3ad"
WINDOW_MINUTES = 5.0

Cell = Mapping[str, Measured]


def together(cells: Sequence[Cell], path: Path, title: str) -> None:
    """Attainment against quality, as it is and against the weights on the same requests, and the distance over time.

    Args:
        cells: By way, one per seed.
        path: Of the PNG.
        title: Over everything.
    """
    figure, (whole, paired, apart) = plt.subplots(1, 3, figsize=(18, 5.6), layout="constrained", width_ratios=(1, 1, 1.4))
    _attained(whole, cells)
    _gained(paired, cells)
    _distance(apart, cells)
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, color=INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _attained(axis: Axes, cells: Sequence[Cell]) -> None:
    for way in WAYS:
        xs, ys = ([float(getattr(cell[way], key)) for cell in cells] for key in ("quality", "windows"))
        axis.scatter(xs, [100 * y for y in ys], s=20, color=COLOURS[way], alpha=0.45, lw=0)
        _cross(axis, xs, [100 * y for y in ys], COLOURS[way], way)
    axis.set_xlabel("mean score of all that was asked, refused = 0", color=INK)
    axis.set_ylabel("minutes of a class that keep its p95 TTFT, %", color=INK)
    axis.set_title("All minutes; dots are seeds", loc="left", fontsize=11, color=INK)
    axis.legend(frameon=False, fontsize=9, loc="best")
    _plain(axis)


def _gained(axis: Axes, cells: Sequence[Cell]) -> None:
    """Differences from the weights: of a pair of runs that were asked the same."""
    for way in (ONLINE, REPLANNED):
        for suffix, words in (("", "all minutes"), ("_settled", f"from minute {SETTLED_MINUTES}")):
            xs, ys = (
                [float(getattr(cell[way], key + suffix)) - float(getattr(cell[WEIGHTS], key + suffix)) for cell in cells]
                for key in ("quality", "windows")
            )
            _cross(axis, xs, [100 * y for y in ys], COLOURS[way], f"{way}, {words}", hollow=bool(suffix))
    axis.axhline(0, color=FAINT, lw=0.9)
    axis.axvline(0, color=FAINT, lw=0.9)
    axis.set_xlabel("score more than by the weights", color=INK)
    axis.set_ylabel("minutes kept more than by the weights, percentage points", color=INK)
    axis.set_title("Against the weights on the same requests, mean and 95 %", loc="left", fontsize=11, color=INK)
    axis.legend(frameon=False, fontsize=9, loc="best")
    _plain(axis)


def _cross(axis: Axes, xs: Sequence[float], ys: Sequence[float], colour: str, label: str, *, hollow: bool = False) -> None:
    (x, x_low, x_high), (y, y_low, y_high) = interval(xs), interval(ys)
    axis.errorbar(
        [x],
        [y],
        xerr=[[x - x_low], [x_high - x]],
        yerr=[[y - y_low], [y_high - y]],
        fmt="o",
        ms=8,
        color=colour,
        mfc="white" if hollow else colour,
        capsize=3,
        lw=1.6,
        label=label,
    )


def _distance(axis: Axes, cells: Sequence[Cell]) -> None:
    minutes = min(len(cell[way].distance) for cell in cells for way in WAYS)
    at = np.arange(minutes) + 0.5
    for way in WAYS:
        rows = np.array([cell[way].distance[:minutes] for cell in cells])
        found = np.array([interval(column) for column in rows.T])
        axis.plot(at, found[:, 0], color=COLOURS[way], lw=1.8, label=way)
        axis.fill_between(at, found[:, 1], found[:, 2], color=COLOURS[way], alpha=0.18, lw=0)
    chance = np.mean([cell[REPLANNED].noise[:minutes] for cell in cells], axis=0)
    axis.plot(at, chance, color=FAINT, lw=1, ls=(0, (3, 2)), label="by chance, if drawn by the plan")
    axis.axvline(WINDOW_MINUTES, color=FAINT, lw=0.9)
    axis.text(WINDOW_MINUTES, 1.0, " first whole window of choices", transform=axis.get_xaxis_transform(), va="top", fontsize=9)
    axis.set(xlabel="minutes since requests began", ylabel="distance of realised shares from the plan's", xlim=(0, minutes))
    axis.set_ylim(bottom=0)
    axis.set_title("Part of the requests sent to other models than planned, mean and 95 %", loc="left", fontsize=11, color=INK)
    axis.legend(frameon=False, fontsize=9, loc="upper right", bbox_to_anchor=(1, 0.94))
    _plain(axis)


def _plain(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="#e6e6e6", lw=0.6)
    axis.set_axisbelow(True)
