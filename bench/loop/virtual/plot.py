"""Figures: one per run, with the time on a shared axis, and one over all seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np

from virtual import service
from virtual.analysis import Change
from virtual.drive import Tick
from virtual.scenes import ChurnResult, NoiseResult, Result

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = {"h100": "#1f5a94", "l40s": "#c8642b"}
CLASS_COLOURS = {"chat": "#3b7d4f", "code": "#7a4f9a"}
CLASS_MARKS = {"chat": "o", "code": "s"}
TARGET, INK, FAINT = "#b3202c", "#333333", "#9aa3ad"
_SHOWN_S = (0.1, 100.0)

Label = tuple[float, str, str]
"""Height in the data's units, words, colour."""


def one_run(results: Sequence[Result], path: Path, title: str, marks: Sequence[tuple[float, str]] = ()) -> None:
    """Target, predicted and observed latency, load, weights and replicas over time; a column per result.

    Args:
        results: Runs of equal length.
        path: Of the PNG.
        title: Over everything.
        marks: Seconds since requests began, and what happened then.
    """
    size = (7.4 * len(results) + 0.6, 12.5)
    figure, rows = plt.subplots(
        5,
        len(results),
        figsize=size,
        sharex=True,
        sharey="row",
        squeeze=False,
        layout="constrained",
        height_ratios=(1.5, 1.5, 1, 0.9, 1),
    )
    columns = [_drawn(axes, result) for axes, result in zip(rows.T, results, strict=True)]
    for axes, labels, result in zip(rows.T, columns, results, strict=True):
        end = (result.until_s - result.begin_s) / 60
        axes[-1].set_xlim(-0.5, end * 1.16)
        axes[-1].set_xticks(np.arange(0, end + 1, 5))
        axes[-1].set_xlabel("minutes since requests began", color=INK)
        for axis, each in zip(axes, labels, strict=True):
            _at_the_end(axis, end, each)
            for at_s, words in marks:
                axis.axvline(at_s / 60, color=FAINT, lw=0.9, ls=(0, (2, 2)))
                _words(axis, words if axis is axes[2] else "", (at_s / 60, 0.9), ("data", "axes fraction"), INK)
        kept, total = sum(window.kept for window in result.windows), len(result.windows)
        heading = "corrected by live latency" if result.calibration else "profiles as declared"
        axes[0].set_title(f"{heading}: {kept} of {total} windows kept\n", loc="left", fontsize=11, color=INK, weight="bold")
    for axis, label in zip(rows[:, 0], ("p95 TTFT, s", "p95 TTFT, s", "requests/s", "share of class", "replicas"), strict=True):
        axis.set_ylabel(label, color=INK)
    _finish(figure, title, path)


def _drawn(axes: Sequence[Axes], result: Result) -> list[list[Label]]:
    """A column, and the labels of its axes, which can be placed when all columns have set their common scales."""
    labels = [_latency(axis, result, *pool) for axis, pool in zip(axes[:2], service.pools().items(), strict=True)]
    return [*labels, _load(axes[2], result), _weights(axes[3], result), _replicas(axes[4], result)]


def _ticks(result: Result) -> tuple[list[Tick], np.ndarray]:
    """The ticks while requests came, and their minutes."""
    ticks = [tick for tick in result.run.ticks if result.begin_s <= tick.now_s <= result.until_s]
    return ticks, np.array([(tick.now_s - result.begin_s) / 60 for tick in ticks])


