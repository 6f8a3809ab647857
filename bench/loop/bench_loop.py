"""The whole loop in virtual time: the controller's own decisions, on a cluster, a router and engines that are simulated.

    python bench/loop/bench_loop.py [azure|poisson|noise|step|churn ...] [--seeds 20] [--minutes 30] [--workers 2] [--out DIR]

- azure: arrivals and lengths of the Azure traces on replicas of 0.8 and 1.3 times the declared speed; one-minute windows that
  keep the p95 of the time to first token, with profiles as declared and corrected; error of the predictor by cycle.
- poisson: the same with Poisson arrivals.
- noise: an hour of 10 % noise round a constant load on 64 GPUs: units moved by cycle, and replicas that go and come back.
- step: three times the load from one second to the next: until replicas are asked for, and until weights move.
- churn: an hour of plans that come, change and go, and of pods that fail: memory of the process.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import numpy as np

from virtual import analysis, plot, scenes, service, tables, traffic
from virtual.analysis import Change, kept_share
from virtual.scenes import BEGIN_S, ChurnResult, NoiseResult, Result

Item = TypeVar("Item")
Answer = TypeVar("Answer")

RATES_RPS = {"chat": 16.0, "code": 6.0}
NOISE_RPS = {"chat": 75.0, "code": 70.0}
STEP_RPS = {"chat": 10.0, "code": 5.0}
STEP_AT_S, STEP_S = 900.0, 1800.0
DWELL_S, CYCLE_S = 900.0, 60.0
UNITS = {pool: {"h100": 2, "l40s": 1}[kind] for pool, kind in service.pools().items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", default=list(RUNS))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--minutes", type=int, default=30)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("out/loop"))
    asked = parser.parse_args()
    if not traffic.TRACES.is_dir():
        sys.exit(f"needs the Azure traces under {traffic.TRACES} (SERVINGPLAN_DATA)")
    for name in asked.runs:
        begun_s = time.perf_counter()
        RUNS[name](asked)
        print(f"[{name}: {time.perf_counter() - begun_s:.0f} s]\n", flush=True)


def spread(work: Callable[[Item], Answer], items: Iterable[Item], workers: int) -> list[Answer]:
    """The answers in order; fresh processes, so that none inherits another's caches."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(pool.map(work, items))


def corrected_run(kind: str, minutes: int, task: tuple[int, bool]) -> Result:
    seed, calibration = task
    seconds = 60.0 * minutes
    requests = scenes.arrivals(kind, RATES_RPS, seconds, np.random.default_rng([seed, 1]))
    return scenes.with_engines(kind, seed, scenes.speeds_of(seed), RATES_RPS, requests, seconds, calibration=calibration)


def corrected(kind: str, asked: argparse.Namespace) -> None:
    tasks = [(seed, calibration) for seed in range(asked.seeds) for calibration in (False, True)]
    results = spread(partial(corrected_run, kind, asked.minutes), tasks, asked.workers)
    off, on = ([run for run in results if run.calibration is calibration] for calibration in (False, True))
    print(f"{kind} arrivals, {asked.seeds} seeds of {asked.minutes} minutes, {sum(RATES_RPS.values()):g} requests/s")
    shares = tables.window_table(off, on)
    tables.error_table(off, on)
    tables.cost_lines(off, on)
    for before, after in zip(off, on, strict=True):
        title = f"{kind.title()} arrivals, seed {before.seed}"
        plot.one_run([before, after], asked.out / f"{kind}-{before.seed:02d}.png", title)
    errors = {title: tables.by_cycle(runs, asked.minutes) for title, runs in (("as declared", off), ("corrected", on))}
    plot.all_seeds(asked.seeds, kind, shares, errors, asked.out / f"{kind}.png")
    print(f"plots: {asked.out}/{kind}.png, {asked.out}/{kind}-SEED.png")


def noise_run(seed: int) -> NoiseResult:
    return scenes.noise(seed, NOISE_RPS)


def moves(result: NoiseResult) -> tuple[list[Change], np.ndarray]:
    """Changes of the targets since requests began, and accelerator units moved by cycle."""
    settled = [tick for tick in result.run.ticks if tick.now_s >= BEGIN_S]
    found = analysis.changes([tick.now_s for tick in settled], [tick.target for tick in settled])
    return found, analysis.moved_units(found, UNITS, CYCLE_S, settled[-1].now_s)


