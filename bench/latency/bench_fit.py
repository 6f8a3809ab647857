"""Fit of step-time coefficients to real servers: measured closed loops and request logs, one half fitted, the other predicted.

Closed loops: every (model, accelerator, engine, precision) of NVIDIA's silicon sample, half of each way of splitting it over
accelerators held out. Repeats of one configuration count once, by their median, so none lies in both halves. The structure
(which costs, how like replicas are pooled) was chosen by cross-validation inside the training half of the first split;
engine limits, which the sample does not record, are chosen per family by the training loss. Other splits show the spread.

Request logs: vLLM 0.19 under overload; coefficients of the first 150 requests, decode times of the other 150.

    python bench/latency/bench_fit.py [OUT_FOLDER] [SPLITS]

Needs the measurements (``SERVINGPLAN_DATA``). Takes a few minutes a split.
"""

import csv
import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np

from servingplan.latency.closedloop import Limits, Loops, predict
from servingplan.latency.fit import ClosedLoop, Fit, RequestLog, fit
from servingplan.latency.fit_log import logged_work
from servingplan.latency.fit_pool import pooled_prior
from servingplan.latency.fit_problem import Prior

mpl.use("Agg")
from matplotlib import pyplot as plt

DATA = Path(os.environ.get("SERVINGPLAN_DATA", Path(__file__).parents[3] / "shared/data")) / "perf"
BUDGET = 8192
SLOTS = 1024
SPREAD, CLIENT_SPREAD = 0.3, 0.3
FEWEST_ALONE = 4
FEWEST_OF_FAMILY = 12
EDGE = (0.8, 2.2)

KV_BYTES = {"Llama-3.1-8B-Instruct": 131_072, "Qwen3-32B": 262_144, "Llama-3.1-70B": 327_680}
PARAMETERS = {"Llama-3.1-8B-Instruct": 8.0e9, "Qwen3-32B": 32.8e9, "Llama-3.1-70B": 70.6e9}
MEMORY = {"h100_sxm": 80e9, "h200_sxm": 141e9, "b200_sxm": 180e9, "b300_sxm": 268e9, "gb200": 186e9}
WEIGHT_BYTES = {"": 2.0, "bf16": 2.0, "fp8": 1.0, "fp4": 0.5, "int4": 0.5}


class Family(NamedTuple):
    """One model on one accelerator with one engine."""

    model: str
    system: str
    backend: str
    precision: str
    gemm: str
    moe: str

    @property
    def dense_vllm(self) -> bool:
        return self.backend == "vllm" and self.system == "h100_sxm" and (self.model, self.precision) in DENSE_VLLM


DENSE_VLLM = {("Qwen3-32B", ""), ("Llama-3.1-70B", "fp8")}


class Split(NamedTuple):
    """How the model is spread over accelerators."""

    tp: int
    pp: int
    dp: int
    moe_tp: int
    moe_ep: int


@dataclass(frozen=True, slots=True)
class Half:
    """Training and held-out points of one way of splitting a model."""

    split: Split
    train: tuple[ClosedLoop, ...]
    held_out: tuple[ClosedLoop, ...]


@dataclass(frozen=True, slots=True)
class Scored:
    """Held-out points and what was predicted of them; edge: the load is within the KV cache's edge."""

    family: Family
    split: Split
    point: ClosedLoop
    ttft_s: float
    tpot_s: float
    edge: bool

    @property
    def errors(self) -> tuple[float, float]:
        return self.ttft_s / self.point.ttft_s - 1, self.tpot_s / self.point.tpot_s - 1


def main() -> None:
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
    splits = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    if not DATA.is_dir():
        print(f"no measurements under {DATA}: nothing to fit")
        return
    out.mkdir(parents=True, exist_ok=True)
    families = read_silicon()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        runs = [
            [
                scored
                for part in pool.map(score, ((family, halves(points, seed)) for family, points in families))
                for scored in part
            ]
            for seed in range(splits)
        ]
    report(runs)
    plot(runs[0], out / "fit.png")
    request_logs()