def _latency(axis: Axes, result: Result, pool: str, kind: str) -> list[Label]:
    mine = [window for window in result.windows if window.pool == pool]
    ticks, minutes = _ticks(result)
    _note(
        axis,
        f"{service.titles()[pool]}, really {result.speed[kind]:g} times as fast as its profile; dots: observed, red when late",
    )
    labels = [(bound_s, f"target {name}", TARGET) for name, bound_s in service.SLO_S.items()]
    for bound_s in service.SLO_S.values():
        axis.plot([0, (result.until_s - result.begin_s) / 60], [bound_s, bound_s], color=TARGET, lw=1)
    predicted = np.array([tick.predicted_p95_s.get(pool, np.nan) for tick in ticks])
    axis.plot(minutes, predicted, color=COLOURS[kind], lw=1.8, drawstyle="steps-post")
    if np.isfinite(predicted).any():
        labels.append((float(predicted[np.isfinite(predicted)][-1]), "predicted", COLOURS[kind]))
    for name, mark in CLASS_MARKS.items():
        windows = [window for window in mine if window.request_class == name]
        if windows:
            seen = np.clip([window.p95_s for window in windows], *_SHOWN_S)
            faces = [CLASS_COLOURS[name] if window.kept else TARGET for window in windows]
            sizes = [3 + 1.1 * window.requests**0.5 for window in windows]
            axis.scatter(
                [w.minute + 0.5 for w in windows], seen, s=sizes, marker=mark, c=faces, alpha=0.8, linewidths=0, zorder=3
            )
            if windows[-1].minute + 2 > (result.until_s - result.begin_s) / 60:
                labels.append((float(seen[-1]), name, CLASS_COLOURS[name]))
    axis.set_yscale("log")
    axis.set_ylim(*_SHOWN_S)
    axis.set_yticks([0.1, 0.3, 1, 3, 10, 30, 100], ["0.1", "0.3", "1", "3", "10", "30", "100"])
    axis.minorticks_off()
    return labels


def _load(axis: Axes, result: Result) -> list[Label]:
    _note(axis, "arrivals of each minute (bars), planned for (thick), routed for (thin)")
    ticks, minutes = _ticks(result)
    labels = []
    for name, rates in result.arrivals_rps.items():
        axis.bar(np.arange(len(rates)) + 0.5, rates, width=0.9, color=CLASS_COLOURS[name], alpha=0.35, linewidth=0)
        planned = np.array([tick.planned_rps.get(name, np.nan) for tick in ticks])
        axis.plot(minutes, planned, color=CLASS_COLOURS[name], lw=1.8, drawstyle="steps-post")
        axis.plot(minutes, [tick.routed_rps.get(name, np.nan) for tick in ticks], color=CLASS_COLOURS[name], lw=0.7)
        labels.append((float(np.nan_to_num(planned[-1])), name, CLASS_COLOURS[name]))
    return labels


def _weights(axis: Axes, result: Result) -> list[Label]:
    pool = next(iter(service.pools()))
    _note(axis, f"share of each class that goes to {service.titles()[pool]}; dotted: share refused")
    ticks, minutes = _ticks(result)
    labels = []
    for name in result.arrivals_rps:
        share = np.array([tick.weights.get(name, {}).get(pool, 0.0) for tick in ticks])
        axis.plot(minutes, share, color=CLASS_COLOURS[name], lw=1.8, drawstyle="steps-post")
        shed = np.array([tick.shed.get(name, 0.0) for tick in ticks])
        if shed.any():
            axis.plot(minutes, shed, color=CLASS_COLOURS[name], lw=1.3, ls=":", drawstyle="steps-post")
        labels.append((float(share[-1]), name, CLASS_COLOURS[name]))
    axis.set_ylim(-0.04, 1.08)
    return labels


def _replicas(axis: Axes, result: Result) -> list[Label]:
    _note(axis, "replicas ready (area) and asked for (line)")
    ticks, minutes = _ticks(result)
    labels = []
    for pool, kind in service.pools().items():
        asked = np.array([tick.asked.get(pool, 0) for tick in ticks])
        ready = np.array([tick.ready.get(pool, 0) for tick in ticks])
        axis.fill_between(minutes, ready, step="post", color=COLOURS[kind], alpha=0.22, linewidth=0)
        axis.plot(minutes, asked, color=COLOURS[kind], lw=1.8, drawstyle="steps-post")
        labels.append((float(asked[-1]), service.titles()[pool], COLOURS[kind]))
    return labels


