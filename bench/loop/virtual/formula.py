"""The data plane without engines: replicas that answer exactly as late as the closed form says at their true speed.

Rates are given by class as a function of time; every count of a scrape interval has Poisson noise on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from servingplan.calibration.readings import PoolReading, RateHistory, Readings
from servingplan.latency.capacity import Latency, latency, stable_rate_rps
from servingplan.latency.profile import EngineProfile, TokenMix, blend
from virtual import reading
from virtual.cluster import Cluster
from virtual.reading import E2E_EDGES, GAP_EDGES, TOKEN_EDGES, TTFT_EDGES, histogram

_QUANTILES = (np.arange(64) + 0.5) / 64
_WINDOWS = 4


class Formula:
    """Serves one plan.

    Args:
        plan_key: ``namespace/name``.
        cluster: Where the pods are.
        truth: How fast the replicas of each pool really are.
        mixes: Lengths by class.
        rates_rps: Says the rate of a class at a time.
        begin_s: When requests begin.
        seed: Of the noise.
    """

    def __init__(
        self,
        plan_key: str,
        cluster: Cluster,
        truth: Mapping[str, EngineProfile],
        mixes: Mapping[str, TokenMix],
        rates_rps: Callable[[str, float], float],
        settings: reading.Settings,
        begin_s: float,
        seed: int,
    ) -> None:
        self._key, self._cluster, self._truth, self._mixes = plan_key, cluster, truth, mixes
        self._rates_rps, self._settings, self._begin_s = rates_rps, settings, begin_s
        self._chance = np.random.default_rng(seed)
        self._counts: dict[str, list[float]] = {name: [] for name in mixes}
        self._now_s = 0.0

    def serve(self, until_s: float) -> None:
        """Counts what arrives until then, scrape by scrape."""
        width_s = self._settings.scrape_s
        scrape_s = self._settings.last_scrape_s(self._now_s) + width_s
        while scrape_s <= until_s:
            if scrape_s > self._begin_s:
                for name, counts in self._counts.items():
                    counts.append(float(self._chance.poisson(self._rates_rps(name, scrape_s - width_s / 2) * width_s)))
            scrape_s += width_s
        self._now_s = until_s

    def readings(self) -> Readings:
        """What Prometheus says now."""
        scraped_s = self._settings.last_scrape_s(self._now_s)
        histories = {name: found for name in self._mixes if (found := self._history(name))}
        rates = {name: history.rates_rps[-1] for name, history in histories.items()}
        table = self._cluster.table(self._key)
        weights = {entry.name: entry.weights for entry in table.classes} if table else {}
        pools = {}
        for pool in self._truth:
            replicas = len(self._cluster.ready(pool))
            parts = []
            for name, rate in rates.items():
                total = sum(weights.get(name, {}).values())
                share = weights.get(name, {}).get(pool, 0) / total if total else 0.0
                parts.append((rate * share, self._mixes[name]))
            if replicas:
                pools[pool] = self._pool(pool, replicas, parts)
        return reading.found(pools, histories, scraped_s)

    def _history(self, name: str) -> RateHistory | None:
        counts, width_s = self._counts[name], self._settings.scrape_s
        per_window = round(self._settings.short_window_s / width_s)
        most = int(reading.HISTORY_S / self._settings.short_window_s)
        windows = min(most, len(counts) // per_window)
        if not windows:
            return None
        sums = np.array(counts[len(counts) - windows * per_window :]).reshape(windows, per_window).sum(axis=1)
        del counts[: max(0, len(counts) - (most + _WINDOWS) * per_window)]
        return RateHistory(self._settings.short_window_s, tuple((sums / self._settings.short_window_s).tolist()))

    def _pool(self, pool: str, replicas: int, parts: list[tuple[float, TokenMix]]) -> PoolReading:
        rate_rps = sum(rate for rate, _ in parts)
        if rate_rps <= 0:
            empty = np.zeros(0)
            return PoolReading(replicas, rate_rps=0.0, ttft=histogram(empty, TTFT_EDGES), running=0.0, waiting=0.0)
        profile, mix = self._truth[pool], blend(parts)
        expected = latency(profile, mix, rate_rps / replicas)
        n = rate_rps * reading.WINDOW_S
        each = np.full(len(_QUANTILES), n / len(_QUANTILES))
        ttft_s = np.array([expected.ttft_s(100 * quantile) for quantile in _QUANTILES])
        # The quantiles lose the end of the tail, which the mean needs.
        ttft_s[-1] += max(0.0, expected.ttft_mean_s - ttft_s.mean()) * len(ttft_s)
        gaps = max(1.0, mix.output_tokens - 1)
        full = rate_rps / replicas >= stable_rate_rps(profile, mix)
        return PoolReading(
            replicas=replicas,
            rate_rps=rate_rps,
            ttft=histogram(ttft_s, TTFT_EDGES, each),
            # Engines count every gap, where the form has the mean over requests.
            inter_token=histogram(np.array([expected.decode_s / gaps]), GAP_EDGES, np.array([n * gaps])),
            e2e=histogram(ttft_s + expected.decode_s, E2E_EDGES, each),
            prompt_tokens=histogram(np.array([mix.prompt_tokens]), TOKEN_EDGES, np.array([n])),
            output_tokens=histogram(np.array([mix.output_tokens]), TOKEN_EDGES, np.array([n])),
            running=_running(expected, rate_rps),
            waiting=10.0 * replicas if full else 0.0,
            kv_usage=0.5,
        )


def _running(expected: Latency, rate_rps: float) -> float:
    return rate_rps * expected.e2e_mean_s
