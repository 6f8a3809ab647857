"""What a picker counts, for Prometheus. Labels come from the routing table alone; nothing that a client sends becomes one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_DECISION_BUCKETS_S = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
_TTFT_BUCKETS_S = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Metrics:
    """The counters of a picker.

    Attributes:
        registry: Where they are registered.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._decisions = Counter(
            "servingplan_picker_decisions",
            "Requests decided, by what became of them; unpicked ones went on by the plan's weights.",
            ("request_class", "model", "pool", "outcome", "reason"),
            registry=self.registry,
        )
        self._finished = Counter(
            "servingplan_picker_finished",
            "Requests that a pick was made for and that ended; cancelled if nothing else is known of the end.",
            ("request_class", "outcome"),
            registry=self.registry,
        )
        self._failed_predictions = Counter(
            "servingplan_picker_failed_predictions",
            "Prompts for which the predictor failed and the class's means were taken.",
            ("error",),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "servingplan_picker_decision_seconds",
            "From the whole of a request at the picker to its decision.",
            buckets=_DECISION_BUCKETS_S,
            registry=self.registry,
        )
        self._ttft = Histogram(
            "servingplan_picker_predicted_ttft_seconds",
            "Time to first token that the decision expected on the endpoint it chose.",
            ("request_class", "model"),
            buckets=_TTFT_BUCKETS_S,
            registry=self.registry,
        )
        self._in_flight = Gauge(
            "servingplan_picker_requests_in_flight",
            "Requests that a pick was made for and that have not ended.",
            registry=self.registry,
        )
        self._streams = Gauge(
            "servingplan_picker_streams", "Open streams of Envoy's, with or without a pick.", registry=self.registry
        )
        # Looking a child up by its labels costs more than counting.
        self._decision_of: dict[tuple[str, str, str, str, str], Counter] = {}
        self._ttft_of: dict[tuple[str, str], Histogram] = {}

    def decided(self, request_class: str, model: str, pool: str, outcome: str, reason: str, seconds: float) -> None:
        """One decision: ``picked``, ``refused`` or ``unpicked``, for a reason unless it was picked."""
        labels = (request_class, model, pool, outcome, reason)
        child = self._decision_of.get(labels)
        if child is None:
            child = self._decision_of[labels] = self._decisions.labels(*labels)
        child.inc()
        self._seconds.observe(seconds)
        if outcome == "picked":
            self._in_flight.inc()

    def expected(self, request_class: str, model: str, ttft_s: float) -> None:
        """The time to first token that a pick is expected to have."""
        labels = (request_class, model)
        child = self._ttft_of.get(labels)
        if child is None:
            child = self._ttft_of[labels] = self._ttft.labels(*labels)
        child.observe(ttft_s)

    def finished(self, request_class: str, outcome: str) -> None:
        """The end of a request that was picked."""
        self._in_flight.dec()
        self._finished.labels(request_class, outcome).inc()

    def prediction_failed(self, error: str) -> None:
        """A predictor that raised, by the name of the exception's type."""
        self._failed_predictions.labels(error).inc()

    def stream_opened(self) -> None:
        """Envoy has begun to ask about a request."""
        self._streams.inc()

    def stream_ended(self) -> None:
        """The request has ended, or Envoy asks no more about it."""
        self._streams.dec()

    def watch(self, numbers: Numbers) -> None:
        """Shows numbers that someone else keeps, read whenever Prometheus asks."""
        self.registry.register(_Numbers(numbers))


class Numbers(Protocol):
    """Who keeps gauges of its own."""

    def numbers(self) -> Mapping[str, Mapping[tuple[tuple[str, str], ...], float]]:
        """Values by the metric's name without its prefix, and by pairs of label and value."""


class _Numbers(Collector):
    def __init__(self, numbers: Numbers) -> None:
        self._numbers = numbers

    def collect(self) -> Iterable[Metric]:
        for name, values in self._numbers.numbers().items():
            labels = [label for label, _ in next(iter(values), ())]
            family = GaugeMetricFamily(f"servingplan_picker_{name}", name.replace("_", " ").capitalize() + ".", labels=labels)
            for pairs, value in values.items():
                family.add_metric([text for _, text in pairs], value)
            yield family
