"""The picker with the controller, against the plan's weights alone: the same requests three ways, in virtual time.

    python bench/picker/bench_together.py [azure] [poisson] [--seeds 10] [--minutes 30] [--rate 14] [--preset Quality]
        [--no-shed] [--hears] [--workers 2] [--out out/picker]

- weights: `router.policy: Weights`; Envoy draws the model by weight and takes the less busy of two of its pods.
- online: a picker chooses for every request, configured from the routing table; the controller is not told what it chooses.
- online, replanned: the controller is told, and plans with it.

The controller's own `decide` runs every ten seconds on a simulated cluster whose GPUs are 0.8 or 1.3 times as fast as declared.
Three models share four H100 and eight L40S: too few to answer everything with the best one. Prompts and scores are real and
drawn anew for each seed, predictions are out of fold, lengths are synthetic, engines simulated. A refused request is a late one
and scores 0, unless a column says "served".

The distance is the part of the requests that went to another model than the weights in force say: half the sum of absolute
differences of the shares, by class and minute. Differences are paired over seeds, with 95 % intervals by bootstrap.
`--hears` tells the picker of first bytes too, as gateways do that show it responses; our Envoy does not.
Needs the scores and the Azure traces (``SERVINGPLAN_DATA``).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "loop"))

from together import plot
from together.measure import SETTLED_MINUTES, Measured
from together.run import ONLINE, REPLANNED, WAYS, WEIGHTS, Setting, one_seed
from together.trace import ARRIVALS
from virtual import traffic
from virtualfleet import prompts
from virtualfleet.frontier import interval, spelled
from virtualfleet.workers import spread

Cell = Mapping[str, Measured]
"""One seed, by way."""

COLUMNS: dict[str, tuple[str, int]] = {
    "windows": ("minutes that keep p95", 3),
    "windows_settled": (f"from minute {SETTLED_MINUTES}", 3),
    "windows_served": ("of what is served", 3),
    "within": ("requests in time", 4),
    "within_served": ("of what is served", 4),
    "refused": ("refused", 4),
    "quality": ("quality", 4),
    "quality_settled": (f"from minute {SETTLED_MINUTES}", 4),
    "quality_served": ("of what is served", 4),
    "gpu_hours": ("GPU hours", 2),
    "cost": ("cost", 2),
    "changes": ("changes of replicas", 1),
}
EARLY, LATE = slice(0, 5), slice(-10, None)
"""Minutes that the first choices are read from, and the last ones."""


def main() -> None:
    usual = Setting()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arrivals", nargs="*", default=list(ARRIVALS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=usual.rate_rps)
    parser.add_argument("--preset", default=usual.preset)
    parser.add_argument("--no-shed", action="store_true")
    parser.add_argument("--hears", action="store_true")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("out/picker"))
    asked = parser.parse_args()
    if not prompts.DATA.is_dir() or not traffic.TRACES.is_dir():
        sys.exit(f"needs the scores under {prompts.DATA} and the traces under {traffic.TRACES} (SERVINGPLAN_DATA)")
    for arrivals in asked.arrivals:
        begun_s = time.perf_counter()
        shed, seconds = not asked.no_shed, 60.0 * asked.minutes
        setting = Setting(arrivals, asked.rate, seconds, asked.preset, shed=shed, hears=asked.hears)
        cells = []
        for seed, cell in enumerate(spread(partial(one_seed, setting, WAYS), range(asked.seeds), asked.workers)):
            cells.append(cell)
            print(f"  seed {seed}: {sum(one.seconds for one in cell.values()):.0f} s of processor time", flush=True)
        print(f"\n{arrivals}, {asked.rate:g} req/s, preset {asked.preset}: {asked.seeds} seeds of {asked.minutes:g} minutes")
        tell(cells)
        tell_distance(cells)
        verdicts(cells)
        path = asked.out / f"together_{arrivals}.png"
        title = f"{arrivals.title()} arrivals, {asked.rate:g} req/s, preset {asked.preset}, {asked.seeds} seeds"
        plot.together(cells, path, title)
        print(f"plot: {path} [{time.perf_counter() - begun_s:.0f} s]\n", flush=True)


def values(cells: Sequence[Cell], way: str, key: str) -> np.ndarray:
    """(seeds,) one figure of one way."""
    return np.array([float(getattr(cell[way], key)) for cell in cells])


def tell(cells: Sequence[Cell]) -> None:
    """Prints every way's figures, and their differences from the weights'."""
    heads = [*WAYS, f"{ONLINE} - {WEIGHTS}", f"{REPLANNED} - {WEIGHTS}", f"{REPLANNED} - {ONLINE}"]
    print(f"  {'':24}" + "".join(f"{head:>30}" for head in heads))
    for key, (title, digits) in COLUMNS.items():
        found = {way: values(cells, way, key) for way in WAYS}
        differences = [found[ONLINE] - found[WEIGHTS], found[REPLANNED] - found[WEIGHTS], found[REPLANNED] - found[ONLINE]]
        shown = [*found.values(), *differences]
        print(f"  {title:24}" + "".join(f"{spelled(each, digits):>30}" for each in shown))
    for way in WAYS:
        mix = np.mean([cell[way].mix for cell in cells], axis=0)
        by_class = {
            name: np.mean([cell[way].windows_by_class[name] for cell in cells]) for name in cells[0][way].windows_by_class
        }
        said = ", ".join(f"{100 * share:.0f} % of {name}" for name, share in by_class.items())
        print(f"  {way}: large/medium/small {' / '.join(f'{share:.2f}' for share in mix)}; minutes kept {said}")


def tell_distance(cells: Sequence[Cell]) -> None:
    """Prints how far realised shares are from the plan's."""
    heads = ("first 5 minutes", f"{SETTLED_MINUTES}-20", "last 10", "by chance, last 10")
    print(f"  {'distance from the plan':24}" + "".join(f"{head:>30}" for head in heads))
    for way in WAYS:
        parts = [distance(cells, way, part) for part in (EARLY, slice(SETTLED_MINUTES, 20), LATE)]
        chance = np.array([cell[way].noise[LATE].mean() for cell in cells])
        print(f"  {way:24}" + "".join(f"{spelled(each):>30}" for each in (*parts, chance)))
    first = values(cells, REPLANNED, "chosen_s")
    print(f"  choices are first planned with {np.nanmedian(first):.0f} s after the first request (median)")


