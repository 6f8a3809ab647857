"""The shapes that the RouteBalance paper reports, from its rule as we wrote it, and what a free router would give us.

    python bench/picker/bench_shapes.py [llmrouter] [zeroeval] [--rates 6 12 18 24 30] [--seeds 20] [--workers 2]

- Tiers: medians of the time to first token and per output token beside those published (CARA), at the paper's load.
- Four arms: its rule; without a price of latency, ties by queue and by predicted time; with a constant time per token. With
  quality stretched over the candidates, as deployed, and the first two raw, as in the paper.
- A serial scorer of 70 ms, and the same one running requests side by side.
- Ours against itself with a router that takes no time.

The absolute figures of the paper are of its own scores and 28 GPUs. Needs the scores (``SERVINGPLAN_DATA``).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from baselines import models, run
from baselines.routebalance import Rule
from servingplan.routing.preset import Preset
from virtualfleet import drive, frontier, prompts, settings
from virtualfleet.outcome import Outcome
from virtualfleet.tiers import NAMES
from virtualfleet.workers import spread

ARMS = {
    "1 minmax": Rule(),
    "2 no latency, ties by queue": Rule(0.5, 0.0, 0.5),
    "3 no latency, ties by time": Rule(0.5, 0.0, 0.5, ties_by_latency=True),
    "4 constant time per token": Rule(static=True),
    "1 raw": Rule(minmax=False),
    "2 raw": Rule(0.5, 0.0, 0.5, minmax=False),
}
FIRST, *UNPRICED = list(ARMS)[:3]
SERIAL, SIDE_BY_SIDE, OURS, FREE = "serial scorer", "scorer side by side", "ours", "ours, no overhead"
BEST_ROUTE_SHARE = 0.7
"""One of the paper's thresholds; it gives RouteBalance's quality at uniform weights."""
PUBLISHED_TTFT_MS = (22.8, 42.4, 49.0, 77.7)
PUBLISHED_TPOT_MS = (10.2, 20.1, 15.7, 42.1)


@dataclass(frozen=True, slots=True)
class Shape:
    """One run.

    Attributes:
        ttft_ms, tpot_ms: (tiers,) medians, NaN where nobody was served.
        mix: (tiers,) shares.
    """

    e2e_mean_s: float
    quality: float
    mix: np.ndarray
    ttft_ms: np.ndarray
    tpot_ms: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", default=list(prompts.SETS))
    parser.add_argument("--rates", nargs="+", default=["6", "12", "18", "24", "30"])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    if not prompts.DATA.is_dir():
        sys.exit(f"needs the scores under {prompts.DATA} (SERVINGPLAN_DATA)")
    seeds = range(settings.FIRST_SEED, settings.FIRST_SEED + asked.seeds)
    for name in asked.sets:
        found = {rate: list(spread(partial(shapes, name, rate), seeds, asked.workers)) for rate in asked.rates}
        print(f"\n{name}, {asked.seeds} seeds: ratios of the mean end-to-end time, [95 % interval]")
        rows = [("1 raw", "2 raw"), *((router, FIRST) for router in ("4 constant time per token", SERIAL, SIDE_BY_SIDE))]
        rows += [(OURS, FREE), (OURS, FIRST)]
        print(f"  {'':62}" + "".join(f"{f'{rate} req/s':>24}" for rate in found))
        for over, under in (*((FIRST, arm) for arm in UNPRICED), *rows):
            tell(f"{over} / {under}", [ratios(cells, over, under) for cells in found.values()])
        for router in (*ARMS, SERIAL, SIDE_BY_SIDE, OURS):
            tell(f"{router}: seconds", [[one[router].e2e_mean_s for one in cells] for cells in found.values()])
        for arm in (*ARMS, OURS):
            tell(f"{arm}: quality", [[one[arm].quality for one in cells] for cells in found.values()])
        for arm in (FIRST, OURS):
            mixes = [np.mean([one[arm].mix for one in cells], axis=0) for cells in found.values()]
            words = [" ".join(f"{100 * share:.0f}" for share in mix) for mix in mixes]
            print(f"  {f'{arm}: % to ' + ' '.join(NAMES):62}" + "".join(f"{word:>24}" for word in words))
        tell_tiers(found[asked.rates[-1]], asked.rates[-1])


def shapes(name: str, rate: str, seed: int) -> dict[str, Shape]:
    """All arms on one workload."""
    work = settings.sample(name, rate, seed)
    found = {arm: shape(run.route_balance(work, rule)[0]) for arm, rule in ARMS.items()}
    model = models.best_route(work, BEST_ROUTE_SHARE)
    found[SERIAL] = shape(run.model_first(work, model, ready_s=models.serial_s(work.arrival_s)))
    found[SIDE_BY_SIDE] = shape(run.model_first(work, model, ready_s=work.arrival_s + models.SCORER_S))
    known = drive.asks(work)
    for router, how in ((OURS, drive.Settings()), (FREE, drive.Settings(overhead_s=0.0))):
        found[router] = shape(drive.Drive(work, Preset.BALANCED.prices, how, known).run())
    return found


def shape(found: Outcome) -> Shape:
    def medians(values: np.ndarray) -> np.ndarray:
        by_tier = [values[found.model == tier] for tier in range(len(NAMES))]
        return np.array([1e3 * np.median(one) if len(one) else np.nan for one in by_tier])

    summed = found.point()
    return Shape(summed.e2e_mean_s, summed.quality, found.mix, medians(found.ttft_s), medians(found.inter_token_s))


def ratios(cells: Sequence[dict[str, Shape]], over: str, under: str) -> list[float]:
    return [one[over].e2e_mean_s / one[under].e2e_mean_s for one in cells]


def tell(title: str, columns: Sequence[Sequence[float]]) -> None:
    print(f"  {title:62}" + "".join(f"{frontier.spelled(column):>24}" for column in columns))


def tell_tiers(cells: Sequence[dict[str, Shape]], rate: str) -> None:
    print(f"  tiers at {rate} req/s under our router, medians in ms (published)")
    for key, published in (("ttft_ms", PUBLISHED_TTFT_MS), ("tpot_ms", PUBLISHED_TPOT_MS)):
        found = np.nanmean([getattr(one[OURS], key) for one in cells], axis=0)
        words = [f"{tier} {ours:.1f} ({theirs})" for tier, ours, theirs in zip(NAMES, found, published, strict=True)]
        print(f"    {key:8}" + "   ".join(words))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
