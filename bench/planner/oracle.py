"""Small problems answered by brute force, to judge the planner by.

Every allocation is tried: replicas of every setup that pack on the explicit nodes (searched node by node, not by a rule), every
utilisation of every setup, and for each of them the best routing by SciPy's linear programming, with rows written here anew.
Shared with the planner are only the latency functions, which both take as given.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
from scipy.optimize import linprog

from servingplan.latency.capacity import stable_rate_rps, utilization
from servingplan.latency.profile import Bound, EngineProfile, Slo, StepTime, TokenMix
from servingplan.planning.means import mean_lines
from servingplan.planning.problem import (
    AcceleratorSupply,
    ClassDemand,
    ModelOption,
    Plan,
    PlanDemand,
    Scope,
    SetupOption,
)


@dataclass(frozen=True, slots=True)
class Best:
    """The optimum: least refused weight (requests per second), then most quality (weighted score per second)."""

    refused: float
    quality: float
    allocations: int


def instance(seed: int, scope: Scope) -> PlanDemand:
    """A random small problem: up to 3 models, 2 setups each, some accelerators on uneven nodes, 4 classes of one length mix."""
    source = np.random.default_rng(seed)
    mix = TokenMix(float(source.integers(64, 1500)), float(source.integers(16, 400)), float(source.uniform(0, 1.2)), 1.0)
    names = [f"c{k}" for k in range(source.integers(1, 5))]
    kinds = ["a", "b"][: source.integers(1, 3)]
    nodes = {
        kind: {f"{kind}{i}": int(units) for i, units in enumerate(source.integers(1, 6, source.integers(1, 4)))}
        for kind in kinds
    }
    models = []
    for m in range(source.integers(1, 4)):
        setups = tuple(_setup(source, s, kinds) for s in range(source.integers(1, 3)))
        models.append(ModelOption(f"m{m}", {name: float(source.uniform(0.2, 0.95)) for name in names}, setups))
    total = float(source.uniform(0.5, 40))
    share = source.dirichlet(np.ones(len(names)))
    mean = Slo(ttft=Bound(float(source.uniform(0.15, 2.0)), None))
    classes = tuple(
        ClassDemand(
            name,
            mix,
            mean if scope is Scope.PLAN else Slo(ttft=Bound(float(source.choice([0.3, 0.6, 1.5])), 95.0)),
            float(total * part),
            weight=float(source.choice([1.0, 1.0, 3.0])),
            min_quality=float(source.choice([0.0, 0.0, 0.3])),
        )
        for name, part in zip(names, share, strict=True)
    )
    supplies = tuple(
        AcceleratorSupply(
            kind,
            "nvidia.com/gpu",
            nodes[kind],
            limit=int(source.integers(1, 8)) if source.uniform() < 0.3 else None,
            cost_per_hour=float(source.uniform(1, 4)),
        )
        for kind in kinds
    )
    budget = float(source.uniform(4, 25)) if source.uniform() < 0.3 else None
    return PlanDemand(f"oracle/{seed}", tuple(models), classes, supplies, budget_per_hour=budget, scope=scope)


def best(plan: PlanDemand) -> Best:
    """The optimum of a plan whose every SLO some setup keeps when idle."""
    question = _Question(plan)
    found, count = (np.inf, -np.inf), 0
    for replicas in question.allocations():
        for levels in product(*(question.levels[s] if n else (0.0,) for s, n in enumerate(replicas))):
            refused, quality = question.route(replicas, levels)
            count += 1
            if refused < found[0] - 1e-9 or (refused < found[0] + 1e-9 and quality > found[1]):
                found = refused, quality
    return Best(float(found[0]), float(found[1]), count)


def packs(plan: PlanDemand, answer: Plan) -> bool:
    """Whether the replicas of an answer fit on the explicit nodes, and within limits and budget."""
    question = _Question(plan)
    replicas = {(a.model, a.setup): a.replicas for a in answer.decisions[0].allocations}
    return question.fits(tuple(replicas[model.name, setup.name] for model, setup in question.setups))


class _Question:
    def __init__(self, plan: PlanDemand) -> None:
        self.plan = plan
        self.setups = [(model, setup) for model in plan.models for setup in model.setups]
        self.classes = plan.classes
        self.mean = plan.scope is Scope.PLAN
        self.stable = np.array([[stable_rate_rps(s.profile, c.mix) for _, s in self.setups] for c in self.classes])
        allowed = np.array([[m.quality[c.name] >= c.min_quality for m, _ in self.setups] for c in self.classes])
        if self.mean:
            self.lines = [
                mean_lines(s.profile, [c for k, c in enumerate(self.classes) if allowed[k, j]], self.classes[0].mix)
                if allowed[:, j].any()
                else None
                for j, (_, s) in enumerate(self.setups)
            ]
            top = np.array([lines.utilization if lines else 0.0 for lines in self.lines])
            self.kept = np.where(allowed, top[None, :], 0.0)
        else:
            self.lines = []
            self.kept = np.array(
                [[utilization(s.profile, c.mix, c.slo, c.mix, c.arrival_cv) for _, s in self.setups] for c in self.classes]
            )
            self.kept = np.where(allowed, self.kept, 0.0)
        self.levels = [sorted({float(v) for v in self.kept[:, s] if v > 0}) or [0.0] for s in range(len(self.setups))]

    def allocations(self) -> Iterator[tuple[int, ...]]:
        """Maximal ones: with one more replica of anything they would not fit. More replicas never make a plan worse."""
        most = [sum(u // s.units for u in self._nodes(s).values()) for _, s in self.setups]
        for replicas in product(*(range(n + 1) for n in most)):
            if self.fits(replicas) and not any(
                self.fits((*replicas[:s], n + 1, *replicas[s + 1 :])) for s, n in enumerate(replicas)
            ):
                yield replicas

    def fits(self, replicas: tuple[int, ...]) -> bool:
        spent = 0.0
        for supply in self.plan.accelerators:
            mine = [(s.units, n) for (_, s), n in zip(self.setups, replicas, strict=True) if s.accelerator == supply.name]
            taken = sum(units * n for units, n in mine)
            spent += taken * supply.cost_per_hour
            if supply.limit is not None and taken > supply.limit:
                return False
            sizes = tuple(sorted((units for units, n in mine for _ in range(n)), reverse=True))
            if not pack(tuple(sorted(supply.free_units.values())), sizes):
                return False
        return self.plan.budget_per_hour is None or spent <= self.plan.budget_per_hour + 1e-9

    def _nodes(self, setup: SetupOption) -> dict[str, int]:
        return next(supply.free_units for supply in self.plan.accelerators if supply.name == setup.accelerator)

    def route(self, replicas: tuple[int, ...], levels: tuple[float, ...]) -> tuple[float, float]:
        """Least refused weight and then most quality for replicas at levels."""
        rate = np.array([c.rate_rps for c in self.classes])
        weight = np.array([c.weight for c in self.classes])
        k_count, s_count = self.stable.shape
        pairs = [
            (k, s)
            for k in range(k_count)
            for s in range(s_count)
            if replicas[s] and self.stable[k, s] > 0 and self.kept[k, s] > 0 and self.kept[k, s] >= levels[s] * (1 - 1e-9)
        ]
        waits = s_count if self.mean else 0
        size = len(pairs) + k_count + waits
        equal, upper, room = np.zeros((k_count, size)), [], []
        for p, (k, _) in enumerate(pairs):
            equal[k, p] = 1.0
        equal[:, len(pairs) : len(pairs) + k_count] = np.eye(k_count)
        load = np.zeros((s_count, size))
        for p, (k, s) in enumerate(pairs):
            load[s, p] = 1.0 / self.stable[k, s]
        for s in range(s_count):
            upper.append(load[s])
            room.append(levels[s] * replicas[s])
        if self.mean:
            self._add_means(pairs, load, replicas, k_count, upper, room)
        lost = np.zeros(size)
        lost[len(pairs) : len(pairs) + k_count] = weight
        first = linprog(lost, np.array(upper), np.array(room), equal, rate, method="highs")
        if first.status:
            return np.inf, -np.inf
        gained = np.zeros(size)
        for p, (k, s) in enumerate(pairs):
            gained[p] = weight[k] * self.setups[s][0].quality[self.classes[k].name]
        second = linprog(-gained, np.array([*upper, lost]), np.array([*room, first.fun + 1e-9]), equal, rate, method="highs")
        return float(first.fun), float(-second.fun)

    def _add_means(
        self,
        pairs: list[tuple[int, int]],
        load: np.ndarray,
        replicas: tuple[int, ...],
        k_count: int,
        upper: list[np.ndarray],
        room: list[float],
    ) -> None:
        bound = self.classes[0].slo.ttft
        assert bound is not None, "instances bound the time to first token"
        total = np.zeros(load.shape[1])
        for s, lines in enumerate(self.lines):
            if lines is None:
                continue
            at = len(pairs) + k_count + s
            total[at] = 1.0
            for slope, intercept in lines.lines["ttft"]:
                row = slope * load[s]
                row[at] = -1.0
                upper.append(row)
                room.append(-intercept * replicas[s])
        for p, (k, s) in enumerate(pairs):
            lines = self.lines[s]
            assert lines is not None, "a setup without lines is open to nobody"
            total[p] = lines.own_s["ttft"][self.classes[k].name] - bound.seconds
        upper.append(total)
        room.append(0.0)


@lru_cache(maxsize=100_000)
def pack(free: tuple[int, ...], sizes: tuple[int, ...]) -> bool:
    """Whether replicas of some sizes, largest first, fit on nodes with some free units: every way is tried."""
    if not sizes:
        return True
    first, rest = sizes[0], sizes[1:]
    return any(
        pack(tuple(sorted((*free[:node], units - first, *free[node + 1 :]))), rest)
        for node, units in enumerate(free)
        if units >= first and units not in free[:node]
    )


def _setup(source: np.random.Generator, number: int, kinds: list[str]) -> SetupOption:
    units = int(source.choice([1, 2, 3, 4]))
    speed = units**0.8 * source.uniform(0.7, 1.3)
    step = StepTime(float(source.uniform(5, 25) / speed / 1e3), float(source.uniform(2e-5, 1e-4) / speed), float(4e-8 / speed))
    return SetupOption(
        f"s{number}",
        str(source.choice(kinds)),
        units,
        EngineProfile(step, max_num_seqs=int(source.choice([32, 256]))),
        max_replicas=None,
    )
