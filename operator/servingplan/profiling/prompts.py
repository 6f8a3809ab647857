"""Prompts of a chosen number of tokens, no two of which begin alike.

A prompt is a list of token numbers, so that its length is exact and no tokenizer is needed. A server that takes only text
gets words instead. Only the beginning differs from prompt to prompt: a prefix cache goes by blocks from the first token
on, so a prompt whose first block is new shares nothing, and the rest need not be made anew for every request.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from functools import lru_cache

_HEAD_TOKENS = 16
_LOWEST_TOKEN, _HIGHEST_TOKEN = 1_000, 30_000
"""Ordinary tokens in every vocabulary in use; special ones lie below or above."""

_CHARACTERS_PER_TOKEN = 4
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as it is sent.

    Attributes:
        json: The value of the request's ``prompt``.
        tokens: How many tokens it has; of a text, about.
    """

    json: bytes
    tokens: int


class Prompts:
    """A source of prompts.

    Args:
        source: Randomness. Two runs against one server must not share it, or the second finds its prompts cached.
        text: Words instead of token numbers.
    """

    def __init__(self, source: random.Random, *, text: bool = False) -> None:
        self._random = source
        self.text = text

    def make(self, tokens: int) -> Prompt:
        """A new prompt of `tokens` tokens."""
        if self.text:
            return Prompt(json.dumps(self._words(tokens)).encode(), tokens)
        head = [self._token() for _ in range(min(tokens, _HEAD_TOKENS))]
        return Prompt(json.dumps(head).encode()[:-1] + _tail(tokens - len(head)) + b"]", tokens)

    def _token(self) -> int:
        return self._random.randrange(_LOWEST_TOKEN, _HIGHEST_TOKEN)

    def _words(self, tokens: int) -> str:
        head = "".join(self._random.choices(_LETTERS, k=_HEAD_TOKENS))
        body = "how fast does it read a text as long as this one "
        length = tokens * _CHARACTERS_PER_TOKEN
        return (head + " " + body * (length // len(body) + 1))[:length]


@lru_cache(maxsize=64)
def _tail(tokens: int) -> bytes:
    """Numbers of `tokens` tokens, always the same, each behind a comma."""
    source = random.Random(tokens)
    return b"".join(b", %d" % source.randrange(_LOWEST_TOKEN, _HIGHEST_TOKEN) for _ in range(tokens))
