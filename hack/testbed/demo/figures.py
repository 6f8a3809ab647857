"""The demo's two figures: the plan as it stands, and the plan as it moves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, Patch

from testbed.demo.story import Story, ttft_p95_by_pool
from testbed.demo.view import Allocation, Node, Pod, Snapshot
from testbed.load import Record, by_class, summarise

# Okabe and Ito's colours: told apart by every kind of eye.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
_SHED = "#9A9A9A"
_FREE = "#E6E6E3"
_INK = "#2B2B2B"
_LIMIT = "#B3261E"
_BIN_S = 3.0

_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "figure.facecolor": "white",
}


def colours(models: Sequence[str]) -> dict[str, str]:
    """A colour for every model, the same in every figure and table."""
    return {model: _COLOURS[index % len(_COLOURS)] for index, model in enumerate(models)}


def draw_plan(story: Story, path: Path) -> None:
    """Where the GPUs went, where the requests went, and how long they waited, before the change."""
    palette = colours(story.models)
    found = story.before
    records = story.steady_before
    with mpl.rc_context(_STYLE):
        figure, axes = plt.subplots(2, 2, figsize=(14, 9.6), gridspec_kw={"width_ratios": [1.05, 1]})
        figure.suptitle(_plan_title(found, records), x=0.03, y=0.975, ha="left", fontsize=14, fontweight="bold")
        figure.text(0.03, 0.925, _plan_subtitle(found, records), ha="left", fontsize=10.5, color="#555555")
        _racks(axes[0][0], story.nodes, found, palette)
        _shares(axes[0][1], found, records, palette)
        _waits(axes[1][0], found, records)
        _predictions(axes[1][1], found.allocations, ttft_p95_by_pool(records), found.ttft_slo_s, palette)
        figure.legend(handles=[Patch(color=palette[model], label=model) for model in story.models],
                      loc="lower left", bbox_to_anchor=(0.025, 0.005), ncols=len(story.models))  # fmt: skip
        figure.tight_layout(rect=(0.02, 0.045, 0.99, 0.93), h_pad=3, w_pad=3)
        figure.savefig(path, dpi=130)
        plt.close(figure)


def _plan_title(found: Snapshot, records: Sequence[Record]) -> str:
    measured_s = summarise(records).ttft_p95_s
    kept = "kept" if measured_s <= found.ttft_slo_s else "missed"
    gpus = sum(each.gpus for each in found.allocations)
    return (
        f"Quality {found.quality:.3f} on {gpus} GPUs for {found.cost_per_hour:.2f} per hour; "
        f"TTFT target {found.ttft_slo_s:g} s {kept} (p95 {measured_s:.2f} s)"
    )


def _plan_subtitle(found: Snapshot, records: Sequence[Record]) -> str:
    figures = summarise(records)
    rate_rps = sum(each.rate_rps for each in found.allocations)
    return (
        f"Planned for {rate_rps:.3g} requests/s. Measured through the router: {figures.sent} requests, "
        f"{figures.failed} failed, {figures.refused} refused."
    )


def _racks(axes: Axes, nodes: Sequence[Node], found: Snapshot, palette: Mapping[str, str]) -> None:
    """Every GPU is a square; squares of one replica are joined."""
    axes.set_title("Where the GPUs went")
    for row, node in enumerate(reversed(nodes)):
        placed = [pod for pod in found.pods if pod.node == node.name and pod.gpus and pod.holds_gpus]
        at = 0
        for pod in placed:
            _slot(axes, at, row, pod.gpus, palette.get(pod.model, _SHED))
            label = "" if pod.gpus < 2 else pod.setup
            axes.text(at + pod.gpus / 2, row + 0.5, label, ha="center", va="center", color="white", fontsize=8.5)
            at += pod.gpus
        for free in range(at, node.gpus):
            _slot(axes, free, row, 1, _FREE)
    axes.set_yticks([row + 0.5 for row in range(len(nodes))], [_node_label(node) for node in reversed(nodes)])
    axes.set_xlim(-0.1, max(node.gpus for node in nodes) + 0.1)
    axes.set_ylim(-0.05, len(nodes) + 0.05)
    axes.set_xticks([])
    axes.tick_params(length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.set_xlabel(f"one square is one GPU; {_by_kind(found.allocations)}; grey is free for others", loc="left")


def _slot(axes: Axes, at: float, row: float, width: int, colour: str) -> None:
    shape = "round,pad=0,rounding_size=0.12"
    axes.add_patch(FancyBboxPatch((at + 0.06, row + 0.14), width - 0.12, 0.72, boxstyle=shape, fc=colour, ec="none"))


def _node_label(node: Node) -> str:
    return f"{node.name}\n{node.product.removeprefix('NVIDIA-').split('-')[0]}"


def _by_kind(allocations: Iterable[Allocation]) -> str:
    units: dict[str, int] = {}
    for each in allocations:
        units[each.accelerator] = units.get(each.accelerator, 0) + each.gpus
    return ", ".join(f"{count} {kind}" for kind, count in sorted(units.items()) if count) + " in use"


def _shares(axes: Axes, found: Snapshot, records: Sequence[Record], palette: Mapping[str, str]) -> None:
    axes.set_title("Planned against realised shares, by class")
    labels, worst, chance = [], 0.0, 0.0
    measured = by_class(records)
    for index, (name, planned) in enumerate(sorted(found.shares.items(), reverse=True)):
        got = summarise(measured.get(name, []))
        realised, served = got.shares, sum(planned.values()) or 1.0
        chance = max([chance, *(_chance(share / served, got.answered) for share in planned.values())])
        worst = max([worst, *(abs(realised.get(model, 0) - share / served) for model, share in planned.items())])
        for offset, (what, shares) in enumerate((("realised", realised), ("planned", planned))):
            y = index * 2.5 + offset * 0.95
            _stack(axes, y, shares, palette, faded=what == "planned")
            labels.append((y, f"{name}, {what}"))
    axes.set_yticks([y for y, _ in labels], [label for _, label in labels])
    axes.set_xlim(0, 100)
    apart = f"at most {100 * worst:.1f} points apart, where chance alone makes up to {100 * chance:.1f}"
    axes.set_xlabel(f"% of requests; {apart}")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _chance(share: float, requests: int) -> float:
    """By how much a share drawn request by request strays, in 19 of 20 cases."""
    return 1.96 * float(np.sqrt(share * max(0.0, 1 - share) / max(1, requests)))


def _stack(axes: Axes, y: float, shares: Mapping[str, float], palette: Mapping[str, str], *, faded: bool) -> None:
    left = 0.0
    parts = {model: shares.get(model, 0.0) for model in palette}
    if faded:
        parts["shed"] = max(0.0, 1 - sum(parts.values()))
    for model, share in parts.items():
        axes.barh(y, 100 * share, 0.8, left=100 * left, color=palette.get(model, _SHED), alpha=0.55 if faded else 1)
        if share >= 0.04:
            text = f"{100 * share:.1f} %" if share < 0.9995 else "100 %"
            ink = _INK if faded else "white"
            axes.text(100 * (left + share / 2), y, text, ha="center", va="center", color=ink, fontsize=9, fontweight="bold")
        left += share


def _waits(axes: Axes, found: Snapshot, records: Sequence[Record]) -> None:
    axes.set_title("Time to first token against the target")
    styles = ("-", "--", ":", "-.")
    longest_s = found.ttft_slo_s
    for style, (name, mine) in zip(styles, by_class(records).items(), strict=False):
        waits_s = np.sort([record.ttft_s for record in mine if record.answered and record.ttft_s is not None])
        if not len(waits_s):
            continue
        p95_s = summarise(mine).ttft_p95_s
        longest_s = max(longest_s, float(np.percentile(waits_s, 99.5)))
        axes.step(waits_s, 100 * np.arange(1, len(waits_s) + 1) / len(waits_s), style, color=_INK, lw=1.8,
                  where="post", label=f"{name}: p95 {p95_s:.2f} s of {len(waits_s)}")  # fmt: skip
        axes.plot(p95_s, 95, "o", color=_INK, ms=6)
    axes.axvline(found.ttft_slo_s, color=_LIMIT, lw=1.4)
    axes.axhline(95, color="#BBBBBB", lw=0.8, zorder=0)
    axes.text(found.ttft_slo_s, 4, f" target {found.ttft_slo_s:g} s", color=_LIMIT, ha="left", va="bottom")
    axes.set_xlim(0, 1.25 * longest_s)
    axes.set_ylim(0, 101)
    axes.set_xlabel("time to first token (s)")
    axes.set_ylabel("% of requests within")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="center right", frameon=True, framealpha=1, edgecolor="white")


def _predictions(
    axes: Axes,
    allocations: Sequence[Allocation],
    measured: Mapping[str, tuple[float, int]],
    slo_s: float,
    palette: Mapping[str, str],
) -> None:
    """Planned and measured p95 of every pool, joined by a line."""
    axes.set_title("Planned and measured p95 of each pool")
    used = [each for each in allocations if each.ttft_p95_s is not None and each.pool in measured]
    for row, each in enumerate(reversed(used)):
        assert each.ttft_p95_s is not None, "those without were left out"
        found_s, count = measured[each.pool]
        colour = palette.get(each.model, _SHED)
        axes.plot([each.ttft_p95_s, found_s], [row, row], color=colour, lw=3, alpha=0.4, solid_capstyle="round")
        axes.plot(each.ttft_p95_s, row, "o", mfc="white", mec=colour, mew=2, ms=10)
        axes.plot(found_s, row, "o", color=colour, ms=10)
        off = 100 * (found_s / each.ttft_p95_s - 1)
        text = f"{off:+.0f} %, {count} requests"
        behind = {"fc": "white", "ec": "none", "alpha": 0.85, "pad": 1}
        axes.text(max(found_s, each.ttft_p95_s), row + 0.2, text, fontsize=9, ha="center", bbox=behind)
    axes.set_yticks(range(len(used)), [f"{each.replicas} x {each.model}\n{each.setup}" for each in reversed(used)])
    axes.set_ylim(-0.6, len(used) - 0.3)
    highest_s = max([slo_s, *(value for value, _ in measured.values())])
    axes.set_xlim(0, 1.2 * highest_s)
    axes.axvline(slo_s, color=_LIMIT, lw=1.4)
    axes.set_xlabel("time to first token, 95th percentile (s)")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#EEEEEE")
    axes.set_axisbelow(True)
    marks = [
        Line2D([], [], marker="o", ls="", mfc="white", mec=_INK, mew=2, ms=9, label="planned"),
        Line2D([], [], marker="o", ls="", color=_INK, ms=9, label="measured"),
        Line2D([], [], color=_LIMIT, label=f"target {slo_s:g} s"),
    ]
    axes.legend(handles=marks, loc="lower left", fontsize=9)


def draw_change(story: Story, path: Path) -> None:
    """The same seconds seen three ways: waiting, shares and replicas."""
    palette = colours(story.models)
    end_s = story.load_until_s - story.load_from_s
    with mpl.rc_context(_STYLE):
        figure, (top, middle, bottom) = plt.subplots(
            3, 1, figsize=(14, 10.5), sharex=True, gridspec_kw={"height_ratios": [1.5, 1, 1]}
        )
        figure.suptitle(_change_title(story), x=0.03, y=0.98, ha="left", fontsize=14, fontweight="bold")
        figure.text(0.03, 0.937, _change_subtitle(story), ha="left", fontsize=10.5, color="#555555")
        _scatter(top, story, palette)
        _share_areas(middle, story, palette)
        _replicas(bottom, story, palette)
        bottom.set_xlabel("seconds since the load began")
        bottom.set_xlim(0, end_s)
        for axes in (top, middle, bottom):
            axes.axvline(story.changed_s - story.load_from_s, color=_INK, lw=1.2, ls=":")
            axes.axvline(story.settled_s - story.load_from_s, color=_INK, lw=1.2, ls=":")
        for moment_s, text, side in (
            (story.changed_s, "target changed ", "right"),
            (story.settled_s, " new plan serves", "left"),
        ):
            at = (moment_s - story.load_from_s, 0.985)
            top.annotate(text, at, xycoords=("data", "axes fraction"), va="top", ha=side)
        figure.legend(handles=[Patch(color=palette[model], label=model) for model in story.models],
                      loc="lower left", bbox_to_anchor=(0.03, 0.003), ncols=len(story.models))  # fmt: skip
        figure.tight_layout(rect=(0.02, 0.035, 0.99, 0.95), h_pad=2)
        figure.savefig(path, dpi=130)
        plt.close(figure)


def _change_title(story: Story) -> str:
    failed = sum(record.failed for record in story.records)
    return (
        f"Target from {story.before.ttft_slo_s:g} s to {story.after.ttft_slo_s:g} s: p95 from "
        f"{summarise(story.steady_before).ttft_p95_s:.2f} s to {summarise(story.steady_after).ttft_p95_s:.2f} s, "
        f"quality from {story.before.quality:.3f} to {story.after.quality:.3f}, "
        f"{failed} of {len(story.records):,} requests failed"
    )


def _change_subtitle(story: Story) -> str:
    return (
        f"Routers served the next table {story.rerouted_s - story.changed_s:.1f} s after the change, "
        f"the whole new plan {story.settled_s - story.changed_s:.1f} s after it."
    )


def _scatter(axes: Axes, story: Story, palette: Mapping[str, str]) -> None:
    axes.set_title("Time to first token of every request, by the model that answered")
    good = [record for record in story.records if record.answered and record.ttft_s is not None]
    # In the order of time, so that no model lies on top of the others.
    axes.scatter(
        [record.start_s - story.load_from_s for record in good],
        [record.ttft_s or 0.0 for record in good],
        s=11,
        c=[palette.get(record.model, _SHED) for record in good],
        alpha=0.65,
        linewidths=0,
    )
    lost = [record.start_s - story.load_from_s for record in story.records if record.failed]
    moments_s, p95s_s = _rolling_p95(story)
    top_s = 1.15 * max([story.before.ttft_slo_s, story.after.ttft_slo_s, *p95s_s])
    axes.plot(lost, [0.96 * top_s] * len(lost), "x", color=_LIMIT, ms=8, mew=2)
    edges_s = [0, story.changed_s - story.load_from_s, story.load_until_s - story.load_from_s]
    targets_s = [story.before.ttft_slo_s, story.after.ttft_slo_s, story.after.ttft_slo_s]
    axes.step(edges_s, targets_s, where="post", color=_LIMIT, lw=1.8)
    axes.text(0.3, targets_s[0], "target for the 95th percentile", color=_LIMIT, va="bottom", fontsize=9)
    axes.plot(moments_s, p95s_s, color=_INK, lw=1.6)
    axes.set_ylim(0, top_s)
    axes.set_ylabel("time to first token (s)")
    axes.legend(handles=[Line2D([], [], color=_INK, label="measured p95 over 6 s")], loc="upper right")


def _rolling_p95(story: Story) -> tuple[list[float], list[float]]:
    good = [(record.start_s - story.load_from_s, record.ttft_s) for record in story.records if record.answered]
    centres_s = np.arange(3.0, story.load_until_s - story.load_from_s - 2.9, 1.0)
    moments_s, values_s = [], []
    for centre_s in centres_s:
        window_s = [ttft_s for at_s, ttft_s in good if abs(at_s - centre_s) <= 3 and ttft_s is not None]
        if len(window_s) >= 20:
            moments_s.append(float(centre_s))
            values_s.append(float(np.percentile(window_s, 95)))
    return moments_s, values_s


def _share_areas(axes: Axes, story: Story, palette: Mapping[str, str]) -> None:
    axes.set_title("Who answered; black lines are the plan")
    edges_s = np.arange(0, story.load_until_s - story.load_from_s + _BIN_S, _BIN_S)
    counts = np.array(
        [
            np.histogram(
                [record.start_s - story.load_from_s for record in story.records if record.answered and record.model == model],
                edges_s,
            )[0]
            for model in story.models
        ],
        dtype=float,
    )
    parts = 100 * counts / np.maximum(1, counts.sum(axis=0))
    bottom = np.zeros(len(edges_s) - 1)
    for model, part in zip(story.models, parts, strict=True):
        axes.bar(edges_s[:-1], part, _BIN_S * 0.94, bottom=bottom, align="edge", color=palette[model])
        bottom += part
    spans_s = ((story.before, story.load_from_s, story.changed_s), (story.after, story.settled_s, story.load_until_s))
    for found, from_s, until_s in spans_s:
        for level in _planned_levels(found, story.models):
            axes.hlines(level, from_s - story.load_from_s, until_s - story.load_from_s, color=_INK, lw=1.4)
    axes.set_ylim(0, 100)
    axes.set_ylabel(f"% of answers, per {_BIN_S:g} s")


def _planned_levels(found: Snapshot, models: Sequence[str]) -> list[float]:
    """Where one model's planned part of all requests ends and the next one's begins, in percent."""
    rates = [sum(each.rate_rps for each in found.allocations if each.model == model) for model in models]
    return [float(level) for level in 100 * np.cumsum(rates)[:-1] / max(1e-9, sum(rates))]


def _replicas(axes: Axes, story: Story, palette: Mapping[str, str]) -> None:
    """GPUs held by each model's pods, and how many of them are ready."""
    axes.set_title("GPUs held by pods; pale ones start, drain or end")
    looks = [look for look in story.looks if story.load_from_s <= look.at_s]
    moments_s = [look.at_s - story.load_from_s for look in looks] + [story.load_until_s - story.load_from_s]
    bottom = np.zeros(len(looks))
    for model in story.models:
        for ready, alpha in ((True, 1.0), (False, 0.35)):
            held = np.array([_held(look.pods, model, ready=ready) for look in looks], dtype=float)
            if looks:
                axes.stairs(bottom + held, moments_s, baseline=bottom, fill=True, color=palette[model], alpha=alpha, lw=0)
            bottom = bottom + held
    axes.set_ylim(0, max([1.0, *bottom]) * 1.1)
    axes.set_ylabel("GPUs")


def _held(pods: Iterable[Pod], model: str, *, ready: bool) -> int:
    def serves(pod: Pod) -> bool:
        return pod.ready and pod.state != "Terminating"

    return sum(pod.gpus for pod in pods if pod.model == model and pod.holds_gpus and serves(pod) == ready)
