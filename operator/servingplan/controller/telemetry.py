"""The operator's own metrics.

What is said of a plan is read off its status. It is kept per plan and put into series when Prometheus asks, so that a plan that
is gone, or a setup that is no longer used, leaves none behind. Labels only take values from closed sets and names in specs: a
sentence with figures in it would be a new series every time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

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
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from servingplan.controller.plan_metrics import PLAN_METRICS, Samples, of_status, word

SolveKind = Literal["plan", "weights", "hold"]
Outcome = Literal["completed", "failed"]
ErrorKind = Literal["kube", "prometheus", "solver", "router", "template", "internal"]

_SOLVE_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60)
_PASS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


@dataclass(slots=True)
class _PlanState:
    samples: Samples = field(default_factory=dict)
    decisions: dict[str, int] = field(default_factory=dict)
    sampled_at: float | None = None


class Telemetry:
    """All series of one operator.

    Args:
        leads: Says whether this operator leads.
        clock: Seconds on a clock that nobody sets.
    """

    def __init__(self, leads: Callable[[], bool] = lambda: True, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._plans: dict[str, _PlanState] = {}
        self._registry = registry = CollectorRegistry()
        GCCollector(registry)
        PlatformCollector(registry)
        ProcessCollector(registry=registry)
        Gauge("servingplan_leader", "Whether this operator leads.", registry=registry).set_function(lambda: float(leads()))
        self._solves = Histogram("servingplan_solve_seconds", "Time to solve.", ["kind"], registry=registry, buckets=_SOLVE_S)
        self._pass_s = Histogram(
            "servingplan_pass_seconds", "Time of a pass over the world.", registry=registry, buckets=_PASS_S
        )
        self._passes = Counter("servingplan_passes", "Passes, by how they ended.", ["outcome"], registry=registry)
        self._errors = Counter("servingplan_errors", "Errors by what they came from.", ["kind"], registry=registry)
        self._writes = Counter("servingplan_writes", "Objects written, by kind.", ["kind"], registry=registry)
        # A series that first appears with its first event has no increase to show for it.
        for family, values in ((self._solves, SolveKind), (self._passes, Outcome), (self._errors, ErrorKind)):
            for value in get_args(values):
                family.labels(value)
        registry.register(_Plans(self._plans, clock))

    def page(self) -> bytes:
        """The page in Prometheus' text format."""
        return generate_latest(self._registry)

    def solved(self, kind: SolveKind, seconds: float) -> None:
        """A problem was solved, or given up at its time limit."""
        self._solves.labels(kind).observe(seconds)

    @contextmanager
    def solving(self, kind: SolveKind) -> Iterator[None]:
        """Times a solve."""
        began = self._clock()
        try:
            yield
        finally:
            self.solved(kind, self._clock() - began)

    def passed(self, outcome: Outcome, seconds: float) -> None:
        """A pass ended."""
        self._passes.labels(outcome).inc()
        self._pass_s.observe(seconds)

    def error(self, kind: ErrorKind) -> None:
        """Something failed."""
        self._errors.labels(kind).inc()

    def wrote(self, kind: str) -> None:
        """An object of a Kubernetes kind was written; a subresource follows after a slash."""
        self._writes.labels(kind).inc()

    def decided(self, key: str, reason: str) -> None:
        """A decision was taken about a plan.

        Args:
            key: ``namespace/name`` of the plan.
            reason: One word; anything else counts as ``Other``.
        """
        decisions = self._of(key).decisions
        known = word(reason)
        decisions[known] = decisions.get(known, 0) + 1

    def sampled(self, key: str, age_s: float) -> None:
        """The newest sample of a plan's metrics is this old; it ages on until this is called again."""
        self._of(key).sampled_at = self._clock() - age_s

    def plan(
        self,
        key: str,
        status: Mapping[str, Any],
        *,
        asked: Mapping[tuple[str, str], int] | None = None,
        weights: Mapping[tuple[str, str, str], float] | None = None,
        bounds: Mapping[tuple[str, str], float] | None = None,
    ) -> None:
        """Sets what is said of a plan, and takes back what was said before.

        Args:
            key: ``namespace/name`` of the plan.
            status: Its status as it is written.
            asked: Replicas that the Deployments ask for at the moment, by model and setup.
            weights: Share of each class by class, model and setup; without it, by class and model as the status says.
            bounds: Latency targets in seconds by class and bound, such as ``ttft.p95``.
        """
        samples = of_status(status)
        samples["servingplan_slo_seconds"] = {where: float(bound_s) for where, bound_s in (bounds or {}).items()}
        for pool, count in (asked or {}).items():
            samples["servingplan_replicas"][*pool, "asked"] = float(count)
        if weights is not None:
            samples["servingplan_weight_ratio"] = {where: float(share) for where, share in weights.items()}
        self._of(key).samples = samples

    def forget(self, key: str) -> None:
        """Takes back everything that was said of a plan that is gone."""
        self._plans.pop(key, None)

    def keep(self, keys: set[str]) -> None:
        """Forgets every plan but these."""
        for key in self._plans.keys() - keys:
            self.forget(key)

    def _of(self, key: str) -> _PlanState:
        return self._plans.setdefault(key, _PlanState())


class _Plans(Collector):
    """The series of plans, made when they are asked for."""

    def __init__(self, plans: Mapping[str, _PlanState], clock: Callable[[], float]) -> None:
        self._plans, self._clock = plans, clock

    def collect(self) -> Iterator[Metric]:
        plans = {tuple(key.split("/", 1)): state for key, state in sorted(self._plans.items())}
        for name, (labels, text) in PLAN_METRICS.items():
            family = GaugeMetricFamily(name, text, labels=["namespace", "plan", *labels])
            for key, state in plans.items():
                for values, value in state.samples.get(name, {}).items():
                    family.add_metric([*key, *values], value)
            yield family
        age = GaugeMetricFamily(
            "servingplan_metrics_age_seconds", "Age of the newest sample of a plan's metrics.", labels=["namespace", "plan"]
        )
        decisions = CounterMetricFamily(
            "servingplan_decisions", "Decisions taken, by reason.", labels=["namespace", "plan", "reason"]
        )
        for key, state in plans.items():
            if state.sampled_at is not None:
                age.add_metric(key, self._clock() - state.sampled_at)
            for reason, count in list(state.decisions.items()):
                decisions.add_metric([*key, reason], count)
        yield age
        yield decisions
