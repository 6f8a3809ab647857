"""Quality, dollars and seconds: the picker against RouteBalance and other routers, on real scores, in virtual time.

    python bench/picker/bench_frontier.py [llmrouter] [zeroeval] [--arrivals 12 24 30 40 square gamma] [--seeds 20]
        [--workers 2] [--out out/picker]

Every side gets the same prompts (drawn anew with replacement for each seed), arrivals and predictions, and 36 settings.
Volumes are those of (quality, $ per request, p95 or mean of the end-to-end time) over the all-smallest quality, the all-largest
cost and time; a ratio is taken per seed. "both" is the union of RouteBalance's two grids; "105" are its weights in thirteenths.

Under "at RouteBalance's uniform weights" ours runs at prices that were matched to its quality and cost on other seeds, once
with RouteBalance at the speed of its batching alone and once with the overhead that its paper reports (134 ms at 12 req/s,
231 ms at 30).

Every request of ours waits 5 ms for the router; RouteBalance computes in no time, and knows the engines' steps exactly.
Simulated engines, real scores; lengths of the llmrouter set are synthetic. Needs the scores (``SERVINGPLAN_DATA``).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from baselines import fixed, models, run
from baselines.routebalance import Rule
from servingplan.routing.preset import Preset, Prices
from virtualfleet import drive, frontier, plot, prompts, settings
from virtualfleet.outcome import Point
from virtualfleet.workers import spread
from virtualfleet.workload import Workload

OURS, MINMAX, RAW = "servingplan", "RouteBalance minmax", "RouteBalance raw"
BOTH, MINMAX_105, RAW_105 = "RouteBalance both", "minmax, 105", "raw, 105"
KNOWING = "our rule, all known"
BEST_ROUTE, AVENGERS = "BEST-Route-like", "Avengers-Pro-like"
WEIGHTS, LLM_D = "fixed shares, shortest queue", "fixed shares, llm-d-like"
ROUND_ROBIN, SHORTEST = "round robin", "shortest queue"
PUBLISHED_MS = ((12.0, 134.0), (30.0, 231.0))
ARRIVALS = ("12", "24", "30", "40", "square", "gamma")


@dataclass(frozen=True, slots=True)
class Cell:
    """One seed of one row.

    Attributes:
        points: By router, one per setting.
        volumes: By router: with the p95, and with the mean.
        uniform: Ours and RouteBalance at its uniform weights.
    """

    points: dict[str, list[Point]]
    volumes: dict[str, tuple[float, float]]
    uniform: dict[str, Point]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", default=list(prompts.SETS))
    parser.add_argument("--arrivals", nargs="+", default=list(ARRIVALS))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("out/picker"))
    asked = parser.parse_args()
    if not prompts.DATA.is_dir():
        sys.exit(f"needs the scores under {prompts.DATA} (SERVINGPLAN_DATA)")
    for name in asked.sets:
        found = {}
        for come in asked.arrivals:
            begun_s = time.perf_counter()
            prices = matched(name, come)
            seeds = range(settings.FIRST_SEED, settings.FIRST_SEED + asked.seeds)
            found[come] = list(spread(partial(cell, name, come, prices), seeds, asked.workers))
            print(f"\n{name}, {come}: {asked.seeds} seeds, {time.perf_counter() - begun_s:.0f} s")
            tell(found[come])
            tell_uniform(found[come], prices)
        plot.frontier(name, found, OURS, asked.out / f"frontier_{name}.png")
        print(f"\nplot: {asked.out / f'frontier_{name}.png'}", flush=True)


def cell(name: str, come: str, prices: Prices, seed: int) -> Cell:
    """All routers on one workload."""
    work = settings.sample(name, come, seed)
    points = route_balance(work) | others(name, work) | ours(work)
    corner = frontier.reference(work)
    volumes = {router: frontier.volumes(found, corner) for router, found in points.items()}
    return Cell(points, volumes, uniform(work, come, prices))


def ours(work: Workload) -> dict[str, list[Point]]:
    known = drive.asks(work)
    grid = settings.ours()
    return {
        OURS: [drive.Drive(work, prices, drive.Settings(), known).run().point() for prices in grid],
        KNOWING: [run.plan_rule(work, prices.per_dollar, prices.per_second).point() for prices in grid],
    }


def route_balance(work: Workload) -> dict[str, list[Point]]:
    def points(rules: Sequence[Rule]) -> list[Point]:
        return [run.route_balance(work, rule)[0].point() for rule in rules]

    minmax, raw = (points(settings.route_balance(minmax=minmax)) for minmax in (True, False))
    return {
        MINMAX: minmax,
        RAW: raw,
        BOTH: minmax + raw,
        MINMAX_105: points(settings.simplex(minmax=True)),
        RAW_105: points(settings.simplex(minmax=False)),
    }


def others(name: str, work: Workload) -> dict[str, list[Point]]:
    """Routers that choose the model first; their scorers take 70 ms, requests side by side, where they have one."""
    scored_s = work.arrival_s + models.SCORER_S
    best = [models.best_route(work, threshold) for threshold in (0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0)]
    pool = settings.pool(name)
    avengers = [models.avengers(pool, weight)[work.prompt] for weight in (0.1, 0.25, 0.4, 0.47, 0.53, 0.6, 0.7, 0.8, 0.95)]
    shares = [models.split(work, share) for share in models.splits()]
    anywhere = run.anywhere(work)
    return {
        BEST_ROUTE: [run.model_first(work, model, ready_s=scored_s).point() for model in best],
        AVENGERS: [run.model_first(work, model).point() for model in avengers],
        WEIGHTS: [run.model_first(work, model).point() for model in shares],
        LLM_D: [run.model_first(work, model, fixed.SCORED).point() for model in shares],
        ROUND_ROBIN: [run.model_first(work, anywhere, fixed.ROUND_ROBIN).point()],
        SHORTEST: [run.model_first(work, anywhere).point()],
    }


def uniform(work: Workload, come: str, prices: Prices) -> dict[str, Point]:
    native, held_s = run.route_balance(work, Rule())
    extra_s = max(0.0, published_s(settings.rate_rps(come)) - held_s)
    late, _ = run.route_balance(work, Rule(), extra_s=extra_s)
    known = drive.asks(work)
    balanced = Preset.BALANCED.prices
    return {
        "native": native.point(),
        "published": late.point(),
        "matched": drive.Drive(work, prices, drive.Settings(), known).run().point(),
        "balanced": drive.Drive(work, balanced, drive.Settings(), known).run().point(),
    }


def published_s(rate_rps: float) -> float:
    """The overhead that the paper's documents report, by interpolation."""
    rates, milliseconds = zip(*PUBLISHED_MS, strict=True)
    return float(np.interp(rate_rps, rates, milliseconds)) / 1e3


