"""What ``servingplan train`` says when it is done."""

from __future__ import annotations

import math
from collections import Counter

from servingplan.training.fit import Fitted
from servingplan.training.judge import Judged
from servingplan.training.scores import LEAST_SCORES, Scores

_HEADINGS = ("MODEL", "PROMPTS", "SCORE", "R2", "AUC", "ECE", "LENGTH GAIN")


def report(scores: Scores, fitted: Fitted, judged: Judged, size_bytes: int) -> str:
    """A table of each model's figures, and sentences on the estimator and the file."""
    rows = [
        (
            one.model, f"{one.prompts:,}", f"{one.score:.3f}", _number(one.r2), _number(one.auc), _number(one.ece),
            "-" if math.isnan(one.length_gain) else f"{one.length_gain:+.0%}",
        )
        for one in judged.models
    ]  # fmt: skip
    widths = [max(len(row[place]) for row in (_HEADINGS, *rows)) for place in range(len(_HEADINGS))]
    lines = [_line(row, widths) for row in (_HEADINGS, *rows)]
    lines += [
        "",
        "All figures are of prompts that were kept out of the fit, of the choice of the estimator and of its calibration.",
    ]
    lines.append(_gain(judged))
    lines.append(f"Estimator: {fitted.predictor.shape}. In the folds: {_counted(judged.chosen)}.")
    if not scores.has_lengths:
        lines.append(f"Output lengths are not predicted: that takes output_tokens of every model for {LEAST_SCORES} prompts.")
    kept, all_prompts = len(fitted.kept), len(scores.prompts)
    left_out = "" if kept == all_prompts else f", drawn from {all_prompts:,}: as many as fit in a ConfigMap"
    lines.append(f"Prompts learned from: {kept:,}{left_out}. Size: {size_bytes / 1000:,.0f} kB.")
    return "\n".join(lines) + "\n"


def _gain(judged: Judged) -> str:
    if not judged.prompts:
        return "No prompt has a score of every model, so what choosing by prompt gains is not known."
    low, high = judged.gain_interval
    verdict = "" if low > 0 else " That may be chance: the class's scores serve as well."
    return (
        f"Sending every prompt to the model predicted best scores {judged.gain:+.3f} over the best model of its class"
        f" (95 % interval {low:+.3f} to {high:+.3f}, {judged.prompts:,} prompts).{verdict}"
    )


def _counted(chosen: tuple[str, ...]) -> str:
    return "; ".join(f"{count} x {name}" for name, count in Counter(chosen).most_common())


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    first, *others = (
        cell.ljust(width) if place == 0 else cell.rjust(width)
        for place, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    return "  ".join((first, *others)).rstrip()
