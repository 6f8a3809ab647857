"""What is planned for against what then comes: forecasts on real and made-up arrivals.

Every minute the rate to plan for is made of the last hour's short windows, and held against the windows of the minute that
ends at the horizon. Three ways: servingplan's (quantile, level, trend and hysteresis), the last window, and the mean of the
last five minutes; the latter two are rounded to the same grid. Azure's traces keep 70 % of their requests, chosen anew for
every seed, and start at another place. Needs the traces (``SERVINGPLAN_DATA``); without them only the made-up arrivals are run.

    python bench/loop/bench_forecast.py [OUT_FOLDER] [SEEDS]
"""

import csv
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import matplotlib as mpl
import numpy as np

from servingplan.calibration.rates import follow, forecast, on_grid
from servingplan.calibration.readings import RateHistory

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

DATA = Path(os.environ.get("SERVINGPLAN_DATA", Path(__file__).parents[3] / "shared/data")) / "traces"
BIN_S, WINDOW_S, CYCLE_S, HOUR_S = 10, 30, 60, 3600
RUN_S, WARM_UP_S = 2 * HOUR_S, 900
HORIZONS_S = (60, 180)
OURS, LAST, MEAN = "servingplan", "last window", "mean of 5 min"
COLOURS = {OURS: "#1d6996", LAST: "#cc503e", MEAN: "#e1a730"}

Bins = np.ndarray
"""(n,) requests that arrive in every ten seconds."""


@dataclass(frozen=True, slots=True)
class Score:
    """How one way did on one run.

    Attributes:
        above: Share of the windows that exceed what was planned for them.
        beyond: Share that exceeds it by more than 95 % of Poisson arrivals at the planned rate do.
        spare: Mean of what is planned over what comes, less 1.
        moves: Changes of what is planned, per hour.
    """

    above: float
    beyond: float
    spare: float
    moves: float


def main() -> None:
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
    seeds = int(sys.argv[2]) if len(sys.argv) > 2 else 20
    sources = made_up()
    if DATA.is_dir():
        sources = recorded() | sources
    else:
        print(f"no traces under {DATA}: only made-up arrivals")
    shown = {}
    print(f"{seeds} seeds; mean and 95 % interval of the mean (bootstrap)\n")
    heads = ("above plan", "beyond Poisson", "spare", "moves per hour")
    print(f"{'arrivals':16}{'horizon':>8}  {'way':14}" + "".join(f"{head:>25}" for head in heads))
    for name, source in sources.items():
        runs = [source(np.random.default_rng(1000 + seed)) for seed in range(seeds)]
        for horizon_s in HORIZONS_S:
            planned = [plans(bins, declared_rps, horizon_s) for bins, declared_rps in runs]
            for way in (OURS, LAST, MEAN):
                scores = [score(bins, plan[way], horizon_s) for (bins, _), plan in zip(runs, planned, strict=True)]
                print(f"{name:16}{horizon_s:>6} s  {way:14}" + cells(scores), flush=True)
            shown[name] = (runs[0][0], planned[0])
        print()
    out.mkdir(parents=True, exist_ok=True)
    draw(shown, out / "forecast.png")
    print(f"plot: {out / 'forecast.png'}")


def cells(scores: list[Score]) -> str:
    chance = np.random.default_rng(7)
    text = ""
    for field, unit in (("above", "%"), ("beyond", "%"), ("spare", "%"), ("moves", "")):
        values = np.array([getattr(one, field) for one in scores]) * (100 if unit else 1)
        means = chance.choice(values, (2000, len(values))).mean(1)
        low, high = np.quantile(means, [0.025, 0.975])
        text += f"{f'{values.mean():.1f} {unit} [{low:.1f}, {high:.1f}]':>25}"
    return text


