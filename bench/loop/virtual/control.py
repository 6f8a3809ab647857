"""The controller's own decisions, on a virtual cluster: decide, render, report, at every tick."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from servingplan.calibration.readings import Readings
from servingplan.controller.decide import Decision, decide
from servingplan.controller.desired import Desired, desired
from servingplan.controller.policy import Policy
from servingplan.controller.reconcile import RememberingSolver
from servingplan.controller.settings import Settings
from servingplan.controller.status import status
from servingplan.controller.telemetry import Telemetry
from servingplan.controller.world import World
from virtual.cluster import Cluster

SETTINGS = Settings(vllm_image="vllm", router_image="envoy")


@dataclass(slots=True)
class Controller:
    """What the operator does between reading the world and writing to it.

    Attributes:
        seconds: Processor time of every tick's decisions.
    """

    policy: Policy = field(default_factory=Policy)
    solver: RememberingSolver = field(default_factory=lambda: RememberingSolver(Telemetry(lambda: True)))
    seconds: list[float] = field(default_factory=list)
    _rendered: dict[str, tuple[Any, Desired]] = field(default_factory=dict)

    def tick(self, cluster: Cluster, readings: dict[str, Readings]) -> dict[str, Decision]:
        """One pass: decides, applies, reports."""
        world = cluster.seen(readings)
        begun_s = time.process_time()
        decisions = decide(world, self.policy, self.solver)
        self.seconds.append(time.process_time() - begun_s)
        for plan in world.plans:
            decision = decisions.get(plan.key)
            wanted = self._desired(decision, world) if decision else None
            if wanted is not None:
                cluster.store(plan, wanted.objects.values())
            cluster.report(plan.key, status(plan, decision, world, wanted.stamp if wanted else None))
        present = {plan.key for plan in world.plans}
        self._rendered = {key: value for key, value in self._rendered.items() if key in present}
        return decisions

    def _desired(self, decision: Decision, world: World) -> Desired:
        """The plan's objects; not rendered again where what they are made from is as it was."""
        plan = decision.plan
        pools = frozenset(pod.pool for pod in world.pods if pod.plan_key == plan.key)
        question = (plan.owner.uid, plan.generation, decision.asked, decision.table, decision.surge, pools)
        before = self._rendered.get(plan.key)
        if before is None or before[0] != question:
            before = self._rendered[plan.key] = question, desired(decision, world, SETTINGS, 0)
        return before[1]
