"""A cluster that does at once what it is told: decisions come true between two looks at the world."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from worlds import NOW_S, deployment, plan, pod, world

from servingplan.calibration.readings import Readings
from servingplan.controller.decide import Decision, decide
from servingplan.controller.policy import Policy
from servingplan.controller.status import status
from servingplan.controller.world import Node, PlanObject, Pod, Served, World
from servingplan.planning.problem import Plan, Problem
from servingplan.planning.solve import solve
from servingplan.render import names

_ANSWERS: dict[str, Plan] = {}
"""As in the operator, a question that was answered is not asked again; tests share the answers."""


@dataclass
class Cluster:
    """One or more plans on nodes; time passes only by ``look``.

    Attributes:
        starts_in_s: Seconds from a pod's creation until it is ready, by pool; a pool that is not named takes ``cold_s``.
        readings: Made anew at every look, from the plan and the time.
        found_in_s: Seconds from a pod's being ready until the router knows it.
        decisions: Every decision that was taken, by plan key, oldest first.
    """

    plans: list[PlanObject]
    changes: dict[str, Any] = field(default_factory=dict)
    policy: Policy = field(default_factory=Policy)
    cold_s: float = 30.0
    starts_in_s: dict[str, float] = field(default_factory=dict)
    found_in_s: float = 0.0
    readings: Callable[[PlanObject, float], Readings] | None = None
    now_s: float = NOW_S
    pods: list[Pod] = field(default_factory=list)
    children: dict[Any, Any] = field(default_factory=dict)
    served: dict[str, dict[str, Served | None]] = field(default_factory=dict)
    decisions: dict[str, list[Decision]] = field(default_factory=dict)
    _made: int = 0

    def world(self) -> World:
        """What is seen now."""
        readings = {each.key: self.readings(each, self.now_s) for each in self.plans} if self.readings else {}
        base = world(*self.plans, pods=tuple(self.pods), children=self.children, served=self.served, now_s=self.now_s)
        return replace(base, readings=readings, **self.changes)

    def look(self, seconds: float = 1.0) -> dict[str, Decision]:
        """Lets time pass, decides, and carries it out; the routers serve the new table at the next look."""
        self.now_s += seconds
        self._advance_pods()
        seen = self.world()
        found = decide(seen, self.policy, self._solve)
        for at, each in enumerate(self.plans):
            decision = found.get(each.key)
            if decision is not None:
                self.decisions.setdefault(each.key, []).append(decision)
                self._carry_out(each, decision)
            stamp = names.table_stamp(decision.table.digest, 0) if decision else None
            self.plans[at] = replace(each, status=status(each, decision, seen, stamp))
        return found

    def rest(self, looks: int = 60, seconds: float = 5.0) -> Decision:
        """Looks on until nothing moves; the first plan's last decision."""
        for _ in range(looks):
            key = self.plans[0].key
            decision = self.look(seconds)[key]
            if decision.settled and decision.asked == decision.target == decision.ready:
                return decision
        raise AssertionError(f"still moving: asked {decision.asked}, wanted {decision.target}, ready {decision.ready}")

    def change(self, body: dict[str, Any]) -> None:
        """Applies a new generation of the first plan."""
        old = self.plans[0]
        self.plans[0] = plan(body, status=old.status, generation=old.generation + 1)

    def weights(self, name: str) -> dict[str, int]:
        """Weights of a class by pool, as they were published last for the first plan."""
        table = self.decisions[self.plans[0].key][-1].table
        return next(entry.weights for entry in table.classes if entry.name == name)

    @property
    def known(self) -> frozenset[str]:
        """Pools that the router knows a pod of."""
        return frozenset(one.pool for one in self.pods if one.ready and self.now_s - one.ready_changed_s >= self.found_in_s)

    @property
    def _nodes(self) -> tuple[Node, ...]:
        return self.changes.get("nodes", world().nodes)

    def _solve(self, problem: Problem) -> Plan:
        question = repr(problem)
        if question not in _ANSWERS:
            _ANSWERS[question] = solve(problem)
        return _ANSWERS[question]

    def _carry_out(self, each: PlanObject, decision: Decision) -> None:
        for key, count in decision.asked.items():
            self.children |= deployment(each, *key, count)
            self._scale(each, key, count)
        name = names.table_name(each.owner.name)
        stamp = names.table_stamp(decision.table.digest, 0)
        self.children["ConfigMap", each.owner.namespace, name] = {
            "metadata": {
                "name": name,
                "namespace": each.owner.namespace,
                "ownerReferences": [{"uid": each.owner.uid}],
                "annotations": {names.ANNOTATION_TABLE: stamp},
            },
            "data": {"table.json": decision.table.model_dump_json(by_alias=True)},
        }
        self.served[each.key] = {"router-1": Served(decision.table.digest, 0, each.generation, self.known)}

    def _scale(self, each: PlanObject, key: tuple[str, str], count: int) -> None:
        pool = names.pool_name(each.owner.name, *key)
        mine = [one for one in self.pods if one.pool == pool and not one.terminating]
        # As a ReplicaSet does: what is not ready goes first.
        leaving = sorted(mine, key=lambda one: (one.ready, one.name))[: max(0, len(mine) - count)]
        self.pods = [replace(one, terminating=True) if one in leaving else one for one in self.pods]
        setup = next(s for m in each.spec.models for s in m.setups if (m.name, s.name) == key)
        kind = next(kind for kind in each.spec.accelerators if kind.name == setup.accelerator)
        node = next((n.name for n in self._nodes if n.schedulable and kind.node_selector.items() <= n.labels.items()), "")
        for _ in range(count - len(mine)):
            self._made += 1
            made = pod(each, *key, self._made, node=node, ready=False, created_s=self.now_s)
            self.pods.append(replace(made, requests={kind.resource: setup.count}))

    def _advance_pods(self) -> None:
        up = {node.name for node in self._nodes if node.schedulable}
        found = []
        for one in self.pods:
            if one.terminating:
                continue
            starts = one.node in up and self.now_s - one.created_s >= self.starts_in_s.get(one.pool, self.cold_s)
            if starts and not one.ready:
                found.append(replace(one, ready=True, ready_changed_s=self.now_s))
            elif one.ready and one.node not in up:
                found.append(replace(one, ready=False, ready_changed_s=self.now_s))
            else:
                found.append(one)
        self.pods = found
