"""Whether plans keep in simulation what they promise, and what that honesty costs.

Thirty random problems with the prompt and output lengths of real traces are planned; every setup in use is then simulated step
by step (``servingplan.sim``, which shares no code with the planner) with the requests that the plan sends it, and the 95th
percentile of the time to first token of every class is held against its SLO. Needs the traces (``SERVINGPLAN_DATA``).

    python bench/planner/bench_promises.py [OUT_FOLDER]
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np

from servingplan.latency.capacity import latency, stable_rate_rps, utilization
from servingplan.latency.profile import Bound, EngineProfile, Slo, StepTime, TokenMix, blend
from servingplan.planning.problem import (
    AcceleratorSupply,
    Allocation,
    ClassDemand,
    Infeasible,
    ModelOption,
    PlanDecision,
    PlanDemand,
    Problem,
    SetupOption,
)
from servingplan.planning.solve import solve
from servingplan.sim.engine import StepCost
from servingplan.sim.replay import Replica, Workload, replay

mpl.use("Agg")
from matplotlib import pyplot as plt

DATA = Path(os.environ.get("SERVINGPLAN_DATA", Path(__file__).parents[3] / "shared/data")) / "traces"
PROBLEMS = 30
REQUESTS = 20_000
TARGETS_S = (0.5, 1.0, 2.0)

# Milliseconds, milliseconds per token, milliseconds per token; fits to measurements (docs/decisions.md, simulated vLLM).
SETUPS = {
    "qwen3-32b": (("h100", 2, (13.7, 0.057, 6e-5), 256, 278_000), ("h100", 4, (9.4, 0.034, 2.8e-5), 256, 807_000)),
    "llama-3.1-8b": (("h100", 1, (6.4, 0.0207, 4.1e-5), 256, 430_000), ("l40s", 1, (21.8, 0.069, 1.32e-4), 128, 180_000)),
    "qwen2.5-14b": (("h100", 1, (11.0, 0.037, 4.6e-5), 256, 202_000), ("l40s", 2, (20.2, 0.105, 2.7e-4), 128, 210_000)),
}
QUALITY = {"qwen3-32b": 0.8, "qwen2.5-14b": 0.7, "llama-3.1-8b": 0.6}


@dataclass(frozen=True)
class Promise:
    """What a plan promised for one class on one setup, and what came of it.

    Attributes:
        kept_s: 95th percentile of the simulated time to first token.
        utilization: Load as a fraction of the stable rate.
        free: Utilisation that the form would allow without its margin, over the one with it.
    """

    problem: int
    slo_s: float
    predicted_s: float
    kept_s: float
    utilization: float
    free: float


def main() -> None:
    if not DATA.is_dir():
        sys.exit(f"no traces under {DATA}: set SERVINGPLAN_DATA")
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
    out.mkdir(parents=True, exist_ok=True)
    traces = {name: lengths(name) for name in ("conv", "code")}
    promises: list[Promise] = []
    infeasible = 0
    for seed in range(PROBLEMS):
        plan = problem(seed, traces)
        found = solve(Problem((plan,), relative_gap=1e-3, time_limit_s=60))
        infeasible += isinstance(found, Infeasible)
        if isinstance(found, Infeasible) and found.decisions[0].relaxed:
            continue
        for allocation in found.decisions[0].allocations:
            promises += judged(seed, plan, found.decisions[0], allocation, traces)
    report(promises, infeasible)
    draw(promises, out / "promises.png")
    print(f"plot: {out / 'promises.png'}")


def lengths(name: str) -> np.ndarray:
    """(requests, 2) prompt and output tokens of an Azure trace."""
    rows = np.genfromtxt(DATA / f"AzureLLMInferenceTrace_{name}.csv", delimiter=",", skip_header=1, usecols=(1, 2))
    return np.maximum(rows[rows[:, 0] + rows[:, 1] < 15_000], 1).astype(int)


def problem(seed: int, traces: dict[str, np.ndarray]) -> PlanDemand:
    """Up to three models, classes of one or both traces, and enough accelerators for about what is asked."""
    source = np.random.default_rng(seed)
    names = [str(name) for name in source.permutation(sorted(SETUPS))[: source.integers(1, 4)]]
    classes = []
    kinds = [["conv"], ["code"], ["conv", "code"], ["conv", "code", "conv"]][source.integers(4)]
    total = float(source.uniform(8, 90))
    for k, kind in enumerate(kinds):
        mix = TokenMix.of(tuple((float(prompt), float(output)) for prompt, output in traces[kind]))
        bound = Bound(float(source.choice(TARGETS_S)), 95.0)
        classes.append(ClassDemand(f"{kind}-{k}", mix, Slo(ttft=bound), total / len(kinds) * float(source.uniform(0.5, 1.5))))
    models = tuple(
        ModelOption(
            name,
            {entry.name: QUALITY[name] + float(source.uniform(-0.05, 0.05)) for entry in classes},
            tuple(setup(*figures) for figures in SETUPS[name]),
        )
        for name in names
    )
    supplies = (
        AcceleratorSupply("h100", "nvidia.com/gpu", {f"h{i}": 8 for i in range(source.integers(1, 4))}, cost_per_hour=3.9),
        AcceleratorSupply("l40s", "nvidia.com/gpu", {f"l{i}": 4 for i in range(source.integers(1, 4))}, cost_per_hour=1.1),
    )
    return PlanDemand(f"truth/{seed}", models, tuple(classes), supplies)


def setup(kind: str, units: int, coefficients: tuple[float, float, float], seqs: int, kv_tokens: int) -> SetupOption:
    alpha, beta, gamma = (value / 1e3 for value in coefficients)
    profile = EngineProfile(StepTime(alpha, beta, gamma), max_num_seqs=seqs, max_num_batched_tokens=2048, kv_tokens=kv_tokens)
    return SetupOption(f"{kind}-tp{units}", kind, units, profile)


def judged(
    seed: int, plan: PlanDemand, decision: PlanDecision, allocation: Allocation, traces: dict[str, np.ndarray]
) -> list[Promise]:
    """The promises of one setup: one of its replicas, simulated with the classes that it is sent."""
    if allocation.rate_rps <= 0:
        return []
    key = (allocation.model, allocation.setup)
    profile = next(s.profile for m in plan.models if m.name == key[0] for s in m.setups if s.name == key[1])
    by_name = {entry.name: entry for entry in plan.classes}
    rates = {
        route.request_class: by_name[route.request_class].rate_rps * route.shares[key] / allocation.replicas
        for route in decision.routes
        if key in route.shares
    }
    ttft_s = simulated(seed, profile, rates, traces)
    background = blend([(rate, by_name[name].mix) for name, rate in rates.items()])
    total = sum(rates.values())
    load = total / stable_rate_rps(profile, background)
    found = []
    for name, values in ttft_s.items():
        entry = by_name[name]
        assert entry.slo.ttft is not None, "every class bounds its time to first token"
        allowed = utilization(profile, entry.mix, entry.slo, background)
        found.append(
            Promise(
                problem=seed,
                slo_s=entry.slo.ttft.seconds,
                predicted_s=latency(profile, entry.mix, total, background).ttft_s(95.0),
                kept_s=float(np.percentile(values, 95)),
                utilization=load,
                free=without_margin(profile, entry, background) / allowed if allowed else 1.0,
            )
        )
    return found


def simulated(
    seed: int, profile: EngineProfile, rates: dict[str, float], traces: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Times to first token by class, of Poisson arrivals with lengths drawn from the whole trace."""
    source = np.random.default_rng(1_000 + seed)
    names = sorted(rates)
    total = sum(rates.values())
    which = source.choice(len(names), size=REQUESTS, p=[rates[name] / total for name in names])
    pairs = np.zeros((REQUESTS, 2), dtype=int)
    for at, name in enumerate(names):
        rows = traces[name.split("-")[0]]
        pairs[which == at] = rows[source.integers(len(rows), size=int((which == at).sum()))]
    step = profile.step
    assert step is not None, "these profiles have coefficients"
    assert profile.kv_tokens is not None, "and a KV cache"
    outcome = replay(
        Workload(np.cumsum(source.exponential(1 / total, REQUESTS)), pairs[:, 0], pairs[:, 1]),
        Replica(
            StepCost(step.alpha_s, step.floor_s, step.beta_s, step.gamma_s),
            kv_blocks=profile.kv_tokens // 16 + 1,
            max_num_seqs=profile.max_num_seqs,
            max_num_batched_tokens=profile.max_num_batched_tokens,
        ),
    )
    return {name: outcome.ttft_s[which == at] for at, name in enumerate(names)}


