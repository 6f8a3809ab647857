"""From the command line to the planner's question."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass

from servingplan.offline.documents import read_objects
from servingplan.offline.errors import InputError
from servingplan.offline.overrides import standing, with_lengths, with_rates
from servingplan.offline.plans import GivenPlan, Pool, pool_of, read_plans
from servingplan.offline.supply import FreeUnits, check_nodes_to_lose, units_by_count, units_on_nodes, units_within_limits
from servingplan.planning.build import plan_demand
from servingplan.planning.problem import PlanDemand, Problem, Standing


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked.

    Attributes:
        plans: In the order of their keys, as are the problem's.
        notes: What the asker may not have meant, one sentence each.
    """

    plans: tuple[GivenPlan, ...]
    problem: Problem
    notes: tuple[str, ...] = ()

    def pool(self, plan: str, accelerator: str) -> Pool:
        """The GPUs that a plan's accelerator means."""
        kinds = {each.key: each.spec.accelerators for each in self.plans}[plan]
        return next(pool_of(kind) for kind in kinds if kind.name == accelerator)


def ask(arguments: argparse.Namespace) -> Question:
    """The question that parsed arguments put.

    Raises:
        InputError: Something in the files or options cannot be used.
    """
    if arguments.nodes and arguments.gpus:
        raise InputError("--nodes and --gpus both say which GPUs there are: give one of them")
    if getattr(arguments, "plot", None) and not arguments.frontier:
        raise InputError("--plot: it draws a frontier, say which with --frontier slo or --frontier cost")
    _check_numbers(arguments)
    plans = read_plans(read_objects(arguments.file), read_objects(arguments.profiles))
    fixed = standing(plans, arguments.replicas) if arguments.replicas else None
    free, source = _supply(plans, arguments, fixed)
    if fixed:
        _check_room(plans, free, fixed)
    else:
        check_nodes_to_lose(plans, free, source)
    demands = tuple(plan_demand(plan.key, plan.spec, plan.profiles, free[plan.key]) for plan in plans)
    demands = with_rates(with_lengths(demands, arguments.lengths), arguments.rate)
    problem = Problem(
        plans=demands,
        standing=fixed,
        overload=False,
        time_limit_s=arguments.time_limit,
        relative_gap=arguments.gap,
    )
    return Question(plans, problem, tuple(_notes(demands)))


def _check_numbers(arguments: argparse.Namespace) -> None:
    if not 0 <= arguments.gap < 1:
        raise InputError(f"--gap {arguments.gap:g}: give a fraction from 0 to 1, such as 0.0001")
    if not (math.isfinite(arguments.time_limit) and arguments.time_limit > 0):
        raise InputError(f"--time-limit {arguments.time_limit:g}: give seconds above 0, such as 10")


def _supply(
    plans: Sequence[GivenPlan], arguments: argparse.Namespace, fixed: Standing | None
) -> tuple[dict[str, FreeUnits], str]:
    if arguments.nodes:
        return units_on_nodes(plans, read_objects([arguments.nodes])), arguments.nodes
    if arguments.gpus:
        return units_by_count(plans, arguments.gpus), "--gpus"
    if fixed:
        return _units_taken(plans, fixed), "--replicas"
    return units_within_limits(plans), "spec.accelerators, whose limit counts as one node,"


def _units_taken(plans: Sequence[GivenPlan], fixed: Standing) -> dict[str, FreeUnits]:
    """As many units as the given replicas take: with them nothing else needs to be known."""
    return {plan.key: {name: {name: units} for name, units in _taken(plan, fixed).items()} for plan in plans}


def _taken(plan: GivenPlan, fixed: Standing) -> dict[str, int]:
    taken = {kind.name: 0 for kind in plan.spec.accelerators}
    for model in plan.spec.models:
        for setup in model.setups:
            taken[setup.accelerator] += setup.count * fixed.replicas.get((plan.key, model.name, setup.name), 0)
    return taken


def _check_room(plans: Sequence[GivenPlan], free: dict[str, FreeUnits], fixed: Standing) -> None:
    """Refuses more replicas than there are GPUs for."""
    pools: dict[Pool, int] = {}
    for plan in plans:
        taken = _taken(plan, fixed)
        for kind in plan.spec.accelerators:
            pools[pool_of(kind)] = pools.get(pool_of(kind), 0) + taken[kind.name]
            there = sum(free[plan.key][kind.name].values())
            if pools[pool_of(kind)] > there:
                raise InputError(
                    f"--replicas: they take {pools[pool_of(kind)]} {kind.name}, of which there are {there}:"
                    " give fewer replicas or more GPUs"
                )


def _notes(demands: Sequence[PlanDemand]) -> list[str]:
    found = []
    for demand in demands:
        used = {setup.accelerator for model in demand.models for setup in model.setups}
        found += [
            f"plan {demand.key}: there is no {kind.name}, so nothing can run on it"
            for kind in demand.accelerators
            if kind.name in used and not any(kind.free_units.values()) and kind.limit != 0
        ]
    return found
