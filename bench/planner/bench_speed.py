"""How long a plan takes on one thread, building the program included, and how near to the best it is proved.

CPU seconds of this process, so that other work on the machine counts as little as it can. *Cold* computes every latency anew;
*warm* is a second solve of the same problem, as a controller does whose profiles have not changed.

    python bench/planner/bench_speed.py [OUT_FOLDER] [SEEDS]
"""

import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import matplotlib as mpl
import numpy as np

from servingplan.planning.problem import Problem, Scope, Standing
from servingplan.planning.solve import solve

sys.path.insert(0, str(Path(__file__).parent))
from instances import fleet

mpl.use("Agg")
from matplotlib import pyplot as plt


@dataclass(frozen=True)
class Size:
    """A row of the table.

    Attributes:
        target_s: For the 95th percentile over the seeds.
        share: Of the seeds that this row is run for.
        standing: Whether the replicas are given.
    """

    name: str
    scope: Scope
    gap: float
    models: int
    gpus: int
    classes: int
    target_s: float
    share: float = 1.0
    shapes: int = 1
    standing: bool = False


SIZES = (
    Size("P1, 10 x 6 x 64, 20 classes", Scope.PLAN, 1e-6, 10, 64, 20, 1.0),
    Size("P2, 10 x 6 x 64, 20 classes", Scope.ROUTE, 1e-3, 10, 64, 20, 1.0),
    Size("P2, the same, four length mixes", Scope.ROUTE, 1e-3, 10, 64, 20, 1.0, share=0.3, shapes=4),
    Size("P1, 100 x 6 x 4096, 20 classes", Scope.PLAN, 5e-3, 100, 4096, 20, 10.0, share=0.1),
    Size("P2, 100 x 6 x 4096, 20 classes", Scope.ROUTE, 5e-3, 100, 4096, 20, 10.0, share=0.1),
    Size("fixed replicas, 64 accelerators", Scope.ROUTE, 1e-3, 10, 64, 20, 0.05, standing=True),
    Size("fixed replicas, 4096 accelerators", Scope.ROUTE, 1e-3, 100, 4096, 20, 0.3, share=0.1, standing=True),
)


def main() -> None:
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
    seeds = int(sys.argv[2]) if len(sys.argv) > 2 else 50
    out.mkdir(parents=True, exist_ok=True)
    print(f"{'':36}{'seeds':>6}{'warm p50':>10}{'p95':>8}{'max':>8}{'cold p95':>10}{'target':>8}{'worst gap':>11}{'proved':>8}")
    found = {}
    for size in SIZES:
        rows = np.array([timed(size, seed) for seed in range(max(3, round(seeds * size.share)))])
        found[size] = rows
        cold, warm, gaps, proved = rows.T
        print(
            f"{size.name:36}{len(rows):>6}{np.median(warm):>10.3f}{np.percentile(warm, 95):>8.3f}{warm.max():>8.3f}"
            f"{np.percentile(cold, 95):>10.3f}{size.target_s:>8.2f}{gaps.max():>11.1e}{proved.mean():>8.0%}",
            flush=True,
        )
    draw(found, out / "speed.png")
    print(f"plot: {out / 'speed.png'}")


def timed(size: Size, seed: int) -> tuple[float, float, float, float]:
    """CPU seconds cold and warm, the gap, and whether the plan was proved to the gap that was asked for."""
    plan = fleet(seed, models=size.models, gpus=size.gpus, classes=size.classes, scope=size.scope, shapes=size.shapes)
    problem = Problem((plan,), relative_gap=size.gap, time_limit_s=60.0)
    if size.standing:
        decision = solve(problem).decisions[0]
        problem = replace(
            problem,
            standing=Standing(
                {(plan.key, a.model, a.setup): a.replicas for a in decision.allocations},
                {(plan.key, a.model, a.setup): a.strictest for a in decision.allocations if a.replicas},
            ),
        )
    forget()
    cold_s, _ = cpu(problem)
    warm_s, answer = cpu(problem)
    return cold_s, warm_s, answer.gap, float(answer.gap <= size.gap)


def forget() -> None:
    """Empties every cache of the package."""
    for name, module in list(sys.modules.items()):
        if name.startswith("servingplan."):
            for member in vars(module).values():
                if hasattr(member, "cache_clear"):
                    member.cache_clear()


def cpu(problem: Problem):
    begun_s = time.process_time()
    answer = solve(problem)
    return time.process_time() - begun_s, answer


def draw(found: dict[Size, np.ndarray], path: Path) -> None:
    figure, axis = plt.subplots(figsize=(10, 0.75 * len(found) + 1.2), layout="constrained")
    for row, (size, values) in enumerate(reversed(found.items())):
        warm = values[:, 1]
        axis.plot(warm, row + np.linspace(-0.22, 0.22, len(warm)), "o", ms=4, alpha=0.45, color="#2a6f97")
        axis.plot([np.percentile(warm, 95)] * 2, [row - 0.34, row + 0.34], color="#2a6f97", lw=2.5)
        axis.plot([size.target_s] * 2, [row - 0.34, row + 0.34], color="#d1495b", lw=2.5, ls=":")
    axis.set(xscale="log", xlabel="CPU seconds from the problem to the plan (bar: 95th percentile, dotted: target)")
    axis.set_yticks(range(len(found)), [size.name for size in reversed(found)])
    axis.grid(axis="x", which="both", alpha=0.2)
    axis.spines[["top", "right", "left"]].set_visible(False)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
