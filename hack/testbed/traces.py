"""Requests as they came to a real service: arrivals and lengths of Azure's published traces, at another mean rate.

The traces are AzureLLMInferenceTrace_conv and _code (Azure/AzurePublicDataset, CC BY 4.0; Patel et al., Splitwise, ISCA 2024):
one hour each. They are no part of this project: `SERVINGPLAN_DATA` says where they lie. Time is stretched or compressed to
the rate that is asked for, so bursts and lulls keep their shape and their length in requests; lengths are kept as they are.
"""

import csv
import os
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path

import numpy as np

from testbed.load import Arrival, LoadClass

DATA = Path(os.environ.get("SERVINGPLAN_DATA", Path(__file__).resolve().parents[3] / "shared/data"))
KINDS = ("conv", "code")
_MICROSECONDS = len("2023-11-16 18:17:03.979960")


@dataclass(frozen=True, slots=True)
class Trace:
    """A recorded hour.

    Attributes:
        at_s: (n,) seconds after the first request, ascending.
        prompt_tokens: (n,) prompt lengths.
        output_tokens: (n,) output lengths, at least 1.
    """

    at_s: np.ndarray
    prompt_tokens: np.ndarray
    output_tokens: np.ndarray

    @property
    def rate_rps(self) -> float:
        """Mean rate."""
        return len(self.at_s) / float(self.at_s[-1])


def present() -> bool:
    """Whether the traces are there."""
    return all(_path(kind).is_file() for kind in KINDS)


def _path(kind: str) -> Path:
    return DATA / "traces" / f"AzureLLMInferenceTrace_{kind}.csv"


@cache
def azure(kind: str) -> Trace:
    """The trace `conv` or `code`.

    Raises:
        FileNotFoundError: It is not there.
    """
    with _path(kind).open(newline="") as file:
        rows = [(row["TIMESTAMP"], int(row["ContextTokens"]), int(row["GeneratedTokens"])) for row in csv.DictReader(file)]
    moments = [datetime.fromisoformat(text[:_MICROSECONDS]) for text, _, _ in rows]
    at_s = np.array([(moment - moments[0]).total_seconds() for moment in moments])
    order = np.argsort(at_s, kind="stable")
    prompts, outputs = np.array([row[1] for row in rows]), np.array([row[2] for row in rows])
    return Trace(at_s[order], np.maximum(1, prompts[order]), np.maximum(1, outputs[order]))


def replayed(
    trace: Trace,
    kind: LoadClass,
    rate_rps: float,
    duration_s: float,
    *,
    offset: float = 0.0,
    longest_prompt: int | None = None,
    longest_output: int | None = None,
) -> list[Arrival]:
    """A piece of a trace as requests of one class.

    Args:
        trace: Where moments and lengths are from.
        kind: The class; its own lengths and share are not used.
        rate_rps: What the mean rate of the whole trace becomes; the piece may have more or less.
        duration_s: Length of the piece.
        offset: Where it begins, as a fraction of the trace; it goes on at the beginning after the end.
        longest_prompt: Longer prompts are cut to this many tokens.
        longest_output: Longer answers are cut to this many.
    """
    span_s = float(trace.at_s[-1]) * trace.rate_rps / rate_rps
    shifted_s = trace.at_s * trace.rate_rps / rate_rps - offset * span_s
    rounds = int(np.ceil(duration_s / span_s)) + 1
    at_s = np.concatenate([shifted_s + turn * span_s for turn in range(rounds)])
    taken = np.flatnonzero((at_s >= 0) & (at_s < duration_s))
    index = taken % len(trace.at_s)
    prompts = np.minimum(trace.prompt_tokens[index], longest_prompt or np.iinfo(np.int64).max)
    outputs = np.minimum(trace.output_tokens[index], longest_output or np.iinfo(np.int64).max)
    return [
        Arrival(float(moment), kind, int(prompt), int(output))
        for moment, prompt, output in zip(at_s[taken], prompts, outputs, strict=True)
    ]


def merged(*streams: list[Arrival]) -> list[Arrival]:
    """Several streams of requests as one, in order."""
    return sorted((arrival for stream in streams for arrival in stream), key=lambda arrival: arrival.at_s)


def steady(kind: LoadClass, rate_rps: float, duration_s: float, *, start_s: float = 0.0) -> list[Arrival]:
    """Requests of one class like clockwork, all of its mean lengths: a load whose measured rate has no noise."""
    count = int((duration_s - start_s) * rate_rps)
    return [
        Arrival(start_s + number / rate_rps, kind, round(kind.prompt_tokens), round(kind.output_tokens))
        for number in range(count)
    ]
