"""What old metrics and several picker replicas cost: times against one picker with fresh metrics, on the same requests.

    python bench/picker/bench_staleness.py [llmrouter] [zeroeval] [--rate 30] [--seeds 20] [--workers 2]

Replicas share the load in turn; none knows of the others' requests but through the metrics, four times a second. Balanced
prices. Needs the scores (``SERVINGPLAN_DATA``).
"""

from __future__ import annotations

import argparse
import sys
from functools import partial

from servingplan.routing.preset import Preset
from virtualfleet import drive, frontier, prompts, settings
from virtualfleet.drive import Settings
from virtualfleet.outcome import Point
from virtualfleet.tiers import SLOTS
from virtualfleet.workers import spread

WAYS = {
    "fresh, one picker": {},
    "metrics 1 s old": {"stale_s": 1.0},
    "metrics 5 s old": {"stale_s": 5.0},
    "3 pickers": {"pickers": 3},
    "3 pickers, metrics 1 s old": {"pickers": 3, "stale_s": 1.0},
    "3 pickers, metrics 5 s old": {"pickers": 3, "stale_s": 5.0},
}
BASE = next(iter(WAYS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", default=list(prompts.SETS))
    parser.add_argument("--rate", default="30")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    if not prompts.DATA.is_dir():
        sys.exit(f"needs the scores under {prompts.DATA} (SERVINGPLAN_DATA)")
    seeds = range(settings.FIRST_SEED, settings.FIRST_SEED + asked.seeds)
    keys = ("ttft_mean_s", "ttft_p99_s", "e2e_mean_s", "e2e_p95_s", "quality", "cost")
    for name in asked.sets:
        for size, slots in SLOTS.items():
            cells = list(spread(partial(ways, name, asked.rate, slots), seeds, asked.workers))
            print(f"\n{name}, {asked.rate} req/s, {size}, {asked.seeds} seeds: over one picker with fresh metrics")
            print(f"  {'':28}" + "".join(f"{key:>23}" for key in keys))
            for way in list(WAYS)[1:]:
                ratios = [[getattr(one[way], key) / getattr(one[BASE], key) for one in cells] for key in keys]
                print(f"  {way:28}" + "".join(f"{frontier.spelled(row):>23}" for row in ratios), flush=True)


def ways(name: str, rate: str, slots: int, seed: int) -> dict[str, Point]:
    work = settings.sample(name, rate, seed)
    known, prices = drive.asks(work), Preset.BALANCED.prices
    return {way: drive.Drive(work, prices, Settings(slots=slots, **how), known).run().point() for way, how in WAYS.items()}


if __name__ == "__main__":
    main()