def matched(name: str, come: str) -> Prices:
    """Prices that give the quality of RouteBalance's uniform weights at the least of cost and time, on other seeds.

    Found with the rule that knows all, whose outcome is near to the picker's and takes a hundredth of the time.
    """
    works = [settings.sample(name, come, seed) for seed in settings.TUNING_SEEDS]
    theirs = _mean([run.route_balance(work, Rule())[0].point() for work in works])

    def worst(prices: Prices) -> tuple[float, float]:
        mine = _mean([run.plan_rule(work, prices.per_dollar, prices.per_second).point() for work in works])
        lacks = max(0.0, theirs.quality - mine.quality)
        return lacks, max(mine.cost / theirs.cost, mine.e2e_mean_s / theirs.e2e_mean_s)

    dollars, seconds = np.geomspace(50, 8000, 16).round(), np.geomspace(0.001, 0.1, 16).round(4)
    return min((Prices(float(dollar), float(second)) for dollar in dollars for second in seconds), key=worst)


def _mean(points: Sequence[Point]) -> Point:
    return replace(points[0], **{key: float(np.mean([getattr(one, key) for one in points])) for key in Point.__slots__})


def tell(cells: Sequence[Cell]) -> None:
    print(f"  {'volume of ours over':30}{'settings':>9}{'p95':>24}{'mean':>24}{'points matched':>16}")
    for router in cells[0].volumes:
        if router == OURS:
            continue
        pairs = np.array([np.divide(one.volumes[OURS], one.volumes[router]) for one in cells])
        share = np.mean([frontier.matched(one.points[router], one.points[OURS]) for one in cells])
        count = len(cells[0].points[router])
        columns = "".join(f"{frontier.spelled(pairs[:, at]):>24}" for at in (0, 1))
        print(f"  {router:30}{count:>9}{columns}{share:>16.2f}")
    shed = max(point.shed for one in cells for point in one.points[OURS])
    print(f"  the most that ours shed at any setting: {100 * shed:.2f} %", flush=True)


def tell_uniform(cells: Sequence[Cell], prices: Prices) -> None:
    print(
        f"  at RouteBalance's uniform weights; ours at {prices.per_dollar:.0f} per dollar and {prices.per_second:g} per second"
    )
    rows = (("matched", "native"), ("matched", "published"), ("balanced", "native"))
    keys = ("cost", "e2e_mean_s", "e2e_p95_s", "e2e_p99_s", "ttft_mean_s", "ttft_p99_s")
    print(f"  {'ratio of':24}{'quality':>9}" + "".join(f"{key:>22}" for key in keys))
    for mine, theirs in rows:
        gain = np.mean([one.uniform[mine].quality - one.uniform[theirs].quality for one in cells])
        ratios = [[getattr(one.uniform[mine], key) / getattr(one.uniform[theirs], key) for one in cells] for key in keys]
        print(f"  {f'{mine} / {theirs}':24}{gain:>+9.4f}" + "".join(f"{frontier.spelled(row):>22}" for row in ratios))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
