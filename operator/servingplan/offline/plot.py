"""The frontier as a picture: quality, what is refused, and where the GPUs go, over one shared axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from servingplan.offline import words
from servingplan.offline.errors import InputError
from servingplan.offline.frontier import Frontier, Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, told apart by every kind of eye: one for each model, lighter for its further setups.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8C8C8C", "#B8A000")
_INK, _MUTED, _REFUSED, _LINE, _CHOSEN = "#2B2B2B", "#6E6E6E", "#B3261E", "#0B3C5D", "#D55E00"
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": _INK,
    "axes.grid": True,
    "grid.color": "#E4E4E0",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "figure.facecolor": "white",
}


def check_target(path: str) -> None:
    """Refuses a picture that could not be drawn or written, before minutes are spent on what goes into it.

    Raises:
        InputError: There is no matplotlib, it is no picture's name, or its folder does not exist.
    """
    try:
        import matplotlib  # noqa: F401, PLC0415 - optional, and slow to load
    except ImportError as error:
        raise InputError("--plot: drawing needs matplotlib, install it with pip install matplotlib") from error
    if Path(path).suffix.lower() not in {".png", ".pdf", ".svg"}:
        raise InputError(f"--plot {path}: name a picture, such as frontier.png")
    if not Path(path).resolve().parent.is_dir():
        raise InputError(f"--plot {path}: cannot be written: its folder does not exist")


def draw(found: Frontier, path: str) -> None:
    """Writes the picture.

    Raises:
        InputError: The file cannot be written.
    """
    import matplotlib as mpl  # noqa: PLC0415
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    refusing = any(point.shed for point in found.points)
    heights = [3.0, 0.9, 2.0] if refusing else [3.0, 2.0]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9.2, 1.9 + 1.2 * sum(heights)))
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(heights), 1, sharex=True, gridspec_kw={"height_ratios": heights})
        top = 1 - 0.75 / figure.get_figheight()
        figure.text(0.065, top + 0.42 / figure.get_figheight(), _title(found), fontsize=13.5, fontweight="bold")
        figure.text(0.065, top + 0.16 / figure.get_figheight(), _subtitle(found), color=_MUTED)
        _quality(axes[0], found)
        if refusing:
            _refused(axes[1], found)
        _gpus(axes[-1], found)
        for each in axes:
            each.axvline(found.chosen.value, color=_CHOSEN, lw=1.0, ls=(0, (4, 3)), zorder=0.5)
        _budget(axes[0], found)
        axes[-1].set_xlabel(f"{found.label} (s, logarithmic)" if found.axis == "slo" else found.label)
        if found.axis == "slo":
            _log_seconds(axes[-1], found.points)
        axes[-1].set_xlim(*_span(found))
        figure.tight_layout(rect=(0.02, 0.01, 0.99, top), h_pad=1.4)
        figure.align_ylabels(axes)
        try:
            figure.savefig(path, dpi=150)
        except OSError as error:
            raise InputError(f"--plot {path}: cannot be written: {error.strerror}") from error


def _title(found: Frontier) -> str:
    what = "a looser latency target" if found.axis == "slo" else "money"
    return f"What {what} buys {found.demand.key}"


def _subtitle(found: Frontier) -> str:
    rate_rps = sum(entry.rate_rps for entry in found.demand.classes)
    there = {kind.name: _allowed(kind.free_units, kind.limit) for kind in found.demand.accelerators}
    text = f"{words.number(rate_rps)} requests/s on up to {words.gpus({k: v for k, v in there.items() if v})}"
    return f"{text}; {found.note}" if found.note else text


def _allowed(free_units: dict[str, int], limit: int | None) -> int:
    there = sum(free_units.values())
    return there if limit is None else min(there, limit)


def _span(found: Frontier) -> tuple[float, float]:
    """Ends of the shared axis; the last plan by cost holds for all larger budgets, so there is room behind it."""
    low, high = found.points[0].value, found.points[-1].value
    budget = found.demand.budget_per_hour or 0.0
    return (low, high) if found.axis == "slo" else (0.0, max(1.12 * high, 1.05 * budget, 1e-9))


def _place(found: Frontier, value: float) -> float:
    """Where a value lies on the shared axis, from 0 at its left end to 1."""
    left, right = _span(found)
    if found.axis == "slo":
        return math.log(value / left) / math.log(right / left)
    return (value - left) / (right - left)


def _steps(found: Frontier) -> tuple[list[float], list[Point]]:
    """Where each point begins to hold, with a last place to which the last one does.

    More budget or a longer target never hurts, so what holds at a point holds up to the next.
    """
    return [*(point.value for point in found.points), _span(found)[1]], [*found.points, found.points[-1]]


def _quality(axes: Axes, found: Frontier) -> None:
    x, points = _steps(found)
    y = [point.decision.quality for point in points]
    kept = [value if point.decision.feasible else float("nan") for value, point in zip(y, points, strict=True)]
    axes.set_title("Quality of the answers")
    axes.set_ylabel("mean score")
    low, high = _room([value for value, point in zip(y, points, strict=True) if point.shed < 1] or y)
    axes.set_ylim(low, high)
    axes.fill_between(x, low, kept, step="post", color=_LINE, alpha=0.10, lw=0)
    axes.step(x, y, where="post", color=_LINE, lw=1.1, ls=(0, (1, 1.5)))
    axes.step(x, kept, where="post", color=_LINE, lw=2.2)
    axes.plot(x[:-1], kept[:-1], ls="none", marker="o", ms=3.8, color=_LINE)
    _name_regions(axes, found)
    y_chosen = found.chosen.decision.quality
    axes.plot([found.chosen.value], [y_chosen], marker="D", ms=9, mfc=_CHOSEN, mec="white", mew=1.4, ls="none", zorder=5)
    where = words.seconds(found.chosen.value) if found.axis == "slo" else f"{found.chosen.value:,.2f} per hour"
    on_right = _place(found, found.chosen.value) > 0.6
    label = axes.annotate(
        f"this plan: {y_chosen:.3f} at {where}",
        (found.chosen.value, y_chosen),
        xytext=(-11, -62) if on_right else (11, -19),
        textcoords="offset points",
        ha="right" if on_right else "left",
        fontsize=9.5,
        fontweight="bold",
        bbox={"boxstyle": "round,pad=0.25", "fc": "white", "ec": "none", "alpha": 0.85},
    )
    label.set_in_layout(False)


def _name_regions(axes: Axes, found: Frontier) -> None:
    """Says which part of the axis is feasible, and tints the part that is not."""
    left, right = _span(found)
    first = next((point.value for point in found.points if point.decision.feasible), right)
    if first > left:
        axes.axvspan(left, first, color=_REFUSED, alpha=0.06, lw=0, zorder=0)
    mix = axes.get_xaxis_transform()
    if first < right:
        axes.text(right, 0.03, "feasible ", transform=mix, color=_LINE, fontsize=9, ha="right")
    if first > left:
        text = " not feasible" if _place(found, first) < 0.4 else " not feasible: not everything is served within the SLO"
        axes.text(left, 0.03, text, transform=mix, color=_REFUSED, fontsize=9)


def _budget(axes: Axes, found: Frontier) -> None:
    budget = found.demand.budget_per_hour
    if found.axis == "cost" and budget is not None:
        axes.axvline(budget, color=_MUTED, lw=1.0)
        axes.text(
            budget, 0.98, f" budget {budget:,.2f}", transform=axes.get_xaxis_transform(), color=_MUTED, fontsize=9, va="top"
        )


def _room(values: Sequence[float]) -> tuple[float, float]:
    """Limits of an axis around values, never closer than a hundredth."""
    low, high = min(values), max(values)
    pad = max(0.08 * (high - low), 0.005)
    return max(0.0, low - 2 * pad), high + pad


def _refused(axes: Axes, found: Frontier) -> None:
    x, points = _steps(found)
    shed = [100 * point.shed for point in points]
    axes.set_title("Requests refused")
    axes.set_ylabel("%")
    axes.fill_between(x, 0, shed, step="post", color=_REFUSED, alpha=0.22, lw=0)
    axes.step(x, shed, where="post", color=_REFUSED, lw=1.4)
    axes.set_ylim(0, max(1.0, 1.12 * max(shed)))


def _gpus(axes: Axes, found: Frontier) -> None:
    """Stacked GPUs by setup, with the number of replicas where an allocation stays for a while."""
    x, points = _steps(found)
    palette = _palette(found)
    axes.set_title("GPUs by setup, with replicas")
    axes.set_ylabel("GPUs")
    base = [0.0] * len(x)
    for (model, setup), colour in palette.items():
        units = [
            sum(each.units for each in point.decision.allocations if (each.model, each.setup) == (model, setup))
            for point in points
        ]
        top = [b + u for b, u in zip(base, units, strict=True)]
        axes.fill_between(x, base, top, step="post", color=colour, lw=0, label=f"{model}/{setup}")
        axes.step(x, top, where="post", color="white", lw=0.8)
        _write_replicas(axes, found, f"{model}/{setup}", base, units, _INK if sum(colour) > 1.2 else "white")
        base = top
    axes.set_ylim(0, max(1.0, 1.06 * max(base)))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.23), ncols=min(4, max(1, len(palette))), fontsize=8.5)


def _palette(found: Frontier) -> dict[tuple[str, str], tuple[float, ...]]:
    """A colour for every setup in use: that of its model, the lighter the later the setup stands."""
    from matplotlib.colors import to_rgb  # noqa: PLC0415

    used = {(each.model, each.setup) for point in found.points for each in point.decision.allocations if each.replicas}
    palette: dict[tuple[str, str], tuple[float, ...]] = {}
    for index, model in enumerate(found.demand.models):
        mine = [setup.name for setup in model.setups if (model.name, setup.name) in used]
        for number, setup in enumerate(mine):
            white = 0.55 * number / max(len(mine), 2)
            rgb = to_rgb(_COLOURS[index % len(_COLOURS)])
            palette[model.name, setup] = tuple((1 - white) * part + white for part in rgb)
    return palette


def _write_replicas(axes: Axes, found: Frontier, name: str, base: Sequence[float], units: Sequence[int], ink: str) -> None:
    """The number of replicas in the middle of every stretch, wide enough to read, over which nothing below it moves."""
    x, points = _steps(found)
    states = [(point.replicas.get(name, 0), below) for point, below in zip(points, base, strict=True)]
    start = 0
    for index in range(1, len(states) + 1):
        if index < len(states) and states[index] == states[start]:
            continue
        left, right = x[start], x[min(index, len(x) - 1)]
        if states[start][0] and _place(found, right) - _place(found, left) > 0.045:
            middle = (left * right) ** 0.5 if found.axis == "slo" else (left + right) / 2
            height = base[start] + units[start] / 2
            axes.text(middle, height, f"{states[start][0]}x", ha="center", va="center", fontsize=8.5, color=ink)
        start = index


def _log_seconds(axes: Axes, points: Sequence[Point]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator  # noqa: PLC0415

    axes.set_xscale("log")
    low, high = points[0].value, points[-1].value
    ticks = [m * 10.0**e for e in range(-4, 6) for m in (1, 1.5, 2, 3, 4, 5, 6, 8) if low <= m * 10.0**e <= high]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
