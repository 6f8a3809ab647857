"""The reliability of the predictions as a picture: one small panel for each model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from servingplan.training.judge import Judged, ModelFigures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DOTS, _LINE, _INK, _MUTED = "#0072B2", "#D55E00", "#2B2B2B", "#6E6E6E"
_COLUMNS = 3
_SUFFIXES = (".png", ".pdf", ".svg")


class PlotError(Exception):
    """A picture that could not be drawn or written; its text is one sentence."""


def check_target(path: Path) -> None:
    """Refuses a picture that could not be drawn or written, before minutes are spent on what goes into it.

    Raises:
        PlotError: There is no matplotlib, it is no picture's name, or its folder does not exist.
    """
    try:
        import matplotlib  # noqa: F401, PLC0415 - optional, and slow to load
    except ImportError as error:
        raise PlotError("--plot: drawing needs matplotlib, install it with pip install matplotlib") from error
    if path.suffix.lower() not in _SUFFIXES:
        message = f"--plot {path}: name a picture, such as reliability.png"
        raise PlotError(message)
    if not path.resolve().parent.is_dir():
        message = f"--plot {path}: cannot be written: its folder does not exist"
        raise PlotError(message)


def draw(judged: Judged, path: Path) -> None:
    """Writes the picture.

    Raises:
        PlotError: It could not be written.
    """
    import matplotlib as mpl  # noqa: PLC0415 - optional, and slow to load

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    columns = min(_COLUMNS, len(judged.models))
    rows = math.ceil(len(judged.models) / columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.1 * columns, 3.1 * rows + 0.7), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    panels = list(axes.flat)
    for panel, model in zip(panels, judged.models, strict=False):
        _panel(panel, model)
    for panel in panels[len(judged.models) :]:
        panel.set_visible(False)
    figure.suptitle(
        "Predicted and real scores of prompts kept out of the fit",
        x=0.01,
        ha="left",
        fontsize=12,
        fontweight="bold",
        color=_INK,
    )
    figure.supxlabel("predicted score", fontsize=10, color=_MUTED)
    figure.supylabel("mean score", fontsize=10, color=_MUTED)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        message = f"--plot {path}: cannot be written: {error.strerror}"
        raise PlotError(message) from error
    finally:
        plt.close(figure)


def _panel(panel: Axes, model: ModelFigures) -> None:
    panel.plot([0, 1], [0, 1], color=_LINE, lw=1, ls=(0, (4, 3)), zorder=1)
    predicted, scored = [one.predicted for one in model.bins], [one.scored for one in model.bins]
    errors = [1.96 * math.sqrt(max(0.0, one.scored * (1.0 - one.scored)) / one.count) for one in model.bins]
    panel.errorbar(
        predicted, scored, yerr=errors, color=_DOTS, ecolor=_DOTS + "66", elinewidth=1.4, marker="o", ms=4.5, lw=1.2, zorder=2
    )
    panel.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    panel.set_title(model.model, fontsize=9, loc="left", color=_INK)
    found = "" if math.isnan(model.auc) else f"AUC {model.auc:.2f}\n"
    panel.text(0.04, 0.95, f"{found}ECE {model.ece:.3f}", transform=panel.transAxes, va="top", fontsize=8.5, color=_MUTED)
    panel.grid(color="#E4E4E0", lw=0.7)
    panel.tick_params(colors=_MUTED, labelsize=8)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