def read_silicon() -> list[tuple[Family, dict[Split, list[ClosedLoop]]]]:
    """The families in a fixed order; points of attention data parallelism are those of one rank."""
    found: dict[Family, dict[Split, dict[tuple[int, int, int], list[tuple[float, float]]]]] = {}
    with (DATA / "silicon_measured_agg.csv").open() as file:
        for row in csv.DictReader(file):

            def size(name: str, row: dict[str, str] = row) -> int:
                return max(1, int(float(row[name] or 1)))

            model = row["model_path"].split("/")[-1]
            family = Family(
                model, row["system"], row["backend"], row["precision"], row["gemm_quant_mode"], row["moe_quant_mode"]
            )
            split = Split(*(size(f"{name}_size") for name in ("tp", "pp", "attention_dp", "moe_tp", "moe_ep")))
            measured = float(row["silicon_ttft_ms"]) / 1e3, float(row["silicon_tpot_ms"]) / 1e3
            configuration = size("isl"), size("osl"), size("concurrency")
            found.setdefault(family, {}).setdefault(split, defaultdict(list))[configuration].append(measured)
    return [
        (
            family,
            {split: [_point(split, *item) for item in sorted(found[family][split].items())] for split in sorted(found[family])},
        )
        for family in sorted(found)
    ]


def _point(split: Split, configuration: tuple[int, int, int], repeats: Sequence[tuple[float, float]]) -> ClosedLoop:
    prompt, output, clients = configuration
    ttft_s, tpot_s = np.median(repeats, axis=0)
    return ClosedLoop(max(1, round(clients / split.dp)), prompt, output, float(ttft_s), float(tpot_s))


def halves(points: dict[Split, list[ClosedLoop]], seed: int) -> list[Half]:
    """Every other point for seed 0, a random half of each split for others; an odd point is trained on."""
    found = []
    for split, of_split in points.items():
        places = np.arange(len(of_split)) if seed == 0 else np.random.default_rng(seed).permutation(len(of_split))
        chosen = set(places[::2].tolist())
        train = tuple(point for place, point in enumerate(of_split) if place in chosen)
        found.append(Half(split, train, tuple(point for place, point in enumerate(of_split) if place not in chosen)))
    return found


def kv_tokens(family: Family, split: Split) -> float | None:
    """Tokens of KV cache by vLLM's accounting with 16-bit keys and values; None where the model is not dense."""
    model = family.model.removesuffix("-FP8")
    if family.backend != "vllm" or model not in KV_BYTES:
        return None
    weights = PARAMETERS[model] * WEIGHT_BYTES[family.precision]
    return (0.9 * 0.99 * MEMORY[family.system] * split.tp - weights - 2e9 * split.tp) / KV_BYTES[model]


@dataclass(frozen=True, slots=True)
class Guess:
    """Limits that the sample does not record: sequence slots, and 16-bit (1) or 8-bit (2) KV cache."""

    slots: int
    kv_factor: float | None

    def limits(self, family: Family, split: Split) -> Limits:
        kv = kv_tokens(family, split)
        return Limits(self.slots, BUDGET, int(kv * self.kv_factor) if kv and self.kv_factor else None)


def guesses(family: Family, parts: Sequence[Half]) -> list[Guess]:
    """The limits worth trying: those that would bind somewhere."""
    most = max(point.concurrency for half in parts for point in half.train)
    if family.backend == "vllm" and family.model.removesuffix("-FP8") in KV_BYTES:
        return [Guess(SLOTS, 1.0), Guess(SLOTS, 2.0)]
    return [Guess(SLOTS, None), *(Guess(slots, None) for slots in (512, 256) if most > slots)]


def fit_alone(family: Family, parts: Sequence[Half], guess: Guess) -> dict[Split, Fit]:
    """Fits of the splits with enough points, each for itself."""
    found = {}
    for half in parts:
        if len(half.train) >= FEWEST_ALONE and len({point.concurrency for point in half.train}) > 1:
            limits = guess.limits(family, half.split)
            try:
                found[half.split] = _fit(half.train, limits)
            except ValueError:  # a guessed KV cache that is too small for a measured request
                continue
    return found


def _fit(points: Sequence[ClosedLoop], limits: Limits, prior: Prior | None = None) -> Fit:
    return fit(
        points,
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        kv_tokens=limits.kv_tokens,
        extra=True,
        prior=prior,
    )


def training_loss(fits: Iterable[Fit]) -> float:
    """Robust loss of the residuals; a fit that could not be made costs more than any."""
    total = 0.0
    for found in fits:
        errors = np.log1p([[max(-0.99, r.ttft or 0.0), r.tpot] for r in found.residuals]) / (0.15, 0.045)
        total += float(np.sum(2 * (np.sqrt(1 + errors**2) - 1))) - 1e3
    return total


