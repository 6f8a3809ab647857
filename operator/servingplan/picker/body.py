"""What a request's body tells: the model it names, how long its prompt is, how much it may generate, and how it begins.

Bodies of the chat, completions, responses, messages and embeddings endpoints of the OpenAI and Anthropic APIs. No tokenizer
runs here. Text counts four UTF-8 bytes per token, which is right within some fifteen per cent for prose in English and code,
and counts Chinese or Japanese at three quarters of a token per character. A prompt of token ids is counted exactly.

A body that is not JSON is no error of the picker: the model server that gets it says what is wrong with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

BYTES_PER_TOKEN = 4.0
IMAGE_TOKENS = 800.0
"""Of one image, whatever its size: between the 256 of small encoders and the some thousand of tiled ones."""

BLOCK_CHARACTERS = 256
"""Length of a hashed block of the prompt: 64 tokens by the rule above."""

BLOCK_TOKENS = 64
"""The same of a prompt of token ids."""

MOST_BLOCKS = 512
"""Beyond 32,768 tokens two prompts that agreed so far count as alike."""

UNREAD_MEANS = 8.0
"""A prompt that is not read has at most so many times the tokens of its class's mean."""

MOST_TEXT_CHARACTERS = 4096
"""Of the text for the predictors: what a prompt is about shows early."""

_IMAGE_TYPES = ("image", "image_url", "input_image")
_TEXT_KEYS = ("text", "content", "arguments", "function", "tool_calls", "input", "output")
_PROMPT_KEYS = ("tools", "system", "instructions", "messages", "prompt", "input")
_LIMIT_KEYS = ("max_completion_tokens", "max_output_tokens", "max_tokens")


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is known of one request's body.

    Attributes:
        model: Name that the body asks for, empty when it leaves the choice; None when the field holds something else.
        tokens: Length of the prompt, estimated.
        max_output_tokens: The client's limit; None without one.
        text: What users said, cut to ``MOST_TEXT_CHARACTERS``, for the predictors.
        prefix: Hashes of the prompt's leading blocks, each of which covers all before it too. They differ between processes.
    """

    model: str | None = ""
    tokens: float = 0.0
    max_output_tokens: float | None = None
    # Kept out of what Python prints of it: prompts belong in no log.
    text: str = field(default="", repr=False)
    prefix: tuple[int, ...] = field(default=(), repr=False)


def read_prompt(body: bytes, mean_tokens: float) -> Prompt:
    """The prompt of a request's body; one with a length alone when the body is no JSON object.

    Args:
        body: The whole body.
        mean_tokens: What prompts of its class have on average.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        return sized_prompt(len(body), mean_tokens)
    try:
        return _read(document)
    except RecursionError:
        return sized_prompt(len(body), mean_tokens, _model(document))


def sized_prompt(length_bytes: float | None, mean_tokens: float, model: str | None = "") -> Prompt:
    """The prompt of a request whose body is not read.

    Args:
        length_bytes: Length of the body; None when it is not known.
        mean_tokens: What prompts of its class have on average. It is taken without a length, and bounds what a length may
            mean: a long body may hold an image, and would be refused as a prompt that no replica has room for.
        model: Name that the request asks for.
    """
    if length_bytes is None:
        return Prompt(model=model, tokens=mean_tokens)
    return Prompt(model=model, tokens=min(length_bytes / BYTES_PER_TOKEN, UNREAD_MEANS * mean_tokens))


def _read(document: Mapping[str, Any]) -> Prompt:
    found = _Found()
    for key in _PROMPT_KEYS:
        value = document.get(key)
        if value is not None:
            found.add(json.dumps(value) if key == "tools" else value)
    text = "\n".join(found.texts)
    size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    tokens = size / BYTES_PER_TOKEN + IMAGE_TOKENS * found.images + sum(map(len, found.token_ids))
    blocks = _text_blocks(text) if text else _id_blocks(found.token_ids[0]) if found.token_ids else iter(())
    return Prompt(
        model=_model(document),
        tokens=max(1.0, tokens),
        max_output_tokens=_limit(document),
        text=_said(document)[:MOST_TEXT_CHARACTERS],
        prefix=_chained(blocks),
    )


def _model(document: Mapping[str, Any]) -> str | None:
    name = document.get("model")
    if name is None:
        return ""
    return name if isinstance(name, str) else None


def _limit(document: Mapping[str, Any]) -> float | None:
    for key in _LIMIT_KEYS:
        value = document.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            return float(value)
    return None


class _Found:
    """Collects the parts of a prompt wherever an API puts them."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.token_ids: list[list[int]] = []
        self.images = 0

    def add(self, value: Any) -> None:
        if isinstance(value, str):
            self.texts.append(value)
        elif isinstance(value, list):
            if value and isinstance(value[0], int):
                self.token_ids.append(value)
            else:
                for item in value:
                    self.add(item)
        elif isinstance(value, dict):
            if value.get("type") in _IMAGE_TYPES:
                self.images += 1
                return
            for key in _TEXT_KEYS:
                if key in value:
                    self.add(value[key])


def _said(document: Mapping[str, Any]) -> str:
    """What users said, without the application's standing instructions, which tell its requests apart from no other."""
    source = next((document[key] for key in ("messages", "prompt", "input") if document.get(key)), "")
    if isinstance(source, list):
        source = [item for item in source if not isinstance(item, dict) or item.get("role", "user") == "user"]
    found = _Found()
    found.add(source)
    return "\n".join(found.texts)


def _text_blocks(text: str) -> Iterator[str]:
    whole = min(len(text) // BLOCK_CHARACTERS, MOST_BLOCKS)
    return (text[at * BLOCK_CHARACTERS : (at + 1) * BLOCK_CHARACTERS] for at in range(whole))


def _id_blocks(ids: list[int]) -> Iterator[str]:
    whole = min(len(ids) // BLOCK_TOKENS, MOST_BLOCKS)
    return (str(ids[at * BLOCK_TOKENS : (at + 1) * BLOCK_TOKENS]) for at in range(whole))


def _chained(blocks: Iterator[str]) -> tuple[int, ...]:
    # Python's hash of text is keyed per process, so no client can make prompts collide.
    hashes = []
    last = 0
    for block in blocks:
        last = hash((last, block))
        hashes.append(last)
    return tuple(hashes)
