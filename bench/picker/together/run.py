"""One seed: the same requests three ways."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from together import measure, service, trace
from together.measure import Measured
from together.online import Picked
from together.trace import Asked
from virtual.cluster import Cluster, manifest_plan
from virtual.control import Controller
from virtual.drive import run
from virtual.engines import Engines
from virtual.reading import Settings
from virtual.scenes import BEGIN_S, DRAIN_S, speeds_of

WEIGHTS, ONLINE, REPLANNED = "weights", "online", "online, replanned"
WAYS = (WEIGHTS, ONLINE, REPLANNED)
_SCRAPE_S = 15.0


@dataclass(frozen=True, slots=True)
class Setting:
    """What every way of every seed has in common.

    Attributes:
        arrivals: One of `trace.ARRIVALS`.
        seconds: How long requests come.
        preset: What the picker gives most for.
        shed: Whether the picker refuses what no replica can begin in time.
        hears: Whether the picker is told of first bytes.
    """

    arrivals: str = "azure"
    rate_rps: float = service.RATE_RPS
    seconds: float = 1800.0
    preset: str = "Quality"
    shed: bool = True
    hears: bool = False


def one_seed(setting: Setting, ways: tuple[str, ...], seed: int) -> dict[str, Measured]:
    """What came of the requests of a seed, by way."""
    asked = trace.draw(setting.arrivals, setting.rate_rps, setting.seconds, BEGIN_S, seed)
    return {way: served(setting, asked, way, seed) for way in ways}


def served(setting: Setting, asked: Asked, way: str, seed: int) -> Measured:
    """Serves requests one way, on engines that are faster or slower than declared."""
    begun_s = time.process_time()
    chance = np.random.default_rng([seed, 7])
    cluster = Cluster(service.nodes(), lambda pool: service.cold_start_s(pool) * chance.uniform(0.7, 1.0))
    cluster.put(manifest_plan(service.manifest(_router(setting, way), setting.rate_rps)))
    truth = service.replicas(speeds_of(seed))
    plant: Engines
    if way == WEIGHTS:
        plant = Engines(service.KEY, cluster, truth, asked.requests, Settings(_SCRAPE_S), seed, asked.outputs())
    else:
        plant = Picked(
            service.KEY,
            cluster,
            truth,
            asked,
            Settings(_SCRAPE_S),
            seed,
            reports=way == REPLANNED,
            hears=setting.hears,
        )
    cluster.busy = plant.busy
    until_s = BEGIN_S + setting.seconds
    ticks = run(cluster, {service.KEY: plant}, until_s + DRAIN_S, controller=Controller())[service.KEY].ticks
    return measure.measured(asked, plant.outcome(), ticks, BEGIN_S, until_s, time.process_time() - begun_s)


def _router(setting: Setting, way: str) -> dict[str, object]:
    if way == WEIGHTS:
        return {"policy": "Weights", "replicas": 1}
    return {"policy": "Online", "preset": setting.preset, "shed": setting.shed, "replicas": 1}
