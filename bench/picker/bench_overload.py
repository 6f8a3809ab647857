"""More than the fleet can serve: what each router still answers in time, and what that costs in quality.

    python bench/picker/bench_overload.py [--seeds 20] [--workers 2] [--out out/picker]

130 req/s on instances that run 32 sequences, 36 settings a side. Goodput is the share of all requests with a first token in
1 s, at most 50 ms between tokens and an end within 5 s; a request that was shed counts against it. The setting of each side is
the one with the best mean over seeds, of all and of those whose mean score of what was served reaches a floor. "score" counts
shed requests as 0, "good" counts the scores of goodput alone.

Before that, bursts at the default settings of every router: 40 and 6 req/s in turn, gamma arrivals, and 100 and 12 req/s in
turn on instances that run 32 sequences, with a figure of the time to first token.

Simulated engines, real scores, synthetic lengths. Needs the scores (``SERVINGPLAN_DATA``).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from baselines import models, run
from baselines.routebalance import Rule
from servingplan.routing.preset import Preset
from virtualfleet import drive, frontier, plot, prompts, settings
from virtualfleet.drive import Settings
from virtualfleet.outcome import Outcome, Point
from virtualfleet.tiers import SLOTS
from virtualfleet.workers import spread

SET, RATE, FEW = "llmrouter", "130", SLOTS["B32"]
RAW, MINMAX = "RouteBalance raw", "RouteBalance minmax"
SHEDS, GUARDS = "servingplan", "servingplan, no shedding"
FLOORS = (0.0, 0.5, 0.55)
BURSTS = {"square": SLOTS["B256"], "gamma": SLOTS["B256"], "surge": FEW}
"""Arrivals, and sequences an instance runs."""
AVENGERS, STATIC, SHORTEST = "Avengers-Pro-like", "RouteBalance constant time per token", "shortest queue"
BIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Burst:
    """One run through bursts.

    Attributes:
        point: The run in a few numbers.
        arrival_s, ttft_s: (n,)
    """

    point: Point
    arrival_s: np.ndarray
    ttft_s: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("out/picker"))
    asked = parser.parse_args()
    if not prompts.DATA.is_dir():
        sys.exit(f"needs the scores under {prompts.DATA} (SERVINGPLAN_DATA)")
    seeds = range(settings.FIRST_SEED, settings.FIRST_SEED + asked.seeds)
    for come in BURSTS:
        tell_bursts(come, list(spread(partial(bursts, come), seeds, asked.workers)), asked.out)
    tell_overload(list(spread(overload, seeds, asked.workers)))


def overload(seed: int) -> dict[str, list[Point]]:
    """Every setting of every side on one workload."""
    work = settings.sample(SET, RATE, seed)
    known = drive.asks(work)
    found = {
        router: [run.route_balance(work, rule, slots=FEW)[0].point() for rule in settings.route_balance(minmax=minmax)]
        for router, minmax in ((RAW, False), (MINMAX, True))
    }
    for router, shed in ((SHEDS, True), (GUARDS, False)):
        how = Settings(slots=FEW, shed=shed)
        found[router] = [drive.Drive(work, prices, how, known).run().point() for prices in settings.ours()]
    return found


def tell_overload(cells: Sequence[Mapping[str, Sequence[Point]]]) -> None:
    print(f"\n{SET}, {RATE} req/s, {FEW} sequences an instance, {len(cells)} seeds: goodput of the best setting")
    heads = "".join(f"{head:>23}" for head in ("goodput", "over raw", "over minmax"))
    print(f"  {'floor':6}{'router':28}{heads}" + "".join(f"{head:>8}" for head in ("served", "score", "good", "shed %")))
    for floor in FLOORS:
        best = {router: best_setting(cells, router, floor) for router in cells[0]}
        goodput = {
            router: np.array([one[router][at].goodput for one in cells]) for router, at in best.items() if at is not None
        }
        for router, at in best.items():
            if at is None:
                print(f"  {floor:<6.2f}{router:28}{'no setting reaches it':>23}")
                continue
            over = [frontier.spelled(goodput[router] / goodput[other]) if other in goodput else "" for other in (RAW, MINMAX)]
            keys = ("served_quality", "quality", "good_quality", "shed")
            served, score, good, shed = (np.mean([getattr(one[router][at], key) for one in cells]) for key in keys)
            columns = "".join(f"{column:>23}" for column in (frontier.spelled(goodput[router]), *over))
            print(f"  {floor:<6.2f}{router:28}{columns}{served:>8.3f}{score:>8.3f}{good:>8.3f}{100 * shed:>8.1f}")
    sys.stdout.flush()


def best_setting(cells: Sequence[Mapping[str, Sequence[Point]]], router: str, floor: float) -> int | None:
    """The setting with the best mean goodput among those whose mean score of what was served reaches the floor."""
    goodput = np.mean([[point.goodput for point in one[router]] for one in cells], axis=0)
    quality = np.mean([[point.served_quality for point in one[router]] for one in cells], axis=0)
    reaches = quality >= floor
    return int(np.argmax(np.where(reaches, goodput, -1))) if reaches.any() else None


def bursts(come: str, seed: int) -> dict[str, Burst]:
    """Default settings on one workload."""
    work = settings.sample(SET, come, seed)
    avengers = models.avengers(settings.pool(SET), 0.53)[work.prompt]

    slots = BURSTS[come]

    def burst(found: Outcome) -> Burst:
        return Burst(found.point(), found.arrival_s, found.ttft_s)

    return {
        SHEDS: burst(drive.Drive(work, Preset.BALANCED.prices, Settings(slots=slots)).run()),
        MINMAX: burst(run.route_balance(work, Rule(), slots=slots)[0]),
        RAW: burst(run.route_balance(work, Rule(minmax=False), slots=slots)[0]),
        STATIC: burst(run.route_balance(work, Rule(static=True), slots=slots)[0]),
        AVENGERS: burst(run.model_first(work, avengers, slots=slots)),
        SHORTEST: burst(run.model_first(work, run.anywhere(work), slots=slots)),
    }


def tell_bursts(come: str, cells: Sequence[Mapping[str, Burst]], out: Path) -> None:
    print(f"\n{SET}, {come}, {len(cells)} seeds, default settings")
    # Of a run that sheds more than 5 % there is no p95 of all requests.
    ends = ("e2e_mean_s", "e2e_p99_s") if come == "surge" else ("e2e_mean_s", "e2e_p95_s", "e2e_p99_s")
    keys = ("quality", "cost", *ends, "ttft_mean_s", "ttft_p99_s", "goodput", "shed")
    print(f"  {'servingplan over':38}" + "".join(f"{key:>22}" for key in keys))
    for router in cells[0]:
        if router == SHEDS:
            means = [np.mean([getattr(one[router].point, key) for one in cells]) for key in keys]
            print(f"  {'(servingplan itself)':38}" + "".join(f"{mean:>22.3g}" for mean in means))
            continue
        pairs = [(one[SHEDS].point, one[router].point) for one in cells]
        columns = [frontier.spelled([getattr(mine, key) / getattr(theirs, key) for mine, theirs in pairs]) for key in keys[:-1]]
        print(f"  {router:38}" + "".join(f"{column:>22}" for column in columns))
    sys.stdout.flush()
    if come != "surge":
        return
    shown = {router: quantiles([one[router] for one in cells]) for router in cells[0] if router != STATIC}
    shed = np.mean([one[SHEDS].point.shed for one in cells])
    high_rps, low_rps = settings.SURGE_RPS
    title = (
        f"Time to first token through bursts of {high_rps:.0f} over {low_rps:.0f} req/s, {FEW} sequences an instance, "
        f"{len(cells)} seeds together; servingplan sheds {100 * shed:.0f} %, the others nothing"
    )
    plot.burst(shown, rate([one[SHEDS] for one in cells]), out / "burst.png", title)
    print(f"  plot: {out / 'burst.png'}")


def quantiles(runs: Sequence[Burst]) -> np.ndarray:
    """(m, 4): seconds, and median, p90 and p99 of what arrives then and is served, over all runs."""
    arrival_s, ttft_s = (np.concatenate([getattr(one, key) for one in runs]) for key in ("arrival_s", "ttft_s"))
    arrival_s, ttft_s = arrival_s[np.isfinite(ttft_s)], ttft_s[np.isfinite(ttft_s)]
    end_s = min(one.arrival_s[-1] for one in runs)
    edges = np.arange(0, end_s, BIN_S)
    arrival_s, ttft_s = arrival_s[arrival_s < end_s], ttft_s[arrival_s < end_s]
    within = np.digitize(arrival_s, edges) - 1
    busy = np.unique(within)
    return np.array([(edges[at], *np.quantile(ttft_s[within == at], [0.5, 0.9, 0.99])) for at in busy])


def rate(runs: Sequence[Burst]) -> tuple[np.ndarray, np.ndarray]:
    end_s = min(one.arrival_s[-1] for one in runs)
    edges = np.arange(0, end_s, BIN_S)
    counts = np.histogram(np.concatenate([one.arrival_s for one in runs]), np.append(edges, edges[-1] + BIN_S))[0]
    return edges, counts / BIN_S / len(runs)


if __name__ == "__main__":
    main()