def noise(asked: argparse.Namespace) -> None:
    results = spread(noise_run, range(asked.seeds), asked.workers)
    moved = [moves(result) for result in results]
    gpus = results[0].gpus
    ticks = [tick for result in results for tick in result.run.ticks if tick.now_s >= BEGIN_S]
    print(f"an hour of +-10 % noise, {gpus} GPUs, {sum(NOISE_RPS.values()):g} requests/s, {len(results)} seeds")
    print("most GPUs moved in a cycle, by seed: " + " ".join(f"{units.max():g}" for _, units in moved))
    print("changes of replicas in the hour: " + " ".join(str(len(found)) for found, _ in moved))
    print("A-B-A within the dwell: " + " ".join(str(len(analysis.returns(found, DWELL_S))) for found, _ in moved))
    shed = {name: 100 * np.mean([tick.shed.get(name, 0.0) for tick in ticks]) for name in NOISE_RPS}
    refused = ", ".join(f"{value:.2f} % of {name}" for name, value in shed.items())
    print(f"{np.mean([tick.units for tick in ticks]):.1f} GPUs in use; refused: {refused}")
    print(f"{np.mean([result.seconds for result in results]):.0f} s a run")
    worst = int(np.argmax([len(found) for found, _ in moved]))
    plot.noise_run(results[worst], *moved[worst], asked.out / "noise.png")
    print(f"plot of the seed with most changes: {asked.out}/noise.png")


def step_at_s(seed: int) -> float:
    """When the step comes, after requests began: at no particular time of a tick or a scrape."""
    return STEP_AT_S + float(np.random.default_rng([seed, 5]).uniform(0, 30))


def step_run(task: tuple[int, float]) -> Result:
    seed, scrape_s = task
    requests = scenes.stepped(STEP_RPS, 3.0, step_at_s(seed), STEP_S, np.random.default_rng([seed, 2]))
    exact = dict.fromkeys(service.PRODUCTS, 1.0)
    return scenes.with_engines("step", seed, exact, STEP_RPS, requests, STEP_S, scrape_s=scrape_s)


def step_times(result: Result) -> tuple[float, float]:
    """Seconds from the step until more replicas are asked for, and until the published weights change; infinite for never."""
    at_s = BEGIN_S + step_at_s(result.seed)
    before = [tick for tick in result.run.ticks if tick.now_s <= at_s][-1]
    after = [tick for tick in result.run.ticks if tick.now_s > at_s]
    grown = (tick.now_s - at_s for tick in after if any(tick.asked[pool] > before.asked[pool] for pool in tick.asked))
    moved = (tick.now_s - at_s for tick in after if tick.weights != before.weights)
    return next(grown, np.inf), next(moved, np.inf)


def step(asked: argparse.Namespace) -> None:
    for scrape_s in (5.0, 15.0):
        results = spread(step_run, [(seed, scrape_s) for seed in range(asked.seeds)], asked.workers)
        times = np.array([step_times(result) for result in results])
        print(f"load x3 at once, scraped every {scrape_s:g} s, {len(results)} seeds:")
        for title, column in (("new replicas asked for", times[:, 0]), ("new weights published", times[:, 1])):
            print(f"  {title} after: median {np.median(column):.0f} s, most {np.max(column):.0f} s")
        late = [kept_share(w for w in result.windows if w.minute * 60 >= STEP_AT_S + 600) for result in results]
        print(f"  windows kept from ten minutes after the step on: {sum(k for k, _ in late)} of {sum(n for _, n in late)}")
        print(f"  failed requests: {sum(r.unserved for r in results)}, refused {sum(r.refused for r in results)}")
        title = f"Three times the load at once, scraped every {scrape_s:g} s"
        path = asked.out / f"step-{scrape_s:g}s.png"
        plot.one_run(results[:1], path, title, [(step_at_s(results[0].seed), "load x3")])
        print(f"  plot: {path}")


def churn_run(seed: int) -> ChurnResult:
    return scenes.churn(seed)


def churn(asked: argparse.Namespace) -> None:
    (result,) = spread(churn_run, [0], 1)
    hours, rss = np.array(result.time_s) / 3600, np.array(result.rss_mb)
    from_h = hours[-1] / 3
    late = hours >= from_h
    fit = analysis.slope(hours[late], rss[late])
    said = ", ".join(f"{count} {what}" for what, count in result.events.items())
    print(f"{hours[-1]:.1f} h of churn: {said}; {result.seconds:.0f} s")
    print(f"resident memory {rss[late][0]:.0f} -> {rss[-1]:.0f} MB after the first third")
    print(f"slope {fit[0]:+.1f} MB/h (95 %: {fit[1]:+.1f} to {fit[2]:+.1f})")
    plot.churn_run(result, fit, from_h, asked.out / "churn.png")
    print(f"plot: {asked.out}/churn.png")


RUNS = {
    "azure": partial(corrected, "azure"),
    "poisson": partial(corrected, "poisson"),
    "noise": noise,
    "step": step,
    "churn": churn,
}

if __name__ == "__main__":
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
    main()