def score(job: tuple[Family, list[Half]]) -> list[Scored]:
    """Fit the training half of a family, each split helped by the others, and predict the held-out half."""
    family, parts = job
    candidates = [(guess, fit_alone(family, parts, guess)) for guess in guesses(family, parts)]
    guess, alone = min(candidates, key=lambda candidate: training_loss(candidate[1].values()))
    found = []
    for half in parts:
        if not half.held_out:
            continue
        limits = guess.limits(family, half.split)
        chosen = alone.get(half.split)
        if alone and (chosen is None or len(alone) > 1):
            like = [(split.tp, other) for split, other in alone.items()]
            prior = pooled_prior(like, half.split.tp, spread=SPREAD, client_spread=CLIENT_SPREAD)
            chosen = _fit(half.train, limits, prior=prior)
        if chosen is not None:
            found += _predicted(family, half, chosen, limits)
    return found


def _predicted(family: Family, half: Half, found: Fit, limits: Limits) -> list[Scored]:
    columns = np.array([(p.concurrency, p.prompt_tokens, p.output_tokens) for p in half.held_out], dtype=float).T
    ttft_s, tpot_s = predict(Loops(*columns), found.step, limits, found.client, extra=found.extra)
    kv = kv_tokens(family, half.split)
    load = [point.concurrency * (point.prompt_tokens + point.output_tokens / 2) / kv if kv else 0.0 for point in half.held_out]
    return [
        Scored(family, half.split, point, float(ttft), float(tpot), EDGE[0] <= share <= EDGE[1])
        for point, ttft, tpot, share in zip(half.held_out, ttft_s, tpot_s, load, strict=True)
    ]


def _absolute(scored: Sequence[Scored]) -> np.ndarray:
    return np.abs([one.errors for one in scored]).reshape(-1, 2)


def summary(scored: Sequence[Scored]) -> tuple[float, float, float, float]:
    """Per cent: TTFT median and p90 (edge left out), TPOT median and p90."""
    ttft, tpot = _absolute([one for one in scored if not one.edge])[:, 0], _absolute(scored)[:, 1]
    ttft_median, ttft_p90 = (100 * float(value) for value in np.quantile(ttft, (0.5, 0.9)))
    tpot_median, tpot_p90 = (100 * float(value) for value in np.quantile(tpot, (0.5, 0.9)))
    return ttft_median, ttft_p90, tpot_median, tpot_p90


def report(runs: Sequence[Sequence[Scored]]) -> None:
    first = runs[0]
    by_family: dict[Family, list[Scored]] = defaultdict(list)
    for one in first:
        by_family[one.family].append(one)
    points = {family: sum(map(len, splits.values())) for family, splits in read_silicon()}
    large = [family for family in by_family if points[family] >= FEWEST_OF_FAMILY]
    print(f"{'family, held-out half of split 0':62}{'points':>7}{'TTFT med':>10}{'p90':>8}{'TPOT med':>10}{'p90':>8}   %")
    for family in sorted(large, key=lambda family: (not family.dense_vllm, family)):
        name = " ".join(filter(None, (family.model, family.system, family.backend, family.precision, family.gemm)))
        cells = summary(by_family[family])
        print(
            f"{name[:61]:62}{len(by_family[family]):>7}"
            + "".join(f"{value:>{w}.1f}" for value, w in zip(cells, (10, 8, 10, 8), strict=True))
        )
    kinds = {
        "vLLM dense, Qwen3-32B and Llama-70B FP8 on H100": (lambda one: one.family.dense_vllm, (8.0, None, 4.0, 10.0)),
        "all families of 12 points or more": (lambda one: points[one.family] >= FEWEST_OF_FAMILY, (12.0, None, 6.0, None)),
    }
    for name, (belongs, targets) in kinds.items():
        print(f"\n{name}")
        for seed, run in enumerate(runs):
            chosen = [one for one in run if belongs(one)]
            print(f"  split {seed}, {len(chosen):4} points: {_against(summary(chosen), targets)}")
    medians = np.array([summary(by_family[family]) for family in large])
    print(
        f"\nfamilies within target on split 0: TTFT {np.sum(medians[:, 0] <= 12)}, "
        f"TPOT {np.sum(medians[:, 2] <= 6)} of {len(large)}"
    )
    edges = [one for one in first if one.edge and one.family.dense_vllm]
    for one in edges:
        ttft, tpot = one.errors
        p = one.point
        print(
            f"KV edge (not gated): {one.family.model} TP{one.split.tp} {p.prompt_tokens:g}/{p.output_tokens:g} "
            f"C={p.concurrency}: "
            f"TTFT {p.ttft_s:.2f} s {100 * ttft:+.0f} %, TPOT {100 * tpot:+.0f} %"
        )


