"""The pictures of the live runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np

from live import figures, stack
from live.compare import Course
from live.overhead import CPU_TARGET_US, TARGETS, Cell, Result
from live.traffic import End

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

COLOURS = {stack.WEIGHTS: "#8A8A8A", stack.RANDOM: "#E69F00", stack.OURS: "#0072B2", stack.PREDICTING: "#009E73"}
NAMES = {
    stack.WEIGHTS: "no picker, the plan's weights",
    stack.RANDOM: "a picker at random",
    stack.OURS: "the picker",
    stack.PREDICTING: "the picker with predicted quality",
}
_BAD = "#B3261E"
_STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 11,
    "text.color": "#2B2B2B",
    "xtick.color": "#2B2B2B",
    "ytick.color": "#2B2B2B",
}


def courses(path: Path, found: Sequence[Course]) -> None:
    """TTFT of every request through a burst and a pod's death, one panel an arm."""
    with mpl.rc_context(_STYLE):
        figure, axes = plt.subplots(
            len(found), 1, figsize=(12, 2.7 * len(found) + 1.4), sharex=True, sharey=True, squeeze=False
        )
        figure.suptitle(
            "Time to first token through a burst and the death of a pod", x=0.075, ha="left", fontsize=14, weight="bold"
        )
        rates = ", ".join(f"{rate:g} for {seconds:g} s" for seconds, rate in found[0].pieces)
        figure.text(
            0.075,
            1 - 0.52 / figure.get_figheight(),
            f"real Envoy and picker, 13 simulated vLLM pods of four models; requests a second: {rates}",
            color="#555555",
        )
        for axis, each in zip(axes[:, 0], found, strict=True):
            _course(axis, each)
        axes[-1, 0].set_xlabel("seconds")
        figure.subplots_adjust(left=0.075, right=0.975, top=1 - 0.95 / figure.get_figheight(), bottom=0.075, hspace=0.3)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)
        plt.close(figure)


def _course(axis: Axes, found: Course) -> None:
    colour = COLOURS[found.arm]
    rows = found.rows
    served = rows[(rows["status"] == 200) & ~np.isnan(rows["first_s"])]
    ttft_s = served["first_s"] - served["sent_s"]
    axis.set_yscale("log")
    axis.scatter(served["sent_s"], ttft_s, s=7, color=colour, alpha=0.28, lw=0)
    at_s, p50_ms, p95_ms = figures.windows(rows, 2.0)
    axis.plot(at_s, p95_ms / 1e3, color=colour, lw=2.0)
    axis.plot(at_s, p50_ms / 1e3, color=colour, lw=1.1, ls=(0, (4, 2)))
    lost = rows[~np.isin(rows["end"], [End.WHOLE, End.ABORTED, End.REFUSED])]
    top = 30.0
    axis.scatter(lost["end_s"], np.full(len(lost), top * 0.8), marker="x", s=28, color=_BAD, lw=1.3, zorder=4)
    begin_s = 0.0
    calm = min(rate for _, rate in found.pieces)
    for seconds, rate in found.pieces:
        if rate > calm:
            axis.axvspan(begin_s, begin_s + seconds, color="#000000", alpha=0.06, lw=0)
            axis.text(begin_s + 0.3, top * 0.62, f"{rate:g} a second", fontsize=9, color="#555555", va="center")
        begin_s += seconds
    axis.axvline(found.kill_s, color=_BAD, lw=1.1, ls=(0, (2, 2)))
    axis.text(found.kill_s + 0.3, top * 0.45, f"{found.victim} killed", fontsize=9, color=_BAD, va="center")
    p99 = figures.percentile(figures.ttft_ms(rows), 99) / 1e3
    summary = f"p50 {np.median(ttft_s):.3f} s, p99 {p99:.2f} s, {len(lost)} of {len(rows)} requests lost"
    axis.set_title(f"{NAMES[found.arm]}:  {summary}")
    axis.set_ylim(0.008, top)
    axis.set_yticks([0.01, 0.1, 1, 10], ["10 ms", "0.1 s", "1 s", "10 s"])
    axis.set_xlim(0, sum(seconds for seconds, _ in found.pieces))
    axis.grid(axis="y", color="#DDDDDD", lw=0.7)
    last = len(at_s) - 1
    axis.annotate("p95", (at_s[last], p95_ms[last] / 1e3), xytext=(4, 0), textcoords="offset points", fontsize=8.5, va="center")
    axis.annotate("p50", (at_s[last], p50_ms[last] / 1e3), xytext=(4, 0), textcoords="offset points", fontsize=8.5, va="center")


