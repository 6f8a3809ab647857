"""Predicted against simulated latency.

The closed form (`servingplan.latency`) against the iteration-level simulator (`servingplan.sim`, which shares no code with it)
in virtual time: constant prompts, lognormal and real lengths, two classes on one replica, Poisson and bursty arrivals,
asynchronous and synchronous engines. Prints every case with the 95 % interval of the simulation over its seeds, then what is
asked of the form against what was seen, and plots. Real lengths need the traces (``SERVINGPLAN_DATA``).

    python bench/latency/bench_truth.py [OUT_FOLDER]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from truth_cases import HELD_OUT, PROFILES, Case, traffics
from truth_plot import draw
from truth_run import Found, judged, synchronous

GATED = ("32B, 2 x H100", "8B, H100, 64 slots", "8B, RTX 4090, KV-limited")
TRUSTED, STRETCHED = (0.5, 0.7), (0.78, 0.85, 0.92)
BURSTY_CV = 2.0
HEADER = (
    f"{'replica':34}{'lengths':24}{'load':>5} | {'mean s':>7}{'err %':>7} +-{'p95 s':>8}{'err %':>7} +-"
    f"{'p99':>7} | {'ITL':>6}{'e2e':>7} | margin"
)


def main() -> None:
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
    print(HEADER)
    found = show(cases(PROFILES, (*TRUSTED, *STRETCHED)))
    print("\nbursty arrivals, squared coefficient of variation 4")
    bursty = show(cases(PROFILES, (*TRUSTED, 0.85), BURSTY_CV))
    print("\nreplicas that the margin was not chosen on")
    held_out = show(cases(HELD_OUT, (*TRUSTED, 0.85))) + show(cases(HELD_OUT, (0.7, 0.85), BURSTY_CV))
    print("\nsynchronous engines")
    in_step = synchronous()
    for each in in_step:
        print(line(each))
    print()
    gates(found, bursty, held_out, in_step)
    out.mkdir(parents=True, exist_ok=True)
    draw(found, bursty + held_out, out / "latency_truth.png")
    print(f"\nplot: {out / 'truth.png'}")


def cases(profiles: dict, loads: Iterable[float], arrival_cv: float = 1.0) -> list[Case]:
    return [
        Case(name, profile, replace(traffic, arrival_cv=arrival_cv), load)
        for name, profile in profiles.items()
        for traffic in traffics().values()
        for load in loads
    ]


def show(wanted: list[Case]) -> list[Found]:
    found = []
    for case in wanted:
        for each in judged(case):
            print(line(each), flush=True)
            found.append(each)
    return found


def line(found: Found) -> str:
    lengths = found.case.traffic.name
    if len(found.case.traffic.parts) > 1:
        lengths += f": {found.part}"
    times = "".join(
        f"{found.ttft_s[:, k].mean():>{7 + (k > 0)}.3f}{100 * found.error(k):>+7.1f}{100 * found.interval(k):>3.0f}"
        for k in (0, 2)
    )
    inter_token = found.predicted_inter_token_s / found.inter_token_s.mean() - 1
    e2e = found.predicted_e2e_s / found.e2e_s.mean() - 1
    return (
        f"{found.case.profile_name:34}{lengths:24}{found.case.load:>5.2f} | {times}{100 * found.error(3):>+7.1f}"
        f" | {100 * inter_token:>+6.1f}{100 * e2e:>+7.1f} | {100 * found.margin:>4.0f} %"
        + ("" if found.covered else " NOT COVERED")
    )


def gates(found: list[Found], bursty: list[Found], held_out: list[Found], in_step: list[Found]) -> None:
    """What is asked against what was seen."""

    def trusted(name: str) -> Callable[[Found], bool]:
        return lambda each: each.case.load <= 0.7 and each.case.traffic.name.startswith(name)

    gated = [each for each in found if each.case.profile_name in GATED]
    for label, group in (("asynchronous", gated), ("synchronous", in_step)):
        for name, what, mean, p95 in (("constant", "constant prompts", 0.03, 0.05), ("Azure", "Azure lengths", 0.10, 0.20)):
            worst(f"{label}, {what}, Poisson, <= 70 %", [each for each in group if trusted(name)(each)], mean, p95)
    blended = [each for each in gated if len(each.case.traffic.parts) > 1 and each.case.load <= 0.7]
    worst("two classes on one replica, by class", blended, 0.10, 0.20)
    outside = [each for each in found if 0.7 < each.case.load <= 0.85] + bursty
    for label, group in (("85 % or bursty", outside), ("the same, other replicas", held_out)):
        covered = sum(each.covered for each in group)
        print(f"margin covers mean and p95 at {label}: {covered} of {len(group)} cases")
    beyond = [each for each in found if each.case.load > 0.85]
    print(f"at 92 %, where no plan goes: {sum(each.covered for each in beyond)} of {len(beyond)} cases")


def worst(label: str, group: list[Found], mean: float, p95: float) -> None:
    """The largest error of a group against its targets."""
    if not group:
        print(f"{label}: not measured, for want of the traces")
        return
    texts = []
    for name, column, target in (("mean", 0, mean), ("p95", 2, p95)):
        each = max(group, key=lambda one: abs(one.error(column)))
        verdict = "met" if abs(each.error(column)) <= target else "MISSED"
        where = f"{each.case.profile_name}, {each.case.traffic.name}, {100 * each.case.load:.0f} %"
        texts.append(f"{name} within {100 * abs(each.error(column)):.1f} % ({where}; target {100 * target:.0f} %, {verdict})")
    print(f"{label}: {'; '.join(texts)}")


if __name__ == "__main__":
    main()
