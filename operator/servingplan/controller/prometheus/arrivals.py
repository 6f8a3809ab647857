"""From the counters of a plan's routers to arrivals by class and by model. Pure.

Envoy counts a request of a class when it sends it to a pod, and again for every retry that reaches one; it counts retries,
too, but those that find no connection as well. So what arrived is what was sent less the retries, but while pods refuse
connections that falls short, at worst below zero, and what was completed is nearer. Without retries the first is right and
the second late by the time to first token, so that a queue that builds up would not show. Requests that are refused at once
have no pod and are only counted when they end, which is then.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from servingplan.calibration.readings import RateHistory
from servingplan.controller.prometheus.asked import Asked
from servingplan.controller.prometheus.connection import Series
from servingplan.controller.prometheus.queries import COMPLETED, PART, REFUSED, RETRIED, ROUTERS, SENT, Windows
from servingplan.render.envoy.routes import class_stat, model_stat

_TOO_MANY = "429"


@dataclass(frozen=True, slots=True)
class Steps:
    """The times at which rates are asked for, each the end of a window.

    Attributes:
        start_s: The first, in seconds since the epoch.
        count: How many there are.
    """

    start_s: float
    step_s: float
    count: int

    @staticmethod
    def ending(now_s: float, span_s: float, step_s: float) -> Steps:
        """Steps over a span of time that end in the last whole second, and one more before them."""
        count = int(span_s / step_s) + 1
        return Steps(math.floor(now_s) - (count - 1) * step_s, step_s, count)

    @property
    def end_s(self) -> float:
        """The last of them."""
        return self.start_s + (self.count - 1) * self.step_s

    def number(self, moment_s: float) -> int:
        """Which step a time is, allowing for the rounding of the question."""
        return round((moment_s - self.start_s) / self.step_s)


Rates = dict[int, float]
"""Requests per second by step; a step of which nothing is known is absent."""


@dataclass(slots=True)
class _Counted:
    """Rates of one class, or of the requests that name one model.

    Attributes:
        routed: By part: sent, retried, completed.
        refused: By status code.
    """

    routed: defaultdict[str, Rates] = field(default_factory=lambda: defaultdict(dict))
    refused: defaultdict[str, Rates] = field(default_factory=lambda: defaultdict(dict))

    def arrived(self, step: int) -> float | None:
        sent, refused = self.routed[SENT].get(step), [rates[step] for rates in self.refused.values() if step in rates]
        if sent is None and not refused:
            return None
        retried = self.routed[RETRIED].get(step, 0.0)
        arrived = (sent or 0.0) - retried + sum(refused)
        if retried > 0:
            # What found no healthy pod is completed, and refused with 503 as well; what is shed is not completed.
            shed = self.refused[_TOO_MANY].get(step, 0.0)
            arrived = max(arrived, self.routed[COMPLETED].get(step, 0.0) + shed)
        return max(0.0, arrived)


@dataclass(slots=True)
class PlanCounters:
    """Everything counted of one plan.

    Attributes:
        newest_s: Time of the newest sample by router pod.
    """

    newest_s: dict[str, float] = field(default_factory=dict)
    by_route: defaultdict[str, _Counted] = field(default_factory=lambda: defaultdict(_Counted))


Routers = Mapping[tuple[str, str], PlanCounters]
"""By namespace and name of the plan."""


def routers(answer: Iterable[Series], rates: Iterable[Series], steps: Steps) -> Routers:
    """The answers to ``queries.replicas`` and ``queries.arrivals``, over these steps, sorted by plan."""
    found: defaultdict[tuple[str, str], PlanCounters] = defaultdict(PlanCounters)
    for series in answer:
        if series.labels[PART] == ROUTERS and (newest_s := series.value) is not None:
            found[_plan_of(series)].newest_s[series.labels.get("pod", "")] = newest_s
    for series in rates:
        part, counted = series.labels[PART], found[_plan_of(series)].by_route[_route(series.labels)]
        into = counted.refused[series.labels.get("code", "")] if part == REFUSED else counted.routed[part]
        into |= {steps.number(moment): rate for moment, rate in series.points if math.isfinite(rate)}
    return found


def _plan_of(series: Series) -> tuple[str, str]:
    return series.labels.get("namespace", ""), series.labels.get("plan", "")


def _route(labels: Mapping[str, str]) -> str:
    if route := labels.get("envoy_route"):
        return route
    return model_stat(labels["requested"]) if "requested" in labels else class_stat(labels.get("class", ""))


def read_arrivals(
    asked: Asked, every: Routers, windows: Windows, steps: Steps, clocks: tuple[float, float]
) -> tuple[dict[str, RateHistory], dict[str, RateHistory]]:
    """Arrivals by class and by model; nothing while a router that should have been scraped is dark.

    ``clocks`` are now by the clock of ``asked.ready_since`` and now by the server's.
    """
    counters = every.get((asked.namespace, asked.name))
    if counters is None:
        return {}, {}
    age_s = _age_s(asked, counters, windows, clocks)
    if age_s is None:
        return {}, {}
    missed = age_s > windows.current_s
    histories = [
        {name: RateHistory(steps.step_s, rates, age_s) for name, rates in _known(names, counters, steps, missed=missed)}
        for names in ({name: class_stat(name) for name in asked.classes}, {name: model_stat(name) for name in asked.models})
    ]
    return histories[0], histories[1]


def _age_s(asked: Asked, counters: PlanCounters, windows: Windows, clocks: tuple[float, float]) -> float | None:
    """Age of the newest sample of the router that is behind the others; None where one is dark."""
    here_s, there_s = clocks
    ages_s = {pod: max(0.0, there_s - newest_s) for pod, newest_s in counters.newest_s.items()}
    if asked.routers is None:
        relevant = [min(ages_s.values(), default=math.inf)]
    else:
        due = [pod for pod in asked.routers if asked.is_due(pod, here_s, windows.dark_s)]
        relevant = [ages_s.get(pod, math.inf) for pod in due] or [min(ages_s.values(), default=math.inf)]
    return worst if (worst := max(relevant)) <= windows.dark_s else None


def _known(
    names: Mapping[str, str], counters: PlanCounters, steps: Steps, *, missed: bool
) -> Iterable[tuple[str, tuple[float, ...]]]:
    for name, route in names.items():
        counted = counters.by_route.get(route)
        rates = _latest([counted.arrived(step) for step in range(steps.count)]) if counted else ()
        # A window that ends after the newest sample reads low, and so does the first one of a counter.
        rates = rates[1:-1] if missed else rates[1:]
        if rates:
            yield name, rates


def _latest(rates: Sequence[float | None]) -> tuple[float, ...]:
    """The rates since the last one that is not known."""
    known: list[float] = []
    for rate in reversed(rates):
        if rate is None:
            break
        known.append(rate)
    return tuple(reversed(known))
