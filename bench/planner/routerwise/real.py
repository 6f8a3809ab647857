"""Cells on real data: measured scores, and latency from measured points where a family fits, from a modelled grid elsewhere.

Every method is judged by one latency model: the operator's own, its margin included, with coefficients fitted to closed-loop
points. A share rho of a GPU is taken for a GPU rho times as fast, in all parts of the step: what is left to a model whose
neighbours on the GPU are busy. The authors' profiles, each taken alone, are not public. KV memory does not limit the batch, as
in the paper.
"""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from routerwise.cells import Curve, Scores
from routerwise.setups import GB_PER_BILLION, GPU_GB, TENSOR_PARALLEL, TENTHS, ModelSetup, Space
from servingplan.latency.capacity import MAX_UTILIZATION, latency, margin, stable_rate_rps
from servingplan.latency.fit import ClosedLoop, Fit, fit
from servingplan.latency.profile import EngineProfile, StepTime, TokenMix

DATA = Path(os.environ.get("SERVINGPLAN_DATA", Path(__file__).parents[4] / "shared/data"))
MIX = TokenMix(prompt_tokens=512, output_tokens=128)
"""Lengths of the requests. The scores come without output lengths: an assumption, near the shortest that were profiled."""
BUDGET_TOKENS = 8192
MAX_NUM_SEQS = 256
_LOADS = MAX_UTILIZATION * np.concatenate([[0.0, 0.15], 1 - np.geomspace(0.7, 0.01, 14), [1.0]])


@dataclass(frozen=True, slots=True)
class Ladder:
    """Closed-loop points of one model on one kind of GPU, or a mean of two such ladders.

    Attributes:
        name: Model in the data.
        measured: Whether the points were measured; else they are modelled.
        mixed_with: A second ladder and its weight, for a model whose size lies between the two.
    """

    name: str
    measured: bool
    mixed_with: tuple[str, float] | None = None

    def __str__(self) -> str:
        mixed = f" {1 - self.mixed_with[1]:.0%} + {self.mixed_with[0]} {self.mixed_with[1]:.0%}" if self.mixed_with else ""
        return f"{self.name}{mixed} ({'measured' if self.measured else 'modelled'})"


@dataclass(frozen=True, slots=True)
class Hardware:
    """A kind of GPU and where the latency on it comes from.

    Attributes:
        ladders: By model in the scores.
    """

    name: str
    ladders: dict[str, Ladder]


SIZES_B = {
    "codegemma-7b": 7, "mistral-7b-instruct-v0.3": 7, "llama-3.1-8b-instruct": 8, "qwen2.5-7b-instruct": 7,
    "gemma-2-9b-it": 9, "llama-3.1-nemotron-51b-instruct": 51,
}  # fmt: skip
_GRID_8B = Ladder("Llama-3.1-8B-Instruct", measured=False)
_GRID_51B = Ladder("Qwen2.5-32B-Instruct", measured=False, mixed_with=("Llama-3.1-70B-Instruct", 0.5))
_TABLE_8B = Ladder("meta-llama/Llama-3.1-8B-Instruct", measured=True)
_TABLE_70B = Ladder("meta-llama/Llama-3.1-70B", measured=True)
_SMALL = ("codegemma-7b", "mistral-7b-instruct-v0.3", "llama-3.1-8b-instruct", "gemma-2-9b-it")
_LARGE = "llama-3.1-nemotron-51b-instruct"
A100 = Hardware(
    "A100",
    dict.fromkeys(_SMALL, _GRID_8B) | {"qwen2.5-7b-instruct": Ladder("Qwen2.5-7B-Instruct", measured=False), _LARGE: _GRID_51B},
)
H100 = Hardware("H100", dict.fromkeys((*_SMALL, "qwen2.5-7b-instruct"), _TABLE_8B) | {_LARGE: _TABLE_70B})


def scores(models: tuple[str, ...]) -> Scores:
    """Scores of the LLMRouter prompts, prompts with equal scores taken together.

    Args:
        models: Names in the file.

    Raises:
        OSError: The file is not there.
    """
    with (DATA / "quality/llmrouter_scores.jsonl").open() as lines:
        rows = [json.loads(line)["scores"] for line in lines]
    counted = Counter(tuple(row[model] for model in models) for row in rows)
    vectors = sorted(counted)
    return Scores(models, np.array(vectors), np.array([counted[v] for v in vectors]) / len(rows))


