"""Limits of the engine, from its metrics page.

The page gives the size of the KV cache. It gives neither ``max_num_seqs`` nor ``max_num_batched_tokens``. The second can
be seen where the histogram of tokens a step counts the parts of a long prompt separately (`budget_from_steps`), the first
where the engine lets requests wait although it has KV cache left (`Gauges.slots`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?\s+(\S+)")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')
_ROOMY = 0.85
"""Share of the KV cache below which it is not the cache that makes requests wait."""


@dataclass(frozen=True, slots=True)
class Gauges:
    """The engine at one moment; None where the page does not say."""

    running: float | None = None
    waiting: float | None = None
    kv_usage: float | None = None

    @property
    def inside(self) -> float | None:
        """Requests in the engine."""
        return None if self.running is None or self.waiting is None else self.running + self.waiting

    @property
    def slots(self) -> int | None:
        """``max_num_seqs``, where requests wait for a slot; None where they do not, or for something else."""
        if not self.running or not self.waiting or self.kv_usage is None:
            return None
        return int(self.running) if self.waiting >= max(2.0, self.running / 8) and self.kv_usage < _ROOMY else None


@dataclass(frozen=True, slots=True)
class Steps:
    """The histogram of tokens computed in a step.

    Attributes:
        buckets: (upper edge, steps up to it), in ascending order.
        steps: Number of steps.
        tokens: Their tokens.
    """

    buckets: tuple[tuple[float, float], ...]
    steps: float
    tokens: float


def kv_tokens(page: str) -> int | None:
    """Tokens that fit in the KV caches of all the server's engines; None where the page does not say."""
    total = 0
    for name, labels, _ in _samples(page):
        if name != "vllm:cache_config_info":
            continue
        size = labels.get("kv_cache_size_tokens", "")
        blocks, width = labels.get("num_gpu_blocks", ""), labels.get("block_size", "")
        if size.isdigit() and int(size) > 0:
            total += int(size)
        elif blocks.isdigit() and width.isdigit():
            total += int(blocks) * int(width)
    return total or None


def gauges(page: str) -> Gauges:
    """Requests and KV use, summed over the server's engines (of the use the mean)."""
    found: dict[str, list[float]] = {}
    for name, _, value in _samples(page):
        if name in ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"):
            found.setdefault(name.removeprefix("vllm:"), []).append(value)
    usage = found.get("kv_cache_usage_perc")
    return Gauges(
        running=sum(found["num_requests_running"]) if "num_requests_running" in found else None,
        waiting=sum(found["num_requests_waiting"]) if "num_requests_waiting" in found else None,
        kv_usage=sum(usage) / len(usage) if usage else None,
    )


def steps(page: str) -> Steps | None:
    """The histogram of tokens a step; None where the page has none, or several engines."""
    buckets: list[tuple[float, float]] = []
    count = total = None
    for name, labels, value in _samples(page):
        if name == "vllm:iteration_tokens_total_bucket":
            buckets.append((float(labels.get("le", "nan").replace("+Inf", "inf")), value))
        elif name == "vllm:iteration_tokens_total_count":
            if count is not None:
                return None
            count = value
        elif name == "vllm:iteration_tokens_total_sum":
            total = value
    if count is None or total is None or not buckets:
        return None
    return Steps(tuple(sorted(buckets)), count, total)


def budget_from_steps(before: Steps, after: Steps, prompt_tokens: int) -> int | None:
    """``max_num_batched_tokens``, where one long prompt alone in the engine was computed in several steps.

    All of these steps but the last fill the budget, so it lies in the highest bucket that gained steps. It is taken to be
    the upper edge, a power of two as budgets usually are, unless the number of steps says otherwise.

    Args:
        before: The histogram before the request.
        after: The histogram after it.
        prompt_tokens: Length of the prompt.

    Returns:
        None where the page counts the prompt as a whole: either it fits in a step, or this server counts it when it is
        done.
    """
    edge = lower = gained = below = previous = 0.0
    for (upper, late), (_, early) in zip(after.buckets, before.buckets, strict=True):
        if late - early > below:
            edge, lower, gained = upper, previous, late - early - below
        below, previous = late - early, upper
    if not 1 <= edge < prompt_tokens or after.tokens - before.tokens < prompt_tokens:
        return None
    full, rest = divmod(prompt_tokens, int(edge))
    return int(edge) if gained == full + (rest > lower) else min(int(edge), -(-prompt_tokens // int(gained)))


def _samples(page: str) -> Iterator[tuple[str, dict[str, str], float]]:
    for line in page.splitlines():
        if not line.startswith("vllm:"):
            continue
        match = _SAMPLE.match(line)
        if not match:
            continue
        try:
            value = float(match[3])
        except ValueError:
            continue
        yield match[1], dict(_LABEL.findall(match[2] or "")), value
