"""The questions in PromQL: some seven for a server, however many plans it knows of.

Most join parts with ``or``, told apart by a label of their own that says what the part is. A regular expression over names
would be shorter, but functions over time drop the name, and two names of one pod would clash. ``or`` is dear where parts are
large, so the buckets of each histogram are a question of their own. Inside a pod a series is first taken as the largest of
its duplicates, because a pod that two jobs scrape has everything twice, and then summed over engines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from servingplan.controller.prometheus.series import ALIVE, FIRST_TOKENS, NEEDS, Kind, Need

PART = "part"
"""The label that says which part of a question a series answers."""

NOW, FRESH, OLD, ROUTERS, RATE = "now", "fresh", "old", "routers", "rate"
"""Parts: the server's time; times of the newest samples of pods; pods with samples in the last hour; times of the newest
samples of a plan's routers; requests per second that got their first token."""

SENT, RETRIED, COMPLETED, REFUSED = "sent", "retried", "completed", "refused"
"""Parts of the arrivals, in requests per second."""

PICKERS, PICKED, EXPECTED = "pickers", "picked", "expected"
"""Parts of the choices: times of the newest samples of pickers; requests by the model that they were sent to; the sum of the
quality that was expected of them, by that model and any model."""

HISTORY_S = 3600.0

_POD = "namespace, pod"
_ENGINE = f"{_POD}, engine, model_name"
_SENT = "envoy_vhost_route_upstream_rq_total"
_COMPLETED = "envoy_vhost_route_upstream_rq_completed"
_RETRIED = "envoy_vhost_route_upstream_rq_retry"
_ENDED = "envoy_servingplan_requests_total"
_PICKER = "servingplan_picker_streams"
_PICKS = "servingplan_picker_picks_total"
_EXPECTED = "servingplan_picker_predicted_quality_total"


@dataclass(frozen=True, slots=True)
class Windows:
    """Lengths of time that follow from the scrape interval, in seconds.

    Attributes:
        scrape_s: The scrape interval.
        reading_s: Of the histograms and shares.
    """

    scrape_s: float
    reading_s: float

    @property
    def rate_s(self) -> float:
        """Of rates and gauges: four samples, so that one may be lost."""
        return max(4 * self.scrape_s, 20.0)

    @property
    def arrival_s(self) -> float:
        """Of one rate of the history of arrivals."""
        return max(4 * self.scrape_s, 30.0)

    @property
    def choice_s(self) -> float:
        """Of what pickers choose: long enough that a share of it is no accident."""
        return max(8 * self.scrape_s, 300.0)

    @property
    def dark_s(self) -> float:
        """Age from which on a sample says nothing."""
        return 3 * self.scrape_s

    @property
    def current_s(self) -> float:
        """Age from which on a scrape was missed, and Prometheus no longer extends a rate to the end of its window."""
        return 1.1 * self.scrape_s


def replicas(namespaces: Sequence[str], plans: Sequence[str], windows: Windows) -> str:
    """Everything of pods and routers at one time but buckets; label ``part`` as in ``part_of`` or a constant."""
    newest, parts = _newest(namespaces, plans, windows), _parts(_of(namespaces), windows)
    return _joined([(NOW, "vector(time())"), *newest, *parts])


def buckets(name: str, namespaces: Sequence[str], windows: Windows) -> str:
    """Increases of the cumulative buckets of a histogram, by pod and ``le``, of the pods that observed anything."""
    matching, span = _of(namespaces), _duration(windows.reading_s)
    increased = _summed(f"increase({name}_bucket{{{matching}}}[{span}])", ", le")
    return f"{increased} and on ({_POD}) (sum by ({_POD}) (increase({name}_count{{{matching}}}[{span}])) > 0)"


def arrivals(namespaces: Sequence[str], plans: Sequence[str], windows: Windows) -> str:
    """Rates of what routers sent, sent again, completed and refused, over their whole plan."""
    matching, span = _of_plans(namespaces, plans), _duration(windows.arrival_s)
    route, ended = "envoy_route", "class, requested, code"
    refused = f'{matching}, pool="", code=~"429|503"'
    return _joined(
        [
            (SENT, _of_routers(f"rate({_SENT}{{{matching}}}[{span}])", route)),
            (RETRIED, _of_routers(f"rate({_RETRIED}{{{matching}}}[{span}])", route)),
            (COMPLETED, _of_routers(f"rate({_COMPLETED}{{{matching}}}[{span}])", route)),
            (REFUSED, _of_routers(f"rate({_ENDED}{{{refused}}}[{span}])", ended)),
        ]
    )


