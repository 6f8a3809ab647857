"""The picture of a live run: what was promised, what was predicted, what came, and where the requests went."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from record import Look, Window

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

COLOURS = {"large": "#0072B2", "small": "#E69F00"}
_INK, _LIMIT, _GREY = "#2B2B2B", "#B3261E", "#8A8A8A"
_STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 11,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


def draw(
    path: Path,
    title: str,
    subtitle: str,
    target_s: float,
    looks: Sequence[Look],
    windows: Sequence[Window],
    marks: Sequence[tuple[float, str]],
) -> None:
    """Target, prediction and observation above, weights and replicas below, on one axis of minutes.

    Args:
        path: PNG to write.
        title: What the run shows.
        subtitle: How it was made.
        target_s: The bound on the 95th percentile.
        looks: Every status.
        windows: One-minute windows by model.
        marks: Moments in seconds since the epoch, with a few words each.
    """
    begin_s = min([look.at_s for look in looks] + [window.begin_s for window in windows])
    models = sorted({window.model for window in windows} | {model for look in looks for model in look.replicas})
    end_min = (max([w.begin_s + 60 for w in windows] + [look.at_s for look in looks]) - begin_s) / 60
    with mpl.rc_context(_STYLE):
        figure, axes = plt.subplots(
            len(models) + 2, 1, figsize=(12, 3.0 * len(models) + 4.4), sharex=True, height_ratios=[3] * len(models) + [2, 1.2]
        )
        figure.suptitle(title, x=0.06, y=0.985, ha="left", fontsize=14, fontweight="bold")
        figure.text(0.06, 0.945, subtitle, ha="left", fontsize=10, color="#555555")
        for axis, model in zip(axes, models, strict=False):
            _latency(axis, model, target_s, looks, [w for w in windows if w.model == model], begin_s, end_min)
        _weights(axes[-2], models, looks, begin_s, end_min)
        _replicas(axes[-1], models, looks, begin_s, end_min)
        for axis in axes:
            for at_s, _ in marks:
                axis.axvline((at_s - begin_s) / 60, color=_GREY, lw=0.9, ls=(0, (2, 3)))
        for at_s, words in marks:
            axes[0].annotate(
                words,
                ((at_s - begin_s) / 60, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(3, -2),
                textcoords="offset points",
                va="top",
                fontsize=9,
                color="#555555",
            )
        axes[-1].set_xlabel("minutes")
        axes[-1].set_xlim(0, end_min * 1.12)
        figure.subplots_adjust(left=0.075, right=0.97, top=0.9, bottom=0.06, hspace=0.32)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)
        plt.close(figure)


def _steps(
    axis: Axes, looks: Sequence[Look], values: Sequence[float | None], begin_s: float, end_min: float, **style: object
) -> None:
    known = [(look.at_s, value) for look, value in zip(looks, values, strict=True) if value is not None]
    if known:
        x = [(at_s - begin_s) / 60 for at_s, _ in known]
        axis.step([*x, end_min], [*(v for _, v in known), known[-1][1]], where="post", **style)


def _latency(
    axis: Axes, model: str, target_s: float, looks: Sequence[Look], windows: Sequence[Window], begin_s: float, end_min: float
) -> None:
    colour = COLOURS.get(model, _INK)
    axis.set_title(f"{model}: 95th percentile of the time to first token")
    axis.hlines(target_s, 0, end_min, color=_LIMIT, lw=1.2)
    predicted = [look.predicted_p95_s.get(model) for look in looks]
    _steps(axis, looks, predicted, begin_s, end_min, color=_INK, lw=1.1, ls=(0, (4, 2)))
    x = np.array([(window.begin_s - begin_s) / 60 + 0.5 for window in windows])
    y = np.array([window.p95_s for window in windows])
    late = y > target_s
    axis.plot(x, y, color=colour, lw=1.2, alpha=0.5)
    axis.scatter(x[~late], y[~late], s=26, color=colour, zorder=3)
    axis.scatter(x[late], y[late], s=34, facecolor="white", edgecolor=_LIMIT, linewidth=1.5, zorder=3)
    top = max([target_s * 1.9, *np.percentile(y, [90])]) if len(y) else target_s * 1.9
    axis.set_ylim(0, min(top * 1.1, 6 * target_s))
    labels = [(target_s, f"target {target_s:g} s", _LIMIT)]
    labels += [(value, "predicted", _INK) for value in [v for v in predicted if v is not None][-1:]]
    labels += [(float(value), "observed", colour) for value in y[-1:]]
    _beside(axis, labels, end_min)
    axis.set_ylabel("seconds")


def _beside(axis: Axes, labels: Sequence[tuple[float, str, str]], end_min: float) -> None:
    """Labels at the right end of their lines, moved apart where they would lie on each other."""
    low, high = axis.get_ylim()
    apart, floor = 0.085 * (high - low), low
    for value, words, colour in sorted(labels):
        at = max(min(value, high), floor)
        axis.text(end_min * 1.008, at, words, color=colour, fontsize=9, va="center")
        floor = at + apart


def _weights(axis: Axes, models: Sequence[str], looks: Sequence[Look], begin_s: float, end_min: float) -> None:
    x = [(look.at_s - begin_s) / 60 for look in looks]
    low = np.zeros(len(looks) + 1)
    for model in models:
        share = np.array([look.shares.get(model, 0.0) for look in looks])
        high = low + np.append(share, share[-1])
        axis.fill_between([*x, end_min], low, high, step="post", color=COLOURS.get(model, _INK), alpha=0.75, lw=0)
        if share[-1] > 0.04:
            axis.text(end_min * 1.005, (low[-1] + high[-1]) / 2, f"{model} {share[-1]:.0%}", va="center", fontsize=9)
        low = high
    axis.set_title("where the requests go")
    axis.set_ylim(0, 1)
    axis.set_yticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])


def _replicas(axis: Axes, models: Sequence[str], looks: Sequence[Look], begin_s: float, end_min: float) -> None:
    most = 1
    for model in models:
        values = [look.replicas.get(model, 0) for look in looks]
        most = max(most, *values)
        _steps(axis, looks, [float(v) for v in values], begin_s, end_min, color=COLOURS.get(model, _INK), lw=2)
        axis.text(end_min * 1.005, values[-1], f"{model} {values[-1]}", va="center", fontsize=9, color=COLOURS.get(model, _INK))
    axis.set_title("replicas wanted")
    axis.set_ylim(-0.3, most + 0.7)
    axis.yaxis.get_major_locator().set_params(integer=True)
