"""The same cell as a problem of the operator's planner, which may start any number of replicas of any setup."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from routerwise.cells import Cell
from routerwise.real import MIX, Hardware, profile
from routerwise.setups import ModelSetup
from servingplan.latency.profile import Bound, Slo
from servingplan.planning.problem import (
    AcceleratorSupply,
    ClassDemand,
    ModelOption,
    PlanDecision,
    PlanDemand,
    Problem,
    Scope,
    SetupOption,
)
from servingplan.planning.solve import solve


@dataclass(frozen=True, slots=True)
class Replicated:
    """The planner's answer.

    Attributes:
        score: Mean score of all requests; None where something has to be refused.
        replicas: By model index and setup, where not 0.
    """

    score: float | None
    replicas: dict[tuple[int, ModelSetup], int]


def plan(cell: Cell, hardware: Hardware, shares_tenths: tuple[int, ...] = (10,)) -> Replicated:
    """The planner's answer for a cell.

    Args:
        cell: Its curves say which setups there are.
        hardware: Where the curves come from.
        shares_tenths: Shares of its GPUs that a replica may take, summed up as in the paper; (10,) for whole GPUs.
    """
    problem = Problem(plans=(_demand(cell, hardware, shares_tenths),))
    decision = solve(problem).decisions[0]
    return Replicated(score=decision.quality if decision.feasible else None, replicas=_counts(cell, decision))


def _demand(cell: Cell, hardware: Hardware, shares_tenths: tuple[int, ...]) -> PlanDemand:
    slo = Slo(ttft=Bound(cell.ttft_s, percentile=None))
    names = [f"c{k:03d}" for k in range(len(cell.scores.shares))]
    unit_tenths = gcd(10, *shares_tenths)
    models = tuple(
        ModelOption(
            name=model,
            quality=dict(zip(names, cell.scores.matrix[:, index].tolist(), strict=True)),
            setups=tuple(
                SetupOption(
                    name=_name(part),
                    accelerator="gpu",
                    units=part.compute_tenths // unit_tenths,
                    profile=profile(hardware, model, part.tp, part.tenths),
                )
                for m, part in cell.curves
                if m == index and part.tenths in shares_tenths
            ),
        )
        for index, model in enumerate(cell.scores.models)
    )
    rates = cell.rate_rps * cell.scores.shares
    return PlanDemand(
        key="bench/cell",
        models=models,
        classes=tuple(ClassDemand(name, MIX, slo, float(rate)) for name, rate in zip(names, rates, strict=True)),
        accelerators=(AcceleratorSupply("gpu", "nvidia.com/gpu", {"node": 10 * cell.space.gpus // unit_tenths}),),
        scope=Scope.PLAN,
    )


def _name(part: ModelSetup) -> str:
    return f"tp{part.tp}-{10 * part.tenths}"


def _counts(cell: Cell, decision: PlanDecision) -> dict[tuple[int, ModelSetup], int]:
    keys = {(cell.scores.models[m], _name(part)): (m, part) for m, part in cell.curves}
    return {keys[entry.model, entry.setup]: entry.replicas for entry in decision.allocations if entry.replicas}
