"""A trained estimator for the arm that predicts quality: from real scores where they lie at hand, else from made-up ones.

Only its cost is measured here. Four models of the public matrix stand for the four tiers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from live import layout, traffic

DATA = Path(os.environ.get("SERVINGPLAN_DATA", Path(__file__).parents[4] / "shared/data"))
SCORES = DATA / "quality/llmrouter_scores.jsonl"
STAND_INS = {
    "mistral-7b-instruct-v0.3": "m3b",
    "qwen2.5-7b-instruct": "m7b",
    "llama-3.1-8b-instruct": "m14b",
    "llama-3.1-nemotron-51b-instruct": "m72b",
}
_MADE_UP = 1500


def trained(folder: Path) -> tuple[Path, str]:
    """Train one with ``servingplan train``.

    Returns:
        The file, and what it was trained on.

    Raises:
        RuntimeError: Training has failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = list(_real(SCORES)) if SCORES.exists() else list(_made_up())
    source = f"{len(lines)} public prompts" if SCORES.exists() else f"{len(lines)} made-up prompts"
    scores, out = folder / "scores.jsonl", folder / "predictor.npz"
    scores.write_text("".join(json.dumps(line) + "\n" for line in lines))
    argv = [sys.executable, "-m", "servingplan", "train", "-f", str(scores), "-o", str(out)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        message = f"servingplan train ended with {done.returncode}: {done.stderr[-2000:]}"
        raise RuntimeError(message)
    return out, source


def _real(path: Path) -> Iterator[dict[str, Any]]:
    with path.open() as lines:
        for line in map(json.loads, lines):
            scores = {model: line["scores"][name] for name, model in STAND_INS.items() if name in line["scores"]}
            yield {"prompt": line["prompt"], "scores": scores}


def _made_up() -> Iterator[dict[str, Any]]:
    random = np.random.default_rng(0)
    text = traffic.prose().decode()
    for _ in range(_MADE_UP):
        at = int(random.integers(0, len(text) - 2000))
        scores = {tier.model: float(random.random() < tier.quality["chat"]) for tier in layout.TIERS}
        yield {"prompt": text[at : at + int(random.integers(100, 2000))], "scores": scores}
