"""What is sent: when requests leave, what they say, and how their outcome is written down."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pydoc_data import topics
from typing import Any

import numpy as np

_LONGEST_OUTPUT = 512


class End(IntEnum):
    """How a request ended."""

    WHOLE = 0
    REFUSED = 1
    """Any status but 200."""
    BEFORE = 2
    """No headers came."""
    HEADED = 3
    """Headers came, no token."""
    CUT = 4
    """It broke off after a token."""
    LATE = 5
    """No whole answer in time."""
    ABORTED = 6
    """The client went away, as planned."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send.

    Attributes:
        pieces: Seconds and mean requests per second, one after the other.
        targets: Host and port of each router; requests take turns.
        out: File for the rows.
        streams: If not 0, so many streams at any time instead, for the seconds of `pieces`.
        body_bytes: Length of every body.
        output_tokens, output_cv: Mean and coefficient of variation of the log-normal `max_tokens`.
        pace_s: Asks pods without an engine for a token every so often.
        abort_share, abort_after_s: Part of the requests whose client goes away, and the mean time after which it does.
        classes: Values of `x-request-class` with their shares; an empty one sends no header.
    """

    pieces: tuple[tuple[float, float], ...]
    targets: tuple[tuple[str, int], ...] = ()
    out: str = ""
    streams: int = 0
    body_bytes: int = 4096
    output_tokens: float = 16.0
    output_cv: float = 0.0
    stream: bool = True
    pace_s: float = 0.0
    abort_share: float = 0.0
    abort_after_s: float = 1.0
    patience_s: float = 60.0
    seed: int = 0
    classes: Mapping[str, float] = field(default_factory=lambda: {"": 1.0})


ROW = np.dtype(
    [
        ("planned_s", "f8"),
        ("sent_s", "f8"),
        ("headers_s", "f8"),
        ("first_s", "f8"),
        ("end_s", "f8"),
        ("status", "i2"),
        ("end", "i1"),
        ("pod", "S24"),
        ("max_tokens", "i4"),
    ]
)
"""Times in seconds since the start of the load; NaN for what never came."""


def moments_s(plan: Plan) -> np.ndarray:
    """When the requests leave: a Poisson process whose rate changes between pieces."""
    random = np.random.default_rng([plan.seed, 1])
    found, begin_s = [], 0.0
    for seconds, rate_rps in plan.pieces:
        if rate_rps > 0:
            count = int(seconds * rate_rps + 8 * (seconds * rate_rps) ** 0.5 + 8)
            times_s = np.cumsum(random.exponential(1 / rate_rps, count))
            found.append(begin_s + times_s[times_s < seconds])
        begin_s += seconds
    return np.concatenate(found) if found else np.zeros(0)


def prose() -> bytes:
    """Some hundred kilobytes of English, as prompts are: Python's own manual, without what JSON would escape."""
    return re.sub(r"[^A-Za-z0-9.,]+", " ", " ".join(topics.topics.values())).encode()


class Bodies:
    """Request bodies, all different."""

    def __init__(self, plan: Plan) -> None:
        random = np.random.default_rng([plan.seed, 2])
        text = prose()
        self._text = text * (1 + plan.body_bytes // len(text))
        self._random, self._plan = random, plan
        kinds, shares = zip(*plan.classes.items(), strict=True)
        self._kinds, self._shares = kinds, np.array(shares) / sum(shares)
        self._spread = np.log1p(plan.output_cv**2)

    def next(self) -> tuple[bytes, int]:
        """A whole request, head and body, and its `max_tokens`."""
        plan, random = self._plan, self._random
        tokens = plan.output_tokens * np.exp(random.standard_normal() * self._spread**0.5 - self._spread / 2)
        max_tokens = int(min(_LONGEST_OUTPUT, max(1, round(tokens))))
        options = {"model": "auto", "max_tokens": max_tokens, "pace_s": plan.pace_s, "ignore_eos": True, "stream": plan.stream}
        begin = json.dumps(options)[:-1].encode() + b', "messages": [{"role": "user", "content": "'
        room = max(0, plan.body_bytes - len(begin) - 4)
        at = int(random.integers(0, len(self._text) - room))
        body = begin + self._text[at : at + room] + b'"}]}'
        kind = self._kinds[0] if len(self._kinds) == 1 else self._kinds[int(random.choice(len(self._kinds), p=self._shares))]
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: router\r\ncontent-type: application/json\r\n"
        if kind:
            head += f"x-request-class: {kind}\r\n"
        return head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body, max_tokens


def plan_from(message: Mapping[str, Any]) -> Plan:
    """The plan of a JSON line."""
    lists = {name: tuple(tuple(each) for each in message[name]) for name in ("targets", "pieces")}
    return Plan(**{**message, **lists})
