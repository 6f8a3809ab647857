"""The names of vLLM's series, by what they are needed for.

vLLM has renamed series and drops the old name two releases later, and its Python client appends ``_total`` to counters where
other implementations do not. So every need has its names in order, and of those that a pod exposes the first one counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

RUNNING, WAITING, KV_USAGE = "running", "waiting", "kv_usage"
TTFT, INTER_TOKEN, E2E, PROMPT_TOKENS, OUTPUT_TOKENS = "ttft", "inter_token", "e2e", "prompt_tokens", "output_tokens"
PREFIX_HITS, PREFIX_QUERIES = "prefix_hits", "prefix_queries"


class Kind(Enum):
    """What Prometheus knows a series as."""

    GAUGE = "gauge"
    SHARE = "gauge between 0 and 1"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Need:
    """Something to know of a replica.

    Attributes:
        key: Short name of the need.
        names: Series that tell it, the one to prefer first; of a histogram without ``_bucket``, ``_sum`` and ``_count``.
    """

    key: str
    kind: Kind
    names: tuple[str, ...]


NEEDS = (
    Need(RUNNING, Kind.GAUGE, ("vllm:num_requests_running",)),
    Need(WAITING, Kind.GAUGE, ("vllm:num_requests_waiting",)),
    # Renamed in 0.9.2; the old name went with 0.12.
    Need(KV_USAGE, Kind.SHARE, ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")),
    Need(
        PREFIX_HITS,
        Kind.COUNTER,
        (
            "vllm:prefix_cache_hits_total",
            "vllm:prefix_cache_hits",
            "vllm:gpu_prefix_cache_hits_total",
            "vllm:gpu_prefix_cache_hits",
        ),
    ),
    Need(
        PREFIX_QUERIES,
        Kind.COUNTER,
        (
            "vllm:prefix_cache_queries_total",
            "vllm:prefix_cache_queries",
            "vllm:gpu_prefix_cache_queries_total",
            "vllm:gpu_prefix_cache_queries",
        ),
    ),
    Need(TTFT, Kind.HISTOGRAM, ("vllm:time_to_first_token_seconds",)),
    # The old name went with 0.12. vllm:request_time_per_output_token_seconds is something else: one mean per request.
    Need(INTER_TOKEN, Kind.HISTOGRAM, ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds")),
    Need(E2E, Kind.HISTOGRAM, ("vllm:e2e_request_latency_seconds",)),
    Need(PROMPT_TOKENS, Kind.HISTOGRAM, ("vllm:request_prompt_tokens",)),
    Need(OUTPUT_TOKENS, Kind.HISTOGRAM, ("vllm:request_generation_tokens",)),
)

HISTOGRAMS = tuple(need for need in NEEDS if need.kind is Kind.HISTOGRAM)

FIRST_TOKENS = "vllm:time_to_first_token_seconds_count"
"""Counts a request when it gets its first token."""

ALIVE = ("vllm:num_requests_running", FIRST_TOKENS)
"""Series that every vLLM exposes from its start: whoever has a fresh sample of one of them is being scraped."""
