"""Real prompts with the scores that real models got on them.

- `llmrouter`: 3,802 prompts of 13 tasks from the LLMRouter matrix; four of its models stand for the tiers. It has no lengths of
  answers: they are drawn (median of the task x a common and a per-model lognormal factor) and scaled to the tiers' means.
- `zeroeval`: 1,035 prompts (CRUX, MATH level 5) from ZeroEval, answered by Qwen2.5 of four sizes, with their real lengths.
"""

from __future__ import annotations

import csv
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from virtualfleet import predictors

DATA = Path(os.environ.get("SERVINGPLAN_DATA", Path(__file__).parents[4] / "shared/data")) / "quality"
LONGEST = 1024
BLOCK_CHARACTERS, MOST_BLOCKS = 256, 32
SETS = ("llmrouter", "zeroeval")

_LLMROUTER_MODELS = (
    "mistral-7b-instruct-v0.3",
    "qwen2.5-7b-instruct",
    "llama-3.1-8b-instruct",
    "llama-3.1-nemotron-51b-instruct",
)
_ZEROEVAL_MODELS = ("Qwen2.5-3B-Instruct", "Qwen2.5-7B-Instruct", "Qwen2.5-32B-Instruct", "Qwen2.5-72B-Instruct")
_MEAN_TOKENS = np.array([166.0, 290.0, 299.0, 230.0])
"""Of the answers of the four tiers, as the paper has them."""
_COMMON_SPREAD, _MODEL_SPREAD = 0.45, 0.3
_TASK_TOKENS = {
    "agentverse-logicgrid": 400.0,
    "agentverse-mgsm": 220.0,
    "arc_challenge": 90.0,
    "commongen": 50.0,
    "commonsense_qa": 80.0,
    "gsm8k": 220.0,
    "human_eval": 260.0,
    "math": 380.0,
    "mbpp": 180.0,
    "mmlu": 130.0,
    "natural_qa": 60.0,
    "openbook_qa": 80.0,
    "trivia_qa": 40.0,
}
"""Chosen by us: how long answers to such questions are, relative to each other."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """A pool to draw requests from.

    Attributes:
        name: Of the set.
        task: (n,) names.
        vector: (n, d) embedding of length 1.
        prompt_tokens: (n,)
        blocks: (n, MOST_BLOCKS) numbers of the leading blocks of the text, equal where texts begin alike; -1 beyond the end.
        quality: (n, tiers) in 0..1.
        output_tokens: (n, tiers) at least 1, at most LONGEST.
        predicted_quality, predicted_tokens: (n, tiers) out of fold.
        fold: (n,)
    """

    name: str
    task: np.ndarray
    vector: np.ndarray
    prompt_tokens: np.ndarray
    blocks: np.ndarray
    quality: np.ndarray
    output_tokens: np.ndarray
    predicted_quality: np.ndarray
    predicted_tokens: np.ndarray
    fold: np.ndarray


def load(name: str) -> Prompts:
    """One of SETS.

    Raises:
        FileNotFoundError: where the scores are not on this machine.
    """
    texts, task, quality, output_tokens = {"llmrouter": _llmrouter, "zeroeval": _zeroeval}[name]()
    vector, fold = predictors.embed(texts), predictors.folds(len(texts))
    predicted = predictors.neighbours(vector, fold, np.hstack([quality, output_tokens]))
    tiers = quality.shape[1]
    return Prompts(
        name,
        task,
        vector,
        predictors.count_tokens(texts),
        blocks_of(texts),
        quality,
        output_tokens,
        np.clip(predicted[:, :tiers], 0, 1),
        np.maximum(1, predicted[:, tiers:]),
        fold,
    )


def blocks_of(texts: list[str]) -> np.ndarray:
    """Numbers of the whole blocks that texts begin with, (n, MOST_BLOCKS), -1 beyond the last."""
    numbers: dict[str, int] = {}
    blocks = np.full((len(texts), MOST_BLOCKS), -1, dtype=np.int64)
    for row, text in enumerate(texts):
        for at in range(min(MOST_BLOCKS, len(text) // BLOCK_CHARACTERS)):
            blocks[row, at] = numbers.setdefault(text[: (at + 1) * BLOCK_CHARACTERS], len(numbers))
    return blocks


def _llmrouter() -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    with (DATA / "llmrouter_scores.jsonl").open() as file:
        rows = [json.loads(line) for line in file]
    task = np.array([row["task"] for row in rows])
    quality = np.array([[float(row["scores"][model]) for model in _LLMROUTER_MODELS] for row in rows])
    chance = np.random.default_rng(7)
    common = chance.normal(0, _COMMON_SPREAD, (len(rows), 1))
    factor = np.exp(common + chance.normal(0, _MODEL_SPREAD, quality.shape))
    drawn = np.array([_TASK_TOKENS[one] for one in task])[:, None] * factor
    return [row["prompt"] for row in rows], task, quality, _scaled(drawn)


def _scaled(tokens: np.ndarray) -> np.ndarray:
    """Lengths whose mean over prompts is that of the tiers after the cut at LONGEST."""
    scale = np.ones(tokens.shape[1])
    for _ in range(50):
        scale *= _MEAN_TOKENS / np.clip(tokens * scale, 1, LONGEST).mean(0)
    return np.clip(np.round(tokens * scale), 1, LONGEST).astype(int)


def _zeroeval() -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    with (DATA / "zeroeval_prompts.jsonl").open() as file:
        prompts = {row["id"]: row for row in map(json.loads, file)}
    answers: dict[str, dict[str, tuple[float, int]]] = {}
    with (DATA / "zeroeval_scores.csv").open() as file:
        for row in csv.DictReader(file):
            if row["model"] in _ZEROEVAL_MODELS:
                answers.setdefault(row["id"], {})[row["model"]] = float(row["correct"]), int(row["output_tokens"])
    whole = [key for key, found in answers.items() if len(found) == len(_ZEROEVAL_MODELS)]
    table = np.array([[answers[key][model] for model in _ZEROEVAL_MODELS] for key in whole])
    task = np.array([prompts[key]["dataset"] for key in whole])
    output_tokens = np.clip(table[:, :, 1], 1, LONGEST).astype(int)
    return [prompts[key]["prompt"] for key in whole], task, table[:, :, 0], output_tokens