def overheads(path: Path, result: Result) -> None:
    """Whole-request latency and CPU a request by rate: one column for each number of pods."""
    counts = sorted({count for _, count, _ in result.cells})
    with mpl.rc_context(_STYLE):
        figure, axes = plt.subplots(
            3, len(counts), figsize=(5.8 * len(counts) + 0.6, 9.4), squeeze=False, sharex=True, sharey="row"
        )
        figure.suptitle("What the picker costs a request", x=0.075, ha="left", fontsize=14, weight="bold")
        figure.text(
            0.075,
            0.938,
            f"real Envoy, pods that answer at once, 4 kB prompts, all on {stack.cores()} cores; median of the rounds, "
            "bars from the lowest to the highest",
            color="#555555",
        )
        for column, count in enumerate(counts):
            rates = sorted({rate for _, pods, rate in result.cells if pods == count})
            for row, (words, value) in enumerate(_PANELS):
                axis = axes[row, column]
                axis.set_title(f"{count} pods: {words}")
                for arm in (arm for arm in stack.ARMS if any((arm, count) == key[:2] for key in result.cells)):
                    _line(axis, arm, [cell for key, cell in sorted(result.cells.items()) if key[:2] == (arm, count)], value)
                axis.set_xscale("log")
                axis.set_xlim(0.8 * rates[0], 1.25 * rates[-1])
                if row == _LOGARITHMIC:
                    axis.set_yscale("log")
                    axis.yaxis.set_major_locator(FixedLocator([1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]))
                    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
                    axis.yaxis.set_minor_locator(NullLocator())
                else:
                    axis.set_ylim(bottom=0)
                _targets(axis, count, row)
                axis.grid(axis="y", color="#DDDDDD", lw=0.7)
            axes[-1, column].set_xticks(rates, [f"{rate:g}" for rate in rates])
            axes[-1, column].minorticks_off()
            axes[-1, column].set_xlabel("requests a second")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, frameon=False, ncols=4, loc="upper left", bbox_to_anchor=(0.068, 0.934), fontsize=9.5)
        figure.subplots_adjust(left=0.075, right=0.975, top=0.865, bottom=0.06, hspace=0.26, wspace=0.1)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)
        plt.close(figure)


_LOGARITHMIC = 1
_PANELS = (
    ("whole request p50, ms", lambda cell: cell.percentile(50)),
    ("whole request p99, ms", lambda cell: cell.percentile(99)),
    ("CPU of the picker a request, us", lambda cell: figures.Spread.of(cell.picker_us)),
)


def _targets(axis: Axes, count: int, row: int) -> None:
    """What the predicting picker is to stay under; said for 50 pods alone."""
    if count == 50:
        percent = {0: 50, 1: 99}.get(row)
        found = [(rate_rps, limit) for (rate_rps, of), limit in TARGETS.items() if of == percent]
        found += [(CPU_TARGET_US[0], CPU_TARGET_US[1])] if row == 2 else []
        for rate_rps, limit in found:
            axis.hlines(limit, 0.88 * rate_rps, 1.14 * rate_rps, color=_BAD, lw=1.6)
            axis.annotate("target", (rate_rps, limit), xytext=(0, 3), textcoords="offset points", **_LABEL)


_LABEL = {"color": _BAD, "fontsize": 8.5, "ha": "center"}


def _line(axis: Axes, arm: str, cells: Sequence[Cell], value: Callable[[Cell], figures.Spread]) -> None:
    found = [value(cell) for cell in cells]
    x = [cell.rate_rps for cell in cells]
    middle = np.array([each.middle for each in found])
    if np.all(np.isnan(middle)):
        return
    spread = np.array([[each.middle - each.low, each.high - each.middle] for each in found]).T
    axis.errorbar(x, middle, yerr=spread, color=COLOURS[arm], marker="o", ms=5, lw=1.7, capsize=3, label=NAMES[arm])
