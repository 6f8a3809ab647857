"""Reads scored prompts: one JSON object a line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST_PROMPTS = 50
LEAST_SCORES = 20
"""Of each model: with fewer, a part that is judged might leave none to learn from."""
MOST_MODELS = 64
_MOST_MISTAKES = 5


class ScoresError(Exception):
    """Scores that cannot be used; its text is one sentence for each mistake."""


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Scored prompts, no two of which are the same.

    Attributes:
        prompts: Texts.
        classes: Request class of each; empty where it is not known.
        models: Names, sorted.
        quality: (prompts, models) in [0, 1]; NaN where unknown.
        output_tokens: (prompts, models); NaN where unknown.
    """

    prompts: tuple[str, ...]
    classes: tuple[str, ...]
    models: tuple[str, ...]
    quality: NDArray[np.float64]
    output_tokens: NDArray[np.float64]

    @property
    def has_lengths(self) -> bool:
        """Whether every model has enough lengths to learn from."""
        return bool((np.isfinite(self.output_tokens).sum(axis=0) >= LEAST_SCORES).all())


@dataclass(frozen=True, slots=True)
class _Line:
    prompt: str
    request_class: str
    quality: Mapping[str, float]
    output_tokens: Mapping[str, float]


def read_scores(lines: Iterable[str], name: str) -> Scores:
    """Scores from the lines of a file.

    A prompt that occurs more than once counts as one, with the mean of its scores: no prompt is then both fitted and judged.

    Args:
        lines: JSON objects ``{"prompt": text, "scores": {model: 0..1}, "output_tokens": {model: count},
            "request_class": name}``, of which the last two may be left out. Blank lines are skipped.
        name: Of the file, for messages.

    Raises:
        ScoresError: A line is unusable, or there are too few prompts.
    """
    read: list[_Line] = []
    mistakes: list[str] = []
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            read.append(_line(text))
        except ValueError as error:
            mistakes.append(f"{name} line {number}: {error}")
    if mistakes:
        more = len(mistakes) - _MOST_MISTAKES
        raise ScoresError("\n".join((*mistakes[:_MOST_MISTAKES], *([f"and {more} more lines like these"] if more > 0 else ()))))
    scores = _gathered(read)
    if len(scores.prompts) < LEAST_PROMPTS:
        message = f"{name}: {len(scores.prompts)} different prompts are too few to learn from, give at least {LEAST_PROMPTS}"
        raise ScoresError(message)
    if len(scores.models) > MOST_MODELS:
        message = f"{name}: it names {len(scores.models)} models, and a predictor takes at most {MOST_MODELS}"
        raise ScoresError(message)
    for model, count in zip(scores.models, np.isfinite(scores.quality).sum(axis=0), strict=True):
        if count < LEAST_SCORES:
            message = f"{name}: {model!r} has scores for {count} prompts, give at least {LEAST_SCORES} or leave the model out"
            raise ScoresError(message)
    return scores


def _line(text: str) -> _Line:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError("it is no JSON object") from error
    if not isinstance(document, dict):
        raise ValueError("it is no JSON object")
    prompt, request_class = document.get("prompt"), document.get("request_class", "")
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError("prompt has to be a text that is not empty")
    if not isinstance(request_class, str):
        raise ValueError("request_class has to be a text")
    scores = _numbers(document.get("scores"), "scores", 1.0)
    if not scores:
        raise ValueError("scores has to name at least one model")
    return _Line(prompt, request_class, scores, _numbers(document.get("output_tokens", {}), "output_tokens", math.inf))


def _numbers(document: Any, field: str, most: float) -> dict[str, float]:
    if not isinstance(document, dict):
        message = f"{field} has to be an object of numbers by model"
        raise ValueError(message)
    for model, value in document.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not model or not number or not math.isfinite(value) or not 0 <= value <= most:
            bounds = "a number from 0 to 1" if most == 1 else "a number of 0 or more"
            message = f"{field} of {model!r} has to be {bounds}, not {json.dumps(value)}"
            raise ValueError(message)
    return {model: float(value) for model, value in document.items()}


def _gathered(lines: Sequence[_Line]) -> Scores:
    models = tuple(sorted({model for line in lines for model in line.quality}))
    prompts = tuple(dict.fromkeys(line.prompt for line in lines))
    row = {prompt: place for place, prompt in enumerate(prompts)}
    column = {model: place for place, model in enumerate(models)}
    sums, counts = np.zeros((2, len(prompts), len(models))), np.zeros((2, len(prompts), len(models)))
    classes = [""] * len(prompts)
    for line in lines:
        place = row[line.prompt]
        classes[place] = classes[place] or line.request_class
        for kind, values in enumerate((line.quality, line.output_tokens)):
            for model, value in values.items():
                if model in column:
                    sums[kind, place, column[model]] += value
                    counts[kind, place, column[model]] += 1
    means = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    return Scores(prompts, tuple(classes), models, means[0], means[1])
