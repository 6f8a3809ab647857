"""The runs: Azure traffic on replicas of another speed, noise round a constant load, a step, and plans that come and go."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from servingplan.controller.policy import Policy
from servingplan.latency.profile import EngineProfile, StepTime
from servingplan.planning.build import engine_profile, token_mix
from servingplan.render import names
from virtual import service, traffic
from virtual.analysis import Window, windows
from virtual.cluster import Cluster, manifest_plan
from virtual.control import Controller
from virtual.drive import Plant, Run, run
from virtual.engines import REFUSED, UNSERVED, Engines
from virtual.formula import Formula
from virtual.reading import Settings

BEGIN_S = 300.0
"""Requests begin when the first replicas are ready."""
DRAIN_S = 120.0
SPEEDS = (0.8, 1.3)


@dataclass(frozen=True, slots=True)
class Result:
    """A run with engines.

    Attributes:
        speed: True speed by accelerator, as a multiple of the profile's.
        arrivals_rps: (minutes,) by class.
        refused: Requests that the plan shed.
        unserved: Requests that found no replica, or whose replica was lost.
        seconds: That the run took.
    """

    name: str
    seed: int
    calibration: bool
    speed: dict[str, float]
    begin_s: float
    until_s: float
    run: Run
    windows: list[Window]
    arrivals_rps: dict[str, np.ndarray]
    requests: int
    refused: int
    unserved: int
    seconds: float


def arrivals(kind: str, rates_rps: dict[str, float], seconds: float, chance: np.random.Generator) -> traffic.Requests:
    """Azure or Poisson arrivals of every class, with the lengths of its trace."""
    found = {}
    for name, rate_rps in rates_rps.items():
        source = service.TRACE[name]
        if kind == "azure":
            found[name] = traffic.azure(source, rate_rps, seconds, chance)
        else:
            times_s = traffic.poisson(lambda t, rate=rate_rps: np.full(len(t), rate), rate_rps, seconds, chance)
            found[name] = traffic.with_lengths(source, times_s, chance)
    return traffic.merged(found, BEGIN_S)


def stepped(
    rates_rps: dict[str, float], factor: float, at_s: float, seconds: float, chance: np.random.Generator
) -> traffic.Requests:
    """Poisson arrivals whose rate is multiplied at a time after the begin."""
    found = {}
    for name, rate_rps in rates_rps.items():
        times_s = traffic.poisson(
            lambda t, rate=rate_rps: np.where(t < at_s, rate, factor * rate), factor * rate_rps, seconds, chance
        )
        found[name] = traffic.with_lengths(service.TRACE[name], times_s, chance)
    return traffic.merged(found, BEGIN_S)


def with_engines(
    name: str,
    seed: int,
    speed: dict[str, float],
    rates_rps: dict[str, float],
    requests: traffic.Requests,
    seconds: float,
    *,
    calibration: bool = True,
    scrape_s: float = 15.0,
    **spec: object,
) -> Result:
    """Serves requests with engines and the controller's decisions."""
    begun_s = time.perf_counter()
    chance, pools = np.random.default_rng([seed, 7]), service.pools()
    cluster = Cluster(service.nodes(), lambda pool: service.COLD_START_S[pools[pool]] * chance.uniform(0.7, 1.0))
    cluster.put(manifest_plan(service.manifest(rates_rps, calibration=calibration, **spec)))
    plant = Engines(service.KEY, cluster, service.replicas(speed), requests, Settings(scrape_s), seed)
    cluster.busy = plant.busy
    until_s = BEGIN_S + seconds
    controller = Controller(Policy())
    found = run(cluster, {service.KEY: plant}, until_s + DRAIN_S, controller=controller, compare=True)[service.KEY]
    outcome = plant.outcome()
    minutes = np.arange(0, seconds + 1, 60.0) + BEGIN_S
    return Result(
        name=name,
        seed=seed,
        calibration=calibration,
        speed=speed,
        begin_s=BEGIN_S,
        until_s=until_s,
        run=found,
        windows=windows(outcome, service.SLO_S, BEGIN_S, until_s),
        arrivals_rps={
            each: np.histogram(requests.arrival_s[requests.kind == at], minutes)[0] / 60.0
            for at, each in enumerate(requests.classes)
        },
        requests=len(requests.arrival_s),
        refused=int(np.sum(outcome.pool == REFUSED)),
        unserved=int(np.sum(outcome.pool == UNSERVED)) + int(np.sum((outcome.pool >= 0) & np.isnan(outcome.finished_s))),
        seconds=time.perf_counter() - begun_s,
    )


def speeds_of(seed: int) -> dict[str, float]:
    """One accelerator is slower than its profile and the other faster; which is which alternates."""
    slow, fast = SPEEDS if seed % 2 == 0 else SPEEDS[::-1]
    return {"h100": slow, "l40s": fast}


def true_profiles(plan_body: dict, speed: dict[str, float]) -> dict[str, EngineProfile]:
    """How fast the replicas of each pool really are, as the closed form takes it."""
    plan = manifest_plan(plan_body)
    assert plan.spec is not None, "the body was parsed"
    found = {}
    for model in plan.spec.models:
        for setup in model.setups:
            declared = engine_profile(plan.profiles[model.name, setup.name])
            assert declared.step is not None, "these profiles have coefficients"
            factor = 1 / speed[setup.accelerator]
            step = declared.step
            found[names.pool_name(plan.owner.name, model.name, setup.name)] = EngineProfile(
                step=StepTime(step.alpha_s * factor, step.beta_s * factor, step.gamma_s * factor, step.floor_s * factor),
                max_num_seqs=declared.max_num_seqs,
                max_num_batched_tokens=declared.max_num_batched_tokens,
                kv_tokens=declared.kv_tokens,
            )
    return found


