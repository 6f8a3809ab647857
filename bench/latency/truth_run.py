"""One case in simulation and by the closed form.

As a program it judges synchronous engines: the simulator's pipeline depth is a constant that its compiler takes in, so it has
to be set before anything is compiled, in a process and a compiler cache of its own.

    python truth_run.py RESULTS.pickle
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

if __name__ == "__main__":
    os.environ["NUMBA_CACHE_DIR"] = tempfile.mkdtemp(prefix="synchronous-")
    from servingplan.sim import engine

    engine.PIPELINE_DEPTH = 1

import numpy as np
from truth_cases import PROFILES, Case, traffics

from servingplan.latency.capacity import Latency, latency, margin, stable_rate_rps
from servingplan.latency.profile import TokenMix
from servingplan.sim.engine import StepCost
from servingplan.sim.replay import Replica, Workload, replay

REQUESTS, WARM_UP = 30_000, 1_000
SEEDS = (21, 22, 23)
"""Others than those on which the margin was chosen."""
PERCENTILES = (50.0, 95.0, 99.0)


@dataclass(frozen=True, slots=True)
class Found:
    """One class of a case.

    Attributes:
        ttft_s: (seeds, 4) simulated mean and percentiles.
        inter_token_s: (seeds,) simulated.
        e2e_s: (seeds,) simulated mean.
        predicted_ttft_s: (4,)
        predicted_inter_token_s, predicted_e2e_s: Means.
        margin: Of the closed form at this load.
    """

    case: Case
    part: str
    ttft_s: np.ndarray
    inter_token_s: np.ndarray
    e2e_s: np.ndarray
    predicted_ttft_s: np.ndarray
    predicted_inter_token_s: float
    predicted_e2e_s: float
    margin: float

    def error(self, column: int) -> float:
        """Of the predicted TTFT: mean, p50, p95, p99."""
        return float(self.predicted_ttft_s[column] / self.ttft_s[:, column].mean() - 1)

    def interval(self, column: int) -> float:
        """Half of the 95 % interval of the simulated TTFT over the seeds, relative."""
        values = self.ttft_s[:, column]
        # Student's t for three seeds.
        return float(4.30 * values.std(ddof=1) / len(values) ** 0.5 / values.mean())

    @property
    def covered(self) -> bool:
        """Whether mean and p95 stay below the prediction over one less the margin."""
        return all(self.ttft_s[:, k].mean() <= self.predicted_ttft_s[k] / (1 - self.margin) for k in (0, 2))


def judged(case: Case) -> list[Found]:
    """The case, class by class."""
    mix, cv = case.traffic.mix, case.traffic.arrival_cv
    rate_rps = case.load * stable_rate_rps(case.profile, mix)
    runs = [_simulated(case, rate_rps, seed) for seed in SEEDS]
    found = []
    for k, (part, (_, lengths)) in enumerate(case.traffic.parts.items()):
        ttft_s, inter_token_s, e2e_s = zip(*(_of_part(run, k) for run in runs), strict=True)
        predicted = latency(case.profile, lengths, rate_rps, mix, cv)
        found.append(
            Found(
                case=case,
                part=part,
                ttft_s=np.array(ttft_s),
                inter_token_s=np.array(inter_token_s),
                e2e_s=np.array(e2e_s),
                predicted_ttft_s=summary(predicted),
                predicted_inter_token_s=predicted.inter_token_s,
                predicted_e2e_s=predicted.e2e_mean_s,
                margin=margin(case.profile, mix, case.load, cv),
            )
        )
    return found


def summary(predicted: Latency) -> np.ndarray:
    """(4,) mean and percentiles of the TTFT."""
    return np.array([predicted.ttft_mean_s, *(predicted.ttft_s(percent) for percent in PERCENTILES)])


def first_tokens_s(case: Case, seed: int) -> np.ndarray:
    """Simulated times to first token of all requests."""
    return _simulated(case, case.load * stable_rate_rps(case.profile, case.traffic.mix), seed)[:, 1]


def _of_part(run: np.ndarray, part: int) -> tuple[np.ndarray, float, float]:
    mine = run[run[:, 0] == part]
    percentiles = np.percentile(mine[:, 1], PERCENTILES)
    return np.array([mine[:, 1].mean(), *percentiles]), float(np.nanmean(mine[:, 2])), float(mine[:, 3].mean())


def _simulated(case: Case, rate_rps: float, seed: int) -> np.ndarray:
    """(requests, 4) class, TTFT, inter-token latency and e2e."""
    chance = np.random.default_rng(seed)
    shares = np.array([share for share, _ in case.traffic.parts.values()])
    part = chance.choice(len(shares), size=REQUESTS, p=shares / shares.sum())
    pairs = np.empty((REQUESTS, 2), dtype=int)
    for k, (_, mix) in enumerate(case.traffic.parts.values()):
        pairs[part == k] = _drawn(chance, mix, int((part == k).sum()))
    shape = 1 / case.traffic.arrival_cv**2
    arrival_s = np.cumsum(chance.gamma(shape, 1 / (rate_rps * shape), REQUESTS))
    step = case.profile.step
    outcome = replay(
        Workload(arrival_s, pairs[:, 0], pairs[:, 1]),
        Replica(
            StepCost(alpha_s=step.alpha_s, floor_s=step.floor_s, beta_s=step.beta_s, gamma_s=step.gamma_s),
            kv_blocks=case.profile.kv_tokens // 16 + 1,
            max_num_seqs=case.profile.max_num_seqs,
            max_num_batched_tokens=case.profile.max_num_batched_tokens,
        ),
    )
    return np.column_stack([part, outcome.ttft_s, outcome.inter_token_s, outcome.e2e_s])[WARM_UP:]


def _drawn(chance: np.random.Generator, mix: TokenMix, count: int) -> np.ndarray:
    if mix.sample:
        return np.array(mix.sample, dtype=int)[chance.integers(len(mix.sample), size=count)]
    return np.column_stack(
        [
            _lognormal(chance, mix.prompt_tokens, mix.prompt_cv, count),
            _lognormal(chance, mix.output_tokens, mix.output_cv, count),
        ]
    )


def _lognormal(chance: np.random.Generator, mean: float, cv: float, count: int) -> np.ndarray:
    variance = np.log(1 + cv**2)
    return np.maximum(1, np.round(chance.lognormal(np.log(mean) - variance / 2, np.sqrt(variance), count))).astype(int)


def synchronous() -> list[Found]:
    """The cases on synchronous engines, judged in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.pickle"
        subprocess.run([sys.executable, __file__, str(results)], check=True)
        return pickle.loads(results.read_bytes())


def _judge_synchronous(results: Path) -> None:
    names = ("32B, 2 x H100", "8B, H100, 64 slots")
    kinds = [traffic for name, traffic in traffics().items() if name == "constant" or name.startswith("Azure")]
    cases = [
        Case(f"{name}, synchronous", replace(PROFILES[name], asynchronous=False), traffic, load)
        for name in names
        for traffic in kinds
        for load in (0.5, 0.7)
    ]
    results.write_bytes(pickle.dumps([found for case in cases for found in judged(case)]))


if __name__ == "__main__":
    # Under its own name, so that what is pickled here is found by whoever reads it.
    import truth_run

    truth_run._judge_synchronous(Path(sys.argv[1]))