def _against(values: Sequence[float], targets: Sequence[float | None]) -> str:
    cells = []
    for name, value, target in zip(("TTFT median", "TTFT p90", "TPOT median", "TPOT p90"), values, targets, strict=True):
        mark = "" if target is None else f" (target {target:g}{'' if value <= target else ', MISSED'})"
        cells.append(f"{name} {value:.1f} %{mark}")
    return ", ".join(cells)


def plot(scored: Sequence[Scored], path: Path) -> None:
    figure, axes = plt.subplots(2, 2, figsize=(11, 8.4), layout="constrained", height_ratios=(2, 1))
    kinds = (("#9aa5b1", "other families", False, 8), ("#d1495b", "vLLM dense on H100", True, 16))
    for column, (label, index) in enumerate((("TTFT", 0), ("time per output token", 1))):
        top, bottom = axes[0][column], axes[1][column]
        for color, name, dense, area in kinds:
            chosen = [one for one in scored if one.family.dense_vllm == dense]
            measured = np.array([(one.point.ttft_s, one.point.tpot_s)[index] for one in chosen])
            errors = np.array([one.errors[index] for one in chosen])
            style = {"s": area, "color": color, "alpha": 0.6, "linewidths": 0}
            top.scatter(measured, measured * (1 + errors), label=name, **style)
            bottom.scatter(measured, np.clip(100 * errors, -100, 100), **style)
        ends = np.array(top.get_xlim())
        ends = np.array([max(ends[0], 1e-3 if index else 1e-2), ends[1]])
        top.plot(ends, ends, color="#222222", lw=0.8)
        top.set(xscale="log", yscale="log", ylabel=f"predicted {label}, s", title=f"{label}, held-out half")
        bottom.axhline(0, color="#222222", lw=0.8)
        bottom.set(xscale="log", xlabel=f"measured {label}, s", ylabel="error, %", ylim=(-105, 105))
        for axis in (top, bottom):
            axis.grid(alpha=0.25, which="major")
            axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].legend(frameon=False)
    figure.suptitle("Coefficients fitted to half of the measured points of each replica, the other half predicted")
    figure.savefig(path, dpi=120)
    plt.close(figure)
    print(f"\nplot: {path}\n")


LOGS = {
    "rtxpro6000_llama31_8b_tp1": ("Llama-3.1-8B, RTX PRO 6000", 128, None, "12.8 ms, 39.7 us, 74 ns"),
    "rtx4090_llama31_8b_tp1": ("Llama-3.1-8B, RTX 4090, KV cache always full", 256, 41_408, "22.3 ms, 87 us, not identified"),
}


def request_logs() -> None:
    """Fit the first half of each log and predict the decode times of the second."""
    for name, (title, seqs, kv, simulated) in LOGS.items():
        print(f"{title}; the simulator's own fit: {simulated}")
        for floor in (False, True):
            fitted, held_out = ((read_log(name, judged)) for judged in ((0, 150), (150, 300)))
            found = fit([fitted], max_num_seqs=seqs, max_num_batched_tokens=2048, kv_tokens=kv, floor=floor)
            errors = 100 * np.abs(np.expm1(logged_work(held_out, 2048).log_errors(found.step)))
            step, error = found.step, found.standard_error
            print(
                f"  alpha {1e3 * step.alpha_s:.1f} +- {1e3 * error.alpha_s:.1f} ms, beta {1e6 * step.beta_s:.1f} +- "
                f"{1e6 * error.beta_s:.1f} us, gamma {1e9 * step.gamma_s:.0f} +- {1e9 * error.gamma_s:.0f} ns, floor "
                f"{1e3 * step.floor_s:.1f} ms; TPOT error, fitted half mean {100 * found.residuals[0].tpot:.1f} %, "
                f"held-out median {np.median(errors):.1f} %, p90 {np.quantile(errors, 0.9):.1f} %"
            )


def read_log(name: str, judged: tuple[int, int]) -> RequestLog:
    rows = [json.loads(line) for line in (DATA / f"vllm_requests/{name}.requests.jsonl").read_text().splitlines()]
    column = {key: np.array([row[key] for row in rows]) for key in rows[0] if key != "request_id"}
    # The engine notes a request at a step's boundary, so the smallest lag is the offset of the clocks.
    arrival_s = column["arrival_time"] + np.min(column["queued_ts"] - column["arrival_time"])
    start_s = arrival_s[0]
    return RequestLog(
        tuple((arrival_s - start_s).tolist()),
        tuple(column["input_toks"].tolist()),
        tuple(column["output_toks"].tolist()),
        tuple((column["first_token_ts"] - start_s).tolist()),
        tuple((column["last_token_ts"] - start_s).tolist()),
        judged,
    )


if __name__ == "__main__":
    main()
