"""The loop: one pass reads the world, decides for all plans, carries it out and reports.

Level-triggered: a pass never asks what changed. Events and new readings only say that it is time for one; without any, one
comes every tick. A failure of one plan does not keep the others from being served.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp

from servingplan.api import v1alpha1
from servingplan.calibration.readings import Found
from servingplan.controller.apply import apply
from servingplan.controller.decide import Decision, decide
from servingplan.controller.desired import desired
from servingplan.controller.health import Pulse
from servingplan.controller.kube import CONFLICT, Kube, KubeError, NotLeader
from servingplan.controller.measure import Meter
from servingplan.controller.news import event, news, shown_of
from servingplan.controller.observe import Watched, observe
from servingplan.controller.policy import Policy
from servingplan.controller.settings import Settings
from servingplan.controller.status import status
from servingplan.controller.telemetry import SolveKind, Telemetry
from servingplan.controller.world import PlanObject, World
from servingplan.planning.problem import Plan, Problem
from servingplan.planning.solve import solve
from servingplan.render import names
from servingplan.render.overlay import OverlayError

log = logging.getLogger(__name__)

DEBOUNCE_S = 0.05
SYNC_POLL_S = 0.25
STEP_S = 1.0
"""Between two steps of the weights, once the routers have taken the one before."""
REPUBLISH_AFTER_S = 5.0
"""A router that has not taken a table by then has refused it, or has missed it."""
BACKOFF_S = (0.2, 10.0)
_REMEMBERED = 512
_REFUSALS = frozenset({400, 403, 422})
"""Answers that asking again does not change: the user, or who grants rights, has to act."""


class RememberingSolver:
    """Solves a problem once: most passes ask the same questions again."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._answers: OrderedDict[str, Plan] = OrderedDict()
        self._telemetry = telemetry

    def __call__(self, problem: Problem) -> Plan:
        """The answer to a problem.

        Raises:
            SolverFailed: None was found in time; it is asked anew the next time.
        """
        # The text itself may be some hundred kilobytes.
        question = hashlib.sha256(repr(problem).encode()).hexdigest()
        if question not in self._answers:
            with self._telemetry.solving(_kind(problem)):
                self._answers[question] = solve(problem)
            while len(self._answers) > _REMEMBERED:
                self._answers.popitem(last=False)
        self._answers.move_to_end(question)
        return self._answers[question]


def _kind(problem: Problem) -> SolveKind:
    """What a problem asks for: weights for given replicas, what held replicas come to, or replicas."""
    if problem.standing is not None:
        return "weights"
    setups = [setup for plan in problem.plans for model in plan.models for setup in model.setups]
    return "hold" if all(setup.min_replicas == setup.max_replicas for setup in setups) else "plan"


@dataclass(slots=True)
class _Publication:
    """The table that routers are to take, and since when."""

    digest: str
    revision: int
    since: float