def all_seeds(
    seeds: int, kind: str, shares: Mapping[str, tuple[list[float], list[float]]], errors: Mapping[str, np.ndarray], path: Path
) -> None:
    """Windows kept by class and pool without and with correction, and the predictor's error by cycle.

    Args:
        seeds: How many.
        kind: Of arrivals.
        shares: By what is judged, the share of kept windows of each seed, without and with correction.
        errors: By title, (runs, cycles) absolute relative error of the predicted mean; NaN where unknown.
        path: Of the PNG.
    """
    size = (14.5, 1.2 + 0.62 * max(6, len(shares)))
    figure, (left, right) = plt.subplots(1, 2, figsize=size, layout="constrained", width_ratios=(1.2, 1))
    for row, (before, after) in enumerate(shares.values()):
        for values, colour, shift in ((before, FAINT, -0.17), (after, COLOURS["h100"], 0.17)):
            if values:
                jitter = np.random.default_rng(row).uniform(-0.08, 0.08, len(values))
                mean = 100 * float(np.mean(values))
                left.scatter(100 * np.array(values), row + shift + jitter, s=16, color=colour, alpha=0.6, linewidths=0)
                left.plot([mean, mean], [row + shift - 0.15, row + shift + 0.15], color=colour, lw=3)
                _words(left, f"{mean:.1f}", (1.01, row + shift), ("axes fraction", "data"), colour if shift > 0 else INK)
    left.axvline(99, color=TARGET, lw=1)
    left.set_yticks(range(len(shares)), list(shares))
    left.invert_yaxis()
    left.set(xlabel="one-minute windows after 10 cycles that keep their p95 target, %; a dot per seed", xlim=(None, 101))
    _note(left, "profiles as declared (grey), corrected (blue)")
    for colour, (name, table) in zip((FAINT, COLOURS["h100"]), errors.items(), strict=True):
        low, middle, high = (100 * np.nanquantile(table, q, axis=0) for q in (0.25, 0.5, 0.75))
        cycles = np.arange(1, len(middle) + 1)
        right.fill_between(cycles, low, high, color=colour, alpha=0.18, linewidth=0)
        right.plot(cycles, middle, color=colour, lw=2)
        _words(right, name, (cycles[-1], float(middle[-1])), "data", colour if colour != FAINT else INK)
    right.axhline(10, color=TARGET, lw=1)
    right.set(xlabel="cycle since requests began", ylabel="mean TTFT of a minute, |predicted / observed - 1|, %", ylim=(0, 80))
    _note(right, "median over seeds and pools, and the middle half")
    _finish(figure, f"{seeds} seeds of {kind.title()} arrivals, replicas 0.8 and 1.3 times as fast as their profile", path)


