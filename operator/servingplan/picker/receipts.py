"""Receipts: why a request went where it went, term by term, and never what it said."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from servingplan.routing.ask import Ask, Choice

_SIGNIFICANT_DIGITS = 5
_REQUEST_ID_CHARACTERS = 64


def receipt_of(ask: Ask, choice: Choice) -> str:
    """The receipt of a decision as one line of JSON.

    It holds what the request asked for in numbers and every term of the scores. The hashes of the prompt's blocks are left out
    with the tenant: with them two receipts would tell whether two prompts begin alike, and whose they are.
    """
    document = {
        "class": ask.request_class,
        "status": choice.status,
        "reason": choice.reason.value,
        "candidates": choice.candidates,
        "prompt_tokens": ask.prompt_tokens,
        "models": sorted(ask.models) if ask.models is not None else None,
        "terms": choice.terms,
    }
    return json.dumps(_plain(document), separators=(",", ":"))


class ReceiptLog:
    """Writes a line per decision, for a log collector.

    Args:
        out: Where to.
    """

    def __init__(self, out: TextIO = sys.stdout) -> None:
        self._out = out

    def write(self, request_id: str, receipt: str) -> None:
        """Writes one receipt; ``request_id`` is the one of Envoy's access log."""
        # Clients may choose it, and need not be brief.
        head = json.dumps({"time": round(time.time(), 3), "request_id": request_id[:_REQUEST_ID_CHARACTERS]})
        self._out.write(f"{head[:-1]}, {receipt[1:]}\n")
        self._out.flush()


def _plain(value: Any) -> Any:
    """The value as JSON knows it, numbers rounded, without fields that say nothing."""
    if isinstance(value, float):
        return float(f"{value:.{_SIGNIFICANT_DIGITS}g}") if abs(value) != float("inf") else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain({item.name: getattr(value, item.name) for item in dataclasses.fields(value)})
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str | int | bool) or value is None:
        return value
    return _plain(value.item()) if hasattr(value, "item") else str(value)