def without_margin(profile: EngineProfile, entry: ClassDemand, background: TokenMix) -> float:
    """Utilisation at which the predicted percentile itself reaches the SLO, up to nearly the stable rate."""
    stable = stable_rate_rps(profile, background)
    assert entry.slo.ttft is not None, "every class bounds its time to first token"
    low, high = 0.0, 0.97
    for _ in range(25):
        middle = (low + high) / 2
        kept = latency(profile, entry.mix, middle * stable, background).ttft_s(95.0) <= entry.slo.ttft.seconds
        low, high = (middle, high) if kept else (low, middle)
    return low


def report(promises: list[Promise], infeasible: int) -> None:
    late = [each for each in promises if each.kept_s > each.slo_s]
    plans = len({each.problem for each in promises})
    error = np.array([each.predicted_s / each.kept_s - 1 for each in promises])
    print(f"{PROBLEMS} plans, {infeasible} of them said to be infeasible; {len(promises)} promises of {plans} plans simulated")
    print(f"broken: {len(late)} promises of {len({each.problem for each in late})} plans")
    for each in late:
        print(
            f"  problem {each.problem}: {each.kept_s:.3f} s for {each.slo_s} s at {each.utilization:.0%}, "
            f"predicted {each.predicted_s:.3f} s"
        )
    low, middle, high = np.percentile(error, [5, 50, 95])
    print(f"predicted p95 against simulated: median {middle:+.1%}, 5th to 95th percentile {low:+.1%} to {high:+.1%}")
    used = np.array([each.kept_s / each.slo_s for each in promises])
    print(f"simulated p95 over the SLO: median {np.median(used):.2f}, highest {used.max():.2f}")
    free = np.array([each.free for each in promises])
    print(
        f"honesty: without the margin a replica would take {np.median(free) - 1:+.1%} requests (median), "
        f"{free.max() - 1:+.1%} at most"
    )


