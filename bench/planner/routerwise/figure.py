"""The headline study as one figure: the scores of all setups of every cell, and the cost of the optimum."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np

from routerwise.real import A100, H100, Hardware
from routerwise.study import GPUS, LOADS, TRIPLES, Cost, Result

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

MARKS = {
    "equal split": ("s", "#7a5195"), "by size": ("D", "#2f7f86"), "isolated": ("v", "#8a6d3b"),
    "sequential": ("x", "#444444"), "whole GPUs": ("^", "#e08e0b"), "tenths": ("P", "#1b6e3c"),
}  # fmt: skip
LABELS = {"whole GPUs": "replicas, whole GPUs", "tenths": "replicas, shared GPUs", "sequential": "allocate, then route"}


def draw(results: list[Result], costs: list[Cost], path: Path) -> None:
    figure = plt.figure(figsize=(15.5, 8.6), layout="constrained")
    grid = figure.add_gridspec(2, 3, width_ratios=(1, 1, 0.42))
    for row, hardware in enumerate((A100, H100)):
        for column, gpus in enumerate(GPUS):
            cells = [r for r in results if r.hardware is hardware and r.cell.space.gpus == gpus]
            _strips(figure.add_subplot(grid[row, column]), cells, hardware, gpus)
    _costs(figure.add_subplot(grid[:, 2]), costs)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncol=9, frameon=False, fontsize=9)
    sets = "; ".join(f"{name}: {', '.join(models)}" for name, models in TRIPLES.items())
    figure.suptitle(f"Best routing of every setup, its spread (above), and what other methods reach\n{sets}", fontsize=10)
    figure.savefig(path, dpi=140)


def _strips(axis: Axes, cells: list[Result], hardware: Hardware, gpus: int) -> None:
    source = np.random.default_rng(1)
    cells = sorted(cells, key=lambda r: (r.triple, r.cell.ttft_s, r.cell.rate_rps))
    for at, result in enumerate(cells):
        for packed, colour, size in ((False, "#b9c4d0", 5), (True, "#3a6ea5", 7)):
            ys = result.feasible(packed=packed)
            label = ("retained setup, best routing", "... that packs per GPU")[packed] if at == 0 else None
            axis.scatter(
                at + source.uniform(-0.27, 0.27, len(ys)), ys, s=size, color=colour, linewidths=0, label=label, rasterized=True
            )
        if result.others["joint MILP"]:
            axis.hlines(
                result.others["joint MILP"],
                at - 0.4,
                at + 0.4,
                color="#c8102e",
                lw=1.6,
                label="joint MILP" if at == 0 else None,
            )
            axis.annotate(f"{100 * result.spread():+.0f} %", (at, 0.772), ha="center", fontsize=6.8, color="#555555")
        for method, (marker, colour) in MARKS.items():
            label = LABELS.get(method, method) if at == 0 else None
            score = result.others[method]
            axis.scatter(
                [at],
                [np.nan if score is None else score],
                s=26,
                marker=marker,
                color=colour,
                linewidths=1.1,
                zorder=4,
                label=label,
            )
    for start in range(0, len(cells), len(LOADS)):
        first = cells[start]
        where = (start - 0.45, start + len(LOADS) - 0.55)
        axis.hlines(first.cell.scores.ceiling, *where, color="#999999", lw=0.9, ls=":")
        axis.annotate(f"{first.triple}, {1e3 * first.cell.ttft_s:g} ms", (np.mean(where), 0.8), ha="center", fontsize=8.5)
        if start:
            axis.axvline(start - 0.5, color="#dddddd", lw=0.8)
    axis.set_xticks(range(len(cells)), [f"{result.cell.rate_rps:g}" for result in cells], fontsize=8)
    kind = "measured" if hardware is H100 else "modelled"
    axis.set(ylim=(0.38, 0.82), xlim=(-0.6, len(cells) - 0.4), ylabel="mean score", xlabel="load, requests/s")
    axis.set_title(f"{gpus} x {hardware.name} ({kind} latency)", loc="left", fontsize=11)
    axis.grid(axis="y", alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _costs(axis: Axes, costs: list[Cost]) -> None:
    width = 0.8 / len(costs)
    for at, cost in enumerate(costs):
        heights = (cost.result.cpu_s["joint MILP"], cost.result.cpu_s["enumeration"], cost.seconds)
        xs = np.arange(3) + (at - (len(costs) - 1) / 2) * width
        label = f"{cost.result.cell.space.gpus} x {cost.result.hardware.name}"
        axis.bar(xs, heights, 0.9 * width, color=plt.get_cmap("cividis")(0.15 + 0.7 * at / len(costs)), label=label)
        axis.errorbar(xs[2], cost.seconds, yerr=cost.half_width_s, color="black", lw=1, capsize=2)
    axis.set_xticks(range(3), ["joint\nMILP", "exact LP,\neach setup", "Alg. 1-3,\neach setup"], fontsize=9)
    axis.set(yscale="log", ylabel="CPU seconds per cell, one thread")
    axis.set_title("Cost of the optimum", loc="left", fontsize=11)
    axis.legend(frameon=False, fontsize=8.5, loc="upper left")
    axis.grid(axis="y", alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
