"""The metrics page, under vLLM's names, types, labels and bucket edges (as of vLLM 0.32).

Aborted requests leave the success counter alone, as in vLLM. Series whose subject is not simulated (multi-modal cache,
KV transfer, FLOP estimates) stand at zero.
"""

from collections.abc import Sequence
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from servingplan.sim import engine
from servingplan.sim.driver import Driver, Ticket

_TTFT_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560)
_TOKEN_GAP_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_REQUEST_S = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
_STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_CHOICES = (1, 2, 5, 10, 20)
_PREEMPTIONS = (1, 2, 3, 4, 5, 10, 20)

_HISTOGRAMS = {
    "iteration_tokens_total": _STEP_TOKENS,
    "request_params_n": _CHOICES,
    "time_to_first_token_seconds": _TTFT_S,
    "inter_token_latency_seconds": _TOKEN_GAP_S,
    "request_time_per_output_token_seconds": _TOKEN_GAP_S,
    "e2e_request_latency_seconds": _REQUEST_S,
    "request_queue_time_seconds": _REQUEST_S,
    "request_inference_time_seconds": _REQUEST_S,
    "request_prefill_time_seconds": _REQUEST_S,
    "request_decode_time_seconds": _REQUEST_S,
    "request_num_preemptions": _PREEMPTIONS,
}
_TOKEN_HISTOGRAMS = (
    "request_prompt_tokens",
    "request_generation_tokens",
    "request_max_num_generation_tokens",
    "request_params_max_tokens",
    "request_prefill_kv_computed_tokens",
)
_COUNTERS = (
    "estimated_flops_per_gpu",
    "estimated_read_bytes_per_gpu",
    "estimated_write_bytes_per_gpu",
    "prefix_cache_queries",
    "prefix_cache_hits",
    "external_prefix_cache_queries",
    "external_prefix_cache_hits",
    "mm_cache_queries",
    "mm_cache_hits",
    "num_preemptions",
    "prompt_tokens",
    "prompt_tokens_cached",
    "generation_tokens",
)
_SOURCES = ("local_compute", "local_cache_hit", "external_kv_transfer")
_TIERS = ("device", "host", "p2p", "disk", "external_unspecified")
_REASONS = ("stop", "length", "abort", "error", "repetition")


def _length_buckets(longest: int) -> list[int]:
    """1, 2, 5, 10 ... up to the longest sequence, as vLLM makes them."""
    edges = [m * 10**power for power in range(len(str(longest))) for m in (1, 2, 5)]
    return [edge for edge in edges if edge <= longest]