def distance(cells: Sequence[Cell], way: str, part: slice) -> np.ndarray:
    """(seeds,) mean distance over some minutes."""
    return np.array([cell[way].distance[part].mean() for cell in cells])


def verdicts(cells: Sequence[Cell]) -> None:
    """Prints whether each claim holds: for all minutes and, because nothing is learnt at first, for the settled ones."""
    for key in ("windows", "windows_settled", "within", "quality", "quality_settled", "quality_served"):
        _verdict(f"{key}: {REPLANNED} at least {WEIGHTS}", values(cells, REPLANNED, key) - values(cells, WEIGHTS, key))
    _verdict(
        f"distance: smaller in the last 10 minutes than in the first 5, {REPLANNED}",
        distance(cells, REPLANNED, EARLY) - distance(cells, REPLANNED, LATE),
    )
    _verdict(
        f"distance: smaller in the last 10 minutes, {REPLANNED} than {ONLINE}",
        distance(cells, ONLINE, LATE) - distance(cells, REPLANNED, LATE),
    )


def _verdict(claim: str, gains: np.ndarray) -> None:
    mean, low, high = interval(gains)
    verdict = "holds" if low >= 0 else "FAILS" if high < 0 else "not told apart"
    print(f"  {verdict:15}{claim}: {mean:+.4f} [{low:+.4f}, {high:+.4f}]")


if __name__ == "__main__":
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
    main()
