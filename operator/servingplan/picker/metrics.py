"""What a picker counts, for Prometheus. Labels come from the routing table alone; nothing that a client sends becomes one.

Counts are kept in plain dictionaries and put into Prometheus' terms when it asks: its client's counters lock and look up labels
each time, and cost several times as much.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

_PREFIX = "servingplan_picker_"
_DECISION_BUCKETS_S = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
_TTFT_BUCKETS_S = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Metrics:
    """The counters of a picker.

    Attributes:
        registry: Where they are registered.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._decisions: Counter[tuple[str, ...]] = Counter()
        self._finished: Counter[tuple[str, ...]] = Counter()
        self._failed_predictions: Counter[tuple[str, ...]] = Counter()
        self._seconds = _Histogram(_DECISION_BUCKETS_S)
        self._ttft: dict[tuple[str, ...], _Histogram] = {}
        self._in_flight = self._streams = 0
        self.registry.register(_Collected(self._collect))

    def decided(self, request_class: str, model: str, pool: str, outcome: str, reason: str, seconds: float) -> None:
        """One decision: ``picked``, ``refused`` or ``unpicked``, for a reason unless it was picked."""
        self._decisions[request_class, model, pool, outcome, reason] += 1
        self._seconds.observe(seconds)
        if outcome == "picked":
            self._in_flight += 1

    def expected(self, request_class: str, model: str, ttft_s: float) -> None:
        """The time to first token that a pick is expected to have."""
        of = self._ttft.get((request_class, model))
        if of is None:
            of = self._ttft[request_class, model] = _Histogram(_TTFT_BUCKETS_S)
        of.observe(ttft_s)

    def finished(self, request_class: str, outcome: str) -> None:
        """The end of a request that was picked."""
        self._in_flight -= 1
        self._finished[request_class, outcome] += 1

    def prediction_failed(self, error: str) -> None:
        """A predictor that raised, by the name of the exception's type."""
        self._failed_predictions[(error,)] += 1

    def stream_opened(self) -> None:
        """Envoy has begun to ask about a request."""
        self._streams += 1

    def stream_ended(self) -> None:
        """The request has ended, or Envoy asks no more about it."""
        self._streams -= 1

    def watch(self, numbers: Numbers) -> None:
        """Shows numbers that someone else keeps, read whenever Prometheus asks."""
        self.registry.register(_Collected(lambda: _families(numbers)))

    def _collect(self) -> Iterable[Metric]:
        yield _counter(
            "decisions",
            "Requests decided, by what became of them; unpicked ones went on by the plan's weights.",
            ("request_class", "model", "pool", "outcome", "reason"),
            self._decisions,
        )
        yield _counter(
            "finished",
            "Requests that a pick was made for and that ended; cancelled if nothing else is known of the end.",
            ("request_class", "outcome"),
            self._finished,
        )
        yield _counter(
            "failed_predictions",
            "Prompts for which the predictor failed and the class's means were taken.",
            ("error",),
            self._failed_predictions,
        )
        yield _histogram(
            "decision_seconds", "From the whole of a request at the picker to its decision.", (), {(): self._seconds}
        )
        yield _histogram(
            "predicted_ttft_seconds",
            "Time to first token that the decision expected on the endpoint it chose.",
            ("request_class", "model"),
            self._ttft,
        )
        in_flight = "Requests that a pick was made for and that have not ended."
        yield GaugeMetricFamily(f"{_PREFIX}requests_in_flight", in_flight, value=self._in_flight)
        streams = "Open streams of Envoy's, with or without a pick."
        yield GaugeMetricFamily(f"{_PREFIX}streams", streams, value=self._streams)


@dataclass(slots=True)
class _Histogram:
    """Counts by upper bound, the last one for what is above them all."""

    bounds: Sequence[float]
    counts: list[int] = field(init=False)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulative(self) -> list[tuple[str, float]]:
        return [
            (floatToGoString(bound), float(sum(self.counts[: at + 1]))) for at, bound in enumerate((*self.bounds, float("inf")))
        ]


def _counter(name: str, said: str, labels: Sequence[str], counts: Mapping[tuple[str, ...], float]) -> Metric:
    family = CounterMetricFamily(_PREFIX + name, said, labels=labels)
    for values, count in counts.items():
        family.add_metric(values, count)
    return family


def _histogram(name: str, said: str, labels: Sequence[str], of: Mapping[tuple[str, ...], _Histogram]) -> Metric:
    family = HistogramMetricFamily(_PREFIX + name, said, labels=labels)
    for values, each in of.items():
        family.add_metric(values, each.cumulative(), each.total)
    return family


class Numbers(Protocol):
    """Who keeps gauges and counters of its own."""

    def numbers(self) -> Mapping[str, Mapping[tuple[tuple[str, str], ...], float]]:
        """Values by the metric's name without its prefix, and by pairs of label and value; ``_total`` ends a counter's."""


class _Collected(Collector):
    def __init__(self, families: Callable[[], Iterable[Metric]]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families()


def _families(numbers: Numbers) -> Iterable[Metric]:
    for name, values in numbers.numbers().items():
        labels = [label for label, _ in next(iter(values), ())]
        kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
        said = name.removesuffix("_total").replace("_", " ").capitalize() + "."
        family = kind(_PREFIX + name, said, labels=labels)
        for pairs, value in values.items():
            family.add_metric([text for _, text in pairs], value)
        yield family