def windows(bins: Bins) -> np.ndarray:
    """(n,) requests per second of the windows that end with the last bin."""
    size = WINDOW_S // BIN_S
    count = min(len(bins) // size, HOUR_S // WINDOW_S)
    return bins[len(bins) - count * size :].reshape(count, size).sum(1) / WINDOW_S


def plans(bins: Bins, declared_rps: float, horizon_s: int) -> dict[str, np.ndarray]:
    """What every way plans for, at every cycle: (cycles,) each."""
    held, found = declared_rps, {OURS: [], LAST: [], MEAN: []}
    for at in range(0, len(bins), CYCLE_S // BIN_S):
        seen = windows(bins[:at])
        needed = forecast(RateHistory(float(WINDOW_S), tuple(seen.tolist())), held, float(horizon_s)).needed_rps
        held = follow(held, needed)
        found[OURS].append(held)
        found[LAST].append(on_grid(seen[-1]) if len(seen) else declared_rps)
        found[MEAN].append(on_grid(seen[-300 // WINDOW_S :].mean()) if len(seen) else declared_rps)
    return {way: np.array(rates) for way, rates in found.items()}


def score(bins: Bins, planned: np.ndarray, horizon_s: int) -> Score:
    """A way's score over all cycles after the warm-up whose horizon lies within the run."""
    step, ahead = CYCLE_S // BIN_S, horizon_s // BIN_S
    above, beyond, spare = [], [], []
    for cycle in range(WARM_UP_S // CYCLE_S, (len(bins) - ahead) // step):
        # The last cycle within the horizon: what comes before it is served by what was planned earlier.
        coming = windows(bins[cycle * step : cycle * step + ahead][-max(step, WINDOW_S // BIN_S) :])
        limit = planned[cycle] + 1.645 * (planned[cycle] / WINDOW_S) ** 0.5
        above.append((coming > planned[cycle]).mean())
        beyond.append((coming > limit).mean())
        spare.append((planned[cycle], coming.mean()))
    rated = planned[WARM_UP_S // CYCLE_S :]
    moves = np.count_nonzero(np.diff(rated)) / (len(rated) * CYCLE_S / HOUR_S)
    given, came = np.array(spare).mean(0)
    return Score(float(np.mean(above)), float(np.mean(beyond)), float(given / came - 1), float(moves))


Source = Callable[[np.random.Generator], tuple[Bins, float]]
"""Arrivals, and what the spec declares of them in requests per second."""


def made_up() -> dict[str, Source]:
    at_s = np.arange(0, RUN_S, BIN_S)
    minute = at_s // 60

    def poisson(rate_of: Callable[[np.random.Generator], np.ndarray], declared_rps: float) -> Source:
        return lambda chance: (chance.poisson(np.maximum(0, rate_of(chance)) * BIN_S), declared_rps)

    return {
        "+-10 % noise": poisson(lambda chance: 10 * chance.uniform(0.9, 1.1, minute[-1] + 1)[minute], 10.0),
        "sine, 1 h": poisson(lambda chance: 10 * (1 + 0.6 * np.sin(2 * np.pi * (at_s / HOUR_S + chance.random()))), 10.0),
        "step x3": poisson(lambda chance: np.where(at_s < HOUR_S + 60 * chance.random(), 5.0, 15.0), 5.0),
        "ramp x3": poisson(lambda chance: 5 + 10 * np.clip((at_s - HOUR_S - 60 * chance.random()) / 1200, 0, 1), 5.0),
    }


def recorded() -> dict[str, Source]:
    def azure(name: str) -> Source:
        with (DATA / f"AzureLLMInferenceTrace_{name}.csv").open() as file:
            times = [datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp() for row in csv.DictReader(file)]
        since_s = np.array(times) - times[0]
        counts = np.histogram(since_s, np.arange(0, since_s[-1], BIN_S))[0]

        def arrivals(chance: np.random.Generator) -> tuple[Bins, float]:
            kept = np.roll(chance.binomial(counts, 0.7), chance.integers(len(counts)))
            return kept, float(kept.mean() / BIN_S)

        return arrivals

    with (DATA / "servegen_rates_10min.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["workload"] == "m-mid"]
    rate_rps = np.array([float(row["rate_rps"]) for row in rows])
    rate_rps *= 10 / rate_rps.mean()
    burst = np.array([float(row["rate_weighted_cv"] or 1) for row in rows])

    def servegen(chance: np.random.Generator) -> tuple[Bins, float]:
        at_s = np.arange(0, 3 * RUN_S, BIN_S) + 600 * chance.integers(len(rate_rps) - 3 * RUN_S // 600)
        mean = np.interp(at_s / 600, np.arange(len(rate_rps)), np.maximum(0.01, rate_rps)) * BIN_S
        # Counts of renewal arrivals have a variance of about the squared variation times their mean.
        wide = np.maximum(1.01, np.interp(at_s / 600, np.arange(len(burst)), burst) ** 2)
        return chance.negative_binomial(mean / (wide - 1), 1 / wide), float(mean[0] / BIN_S)

    return {"Azure conv": azure("conv"), "Azure code": azure("code"), "ServeGen m-mid": servegen}


def draw(shown: dict[str, tuple[Bins, dict[str, np.ndarray]]], file: Path) -> None:
    columns = 2
    figure, grid = plt.subplots(-(-len(shown) // columns), columns, figsize=(15, 2.9 * -(-len(shown) // columns)))
    for axis, (name, (bins, planned)) in zip(grid.flat, shown.items(), strict=False):
        panel(axis, name, bins, planned)
    for axis in grid.flat[len(shown) :]:
        axis.axis("off")
    figure.suptitle(f"What is planned for, {HORIZONS_S[-1]} s ahead, and what comes", x=0.01, ha="left", fontsize=14)
    figure.tight_layout(rect=(0, 0, 1, 0.98))
    figure.savefig(file, dpi=120)


def panel(axis: Axes, name: str, bins: Bins, planned: dict[str, np.ndarray]) -> None:
    size = WINDOW_S // BIN_S
    rates = bins[: len(bins) // size * size].reshape(-1, size).sum(1) / WINDOW_S
    minutes = np.arange(len(rates)) * WINDOW_S / 60
    axis.fill_between(minutes, rates, step="post", color="#b8bfc6", lw=0)
    cycles = np.arange(len(planned[OURS])) * CYCLE_S / 60
    axis.step(cycles, planned[MEAN], where="post", color=COLOURS[MEAN], lw=0.9, alpha=0.9)
    axis.step(cycles, planned[OURS], where="post", color=COLOURS[OURS], lw=2)
    moved = np.flatnonzero(np.diff(planned[OURS])) + 1
    axis.plot(cycles[moved], planned[OURS][moved], "o", color=COLOURS[OURS], ms=4)
    top = max(float(rates.max()), float(planned[OURS].max()))
    axis.set(ylim=(0, 1.18 * top), xlim=(0, minutes[-1]), xlabel="minutes", ylabel="requests/s")
    axis.set_title(f"{name}: {len(moved)} moves", loc="left", fontsize=10)
    end = minutes[-1]
    axis.text(end, planned[OURS][-1], " planned", color=COLOURS[OURS], va="bottom", fontsize=9)
    axis.text(end, planned[MEAN][-1], " mean of 5 min", color=COLOURS[MEAN], va="top", fontsize=9)
    axis.text(end * 0.01, 1.1 * top, "arrivals, windows of 30 s", color="#6b747d", fontsize=9, va="center")
    axis.grid(axis="y", alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
