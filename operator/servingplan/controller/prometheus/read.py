"""One reading of all plans: the same few questions to every server, all servers at once.

Each server has a thread of its own, so that one that hangs holds up neither the others nor the loop: its plans are told that
it did not answer, and it is asked again with the next reading.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from servingplan.calibration.readings import Found, Readings
from servingplan.controller.prometheus import arrivals, choices, pods, queries
from servingplan.controller.prometheus.asked import Asked
from servingplan.controller.prometheus.connection import PrometheusError, Series, Server, Source, late, not_prometheus
from servingplan.controller.prometheus.queries import Windows

log = logging.getLogger(__name__)


class Reader:
    """Reads Prometheus. Only for one event loop, and for one reading at a time."""

    def __init__(self) -> None:
        self._workers: dict[Source, ThreadPoolExecutor] = {}

    async def read(self, plans: Sequence[Asked], now_s: float, window_s: float = 60.0) -> dict[str, Readings]:
        """The readings of every plan by its key. Takes as long as the slowest server, at most its timeout.

        Args:
            plans: What is asked, of any number of servers.
            now_s: By the clock of ``ready_since``, in seconds since the epoch.
            window_s: Length of the window that histograms are of; four scrapes where those are longer.
        """
        by_source: defaultdict[Source, list[Asked]] = defaultdict(list)
        for plan in plans:
            by_source[plan.source].append(plan)
        self._forget(set(self._workers) - set(by_source))
        parts = await asyncio.gather(*(self._of_source(source, of, now_s, window_s) for source, of in by_source.items()))
        return {key: readings for part in parts for key, readings in part.items()}

    def close(self) -> None:
        """Lets go of all servers, without waiting for those that hang."""
        self._forget(set(self._workers))

    def _forget(self, sources: set[Source]) -> None:
        for source in sources:
            self._workers.pop(source).shutdown(wait=False, cancel_futures=True)

    async def _of_source(self, source: Source, plans: Sequence[Asked], now_s: float, window_s: float) -> dict[str, Readings]:
        worker = self._workers.setdefault(source, ThreadPoolExecutor(1, thread_name_prefix="prometheus"))
        windows = Windows(source.scrape_interval_s, max(window_s, 4 * source.scrape_interval_s))
        try:
            async with asyncio.timeout(source.timeout_s):
                return await asyncio.get_running_loop().run_in_executor(worker, _read, source, plans, windows, now_s)
        except PrometheusError as error:
            sentence = str(error)
        except TimeoutError:
            sentence = late(source)
        except (ArithmeticError, LookupError, TypeError, ValueError):
            # A plan's author names the server: whatever it answers must not reach the plans of other servers.
            log.exception("The answers of Prometheus at %s cannot be read", source.host)
            sentence = not_prometheus(source)
        away = Readings(Found.UNREACHABLE, sentence, taken_s=now_s, window_s=windows.reading_s)
        return {plan.key: away for plan in plans}


def _read(source: Source, plans: Sequence[Asked], windows: Windows, now_s: float) -> dict[str, Readings]:
    namespaces = sorted({plan.namespace for plan in plans})
    names = sorted({plan.name for plan in plans})
    with Server(source) as server:
        answer = server.instant(queries.replicas(namespaces, names, windows))
        there_s = _time_s(source, answer)
        every_pod = pods.pods(answer, there_s)
        for part, name in pods.observed(every_pod):
            pods.add_buckets(every_pod, part, server.instant(queries.buckets(name, namespaces, windows), there_s))
        of_pickers = sorted({plan.namespace for plan in plans if plan.picks})
        picks = server.instant(queries.choices(of_pickers, windows), there_s) if of_pickers else []
        steps = arrivals.Steps.ending(there_s, queries.HISTORY_S, windows.arrival_s)
        rates = server.range(queries.arrivals(namespaces, names, windows), steps.start_s, steps.end_s, steps.step_s)
    every_router, every_picker = arrivals.routers(answer, rates, steps), choices.pickers(picks)
    found = {}
    for plan in sorted(plans, key=lambda plan: plan.key):
        readings = _readings(plan, every_pod, every_router, windows, steps, (now_s, there_s))
        if plan.picks:
            readings = replace(readings, chosen=choices.read_choices(plan, every_picker, windows, (now_s, there_s)))
        found[plan.key] = readings
    return found


def _time_s(source: Source, answer: Sequence[Series]) -> float:
    for series in answer:
        if series.labels.get(queries.PART) == queries.NOW and series.value is not None:
            return series.value
    raise PrometheusError(not_prometheus(source))


def _readings(
    plan: Asked,
    every_pod: pods.Pods,
    every_router: arrivals.Routers,
    windows: Windows,
    steps: arrivals.Steps,
    clocks: tuple[float, float],
) -> Readings:
    of_pods = pods.read_pools(plan, every_pod, windows, clocks[0])
    classes, models = arrivals.read_arrivals(plan, every_router, windows, steps, clocks)
    return Readings(of_pods.found, of_pods.error, of_pods.pools, classes, models, of_pods.aliases, clocks[1], windows.reading_s)