def noise_run(result: NoiseResult, found: Sequence[Change], moved: np.ndarray, path: Path) -> None:
    """An hour of noise: load, replicas, and units moved by cycle."""
    figure, axes = plt.subplots(3, 1, figsize=(11, 7.5), sharex=True, layout="constrained", height_ratios=(1.2, 1.2, 0.7))
    ticks = result.run.ticks
    minutes = np.array([tick.now_s / 60 for tick in ticks])
    for name, colour in CLASS_COLOURS.items():
        axes[0].plot(minutes, [tick.measured_rps.get(name, np.nan) for tick in ticks], color=colour, lw=0.8, alpha=0.45)
        axes[0].plot(minutes, [tick.routed_rps.get(name, np.nan) for tick in ticks], color=colour, lw=0.8)
        axes[0].plot(minutes, [tick.planned_rps.get(name, np.nan) for tick in ticks], color=colour, lw=1.8)
        _words(axes[0], name, (minutes[-1], ticks[-1].planned_rps.get(name, 0.0)), "data", colour)
    for pool, kind in service.pools().items():
        axes[1].plot(minutes, [tick.target[pool] for tick in ticks], color=COLOURS[kind], lw=1.8, drawstyle="steps-post")
        _words(axes[1], service.titles()[pool], (minutes[-1], ticks[-1].target[pool]), "data", COLOURS[kind])
    axes[2].bar(np.arange(len(moved)) + 0.5, moved, color=INK, width=0.9)
    axes[2].axhline(2 * result.gpus / 64, color=TARGET, lw=1)
    for axis, label in zip(axes, ("requests/s", "replicas wanted", "GPUs moved"), strict=True):
        axis.set_ylabel(label, color=INK)
        axis.set_ylim(0, None)
    _note(axes[0], "measured (pale), planned for (thick), routed for (thin)")
    _note(axes[2], "a cycle")
    axes[2].set_xlabel("minutes")
    _finish(
        figure, f"Noise of 10 % round a constant load, {result.gpus} GPUs: {len(found)} changes of replicas in an hour", path
    )


def churn_run(result: ChurnResult, fit: tuple[float, float, float], from_h: float, path: Path) -> None:
    """Memory over a time of churn, with the line that was fitted from some hour on."""
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(11, 6), sharex=True, layout="constrained", height_ratios=(2, 1))
    hours, rss = np.array(result.time_s) / 3600, np.array(result.rss_mb)
    late = hours >= from_h
    line = rss[late].mean() + fit[0] * (hours[late] - hours[late].mean())
    top.plot(60 * hours, rss, color=COLOURS["h100"], lw=1.5)
    top.plot(60 * hours[late], line, color=TARGET, lw=1.5)
    said = f"{fit[0]:+.1f} MB/h ({fit[1]:+.1f} to {fit[2]:+.1f})"
    _words(top, said, (60 * float(hours[late].mean()), float(line.mean()) * 0.9), "data", TARGET)
    top.set_ylabel("resident memory, MB", color=INK)
    bottom.step(60 * hours, result.plans, color=INK, where="post")
    bottom.set_ylabel("plans", color=INK)
    bottom.set_xlabel("virtual minutes")
    for axis in (top, bottom):
        axis.set_ylim(0, None)
    _finish(figure, "Memory while plans come and go: " + ", ".join(f"{n} {what}" for what, n in result.events.items()), path)


def _note(axis: Axes, words: str) -> None:
    axis.annotate(words, (0, 1), xycoords="axes fraction", xytext=(0, 4), textcoords="offset points", fontsize=9, color=INK)


def _words(axis: Axes, words: str, at: tuple[float, float], coordinates: str | tuple[str, str], colour: str) -> None:
    axis.annotate(
        words,
        at,
        xycoords=coordinates,
        xytext=(4, 0),
        textcoords="offset points",
        fontsize=9,
        color=colour,
        va="center",
        annotation_clip=False,
    )


def _at_the_end(axis: Axes, end: float, labels: Sequence[Label]) -> None:
    """Labels beside where their lines end, moved apart where they would lie on each other."""
    apart = 0.085
    low, high = (float(edge) for edge in axis.get_ylim())
    scale = (
        (lambda y: np.log(y / low) / np.log(high / low)) if axis.get_yscale() == "log" else (lambda y: (y - low) / (high - low))
    )
    placed = sorted((float(scale(max(y, low))), words, colour) for y, words, colour in labels)
    floor = -1.0
    for height, words, colour in placed:
        floor = max(height, floor + apart)
        _words(axis, words, (end, floor), ("data", "axes fraction"), colour)


def _finish(figure: Figure, title: str, path: Path) -> None:
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(FAINT)
        axis.tick_params(colors=INK, length=3)
        axis.grid(axis="y", color="#e6e9ec", lw=0.8)
        axis.set_axisbelow(True)
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, color=INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