@dataclass(frozen=True, slots=True)
class NoiseResult:
    """An hour of noise round a constant load."""

    seed: int
    run: Run
    gpus: int
    seconds: float


def noise(seed: int, rates_rps: dict[str, float], seconds: float = 3600.0, spread: float = 0.1) -> NoiseResult:
    """A constant load with another factor within 1 - spread .. 1 + spread every minute, on 64 GPUs as fast as declared."""
    begun_s = time.perf_counter()
    body = service.manifest(rates_rps)
    pools = service.pools()
    nodes = service.nodes(4, 4)
    cluster = Cluster(nodes, lambda pool: float(service.COLD_START_S[pools[pool]]))
    plan = manifest_plan(body)
    assert plan.spec is not None, "the body was parsed"
    cluster.put(plan)
    chance = np.random.default_rng([seed, 3])
    minutes = int((BEGIN_S + seconds) // 60) + 2
    factors = {name: chance.uniform(1 - spread, 1 + spread, minutes) for name in rates_rps}
    plant = Formula(
        service.KEY,
        cluster,
        true_profiles(body, {"h100": 1.0, "l40s": 1.0}),
        {entry.name: token_mix(entry) for entry in plan.spec.request_classes},
        lambda name, now_s: rates_rps[name] * float(factors[name][int(now_s // 60)]),
        Settings(),
        BEGIN_S,
        seed,
    )
    found = run(cluster, {service.KEY: plant}, BEGIN_S + seconds)[service.KEY]
    gpus = sum(node.allocatable["nvidia.com/gpu"] for node in nodes)
    return NoiseResult(seed, found, gpus, time.perf_counter() - begun_s)


@dataclass(slots=True)
class ChurnResult:
    """An hour of plans that come and go.

    Attributes:
        time_s, rss_mb, plans: One entry a tick.
        events: How often what happened.
    """

    time_s: list[float] = field(default_factory=list)
    rss_mb: list[float] = field(default_factory=list)
    plans: list[int] = field(default_factory=list)
    events: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


def rss_mb() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


class _Churn:
    """Plans applied, changed and removed, and pods that fail, at random."""

    def __init__(self, cluster: Cluster, plants: dict[str, Plant], chance: np.random.Generator, most: int) -> None:
        self._cluster, self._plants, self._chance, self._most, self._next = cluster, plants, chance, most, 0
        self.events = dict.fromkeys(("applied", "changed", "removed", "failed"), 0)

    def happen(self, now_s: float) -> None:
        """What happens at one tick."""
        chance = self._chance
        plans = sorted(self._cluster.plans)
        if len(plans) < self._most and chance.random() < 0.1:
            self._apply(now_s)
        if plans and chance.random() < 0.05:
            self._change(plans[chance.integers(len(plans))])
        if len(plans) > self._most // 2 and chance.random() < 0.05:
            self._remove(plans[chance.integers(len(plans))])
        pods = sorted(name for name, pod in self._cluster.pods.items() if pod.ready and not pod.terminating)
        if pods and chance.random() < 0.1:
            self._cluster.fail(pods[chance.integers(len(pods))])
            self.events["failed"] += 1

    def _body(self, name: str) -> dict:
        rates = {"chat": float(self._chance.uniform(2, 10)), "code": float(self._chance.uniform(1, 5))}
        return service.manifest(rates, name=name, drawn=self._chance)

    def _apply(self, now_s: float) -> None:
        name = f"plan-{self._next:03d}"
        self._next += 1
        body = self._body(name)
        plan = manifest_plan(body)
        assert plan.spec is not None, "the body was parsed"
        self._cluster.put(plan)
        rates = {entry.name: float(entry.rate) for entry in plan.spec.request_classes}
        phase = float(self._chance.uniform(0, 6))
        self._plants[plan.key] = Formula(
            plan.key,
            self._cluster,
            true_profiles(body, {kind: float(self._chance.uniform(0.75, 1.35)) for kind in service.PRODUCTS}),
            {entry.name: token_mix(entry) for entry in plan.spec.request_classes},
            lambda which, at_s: rates[which] * (1 + 0.4 * float(np.sin(at_s / 600 + phase))),
            Settings(),
            now_s,
            self._next,
        )
        self.events["applied"] += 1

    def _change(self, key: str) -> None:
        body = self._body(key.partition("/")[2])
        body["metadata"]["generation"] = self._cluster.plans[key].generation + 1
        self._cluster.put(manifest_plan(body))
        self.events["changed"] += 1

    def _remove(self, key: str) -> None:
        self._cluster.remove(key)
        del self._plants[key]
        self.events["removed"] += 1


def churn(seed: int, hours: float = 1.0, most: int = 6, probe: Callable[[], None] = lambda: None) -> ChurnResult:
    """Virtual hours of churn in this process, whose memory is watched.

    Args:
        seed: Of what happens.
        hours: Length.
        most: Plans at once.
        probe: Called at every tick.
    """
    begun_s = time.perf_counter()
    cluster = Cluster(service.nodes(8, 6), lambda _pool: 90.0)
    plants: dict[str, Plant] = {}
    chaos = _Churn(cluster, plants, np.random.default_rng(seed), most)
    found = ChurnResult()
    controller = Controller()

    def before(now_s: float) -> None:
        chaos.happen(now_s)
        found.time_s.append(now_s)
        found.rss_mb.append(rss_mb())
        found.plans.append(len(cluster.plans))
        probe()

    run(cluster, plants, 3600.0 * hours, controller=controller, before=before)
    found.events, found.seconds = chaos.events, time.perf_counter() - begun_s
    return found
