"""What is measured: pairs of lengths, and at each of them a number of clients or a rate of requests.

The defaults are chosen so that each coefficient shows. A short prompt at one client is nearly a bare step (alpha); the
time to first token of prompts of 128 to 8,192 tokens rises with the work per token (beta); and the step of a few requests
with thousands of tokens of context each, whose outputs are long enough that few steps carry prompts, exceeds the bare one
by what reading the KV cache takes (gamma).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

DEFAULT_CONCURRENCY = (1, 2, 4, 8, 16, 32)
MOST_CLIENTS = 4096
FEWEST_OUTPUT_TOKENS = 8
"""Below it, the time between tokens is too coarse to tell anything."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths of the requests of a level, in tokens; the output's is a mean."""

    prompt_tokens: int
    output_tokens: int

    @property
    def total_tokens(self) -> int:
        """The longest sequence, with the spread that outputs are given."""
        return self.prompt_tokens + longest_output(self.output_tokens)

    def __str__(self) -> str:
        return f"{self.prompt_tokens}:{self.output_tokens}"


DEFAULT_LENGTHS = (Lengths(128, 128), Lengths(2048, 128), Lengths(8192, 64))
_SHORT_OUTPUT_TOKENS = 32
_LEAST_ROOM_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Level:
    """One load: clients that each send their next request when the last has ended, or a rate of independent requests.

    Attributes:
        clients: 0 where a rate is given.
        rate_rps: Requests per second; 0 where clients are given.
    """

    lengths: Lengths
    clients: int = 0
    rate_rps: float = 0.0

    def __str__(self) -> str:
        load = f"{self.rate_rps:g} requests/s" if self.rate_rps else f"{self.clients} client{'s' if self.clients > 1 else ''}"
        return f"{load}, {self.lengths.prompt_tokens} prompt and {self.lengths.output_tokens} output tokens"


SPREAD = 0.25


def longest_output(mean_tokens: int) -> int:
    """Outputs are spread evenly between a quarter below and a quarter above their mean.

    Requests of one length lock in step with each other, and measure the phase they happened to start with.
    """
    return mean_tokens + int(SPREAD * mean_tokens)


def parse_lengths(text: str) -> tuple[Lengths, ...]:
    """Reads ``128:128,1024:64``.

    Raises:
        ValueError: With one sentence that shows the form.
    """
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,7}):(\d{1,7})\s*", part)
        if not match:
            raise ValueError(f"'{part}' must be PROMPT:OUTPUT in tokens, such as 1024:128")
        lengths = Lengths(int(match[1]), int(match[2]))
        if lengths.prompt_tokens < 1 or lengths.output_tokens < FEWEST_OUTPUT_TOKENS:
            raise ValueError(f"'{part}' must have a prompt of 1 token or more and an output of {FEWEST_OUTPUT_TOKENS} or more")
        found.append(lengths)
    return tuple(dict.fromkeys(found))


def parse_clients(text: str) -> tuple[int, ...]:
    """Reads ``1,2,4``, in ascending order.

    Raises:
        ValueError: With one sentence that shows the form.
    """
    found = set()
    for part in text.split(","):
        if not re.fullmatch(r"\s*\d{1,5}\s*", part) or not 1 <= int(part) <= MOST_CLIENTS:
            raise ValueError(f"'{part}' must be a number of clients between 1 and {MOST_CLIENTS}")
        found.add(int(part))
    return tuple(sorted(found))


def parse_rates(text: str) -> tuple[float, ...]:
    """Reads ``0.5,1,2``, in ascending order.

    Raises:
        ValueError: With one sentence that shows the form.
    """
    found = set()
    for part in text.split(","):
        if not re.fullmatch(r"\s*\d{1,4}([.]\d{1,6})?\s*", part) or float(part) <= 0:
            raise ValueError(f"'{part}' must be requests per second above 0, such as 0.5")
        found.add(float(part))
    return tuple(sorted(found))


def default_lengths(max_model_len: int | None) -> tuple[Lengths, ...]:
    """The default pairs, those that fit in the model's context; the longest is cut to it."""
    if max_model_len is None or max_model_len >= DEFAULT_LENGTHS[-1].total_tokens:
        return DEFAULT_LENGTHS
    fitting = [lengths for lengths in DEFAULT_LENGTHS[:-1] if lengths.total_tokens <= max_model_len]
    longest = Lengths(max_model_len - longest_output(64), 64)
    if not fitting:
        room = max_model_len - longest_output(_SHORT_OUTPUT_TOKENS)
        return tuple(Lengths(prompt, _SHORT_OUTPUT_TOKENS) for prompt in (room // 4, room) if room >= _LEAST_ROOM_TOKENS)
    if longest.prompt_tokens > 1.5 * fitting[-1].prompt_tokens:
        fitting.append(longest)
    return tuple(fitting)


def ladder(
    lengths: Sequence[Lengths], *, clients: Sequence[int] = (), rates: Sequence[float] = (), kv_tokens: int | None = None
) -> tuple[Level, ...]:
    """The levels from gentle to hard, all lengths at one load before the next: a run cut short still has something of each.

    Levels whose requests do not fit in the KV cache together are left out: they would measure its queue, not the engine.

    Args:
        lengths: Pairs.
        clients: Loads of closed loops.
        rates: Loads of open loops.
        kv_tokens: Tokens that fit in the KV cache; None where unknown.
    """
    closed = [
        Level(pair, clients=count)
        for count in clients
        for pair in lengths
        if kv_tokens is None or count == 1 or count * pair.total_tokens <= kv_tokens
    ]
    return tuple(closed + [Level(pair, rate_rps=rate) for rate in rates for pair in lengths])