def draw(promises: list[Promise], path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    shade = [each.utilization for each in promises]
    used, asked = [each.kept_s for each in promises], [each.slo_s for each in promises]
    dots = left.scatter(
        asked * np.random.default_rng(0).uniform(0.93, 1.07, len(asked)), used, c=shade, cmap="viridis", s=28, alpha=0.85
    )
    edge = np.array([0.3, 3.0])
    left.plot(edge, edge, color="#222222", lw=1)
    left.fill_between(edge, edge, 10, color="#d1495b", alpha=0.08, lw=0)
    left.text(0.38, 2.6, "promise broken", color="#d1495b")
    left.set(
        xscale="log",
        yscale="log",
        xlim=(0.35, 2.6),
        ylim=(0.03, 3.5),
        xlabel="p95 TTFT promised, s",
        ylabel="p95 TTFT simulated, s",
    )
    left.set_xticks(TARGETS_S, [f"{value:g}" for value in TARGETS_S])
    left.set_xticks([], minor=True)
    figure.colorbar(dots, ax=left, label="utilisation")
    predicted = [each.predicted_s for each in promises]
    right.scatter(used, predicted, c=shade, cmap="viridis", s=28, alpha=0.85)
    line = np.array([0.03, 3.0])
    right.plot(line, line, color="#222222", lw=1)
    right.fill_between(line, line * 0.8, line * 1.2, color="#2a6f97", alpha=0.12, lw=0, label="within 20 %")
    right.set(xscale="log", yscale="log", xlabel="p95 TTFT simulated, s", ylabel="p95 TTFT predicted, s")
    right.legend(frameon=False)
    for axis in (left, right):
        axis.grid(alpha=0.25, which="both")
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"{len({each.problem for each in promises})} plans with real lengths, {REQUESTS:,} simulated requests a replica"
    )
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
