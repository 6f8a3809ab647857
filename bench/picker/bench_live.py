"""The endpoint picker live: a real Envoy, the picker as a process of its own, pods that are simulated.

    python bench/picker/bench_live.py overhead|streams|faults|compare|course [--arms ARM ...] [--out FOLDER]

``overhead``  Whole-request latency and CPU at several rates, with 13 and 50 pods that have full-size metrics pages: without a
              picker, with one that picks at random, with ours, and with ours predicting quality. Idle CPU, memory, and with
              ``--climb`` the highest rate whose p99 stays below 20 ms.
``streams``   A thousand streams at a time and the memory meanwhile, bodies of 10 MB, clients that go away, HTTP/1.1 and HTTP/2.
``faults``    A pod killed or hung, the picker killed, stopped or given a spoilt table, and storms of endings.
``compare``   TTFT with metrics that are 5 s old, with three pickers, and with none, against one picker with fresh metrics.
``course``    TTFT over time through a burst and the death of a pod, and its picture.

Everything shares the cores of this machine, the load generator too: figures are to be compared within a run. Rounds alternate
the order of what they compare; brackets hold the lowest and the highest round, or a 95 % interval where they say so. The
generator's own lag is printed, and a cell with a large one says nothing of the router.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from live import compare, estimator, faults, figures, overhead, plot, stack, streams
from live.compare import Variant

DEFAULT_RATES = (50.0, 200.0, 500.0, 1000.0)
CLIMB = tuple(float(rate) for rate in range(600, 2001, 100))


def _arms(options: argparse.Namespace) -> list[stack.Arm]:
    return [_arm(options, name) for name in options.arms]


def _arm(options: argparse.Namespace, name: str) -> stack.Arm:
    return stack.Arm(name, estimator=options.estimator if name == stack.PREDICTING else None, workers=options.workers)


def _ours(options: argparse.Namespace) -> stack.Arm:
    return _arm(options, stack.PREDICTING if stack.PREDICTING in options.arms else stack.OURS)


def run_overhead(options: argparse.Namespace, folder: Path) -> None:
    """Latency and CPU."""
    chosen = overhead.Options(
        arms=_arms(options),
        pods=options.pods,
        rates_rps=options.rates,
        seconds=options.seconds or 10.0,
        idle_s=options.idle,
        rounds=options.rounds or 3,
        ceilings=CLIMB if options.climb else (),
        seed=options.seed,
    )
    result = overhead.run(folder, chosen)
    print(overhead.table(result))
    print(overhead.verdict(result))
    plot.overheads(options.out / "live_overhead.png", result)


def run_streams(options: argparse.Namespace, folder: Path) -> None:
    """Streams, bodies, aborts and versions."""
    arms = _arms(options)
    print(streams.versions(folder, arms), flush=True)
    print(streams.large_bodies(folder, arms), flush=True)
    print(streams.aborts(folder, _ours(options)), flush=True)
    print(streams.words(streams.hold(folder, _ours(options), options.seconds or 600.0, options.streams)), flush=True)


def run_faults(options: argparse.Namespace, folder: Path) -> None:
    """Pods and pickers that fail."""
    ours = _ours(options)
    for fault in ("kill", "hang"):
        for arm in (ours, _arm(options, stack.WEIGHTS)):
            for number in range(options.rounds or 3):
                print(faults.pod_fault(folder, arm, fault, seed=options.seed + number).words(), flush=True)
    for fault in ("killed", "stopped", "malformed"):
        print(faults.picker_fault(folder, ours, fault, seed=options.seed).words(), flush=True)
    for fault in ("clients", "pods", "picker"):
        print(faults.storm(folder, ours, fault), flush=True)


def run_compare(options: argparse.Namespace, folder: Path) -> None:
    """Stale metrics and several pickers."""
    ours = _ours(options)
    three = stack.Arm(ours.name, estimator=ours.estimator, workers=1, pickers=3)
    variants = [
        Variant("one, fresh", ours),
        Variant("one, 5 s stale", ours, page_age_s=5.0),
        Variant("three, fresh", three),
        Variant("at random", _arm(options, stack.RANDOM)),
        Variant("weights", _arm(options, stack.WEIGHTS)),
    ]
    print(compare.compare(folder, variants, options.rounds or 4, options.rate, options.seconds or 40.0, options.seed))


def run_course(options: argparse.Namespace, folder: Path) -> None:
    """A burst and a kill."""
    found = []
    for arm in (_arm(options, stack.WEIGHTS), _arm(options, stack.RANDOM), _ours(options)):
        found.append(compare.course(folder, arm, seed=options.seed))
        ttft_ms = figures.ttft_ms(found[-1].rows)
        p50, p99 = (figures.percentile(ttft_ms, percent) for percent in (50, 99))
        print(f"{arm.name:15} TTFT p50 {p50:.0f} ms, p99 {p99:.0f} ms, {figures.ends(found[-1].rows)}", flush=True)
    plot.courses(options.out / "live_ttft.png", found)


RUNS = {
    "overhead": run_overhead,
    "streams": run_streams,
    "faults": run_faults,
    "compare": run_compare,
    "course": run_course,
}


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=sorted(RUNS))
    parser.add_argument("--out", type=Path, default=Path("out/bench/picker"))
    parser.add_argument("--arms", nargs="+", choices=stack.ARMS, default=list(stack.ARMS))
    parser.add_argument("--estimator", type=Path, help="trained estimator; one is trained if none is given")
    parser.add_argument("--pods", nargs="+", type=int, choices=[13, 50], default=[13, 50])
    parser.add_argument("--rates", nargs="+", type=float, default=list(DEFAULT_RATES), help="requests per second")
    parser.add_argument("--rate", type=float, default=30.0, help="requests per second of the comparison")
    parser.add_argument("--seconds", type=float, help="of one cell; of the held streams")
    parser.add_argument("--idle", type=float, default=10.0, help="seconds over which idle CPU is measured")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--climb", action="store_true", help="find the highest rate, too")
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2, help="threads of Envoy, as the router's pod has")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args(words)


def main() -> None:
    options = parse(sys.argv[1:])
    print(f"{stack.cores()} cores, load average {os.getloadavg()[0]:.1f}, seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="picker-live-") as folder:
        if options.estimator is None and stack.PREDICTING in options.arms:
            options.estimator, source = estimator.trained(Path(folder) / "estimator")
            print(f"estimator trained on {source}", flush=True)
        RUNS[options.what](options, Path(folder))


if __name__ == "__main__":
    main()