def curves(hardware: Hardware, models: tuple[str, ...], space: Space) -> dict[tuple[int, ModelSetup], Curve]:
    """The latency curve of every setup whose shard fits on a GPU and whose tensor parallel size the GPUs allow."""
    return {
        (index, ModelSetup(tp, tenths)): curve(profile(hardware, model, tp)).slowed(tenths / 10)
        for index, model in enumerate(models)
        for tp in TENSOR_PARALLEL
        if tp <= space.gpus and space.shard_gb(index, tp) <= GPU_GB
        for tenths in TENTHS
    }


def profile(hardware: Hardware, model: str, tp: int, tenths: int = 10) -> EngineProfile:
    """One replica on a share of its GPUs; coefficients in proportion to the share."""
    step, slower = _step(hardware.name, hardware.ladders[model], tp), 10 / tenths
    scaled = StepTime(step.alpha_s * slower, step.beta_s * slower, step.gamma_s * slower, step.floor_s * slower)
    return EngineProfile(step=scaled, max_num_seqs=MAX_NUM_SEQS, max_num_batched_tokens=BUDGET_TOKENS)


@lru_cache(maxsize=10_000)
def curve(replica: EngineProfile) -> Curve:
    """Mean TTFT, margin included, from an idle replica to the utilisation up to which the model is trusted."""
    stable_rps = stable_rate_rps(replica, MIX)
    ttft_s = [
        latency(replica, MIX, max(load * stable_rps, 1e-9)).ttft_mean_s * (1 + margin(replica, MIX, load))
        for load in map(float, _LOADS)
    ]
    return Curve(_LOADS * stable_rps, np.maximum.accumulate(ttft_s))


@lru_cache(maxsize=100)
def fitted(gpu: str, name: str, measured: bool, tp: int) -> Fit:
    """Coefficients for a model of the data on some GPUs."""
    points = list(_measured_points(gpu, name, tp) if measured else _modelled_points(gpu, name, tp))
    return fit(points, max_num_seqs=MAX_NUM_SEQS, max_num_batched_tokens=BUDGET_TOKENS, floor=True)


def fits(hardware: Hardware, model: str) -> list[tuple[str, int, Fit]]:
    """The fits behind a model's latency, with the model of the data and the tensor parallel size of each."""
    ladder = hardware.ladders[model]
    names = [ladder.name, *([ladder.mixed_with[0]] if ladder.mixed_with else [])]
    sizes = [tp for tp in TENSOR_PARALLEL if GB_PER_BILLION * SIZES_B[model] / tp <= GPU_GB]
    return [(name, tp, fitted(hardware.name, name, ladder.measured, tp)) for name in names for tp in sizes]


def _step(gpu: str, ladder: Ladder, tp: int) -> StepTime:
    first = fitted(gpu, ladder.name, ladder.measured, tp).step
    if ladder.mixed_with is None:
        return first
    name, weight = ladder.mixed_with
    second = fitted(gpu, name, ladder.measured, tp).step
    return StepTime(*((1 - weight) * a + weight * b for a, b in zip(_values(first), _values(second), strict=True)))


def _values(step: StepTime) -> tuple[float, float, float, float]:
    return step.alpha_s, step.beta_s, step.gamma_s, step.floor_s


def _modelled_points(gpu: str, model: str, tp: int) -> Iterator[ClosedLoop]:
    for row in _rows("perf/aic_modelled_grid.csv"):
        if (row["model"], row["gpu"], row["tp"], row["status"]) == (model, f"{gpu.lower()}_sxm", str(tp), "ok"):
            yield _loop(row["concurrency"], row["isl"], row["osl"], row["ttft_ms"], row["tpot_ms"])


def _measured_points(gpu: str, model: str, tp: int) -> Iterator[ClosedLoop]:
    for row in _rows("perf/silicon_measured_agg.csv"):
        if (row["model_path"], row["system"]) == (model, f"{gpu.lower()}_sxm") and float(row["tp_size"]) == tp:
            yield _loop(row["concurrency"], row["isl"], row["osl"], row["silicon_ttft_ms"], row["silicon_tpot_ms"])


def _loop(clients: str, prompt: str, output: str, ttft_ms: str, tpot_ms: str) -> ClosedLoop:
    return ClosedLoop(int(float(clients)), float(prompt), float(output), float(ttft_ms) / 1e3, float(tpot_ms) / 1e3)


@lru_cache(maxsize=4)
def _rows(path: str) -> list[dict[str, str]]:
    with (DATA / path).open() as lines:
        return list(csv.DictReader(lines))
