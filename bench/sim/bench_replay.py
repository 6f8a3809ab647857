"""Fidelity and speed of the simulated vLLM in virtual time.

Replays the request logs of real vLLM servers with coefficients fitted to their first half, prints the errors on the
second, and plots real against simulated; then times 30,000 requests. Needs the logs (``SERVINGPLAN_DATA``); without
them only the speed is measured.

    python bench/sim/bench_replay.py [OUT_FOLDER]
"""

import os
import sys
import time
from pathlib import Path

import matplotlib as mpl
import numpy as np

from servingplan.sim.engine import StepCost
from servingplan.sim.fit import fit
from servingplan.sim.replay import Outcome, Replica, Workload, replay
from servingplan.sim.runlog import RunLog, errors, read_run

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

DATA = Path(os.environ.get("SERVINGPLAN_DATA", Path(__file__).parents[3] / "shared/data")) / "perf/vllm_requests"
UNKNOWN = StepCost(0.0, 0.0, 0.0, 0.0)
RUNS = {
    "rtxpro6000_llama31_8b_tp1": ("Llama-3.1-8B, RTX PRO 6000", Replica(UNKNOWN, kv_blocks=25_000, max_num_seqs=128)),
    "rtx4090_llama31_8b_tp1": ("Llama-3.1-8B, RTX 4090 (KV-limited)", Replica(UNKNOWN, kv_blocks=2_588)),
}
TARGETS = {
    "queued TTFT p50": 0.05, "queued TTFT p95": 0.05, "e2e p50": 0.05, "e2e p95": 0.05, "inter-token p50": 0.02,
    "inter-token p95": 0.12, "unqueued TTFT mean": 0.12, "running series": 0.04, "waiting series": 0.04,
}  # fmt: skip
FITTED = slice(0, 150)
HELD_OUT = slice(150, 300)
REAL, SIMULATED = {"color": "#222222", "lw": 3, "alpha": 0.35}, {"color": "#d1495b", "lw": 1.3}


def main() -> None:
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
    if DATA.is_dir():
        fidelity(out)
    else:
        print(f"no request logs under {DATA}: only the speed")
    speed()


def fidelity(out: Path) -> None:
    figure, rows = plt.subplots(len(RUNS), 4, figsize=(16, 3.6 * len(RUNS)), layout="constrained")
    found = {}
    for (name, (title, replica)), axes in zip(RUNS.items(), rows, strict=True):
        log = read_run(DATA, name)
        fitted = fit(log, replica, FITTED)
        outcome = replay(log.workload, fitted, tick_s=0.01)
        found[title] = errors(log, outcome, HELD_OUT)
        cost = fitted.cost
        print(
            f"{title}: alpha {1e3 * cost.alpha_s:.1f} ms, floor {1e3 * cost.floor_s:.1f} ms, "
            f"beta {1e6 * cost.beta_s:.1f} us, gamma {1e9 * cost.gamma_s:.0f} ns; {outcome.preempted.sum()} preemptions"
        )
        draw(axes, title, log, outcome)
    width = max(map(len, found))
    print(f"\n{'error on requests 151-300':28}" + "".join(f"{title:>{width + 2}}" for title in found) + f"{'target':>10}")
    for key, target in TARGETS.items():
        cells = "".join(f"{100 * values[key]:>+{width}.2f} %" for values in found.values())
        print(f"{key:28}{cells}{100 * target:>8.0f} %")
    out.mkdir(parents=True, exist_ok=True)
    figure.suptitle("Real vLLM against the simulator, coefficients fitted on the first half of the requests")
    figure.savefig(out / "replay.png", dpi=110)
    print(f"\nplot: {out / 'replay.png'}\n")


def draw(axes: list[Axes], title: str, log: RunLog, outcome: Outcome) -> None:
    pairs = (("TTFT, s", log.ttft_s, outcome.ttft_s), ("end to end, s", log.e2e_s, outcome.e2e_s))
    for axis, (label, real, ours) in zip(axes, pairs, strict=False):
        for values, style, legend in ((real, REAL, "vLLM"), (ours, SIMULATED, "simulated")):
            held_out = np.sort(values[HELD_OUT])
            axis.plot(held_out, np.linspace(0, 1, len(held_out)), **style, label=legend)
        axis.set(xlabel=label, ylabel="share of requests 151-300", ylim=(0, 1))
        axis.legend(frameon=False, loc="lower right")
    axes[0].set_title(title, loc="left", fontsize=10)
    seconds = np.arange(len(outcome.running)) * outcome.tick_s
    for axis, label, real, ours in (
        (axes[2], "running requests", log.running, outcome.running),
        (axes[3], "waiting requests", log.waiting, outcome.waiting),
    ):
        axis.plot(log.tick_s, real, **REAL)
        axis.plot(seconds, ours, **SIMULATED)
        axis.set(xlabel="time, s", ylabel=label, ylim=(0, None), xlim=(0, None))
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)


def speed() -> None:
    n = 30_000
    source = np.random.default_rng(7)
    workload = Workload(
        np.cumsum(source.exponential(1 / 10, n)),
        np.clip(source.lognormal(6.6, 0.9, n), 1, 8000).astype(int),
        np.clip(source.lognormal(4.9, 0.8, n), 1, 1500).astype(int),
    )
    replica = Replica(StepCost(6.4e-3, 0.0, 20.7e-6, 41e-9), kv_blocks=25_000, max_num_batched_tokens=8192)
    replay(workload, replica)
    times_s = []
    for _ in range(5):
        begun_s = time.perf_counter()
        outcome = replay(workload, replica)
        times_s.append(time.perf_counter() - begun_s)
    hours = outcome.finished_s.max() / 3600
    print(
        f"{n} requests, {outcome.steps} steps, {hours:.2f} h of engine time at {outcome.running.mean():.0f} running: "
        f"{min(times_s):.2f} s (best of {len(times_s)}, worst {max(times_s):.2f} s)"
    )


if __name__ == "__main__":
    main()