@dataclass(slots=True)
class Loop:
    """One pass after another.

    Attributes:
        watched: Says what the watches have brought.
        publications: By plan key; rebuilt from the cluster after a restart.
        reported: By plan key, the statuses that were replaced and the one that was written last.
    """

    kube: Kube
    http: aiohttp.ClientSession
    settings: Settings
    watched: Callable[[], Awaitable[Watched]]
    pulse: Pulse
    meter: Meter
    telemetry: Telemetry
    wake: asyncio.Event
    solver: RememberingSolver
    leads: Callable[[], Awaitable[None]]
    publications: dict[str, _Publication] = field(default_factory=dict)
    reported: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = field(default_factory=dict)

    async def run(self) -> None:
        """Passes until it is cancelled; starts with the first wake, when every watch has listed its kind.

        Raises:
            NotLeader: This operator no longer leads.
        """
        await self.wake.wait()
        self.pulse.listed()
        self.meter.listed()
        await self.leads()
        self.pulse.leads()
        backoff_s, again_s = BACKOFF_S[0], 0.0
        while True:
            await self._sleep_until_due(again_s)
            self.pulse.turn()
            began = time.monotonic()
            try:
                again_s = await self._pass()
                self.pulse.completed()
                self.telemetry.passed("completed", time.monotonic() - began)
                backoff_s = BACKOFF_S[0]
            except NotLeader:
                # Whoever waits for the Lease's loss ends the process; until then nothing may be written.
                raise
            except Exception as error:  # whatever is wrong with one world may be right with the next: the loop must not end
                expected = isinstance(error, KubeError)
                log.warning("pass failed, again in %.1f s: %s", backoff_s, error, exc_info=not expected)
                self.pulse.failed(str(error) if expected else "internal error, see the log")
                self.telemetry.passed("failed", time.monotonic() - began)
                self.telemetry.error("kube" if expected else "internal")
                again_s, backoff_s = backoff_s, min(2 * backoff_s, BACKOFF_S[1])

    async def _sleep_until_due(self, again_s: float) -> None:
        try:
            await asyncio.wait_for(self.wake.wait(), timeout=again_s or self.settings.tick_s)
        except TimeoutError:
            pass
        else:
            # Events come in bursts: a rollout is one cause for a pass, not twenty.
            await asyncio.sleep(DEBOUNCE_S)
        self.wake.clear()

    async def _pass(self) -> float:
        """One pass; says in how many seconds the next one is due at the latest, 0 for a tick."""
        watched = await self.watched()
        readings = {key: self.meter.of(key) for key in watched.plan_keys}
        world = await observe(self.kube, self.http, watched, readings, self.settings.namespaces, time.time())
        decisions = await asyncio.to_thread(decide, world, self._policy(), self.solver)
        due, failures = [0.0], []
        for plan in map(self._as_reported, world.plans):
            try:
                due.append(await self._carry_out(plan, decisions.get(plan.key), world))
            except KubeError as error:
                failures.append(f"{plan.key}: {error}")
            except NotLeader:
                raise
            except Exception:  # one plan that cannot be carried out, for whatever reason, must not keep the others from it
                log.exception("%s: not carried out", plan.key)
                failures.append(f"{plan.key}: internal error, see the log")
        self._forget({plan.key for plan in world.plans})
        if failures:
            raise KubeError(0, "; ".join(failures))
        return min((seconds for seconds in due if seconds > 0), default=0.0)

    def _policy(self) -> Policy:
        settings = self.settings
        return Policy(settings.tick_s, settings.cycle_s, settings.dwell_s)

    def _forget(self, present: set[str]) -> None:
        """Lets go of plans that are gone."""
        self.telemetry.keep(present)
        self.publications = {key: value for key, value in self.publications.items() if key in present}
        self.reported = {key: value for key, value in self.reported.items() if key in present}

    def _as_reported(self, plan: PlanObject) -> PlanObject:
        """The plan with the status that was written last, where the watch has not brought it yet: news is told once."""
        replaced, written = self.reported.get(plan.key, ([], {}))
        if plan.status in replaced:
            return replace(plan, status=written)
        if plan.key in self.reported:
            self.reported[plan.key] = ([], plan.status)
        return plan

    async def _carry_out(self, plan: PlanObject, decision: Decision | None, world: World) -> float:
        """Applies and reports one plan; says in how many seconds there is more to do, 0 for a tick."""
        wanted, refused = None, ""
        if decision is not None:
            try:
                wanted = desired(decision, world, self.settings, self._revision(decision, world))
                for kind, _, name in await apply(self.kube, wanted, world, world.children_of(plan), plan.key):
                    message = f"{kind} {name} was changed by somebody else and is as planned again"
                    await self._tell(plan, event(plan, "Warning", "DriftCorrected", message))
            except OverlayError as error:
                refused = f"template: {error}"
                self.telemetry.error("template")
            except KubeError as error:
                if error.status not in _REFUSALS:
                    raise
                refused = str(error)
        found = status(plan, decision, world, wanted.stamp if wanted else None, refused=refused)
        self._tell_metrics(plan, decision, world, found)
        if found != plan.status:
            await self._report(plan, found)
        if wanted is None or refused or decision is None:
            return 0.0
        if world.silent(plan.key) or world.behind(plan.key, wanted.stamp):
            return SYNC_POLL_S
        return 0.0 if decision.settled else STEP_S

    def _tell_metrics(self, plan: PlanObject, decision: Decision | None, world: World, found: dict[str, Any]) -> None:
        readings = world.readings_of(plan.key)
        if readings.age_s is not None:
            self.telemetry.sampled(plan.key, time.time() - readings.taken_s + readings.age_s)
        if readings.found is Found.UNREACHABLE:
            self.telemetry.error("prometheus")
        if world.silent(plan.key):
            self.telemetry.error("router")
        if decision is None:
            self.telemetry.plan(plan.key, found)
            return
        weights, bounds = shown_of(decision)
        self.telemetry.plan(plan.key, found, asked=decision.asked, weights=weights, bounds=bounds)
        if decision.planned is None or decision.sharing is None:
            self.telemetry.error("solver")
        if found.get("history", [])[:1] != plan.status.get("history", [])[:1]:
            self.telemetry.decided(plan.key, decision.cause.value)

    def _revision(self, decision: Decision, world: World) -> int:
        """The table's revision: one more than the published one when routers have not taken that for too long."""
        plan = decision.plan
        live = world.children_of(plan).get(("ConfigMap", plan.owner.namespace, names.table_name(plan.owner.name)))
        published = live["metadata"].get("annotations", {}).get(names.ANNOTATION_TABLE, "") if live else ""
        digest, _, revision_text = published.partition(".")
        revision = int(revision_text) if digest == decision.table.digest and revision_text.isdigit() else 0
        current = self.publications.get(plan.key)
        if current is None or current.digest != decision.table.digest or current.revision < revision:
            current = self.publications[plan.key] = _Publication(decision.table.digest, revision, time.monotonic())
        stamp = names.table_stamp(current.digest, current.revision)
        behind = world.behind(plan.key, stamp)
        if behind and time.monotonic() - current.since > REPUBLISH_AFTER_S:
            log.warning("%s: %s did not take table %s, publishing it again", plan.key, ", ".join(behind), stamp)
            current = self.publications[plan.key] = _Publication(current.digest, current.revision + 1, time.monotonic())
        return current.revision

    async def _report(self, plan: PlanObject, found: dict[str, Any]) -> None:
        body = {
            "apiVersion": v1alpha1.API_VERSION,
            "kind": v1alpha1.KIND,
            "metadata": {"name": plan.owner.name, "namespace": plan.owner.namespace, "uid": plan.owner.uid},
            "status": found,
        }
        for kind, reason, message in news(plan, found):
            log.info("%s: %s %s", plan.key, reason, message)
            await self._tell(plan, event(plan, kind, reason, message, once=True))
        await self.kube.apply(body, status=True)
        replaced, _ = self.reported.get(plan.key, ([], {}))
        self.reported[plan.key] = ([*replaced, plan.status], found)

    async def _tell(self, plan: PlanObject, event: dict[str, Any]) -> None:
        try:
            await self.kube.create("Event", plan.owner.namespace, event)
        except KubeError as error:
            if error.status == CONFLICT:
                # Told by a predecessor that died before it could write the status.
                return
            # News that does not arrive must not keep a plan from being served.
            log.warning("%s: event not recorded: %s", plan.key, error)
