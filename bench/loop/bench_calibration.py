"""How well live latency corrects a wrong profile, in virtual time.

A simulated replica (`servingplan.sim`, which shares no code with the form) is slower or faster than its profile says, as a
whole or in one coefficient. It gets requests of the Azure lengths, Poisson or at the times of the trace, at loads that change;
every 60 s the window's histograms, in vLLM's buckets, are learnt from. Shown: how far the predicted mean time to first token is
from that of long Poisson runs of the same replica at fixed loads, by cycle; how far it is from what the windows themselves
have, predicted before each; and how many windows keep the predicted p95 with its margin. Only windows of a queue that may be
called stationary are judged: it neither grew nor shrank, and the busiest quarters were below 90 % of the true stable rate.
Replayed on one replica, most of the code trace's are not, since its requests come all within a few seconds.

    python bench/loop/bench_calibration.py [OUT_FOLDER] [SEEDS]

Needs the traces (``SERVINGPLAN_DATA``).
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np

from calibration_world import CYCLES, JUDGED_AT, TRACES, World, made, requests, simulated, stationary_s, steady, window
from servingplan.calibration.memory import SetupMemory
from servingplan.calibration.setup import Sample, corrected, learn
from servingplan.latency.capacity import latency, margin, stable_rate_rps
from servingplan.latency.profile import EngineProfile

mpl.use("Agg")
from matplotlib import pyplot as plt

LEARNT_AFTER = 5
JUDGEABLE = 0.5
"""Share of windows that have to be of a stationary queue for a case to count against the target."""
TARGET = 0.10

TRUTHS = {
    "as declared": (1.0, 1.0, 1.0),
    "all x 0.8": (0.8, 0.8, 0.8),
    "all x 1.3": (1.3, 1.3, 1.3),
    "beta x 1.3": (1.0, 1.3, 1.0),
    "gamma x 1.3": (1.0, 1.0, 1.3),
}
REPLICAS = {
    "32B, 2 x H100": ("Qwen/Qwen3-32B", "H100", 2, 256),
    "8B, H100, 64 slots": ("meta-llama/Llama-3.1-8B", "H100", 1, 64),
}
LENGTHS = {"32B, 2 x H100": "conv", "8B, H100, 64 slots": "code"}


@dataclass(frozen=True, slots=True)
class Run:
    """One seed.

    Attributes:
        errors: (cycles + 1, loads) predicted over true mean time to first token, less 1; the first before anything is learnt.
        kept: (cycles,) whether the window kept the p95 predicted before it with the margin; NaN where it was overloaded.
        kept_without: (cycles,) the same by the profile as declared.
        margins: (cycles,) the further margin.
        factor: The largest factor applied to a step, or its inverse.
        windows: (cycles, 3) requests, predicted and observed mean; NaN where overloaded.
        seconds: Of learning, by cycle.
    """

    errors: np.ndarray
    kept: np.ndarray
    kept_without: np.ndarray
    margins: np.ndarray
    windows: np.ndarray
    seconds: float
    factor: float


def main() -> None:
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
    seeds = int(sys.argv[2]) if len(sys.argv) > 2 else 20
    if not TRACES.is_dir():
        print(f"no traces under {TRACES}: nothing to measure")
        return
    found: dict[tuple[str, str, str, str], list[Run]] = {}
    print(header())
    for name, replica in REPLICAS.items():
        trace = LENGTHS[name]
        for label, factors in TRUTHS.items():
            world = made(replica, trace, factors)
            truth_s = stationary_s(world)
            for arrivals in ("Poisson", "Azure"):
                key = (name, trace, arrivals, label)
                found[key] = [run(world, truth_s, arrivals, seed) for seed in range(seeds)]
                print(line(key, found[key]), flush=True)
    verdicts(found)
    out.mkdir(parents=True, exist_ok=True)
    draw(found, out / "calibration.png")
    print(f"\nplot: {out / 'calibration.png'}")


def run(world: World, truth_s: np.ndarray, arrivals: str, seed: int) -> Run:
    arrival_s, pairs = requests(world, arrivals, np.random.default_rng(seed))
    outcome = simulated(world, arrival_s, pairs)
    memory = SetupMemory()
    errors, kept, kept_without, margins, windows = [error(world, memory, truth_s)], [], [], [], []
    spent_s, factor = 0.0, 1.0
    for cycle in range(CYCLES):
        sample, ttft_s = window(world, outcome, pairs, cycle)
        if sample is None:
            kept.append(np.nan), kept_without.append(np.nan), windows.append([np.nan] * 3)
        else:
            calibrated = corrected(world.profile, memory)
            full = not steady(world, sample)
            kept.append(np.nan if full else keeps(calibrated, sample, ttft_s))
            kept_without.append(np.nan if full else keeps(world.profile, sample, ttft_s))
            expected = latency(calibrated, world.mix, sample.offered_rps).ttft_mean_s
            windows.append([np.nan] * 3 if full else [len(ttft_s), expected, ttft_s.mean()])
            start = time.perf_counter()
            memory = learn(world.profile, memory, sample)
            spent_s += time.perf_counter() - start
            factor = max(factor, *(max(each, 1 / each) for each in (memory.applied.step if memory.applied else ())), 1.0)
        margins.append(memory.margin.get("ttft.p95", 0.0))
        errors.append(error(world, memory, truth_s))
    return Run(*map(np.array, (errors, kept, kept_without, margins, windows)), seconds=spent_s / CYCLES, factor=factor)


def error(world: World, memory: SetupMemory, truth_s: np.ndarray) -> np.ndarray:
    """(loads,) of the predicted mean time to first token at the rates of the long runs."""
    profile = corrected(world.profile, memory)
    rates = np.array(JUDGED_AT) * stable_rate_rps(world.truth, world.mix)
    return np.array([latency(profile, world.mix, rate).ttft_mean_s for rate in rates]) / truth_s - 1


def keeps(profile: EngineProfile, sample: Sample, ttft_s: np.ndarray) -> float:
    load = sample.offered_rps / stable_rate_rps(profile, sample.mix)
    predicted_s = latency(profile, sample.mix, sample.offered_rps).ttft_s(95.0)
    return float(np.percentile(ttft_s, 95) <= predicted_s / (1 - margin(profile, sample.mix, load, key="ttft.p95")))


def header() -> str:
    return (
        f"{'replica':20}{'lengths':8}{'arrivals':9}{'truth':13}| mean TTFT error, 30-70 %: before, after 5, 10, 30 | at 80 % "
        "| in windows (judged) | p95 windows kept: declared, learnt | margin | ms"
    )


def line(key: tuple[str, str, str, str], runs: list[Run]) -> str:
    name, trace, arrivals, label = key
    by_cycle = absolute(runs)
    shown = " ".join(f"{100 * by_cycle[at].mean():6.1f}+-{interval(by_cycle[at]):3.1f}" for at in (0, 5, 10, CYCLES))
    full = np.mean([abs(each.errors[LEARNT_AFTER + 5 :, 3]).mean() for each in runs])
    late = known_mean(np.array([each.kept[LEARNT_AFTER + 5 :] for each in runs]))
    declared = known_mean(np.array([each.kept_without for each in runs]))
    margins = np.mean([each.margins[-1] for each in runs])
    windows = f"{100 * pooled(runs):+6.1f} ({100 * judged(runs):3.0f} %)"
    return (
        f"{name:20}{trace:8}{arrivals:9}{label:13}| {shown} | {100 * full:5.1f} | {windows} "
        f"| {100 * declared:5.1f} {100 * late:5.1f} | {margins:5.2f} "
        f"| {1e3 * np.mean([each.seconds for each in runs]):4.0f}"
    )


def absolute(runs: list[Run]) -> np.ndarray:
    """(cycles + 1, seeds) mean over the loads up to 70 % of the absolute errors."""
    return np.array([abs(each.errors[:, :3]).mean(axis=1) for each in runs]).T


def known_mean(values: np.ndarray) -> float:
    """Of what is known; NaN where nothing is."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def interval(values: np.ndarray) -> float:
    """Half of the 95 % interval of a mean, in percent."""
    return float(196 * values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0


def pooled(runs: list[Run]) -> float:
    """Predicted over observed mean, less 1, over all requests of the windows after the first ones that were not overloaded."""
    rows = np.concatenate([each.windows[LEARNT_AFTER:] for each in runs])
    rows = rows[np.isfinite(rows[:, 0])]
    if not len(rows):
        return float("nan")
    return float(rows[:, 0] @ rows[:, 1] / (rows[:, 0] @ rows[:, 2]) - 1)


def judged(runs: list[Run]) -> float:
    """Share of the windows that were judged."""
    return float(np.mean([np.isfinite(each.windows[LEARNT_AFTER:, 0]).mean() for each in runs]))


def verdicts(found: dict[tuple[str, str, str, str], list[Run]]) -> None:
    print()
    for arrivals in ("Poisson", "Azure"):
        mine = {key: runs for key, runs in found.items() if key[2] == arrivals and judged(runs) >= JUDGEABLE}
        errors = {
            "against long Poisson runs": {key: absolute(runs)[LEARNT_AFTER] for key, runs in mine.items()},
            "in the windows": {key: np.array([abs(pooled([each])) for each in runs]) for key, runs in mine.items()},
        }
        for what, after in errors.items():
            every = np.concatenate(list(after.values()))
            worst = max(after, key=lambda key: np.nanmean(after[key]))
            print(
                f"{arrivals} arrivals, {what}: mean TTFT error after {LEARNT_AFTER} cycles {100 * np.nanmean(every):.1f} % "
                f"(target {100 * TARGET:.0f} %), {100 * (every <= TARGET).mean():.0f} % of runs within it; "
                f"worst case {', '.join(worst)}: {100 * np.nanmean(after[worst]):.1f} %"
            )
        kept = known_mean(np.array([each.kept[LEARNT_AFTER + 5 :] for runs in mine.values() for each in runs]))
        print(f"{arrivals} arrivals: p95 with its margin kept in {100 * kept:.1f} % of windows after {LEARNT_AFTER + 5} cycles")
    bursts = [each.factor for runs in found.values() if judged(runs) < JUDGEABLE for each in runs]
    if bursts:
        idle = np.mean([factor == 1.0 for factor in bursts])
        print(
            f"bursts, where most windows cannot be judged: nothing learnt in {100 * idle:.0f} % of runs, "
            f"largest factor {max(bursts):.2f}"
        )


def draw(found: dict[tuple[str, str, str, str], list[Run]], path: Path) -> None:
    names = list(dict.fromkeys((key[0], key[1]) for key in found))
    size = (4.3 * len(names), 7.6)
    figure, rows = plt.subplots(2, len(names), figsize=size, layout="constrained", squeeze=False, sharey="row")
    colours = dict(zip(TRUTHS, ("#777777", "#2a9d8f", "#d1495b", "#e9a23b", "#3d6fb6"), strict=True))
    for column, (name, trace) in enumerate(names):
        top, bottom = rows[0][column], rows[1][column]
        for (replica, lengths, arrivals, label), runs in found.items():
            if (replica, lengths) != (name, trace):
                continue
            style = {"color": colours[label], "lw": 1.8, "ls": "-" if arrivals == "Poisson" else (0, (2, 1.5))}
            values = 100 * absolute(runs)
            top.plot(np.arange(CYCLES + 1), values.mean(axis=1), label=label if arrivals == "Poisson" else None, **style)
            if judged(runs) < JUDGEABLE:
                continue
            kept = 100 * np.array([known_mean(each) for each in np.array([run.kept for run in runs]).T])
            bottom.plot(np.arange(CYCLES), np.convolve(np.pad(kept, 2, mode="edge"), np.ones(5) / 5, mode="valid"), **style)
        top.axhline(100 * TARGET, color="#222222", lw=0.9, ls=":")
        top.axvline(LEARNT_AFTER, color="#222222", lw=0.9, ls=":")
        bottom.axhline(95, color="#222222", lw=0.9, ls=":")
        top.set_title(f"{name}, Azure {trace}", fontsize=10)
        top.set_ylim(0, 60)
        bottom.set_ylim(0, 102)
        bottom.set_xlabel("cycle of 60 s")
        for axis in (top, bottom):
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
    rows[0][0].set_ylabel("error of the predicted mean TTFT, %")
    rows[1][0].set_ylabel("windows that keep the predicted p95, %")
    rows[0][0].legend(fontsize=8, frameon=False, title="true step over the profile's")
    figure.suptitle("Wrong profiles, corrected by live latency (solid: Poisson arrivals, dashed: Azure timestamps)")
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
