"""The plot of predicted against simulated latency."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from truth_cases import PROFILES, Case, traffics
from truth_run import Found, first_tokens_s

from servingplan.latency.capacity import MAX_UTILIZATION, latency, margin, stable_rate_rps

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

MEAN, P95, DARK, BAND = "#2a6f97", "#d1495b", "#222222", "#d1495b22"
MARKERS = {"constant": "o", "lognormal": "v", "Azure conv": "s", "Azure code": "D", "short + long": "P", "conv + code": "X"}
COLOURS = dict(zip(PROFILES, ("#2a6f97", "#61a5c2", "#edae49", "#d1495b"), strict=True))


def draw(found: list[Found], others: list[Found], path: Path) -> None:
    """Write the figure: latency over load, a distribution, and all cases."""
    figure, axes = plt.subplots(2, 4, figsize=(18, 8.4), layout="constrained")
    shown = [name for name in ("constant", "Azure conv", "Azure code", "lognormal") if name in traffics()][:3]
    replicas = ("32B, 2 x H100", "8B, H100, 64 slots", "8B, RTX 4090, KV-limited")
    for axis, replica, traffic in zip(axes[0], replicas, shown, strict=False):
        over_load(axis, found, replica, traffic)
    over_load(axes[0, 3], found, "32B, 2 x H100", "short + long", part="short")
    distribution(axes[1, 0], "32B, 2 x H100", shown[1] if len(shown) > 1 else shown[0])
    scatter(axes[1, 1], [each for each in found if each.case.load <= 0.7], 0, "mean TTFT, Poisson, up to 70 %", 0.10)
    scatter(axes[1, 2], [each for each in found if each.case.load <= 0.7], 2, "p95 TTFT, Poisson, up to 70 %", 0.20)
    margins(axes[1, 3], found + others)
    figure.suptitle("Closed form against simulation (bars: 95 % interval over three seeds of 30,000 requests)")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def over_load(axis: Axes, found: list[Found], replica: str, traffic: str, part: str | None = None) -> None:
    """Mean and p95 over load, predicted and simulated, with the margin."""
    mine = [
        each
        for each in found
        if (each.case.profile_name, each.case.traffic.name) == (replica, traffic) and part in {None, each.part}
    ]
    profile, mix = PROFILES[replica], mine[0].case.traffic.mix
    lengths = mine[0].case.traffic.parts[mine[0].part][1]
    loads = np.linspace(0.02, 0.92, 91)
    curves = [latency(profile, lengths, load * stable_rate_rps(profile, mix), mix) for load in loads]
    p95 = np.array([curve.ttft_s(95.0) for curve in curves])
    kept = np.array([1 - margin(profile, mix, float(load)) for load in loads])
    axis.plot(loads, [curve.ttft_mean_s for curve in curves], color=MEAN, label="mean, predicted")
    axis.plot(loads, p95, color=P95, label="p95, predicted")
    axis.fill_between(loads, p95, p95 / kept, color=BAND, lw=0, label="margin")
    for column, colour in ((0, MEAN), (2, P95)):
        values = [each.ttft_s[:, column].mean() for each in mine]
        bars = [each.interval(column) * value for each, value in zip(mine, values, strict=True)]
        axis.errorbar([each.case.load for each in mine], values, bars, fmt="o", ms=5, color=colour, mec="white", capsize=2)
    axis.axvline(MAX_UTILIZATION, color=DARK, ls=":", lw=1)
    axis.text(
        MAX_UTILIZATION, 0.03, "no plan beyond ", transform=axis.get_xaxis_transform(), rotation=90, ha="right", fontsize=7
    )
    axis.set(title=f"{replica}\n{traffic}{f': {part}' if part else ''}", xlabel="load (of the stable rate)", ylabel="TTFT, s")
    axis.set(yscale="log", xlim=(0, 1))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.legend(fontsize=7, loc="upper left", frameon=False)
    axis.grid(alpha=0.2)


def distribution(axis: Axes, replica: str, traffic: str) -> None:
    """The whole distribution at two loads."""
    for load, colour in ((0.5, MEAN), (0.7, P95)):
        case = Case(replica, PROFILES[replica], traffics()[traffic], load)
        simulated = np.sort(first_tokens_s(case, 21))
        mix = case.traffic.mix
        predicted = latency(case.profile, mix, load * stable_rate_rps(case.profile, mix))
        shares = np.linspace(0.5, 99.7, 300)
        above = 1 - np.arange(len(simulated)) / len(simulated)
        axis.plot(simulated, above, color=colour, lw=4, alpha=0.3, label=f"simulated, {100 * load:.0f} %")
        axis.plot([predicted.ttft_s(share) for share in shares], 1 - shares / 100, color=colour, lw=1.4, label="predicted")
    axis.set(title=f"{replica}\n{traffic}", xlabel="TTFT, s", ylabel="share of requests above", yscale="log", ylim=(3e-3, 1.1))
    axis.set_xlim(0, None)
    axis.legend(fontsize=7, frameon=False)
    axis.grid(alpha=0.2)


def scatter(axis: Axes, found: list[Found], column: int, title: str, target: float) -> None:
    """Predicted against simulated, case by case."""
    for each in found:
        simulated = each.ttft_s[:, column].mean()
        axis.errorbar(
            simulated,
            each.predicted_ttft_s[column],
            xerr=each.interval(column) * simulated,
            fmt=MARKERS[each.case.traffic.name],
            color=COLOURS[each.case.profile_name],
            mec="white",
            ms=7,
            lw=0.8,
        )
    ends = np.array(axis.get_xlim())
    ends = np.array([max(ends[0], 0.02), ends[1]])
    axis.plot(ends, ends, color=DARK, lw=1)
    axis.fill_between(
        ends, ends * (1 - target), ends * (1 + target), color=DARK, alpha=0.08, lw=0, label=f"+-{100 * target:.0f} %"
    )
    axis.set(title=title, xlabel="simulated, s", ylabel="predicted, s", xscale="log", yscale="log")
    for each in (axis.xaxis, axis.yaxis):
        each.set_minor_formatter(NullFormatter())
    handles = [axis.plot([], [], MARKERS[name], color=DARK, label=name)[0] for name in MARKERS if name in traffics()]
    handles += [axis.plot([], [], "o", color=colour, label=name)[0] for name, colour in COLOURS.items()]
    axis.legend(handles=handles, fontsize=6.5, frameon=False)
    axis.grid(alpha=0.2)


def margins(axis: Axes, found: list[Found]) -> None:
    """How low the p95 is, against the margin."""
    for each in found:
        if each.case.load <= MAX_UTILIZATION:
            bursty = each.case.traffic.arrival_cv > 1
            axis.plot(
                100 * each.margin,
                -100 * each.error(2),
                "D" if bursty else "o",
                color=P95 if bursty else MEAN,
                mec="white",
                ms=6,
            )
    axis.plot([0, 80], [0, 80], color=DARK, lw=1)
    axis.fill_between([0, 80], [0, 80], [80, 80], color=P95, alpha=0.08, lw=0)
    axis.text(6, 68, "not covered", fontsize=8, color=P95)
    axis.plot([], [], "o", color=MEAN, label="Poisson")
    axis.plot([], [], "D", color=P95, label="bursty, squared cv 4")
    axis.set(title="what the margin covers, up to 85 %", xlabel="margin, %", ylabel="p95 predicted too low by, %", xlim=(0, 80))
    axis.set_ylim(-60, 80)
    axis.legend(fontsize=7, frameon=False, loc="upper center")
    axis.grid(alpha=0.2)