def choices(namespaces: Sequence[str], windows: Windows) -> str:
    """What pickers chose, by pod."""
    matching, span = _of(namespaces), _duration(windows.choice_s)
    by = {PICKED: "request_class, model", EXPECTED: "request_class, picked, model"}
    return _joined(
        [
            (PICKERS, f"max by ({_POD}) ({_times(f'{_PICKER}{{{matching}}}', windows)})"),
            (PICKED, f"max by ({_POD}, {by[PICKED]}) (increase({_PICKS}{{{matching}}}[{span}]))"),
            (EXPECTED, f"max by ({_POD}, {by[EXPECTED]}) (increase({_EXPECTED}{{{matching}}}[{span}]))"),
        ]
    )


def part_of(need: Need, place: int, what: str = "") -> str:
    """The part for one name of a need; ``what`` is ``_sum`` or ``_count`` of a histogram."""
    return f"{need.key}/{place}{what}"


def _newest(namespaces: Sequence[str], plans: Sequence[str], windows: Windows) -> Iterator[tuple[str, str]]:
    of_plans = _of_plans(namespaces, plans)
    alive = [f"{name}{{{_of(namespaces)}}}" for name in ALIVE]
    fresh = " or ".join(f"max by ({_POD}) ({_times(series, windows)})" for series in alive)
    yield FRESH, f"max by ({_POD}) ({fresh})"
    yield OLD, " or ".join(f"max by ({_POD}) (present_over_time({series}[{_duration(HISTORY_S)}]))" for series in alive)
    routers = (f"{_SENT}{{{of_plans}}}", f"{_ENDED}{{{of_plans}}}")
    yield ROUTERS, " or ".join(f"max by ({_POD}, plan) ({_times(series, windows)})" for series in routers)


def _times(series: str, windows: Windows) -> str:
    """Times of the newest samples. An instant alone would not find those of a target whose last scrape failed."""
    step, span = _duration(windows.scrape_s / 3), _duration(windows.dark_s + windows.scrape_s)
    return f"timestamp({series}) or max_over_time(timestamp({series})[{span}:{step}])"


def _parts(matching: str, windows: Windows) -> Iterator[tuple[str, str]]:
    span, reading = _duration(windows.rate_s), _duration(windows.reading_s)
    for need in NEEDS:
        for place, name in enumerate(need.names):
            series = f"{name}{{{matching}}}"
            if need.kind is Kind.GAUGE:
                yield part_of(need, place), _summed(f"max_over_time({series}[{span}])")
            elif need.kind is Kind.SHARE:
                yield part_of(need, place), f"max by ({_POD}) (max_over_time({series}[{span}]))"
            elif need.kind is Kind.COUNTER:
                yield part_of(need, place), _summed(f"increase({series}[{reading}])")
            else:
                for what in ("_sum", "_count"):
                    yield part_of(need, place, what), _summed(f"increase({name}{what}{{{matching}}}[{reading}])")
    yield RATE, _summed(f"rate({FIRST_TOKENS}{{{matching}}}[{span}])")


def _summed(of_engines: str, further: str = "") -> str:
    return f"sum by ({_POD}{further}) (max by ({_ENGINE}{further}) ({of_engines}))"


def _of_routers(of_pods: str, labels: str) -> str:
    return f"sum by (namespace, plan, {labels}) (max by ({_POD}, plan, {labels}) ({of_pods}))"


def _of_plans(namespaces: Sequence[str], plans: Sequence[str]) -> str:
    return f'{_of(namespaces)}, plan=~"{"|".join(plans)}"'


def _of(namespaces: Sequence[str]) -> str:
    # Names of namespaces and plans are letters, digits and dashes, which an expression takes as they are.
    return f'namespace=~"{"|".join(namespaces)}"'


def _joined(parts: Iterable[tuple[str, str]]) -> str:
    return _any([f'label_replace({query}, "{PART}", "{part}", "", "")' for part, query in parts])


def _any(queries: Sequence[str]) -> str:
    """All of them, by halves: each ``or`` copies what stands to its left."""
    half = len(queries) // 2
    return f"({_any(queries[:half])} or {_any(queries[half:])})" if half else queries[0]


def _duration(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"