class Metrics:
    """All series of one server.

    Args:
        model_name: first served name.
        max_model_len: sets the buckets of token counts.
        cache_config: labels of ``vllm:cache_config_info``.
    """

    def __init__(self, model_name: str, max_model_len: int, cache_config: dict[str, str]) -> None:
        self._registry = CollectorRegistry()
        GCCollector(self._registry)
        PlatformCollector(self._registry)
        ProcessCollector(registry=self._registry)
        self._labels = {"engine": "0", "model_name": model_name}
        lengths = dict.fromkeys(_TOKEN_HISTOGRAMS, tuple(_length_buckets(max_model_len)))
        self._histogram = {name: self._child(Histogram, name, buckets=edges) for name, edges in (_HISTOGRAMS | lengths).items()}
        self._counter = {name: self._child(Counter, name) for name in _COUNTERS}
        self._source = self._children(Counter, "prompt_tokens_by_source", "source", _SOURCES)
        self._tier = self._children(Counter, "prompt_tokens_cached_by_source", "source", _TIERS)
        self._success = self._children(Counter, "request_success", "finished_reason", _REASONS)
        rejections = Counter(
            "vllm:admission_rejections", _help("admission_rejections"), ["model_name", "reason"], registry=self._registry
        )
        for reason in ("max_num_queued_reqs", "max_num_queued_tokens"):
            rejections.labels(model_name, reason)
        Gauge("vllm:cache_config_info", _help("cache_config_info"), sorted(cache_config), registry=self._registry).labels(
            **cache_config
        ).set(1)
        self._counts: Sequence[int] = [0] * engine.N_COUNTS
        self._seen = {engine.PREEMPTIONS: 0, engine.CACHE_QUERIES: 0, engine.CACHE_HITS: 0}

    def _child(self, kind: type, name: str, **options: Any) -> Any:
        family = kind(f"vllm:{name}", _help(name), sorted(self._labels), registry=self._registry, **options)
        return family.labels(**self._labels)

    def _children(self, kind: type, name: str, label: str, values: Sequence[str]) -> dict[str, Any]:
        family = kind(f"vllm:{name}", _help(name), sorted((*self._labels, label)), registry=self._registry)
        return {value: family.labels(**self._labels, **{label: value}) for value in values}

    def watch(self, driver: Driver) -> None:
        """Take gauges and engine counters from `driver`. Called once."""
        self._counts = driver.engine.counts

        def waiting() -> int:
            return self._counts[engine.N_WAITING]

        self._child(Gauge, "num_requests_running").set_function(lambda: self._counts[engine.N_RUNNING])
        self._child(Gauge, "num_requests_waiting").set_function(waiting)
        by_reason = self._children(Gauge, "num_requests_waiting_by_reason", "reason", ("capacity", "deferred"))
        by_reason["capacity"].set_function(waiting)
        self._child(Gauge, "kv_cache_usage_perc").set_function(lambda: driver.kv_usage)
        sleep = self._children(Gauge, "engine_sleep_state", "sleep_state", ("awake", "weights_offloaded", "discard_all"))
        sleep["awake"].set(1)

    def on_step(self, tokens: int) -> None:
        """Count an engine step."""
        self._histogram["iteration_tokens_total"].observe(tokens)

    def on_token(self, ticket: Ticket, since_s: float) -> None:
        """Count one token of a request, `since_s` seconds after its last one or its arrival."""
        self._counter["generation_tokens"].inc()
        if ticket.generated > 1:
            self._histogram["inter_token_latency_seconds"].observe(since_s)
            return
        self._histogram["time_to_first_token_seconds"].observe(since_s)
        self._counter["prompt_tokens"].inc(ticket.prompt_tokens)
        self._counter["prompt_tokens_cached"].inc(ticket.cached_tokens)
        self._source["local_compute"].inc(ticket.prompt_tokens - ticket.cached_tokens)
        self._source["local_cache_hit"].inc(ticket.cached_tokens)
        self._tier["device"].inc(ticket.cached_tokens)

    def on_finish(self, ticket: Ticket, reason: str, max_tokens: int) -> None:
        """Count a request that ended by itself."""
        decode_s = ticket.last_token_s - ticket.first_token_s
        observed = {
            "e2e_request_latency_seconds": ticket.last_token_s - ticket.arrival_s,
            "request_queue_time_seconds": ticket.scheduled_s - ticket.arrival_s,
            "request_inference_time_seconds": ticket.last_token_s - ticket.scheduled_s,
            "request_prefill_time_seconds": ticket.first_token_s - ticket.scheduled_s,
            "request_decode_time_seconds": decode_s,
            "request_time_per_output_token_seconds": decode_s / max(1, ticket.generated - 1),
            "request_prompt_tokens": ticket.prompt_tokens,
            "request_generation_tokens": ticket.generated,
            "request_max_num_generation_tokens": ticket.generated,
            "request_params_max_tokens": max_tokens,
            "request_params_n": 1,
            "request_num_preemptions": ticket.preemptions,
            "request_prefill_kv_computed_tokens": ticket.prompt_tokens - ticket.cached_tokens,
        }
        for name, value in observed.items():
            self._histogram[name].observe(value)
        self._success[reason].inc()

    def page(self) -> bytes:
        """The page in Prometheus' text format."""
        for place, name in (
            (engine.PREEMPTIONS, "num_preemptions"),
            (engine.CACHE_QUERIES, "prefix_cache_queries"),
            (engine.CACHE_HITS, "prefix_cache_hits"),
        ):
            self._counter[name].inc(self._counts[place] - self._seen[place])
            self._seen[place] = self._counts[place]
        return generate_latest(self._registry)


def _help(name: str) -> str:
    return name.replace("_", " ").capitalize() + "."
