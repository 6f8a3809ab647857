"""What deciding allocation and routing together is worth, on measured scores, and what finding the optimum costs.

For each cell (GPUs, models, load, bound on the mean TTFT) the best routing of every setup that RouterWise retains, by an exact
LP: their spread is what the choice of setup is worth. Beside it the joint MILP, which must find the best of them at once; the
paper's baselines; allocation before routing; and any number of replicas, by the operator's planner (whole GPUs, halves) and
by the MILP in the paper's space (tenths). RouterWise's own algorithms run on a random sample of the retained setups of some
cells, scaled to all of them, and on all setups of one more. CPU time is the process's, on one thread.

Loads are fractions of the largest that any retained setup carries. Needs the data (``SERVINGPLAN_DATA``).

    python bench/planner/bench_headline.py [OUT_FOLDER]
"""

import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from routerwise.algorithms import Effort, select_setup
from routerwise.exact import best_score
from routerwise.figure import draw
from routerwise.real import A100, DATA, H100, MIX, SIZES_B, fits, scores
from routerwise.study import BETTER, FULL_LOAD, GPUS, SAMPLED_LOAD, TRIPLES, TTFT_S, Cost, Result, sample, sweep

COLUMNS = ("equal split", "by size", "isolated", "sequential", "whole GPUs", "half GPUs", "tenths")
KINDS = {"A100": "modelled", "H100": "measured"}


def main() -> None:
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
    if not DATA.is_dir():
        sys.exit(f"no data under {DATA}")
    begun_s = time.process_time()
    print_sources()
    results = [result for hardware in (A100, H100) for gpus in GPUS for result in sweep(hardware, gpus)]
    print_cells(results)
    costs = algorithms(results)
    conclude(results)
    out.mkdir(parents=True, exist_ok=True)
    draw(results, costs, out / "headline.png")
    print(f"plot: {out / 'headline.png'}; {time.process_time() - begun_s:.0f} s of CPU in all")


def print_sources() -> None:
    print(f"Prompts of {MIX.prompt_tokens:g} and outputs of {MIX.output_tokens:g} tokens (an assumption). Latency is fitted to")
    models = sorted({model for triple in TRIPLES.values() for model in triple}, key=lambda name: (SIZES_B[name], name))
    for hardware in (A100, H100):
        for ladder in dict.fromkeys(hardware.ladders[model] for model in models):
            users = [model for model in models if hardware.ladders[model] == ladder]
            print(f"  {hardware.name}, {ladder}: {', '.join(users)}")
            for name, tp, found in fits(hardware, users[0]):
                tpot = np.median([abs(each.tpot) for each in found.residuals])
                ttft = np.median([abs(each.ttft) for each in found.residuals if each.ttft is not None])
                errors = f"median error of TPOT {tpot:.1%}, of TTFT {ttft:.1%}"
                print(f"    TP{tp} {name.split('/')[-1]}: {len(found.residuals)} points, {errors}")
    print()


def print_cells(results: list[Result]) -> None:
    for name, models in TRIPLES.items():
        print(f"{name}: {', '.join(models)}; ceiling {scores(models).ceiling:.4f}")
    print("Scores; one instance per model up to 'isolated', replicas from 'sequential' on. CPU in seconds\n")
    print(
        f"{'cell':27}{'setups':>12}{'worst':>8}{'best':>8}{'spread':>9}{'packed':>15}{'MILP':>9}"
        + "".join(f"{column:>12}" for column in COLUMNS) + f"{'LPs':>8}{'MILP':>7}"
    )  # fmt: skip
    for result in results:
        found, packed = result.feasible(), result.feasible(packed=True)
        if not len(found):
            print(f"{result.name:27}   none of {len(result.scored)} keeps the bound")
            continue
        spread = f"{len(packed)}: {result.spread(packed=True):+.1%}" if len(packed) else "none"
        print(
            f"{result.name:27}{f'{len(found)} of {len(result.scored)}':>12}{found[0]:8.4f}{found[-1]:8.4f}"
            f"{result.spread():>+9.1%}{spread:>15}{number(result.others['joint MILP']):>9}"
            + "".join(f"{number(result.others[column]):>12}" for column in COLUMNS)
            + f"{result.cpu_s['enumeration']:8.2f}{result.cpu_s['joint MILP']:7.2f}"
        )
    print()


def number(score: float | None) -> str:
    return "-" if score is None else f"{score:.4f}"


