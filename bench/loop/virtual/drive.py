"""A run: the controller at every tick, and between two ticks whatever happens to the requests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from servingplan.calibration.readings import Readings
from servingplan.controller.decide import Decision
from servingplan.render import names
from virtual.cluster import Cluster
from virtual.control import Controller
from virtual.forecast import Compared, compared

TICK_S = 10.0


class Plant(Protocol):
    """What happens to the requests of one plan."""

    def serve(self, until_s: float) -> None:
        """Lets requests arrive and be served."""

    def readings(self) -> Readings:
        """What Prometheus says now."""


@dataclass(frozen=True, slots=True)
class Tick:
    """One look of the controller at one plan.

    Attributes:
        target, asked, ready: Replicas by pool.
        predicted_p95_s, predicted_mean_s: TTFT by pool that gets requests, at the rates that weights are made for.
        weights: Share of each class by pool, in the table.
        shed: Share of each class that is refused.
        measured_rps: By class, in the last short window.
        planned_rps: By class.
        routed_rps: By class.
        units: Accelerator units that pods hold, those that start or leave included.
        seconds: Processor time of the decision.
        cause: Why the targets are what they are.
        news: What moved enough to plan anew for.
    """

    now_s: float
    target: dict[str, int]
    asked: dict[str, int]
    ready: dict[str, int]
    predicted_p95_s: dict[str, float]
    predicted_mean_s: dict[str, float]
    weights: dict[str, dict[str, float]]
    shed: dict[str, float]
    measured_rps: dict[str, float]
    planned_rps: dict[str, float]
    routed_rps: dict[str, float]
    units: int
    seconds: float
    cause: str = ""
    news: tuple[str, ...] = ()


@dataclass(slots=True)
class Run:
    """What was seen of one plan, oldest first; times are virtual."""

    ticks: list[Tick] = field(default_factory=list)
    compared: list[Compared] = field(default_factory=list)


def run(
    cluster: Cluster,
    plants: dict[str, Plant],
    until_s: float,
    *,
    controller: Controller | None = None,
    compare: bool = False,
    before: Callable[[float], None] = lambda _now_s: None,
) -> dict[str, Run]:
    """Runs of every plan that has a plant.

    Args:
        cluster: The cluster, its plans put.
        plants: By plan key.
        until_s: End.
        controller: One that has a past, or None.
        compare: Whether the predictor is held against what is measured, once a cycle.
        before: Called at every tick before the controller looks: changes of plans, with their plants, and failures.
    """
    controller = controller or Controller()
    runs: dict[str, Run] = {key: Run() for key in plants}
    while cluster.now_s < until_s:
        now_s = cluster.now_s + TICK_S
        for plant in plants.values():
            plant.serve(now_s)
        cluster.advance(now_s)
        before(now_s)
        cluster.advance(now_s)
        readings = {key: plant.readings() for key, plant in plants.items()}
        if compare and now_s % controller.policy.cycle_s == 0:
            world = cluster.seen(readings)
            for plan in world.plans:
                runs[plan.key].compared += [replace(one, now_s=now_s) for one in compared(world, plan)]
        decisions = controller.tick(cluster, readings)
        for key in runs.keys() & decisions.keys():
            runs[key].ticks.append(_tick(cluster, decisions[key], readings[key], controller.seconds[-1]))
    return runs


def _tick(cluster: Cluster, decision: Decision, readings: Readings, seconds: float) -> Tick:
    plan = decision.plan.owner.name

    def by_pool(of: dict[tuple[str, str], int]) -> dict[str, int]:
        return {names.pool_name(plan, *key): count for key, count in sorted(of.items())}

    answer = decision.sharing
    predicted = (
        {names.pool_name(plan, a.model, a.setup): a.predicted for a in answer.allocations if a.predicted} if answer else {}
    )
    status = cluster.plans[decision.plan.key].status
    demand = {entry["class"]: entry for entry in status.get("demand", []) if "class" in entry}
    return Tick(
        now_s=cluster.now_s,
        target=by_pool(decision.target),
        asked=by_pool(decision.asked),
        ready=by_pool(decision.ready),
        predicted_p95_s={pool: p.ttft_p95_s for pool, p in predicted.items()},
        predicted_mean_s={pool: p.ttft_mean_s for pool, p in predicted.items()},
        weights={
            entry.name: {pool: weight / 1e6 for pool, weight in entry.weights.items()} for entry in decision.table.classes
        },
        shed={entry.name: entry.shed for entry in decision.table.classes},
        measured_rps={name: history.rates_rps[-1] for name, history in readings.classes.items()},
        planned_rps={name: float(entry["planned"]) for name, entry in demand.items()},
        routed_rps={name: float(entry["routed"]) for name, entry in demand.items()},
        units=cluster.units(),
        seconds=seconds,
        cause=decision.cause.value,
        news=decision.news,
    )
