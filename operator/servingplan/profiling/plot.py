"""Measured points against the fit, with the uncertainty of both."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from servingplan.latency.profile import StepTime
from servingplan.profiling.errors import ProfilingError
from servingplan.profiling.fitting import Found, predicted
from servingplan.profiling.measured import Measured

_COLOURS = ("#1d4e89", "#d1495b", "#2e8b57", "#edae49", "#6a4c93", "#5b6c5d")
_DRAWS = 200


def available() -> bool:
    """Whether plots can be made here."""
    return importlib.util.find_spec("matplotlib") is not None


def plot(found: Found, levels: Sequence[Measured], title: str, target: str) -> None:
    """Draws time to first token and time between tokens over the load, one line a pair of lengths.

    Raises:
        ProfilingError: The file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - optional and slow to load
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2)
    pairs = list(dict.fromkeys(level.level.lengths for level in levels))
    for place, pair in enumerate(pairs):
        colour = _COLOURS[place % len(_COLOURS)]
        own = [level for level in levels if level.level.lengths == pair]
        _draw(axes, found, own, colour, f"{pair.prompt_tokens} in, {pair.output_tokens} out")
    rate = bool(levels) and levels[0].level.rate_rps > 0
    for axis, label in zip(axes, ("mean time to first token, ms", "mean inter-token latency, ms"), strict=True):
        axis.set(xlabel="requests per second" if rate else "clients in a closed loop", ylabel=label, yscale="log")
        if not rate:
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("{x:g}" if axis is axes[1] else "")
        axis.grid(alpha=0.25, which="both", lw=0.5)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, loc="upper left")
    axes[1].text(0.02, 0.97, _coefficients(found), transform=axes[1].transAxes, va="top", family="monospace", fontsize=9)
    figure.suptitle(title, fontsize=11)
    try:
        figure.savefig(Path(target), dpi=130)
    except (OSError, ValueError) as error:
        raise ProfilingError(f"cannot write the plot {target} ({error}): give another --plot") from None


def _draw(axes: Sequence[Any], found: Found, levels: Sequence[Measured], colour: str, label: str) -> None:
    loads = [level.level.rate_rps or level.level.clients for level in levels]
    for axis, name in zip(axes, ("ttft", "tpot"), strict=True):
        means = np.array([1e3 * getattr(level, name).mean for level in levels])
        widths = np.array([1e3 * getattr(level, name).half_width for level in levels])
        widths = np.clip(np.nan_to_num(widths, posinf=0.0), 0.0, 0.9 * means)
        used = np.array([level.usable for level in levels])
        axis.errorbar(loads, means, yerr=widths, fmt="none", ecolor=colour, capsize=3, lw=1.2)
        axis.scatter(np.array(loads)[used], means[used], s=26, color=colour, zorder=3, label=label if name == "ttft" else None)
        axis.scatter(np.array(loads)[~used], means[~used], s=26, facecolors="white", edgecolors=colour, zorder=3)
    curves = 1e3 * _curves(found, levels)
    for place, axis in enumerate(axes):
        axis.plot(loads, curves[0, :, place], color=colour, lw=1.4)
        low, high = np.percentile(curves[1:, :, place], (2.5, 97.5), axis=0)
        axis.fill_between(loads, low, high, color=colour, alpha=0.15, lw=0)


def _curves(found: Found, levels: Sequence[Measured]) -> np.ndarray:
    """The fit's values and those of coefficients drawn within their standard errors, (1 + draws, levels, 2) in seconds."""
    fit = found.fit
    source = np.random.default_rng(0)
    values = np.array([fit.step.alpha_s, fit.step.beta_s, fit.step.gamma_s, fit.step.floor_s])
    errors = np.array([getattr(fit.standard_error, name) for name in ("alpha_s", "beta_s", "gamma_s", "floor_s")])
    relative = np.where(np.isfinite(errors) & (values > 0), errors / np.maximum(values, 1e-15), 0.0)
    drawn = values * np.exp(np.minimum(relative, 1.0) * source.standard_normal((_DRAWS, 4)))
    return np.array([predicted(levels, StepTime(*row), found.limits, fit.client) for row in (values, *drawn)])


def _coefficients(found: Found) -> str:
    step, error = found.fit.step, found.fit.standard_error
    rows = (
        ("alpha", step.alpha_s, error.alpha_s, 1e3, "ms"),
        ("beta ", step.beta_s, error.beta_s, 1e6, "us"),
        ("gamma", step.gamma_s, error.gamma_s, 1e9, "ns"),
    )
    return "\n".join(
        f"{name} {scale * value:7.4g} {unit}"
        + (f"  +- {100 * own / value:.1f} %" if name.strip() in found.fit.identified else "  not told")
        for name, value, own, scale, unit in rows
    )
