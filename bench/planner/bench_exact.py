"""The planner against brute force on 200 random small problems, half of them with percentiles, half with one mean.

python bench/planner/bench_exact.py [OUT_FOLDER]
"""

import sys
import time
from pathlib import Path

import matplotlib as mpl

from servingplan.planning.attainable import attainable
from servingplan.planning.problem import Plan, PlanDemand, Problem, Scope
from servingplan.planning.solve import solve

sys.path.insert(0, str(Path(__file__).parent))
from oracle import Best, best, instance, packs

mpl.use("Agg")
from matplotlib import pyplot as plt

SEEDS = 100
TOLERANCE = 1e-6


def main() -> None:
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
    out.mkdir(parents=True, exist_ok=True)
    rows = [judged(scope, seed) for scope in Scope for seed in range(SEEDS)]
    print(
        f"{'scope':8}{'problems':>10}{'allocations':>14}{'worst error':>14}{'unpacked':>10}{'violations':>12}{'infeasible':>12}"
    )
    for scope in Scope:
        mine = [row for row in rows if row["scope"] is scope]
        print(
            f"{scope.value:8}{len(mine):>10}{sum(row['tried'] for row in mine):>14}{max(row['error'] for row in mine):>14.1e}"
            f"{sum(not row['packs'] for row in mine):>10}{sum(row['violations'] for row in mine):>12}"
            f"{sum(row['refused'] > 0 for row in mine):>12}"
        )
    failed = [row for row in rows if row["error"] > TOLERANCE or not row["packs"] or row["violations"]]
    print(f"{len(rows) - len(failed)} of {len(rows)} within {TOLERANCE:g} of the best there is")
    draw(rows, out / "exact.png")
    print(f"plot: {out / 'exact.png'}")
    sys.exit(bool(failed))


def judged(scope: Scope, seed: int) -> dict:
    asked = attainable(instance(seed, scope)).plan
    begun_s = time.process_time()
    want = best(asked)
    searched_s = time.process_time() - begun_s
    begun_s = time.process_time()
    got = solve(Problem((asked,), relative_gap=1e-9))
    return {
        "scope": scope,
        "tried": want.allocations,
        "want": want.quality,
        "refused": want.refused,
        "error": error(asked, got, want),
        "packs": packs(asked, got),
        "violations": violations(got),
        "speedup": searched_s / max(1e-9, time.process_time() - begun_s),
    }


def error(asked: PlanDemand, got: Plan, want: Best) -> float:
    """The larger of the relative errors of what is refused and of quality."""
    entries = sorted(asked.classes, key=lambda entry: entry.name)
    shed = [route.shed for route in got.decisions[0].routes]
    refused = sum(entry.weight * entry.rate_rps * part for entry, part in zip(entries, shed, strict=True))
    return max(
        abs(refused - want.refused) / max(1.0, want.refused), abs(got.objective - want.quality) / max(1.0, abs(want.quality))
    )


def violations(got: Plan) -> int:
    """Setups over their capacity, and classes whose shares do not sum to one."""
    decision = got.decisions[0]
    over = sum(a.utilization > 1 + 1e-6 or (a.rate_rps > 0 and a.replicas == 0) for a in decision.allocations)
    return over + sum(abs(sum(route.shares.values()) + route.shed - 1) > 1e-6 for route in decision.routes)


def draw(rows: list[dict], path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for scope, colour in zip(Scope, ("#2a6f97", "#d1495b"), strict=True):
        mine = [row for row in rows if row["scope"] is scope]
        left.semilogy(
            [row["want"] for row in mine],
            [max(row["error"], 1e-17) for row in mine],
            "o",
            color=colour,
            alpha=0.6,
            ms=5,
            label=f"scope {scope.value}",
        )
        right.loglog([row["tried"] for row in mine], [row["speedup"] for row in mine], "o", color=colour, alpha=0.6, ms=5)
    left.axhline(TOLERANCE, color="#222222", lw=1, ls="--")
    left.text(0.99, TOLERANCE * 1.6, "tolerance", transform=left.get_yaxis_transform(), ha="right")
    left.set(xlabel="weighted quality per second of the best plan", ylabel="relative error of the planner", ylim=(1e-17, 1e-3))
    right.axhline(1, color="#222222", lw=1, ls="--")
    right.set(xlabel="allocations that brute force tries", ylabel="CPU of brute force / CPU of the planner")
    left.legend(frameon=False)
    for axis in (left, right):
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{len(rows)} random problems against every allocation on explicit nodes")
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