def algorithms(results: list[Result]) -> list[Cost]:
    source = np.random.default_rng(0)
    tight = [result for result in results if result.cell.ttft_s == TTFT_S[result.hardware.name][0]]
    costs = [sample(result, source) for result in tight if result.triple == "A" and result.load == SAMPLED_LOAD]
    print(
        "CPU seconds of Algorithms 1-3, from a sample of setups scaled to all retained (95 % interval), and of the joint MILP"
    )
    for cost in costs:
        milp_s, lps_s = cost.result.cpu_s["joint MILP"], cost.result.cpu_s["enumeration"]
        ratios = f"{cost.seconds / milp_s:,.0f} x; an exact LP for each setup takes {lps_s / milp_s:.0f} x"
        print(f"  {cost.result.name:27} {cost.seconds:5.0f} +- {cost.half_width_s:3.0f} against {milp_s:.2f}: {ratios}")
        short = cost.shortfall
        print(f"{'':30}below the exact routing by {short.mean():.4f} mean, {short.max():.4f} at most ({len(short)} setups)")
    in_full(next(r for r in tight if r.triple == "A" and r.load == FULL_LOAD and r.cell.space.gpus == GPUS[-1]))
    return costs


def in_full(result: Result) -> None:
    """Algorithm 3 on every setup of one cell, nothing scaled."""
    begun_s = time.process_time()
    chosen = select_setup(result.cell, result.scored, Effort())
    taken_s, milp_s = time.process_time() - begun_s, result.cpu_s["joint MILP"]
    score = best_score(result.cell.scores, chosen[1].fractions) if chosen else None
    print(
        f"  {result.name:27} {taken_s:5.1f} against {milp_s:.2f}: {taken_s / milp_s:,.0f} x; every setup was run, though only"
        f" {len(result.feasible())} keep the bound; score {number(score)} against {number(result.others['joint MILP'])}\n"
    )


def conclude(results: list[Result]) -> None:
    print("Widest spread (target +60 %)")
    for hardware, kind in KINDS.items():
        solved = [result for result in results if result.hardware.name == hardware and len(result.feasible())]
        for packed, which in ((False, "retained setups"), (True, "those that pack per GPU")):
            widest = max(solved, key=lambda result: np.nan_to_num(result.spread(packed=packed)))
            print(f"  {kind} latency, {which:24} {widest.spread(packed=packed):+.1%}  ({widest.name})")
    apart = [abs((result.others["joint MILP"] or 0.0) - result.best) for result in results]
    print(f"Joint MILP against the best enumerated setup, {len(apart)} cells: apart by {max(apart):.1e} at most (target 1e-4)")
    print(f"Replicas against one instance per model, {len(results)} cells (target: better in 80 %)")
    for method, single in (
        ("tenths", "all retained"),
        ("half GPUs", "all retained"),
        ("whole GPUs", "isolated"),
        ("whole GPUs", "all retained"),
    ):
        compare(results, method, single)
    whole = [
        (result.others["whole GPUs"], result.others["whole GPUs, reference"], result.others["sequential"]) for result in results
    ]
    both = [(ours or 0.0) - (reference or 0.0) for ours, reference, _ in whole]
    print(f"The planner less an independent program, both on whole GPUs: {min(both):+.1e} to {max(both):+.1e}")
    ahead = [ours - first for ours, _, first in whole if ours is not None and first is not None]
    print(f"The planner less allocation before routing, both on whole GPUs: {min(ahead):+.4f} to {max(ahead):+.4f}")


def compare(results: list[Result], method: str, single: str) -> None:
    """Replicas against the best of some setups; where that sends every prompt to its best model, nothing can be better."""
    pairs = [
        (
            result.others[method] or 0.0,
            result.best if single == "all retained" else result.others[single] or 0.0,
            result.cell.scores.ceiling,
        )
        for result in results
    ]
    room = [(ours, theirs) for ours, theirs, ceiling in pairs if theirs < ceiling * (1 - BETTER)]
    won = sum(ours > theirs * (1 + BETTER) for ours, theirs in room)
    lost = sum(ours < theirs * (1 - BETTER) for ours, theirs in room)
    of = f"better in {won} of {len(room)} with anything to gain ({won / len(room):.0%}), worse in {lost}"
    print(f"  {method:10} against {single:12}: {of}; better in {won / len(pairs):.0%} of all")


if __name__ == "__main__":
    main()
