"""Reads Prometheus beside the passes: one that is slow or away must not hold up a decision."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from servingplan.api import v1alpha1
from servingplan.api.load import Rejected, parse
from servingplan.calibration.readings import Found, Readings
from servingplan.controller.observe import Watched
from servingplan.controller.prometheus.asked import Asked
from servingplan.controller.prometheus.connection import Source
from servingplan.controller.prometheus.read import Reader
from servingplan.controller.settings import Settings
from servingplan.render import router
from servingplan.render.vllm import COMPONENT as MODEL_SERVER

log = logging.getLogger(__name__)

_WINDOW_S = 20.0
"""Shortest window of latencies; a cycle otherwise."""


class Meter:
    """What Prometheus said last, by plan.

    Args:
        settings: Where it is, and how often it is asked.
        watched: Says what the watches have brought.
        wake: Called when there is something new.
    """

    def __init__(self, settings: Settings, watched: Callable[[], Awaitable[Watched]], wake: Callable[[], object]) -> None:
        self._settings, self._watched, self._wake = settings, watched, wake
        self._warm = asyncio.Event()
        self._reader = Reader()
        self._readings: dict[str, Readings] = {}

    def of(self, plan_key: str) -> Readings:
        """The readings of a plan."""
        if plan_key in self._readings:
            return self._readings[plan_key]
        return Readings(Found.AWAITED if self._settings.prometheus.url else Found.NOT_CONFIGURED)

    def listed(self) -> None:
        """The watches have listed everything."""
        self._warm.set()

    async def run(self) -> None:
        """Asks every tick, from the time on when the watches have listed everything, until it is cancelled."""
        await self._warm.wait()
        try:
            while True:
                try:
                    await self._once()
                except Exception:  # a reading that fails in a way nobody thought of must not end all readings
                    log.exception("readings failed")
                await asyncio.sleep(self._settings.tick_s)
        finally:
            self._reader.close()

    async def _once(self) -> None:
        watched = await self._watched()
        asked = [one for body in watched.plans if (one := self._ask(body, watched)) is not None]
        found = await self._reader.read(asked, time.time(), max(_WINDOW_S, self._settings.cycle_s)) if asked else {}
        if found != self._readings:
            self._readings = found
            self._wake()

    def _ask(self, body: dict[str, Any], watched: Watched) -> Asked | None:
        """What is asked of one plan; None where it cannot be read or nothing is configured."""
        parsed = parse(body)
        if isinstance(parsed, Rejected):
            return None
        spec, metadata = parsed.spec, body["metadata"]
        source = self._source(spec.metrics)
        if source is None:
            return None
        key = f"{metadata['namespace']}/{metadata['name']}"
        mine = [pod for pod in watched.pods if pod.plan_key == key and pod.serves]
        pools: dict[str, list[str]] = {}
        for pod in mine:
            if pod.component == MODEL_SERVER:
                pools.setdefault(pod.pool, []).append(pod.name)
        return Asked(
            key=key,
            namespace=metadata["namespace"],
            name=metadata["name"],
            source=source,
            pods={pool: tuple(pods) for pool, pods in pools.items()},
            classes=tuple(entry.name for entry in spec.request_classes),
            models=tuple(model.name for model in spec.models),
            ready_since={pod.name: pod.ready_changed_s for pod in mine},
            routers=tuple(pod.name for pod in mine if pod.component == router.COMPONENT),
            picks=spec.router.policy == "Online",
        )

    def _source(self, metrics: v1alpha1.Metrics) -> Source | None:
        own = self._settings.prometheus
        if metrics.prometheus_url is not None:
            # The operator's credentials are for its own server, not for one that a plan's author names.
            return Source(metrics.prometheus_url, own.scrape_interval_s, own.timeout_s)
        if not own.url:
            return None
        return Source(
            own.url,
            own.scrape_interval_s,
            own.timeout_s,
            username_file=own.username_file,
            password_file=own.password_file,
            bearer_token_file=own.bearer_token_file,
            ca_file=own.ca_file,
        )
