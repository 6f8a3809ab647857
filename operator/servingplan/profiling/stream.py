"""Server-sent events of a completion: when the first and the last token came, and how many there were.

Events are not decoded one by one, because a client that is busy with JSON measures itself. The first event with a choice
is the first token, whatever its text: a token may end in the middle of a character. The number of tokens is the one the
server gives in its last event, since it may send several tokens in one.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp

_ERRORS = (b'{"error"', b'{"object": "error"', b'{"object":"error"')
_NO_CHOICES = (b'"choices": []', b'"choices":[]')


class BrokenStreamError(Exception):
    """The stream ended before its time; the text says how far it came."""


@dataclass(slots=True)
class Tokens:
    """What was read of one stream.

    Attributes:
        first_s, last_s: When the first and the last token came, by the monotonic clock; None where none did.
        count: Output tokens.
        prompt, cached: Prompt tokens, and those of them that were cached; 0 where the server does not say.
        reason: Why the output ended.
        at_s: When each event with a token came.
    """

    first_s: float | None = None
    last_s: float | None = None
    count: int = 0
    prompt: int = 0
    cached: int = 0
    reason: str = ""
    ended: bool = False
    at_s: list[float] = field(default_factory=list)


async def read_tokens(content: aiohttp.StreamReader, shown: str, tokens: Tokens) -> None:
    """Reads a stream to its end.

    Args:
        content: Body of the answer.
        shown: Name of the server for sentences.
        tokens: Filled as they come, so that a request that is given up leaves what it had.

    Raises:
        BrokenStreamError: It broke off, or the server sent an error.
    """
    buffer = b""
    last = b""
    try:
        async for part in content.iter_any():
            now_s = time.perf_counter()
            *lines, buffer = (buffer + part).split(b"\n")
            for line in lines:
                if line.startswith(b"data:"):
                    last = _take(tokens, line[5:].strip(), now_s, shown) or last
    except aiohttp.ClientPayloadError:
        tokens.ended = False
    if not tokens.ended:
        raise BrokenStreamError(f"the connection to {shown} broke after {tokens.count} tokens: see the server's log")
    tokens.reason = _reason(last)


def _take(tokens: Tokens, event: bytes, now_s: float, shown: str) -> bytes:
    """Counts one event; returns it if it carries a token."""
    if event == b"[DONE]":
        tokens.ended = True
        return b""
    if event.startswith(_ERRORS):
        raise BrokenStreamError(f"{shown} broke off an answer: {event[:200].decode(errors='replace')}")
    if any(mark in event for mark in _NO_CHOICES):
        _usage(tokens, event)
        return b""
    if tokens.first_s is None:
        tokens.first_s = now_s
    tokens.last_s = now_s
    tokens.at_s.append(now_s)
    tokens.count += 1
    return event


def _usage(tokens: Tokens, event: bytes) -> None:
    try:
        usage: dict[str, Any] = json.loads(event).get("usage") or {}
        tokens.count = int(usage.get("completion_tokens", tokens.count))
        tokens.prompt = int(usage.get("prompt_tokens", 0))
        tokens.cached = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
    except (ValueError, TypeError, AttributeError):
        return


def _reason(event: bytes) -> str:
    try:
        return str(json.loads(event)["choices"][0].get("finish_reason") or "")
    except (ValueError, LookupError, TypeError, AttributeError):
        return ""
