"""The planner's question as the cluster puts it: plans, GPUs, measured rates and learnt speeds instead of files.

Plans that share GPUs are decided together, as the operator does; paused ones hold theirs. Rates are those that the operator
plans for, and profiles are corrected as it corrects them, both by the plans' status. What the operator weighs
besides, it weighs alone: whether a change is worth its move, and how much may move at a time.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from servingplan.calibration.lengths import LengthFactors, scaled
from servingplan.calibration.memory import Applied, SetupMemory
from servingplan.calibration.setup import corrected
from servingplan.offline.documents import Found
from servingplan.offline.errors import InputError
from servingplan.offline.overrides import standing, with_lengths, with_rates
from servingplan.offline.plans import GivenPlan, Pool, read_plans
from servingplan.offline.question import Question
from servingplan.offline.supply import FreeUnits, check_nodes_to_lose, units_by_count, units_on_nodes
from servingplan.planning.build import plan_demand
from servingplan.planning.problem import ClassDemand, ModelOption, PlanDemand, Problem, Standing
from servingplan.plugin import states
from servingplan.plugin.reading import read_plan
from servingplan.plugin.view import ClassView, Learnt, PlanView

Object = dict[str, Any]

THE_CLUSTER = "the cluster"
_FACTORS, _BINS = 3, 4


@dataclass(frozen=True, slots=True)
class Gathered:
    """What was read for a question.

    Attributes:
        plan: The one that is asked about.
        others: Plans beside it.
        config_maps: Those that profiles stand in.
        nodes: Nodes and pods; None where they were not needed.
        notes: What was left out, one sentence each.
    """

    plan: Object
    others: tuple[Object, ...]
    config_maps: tuple[Object, ...]
    nodes: tuple[Object, ...] | None
    notes: tuple[str, ...] = ()


def references(body: Object) -> set[tuple[str, str]]:
    """Namespace and name of every ConfigMap that a plan's profiles stand in."""
    sources = [setup.get("profileFrom") for model in body["spec"]["models"] for setup in model["setups"]]
    return {(body["metadata"]["namespace"], source["configMapKeyRef"]["name"]) for source in sources if source}


def sharing(body: Object, others: Iterable[Object]) -> list[Object]:
    """The other plans that a plan is decided with: those that mean its GPUs, and those that share with them; none paused."""
    left = [other for other in others if other["spec"].get("mode") != "Paused" and _key(other) != _key(body)]
    found: list[Object] = []
    pools = _pools(body)
    while more := [other for other in left if pools & _pools(other)]:
        found += more
        left = [other for other in left if other not in more]
        pools = pools.union(*map(_pools, more))
    return sorted(found, key=_key)


def ask(gathered: Gathered, options: argparse.Namespace) -> Question:
    """The question.

    Args:
        gathered: What the cluster has.
        options: The what-ifs of ``arguments.add_what_ifs``.

    Raises:
        InputError: An option or a plan cannot be used.
    """
    _check(options)
    config_maps = [_found(body) for body in gathered.config_maps]
    plans = read_plans([_found(body) for body in (gathered.plan, *gathered.others)], config_maps)
    views = {view.key: view for view in map(read_plan, (gathered.plan, *gathered.others))}
    fixed = standing(plans, options.replicas) if options.replicas else None
    free = _supply(plans, gathered, options, fixed)
    if not fixed:
        check_nodes_to_lose(plans, free, "--gpus" if options.gpus else THE_CLUSTER)
    demands = tuple(_demand(plan, views[plan.key], free[plan.key]) for plan in plans)
    lengths, rates = (_of_plan(given, gathered.plan, len(plans)) for given in (options.lengths, options.rate))
    demands = with_rates(with_lengths(demands, lengths), rates)
    problem = Problem(demands, standing=fixed, overload=False, time_limit_s=options.time_limit, relative_gap=options.gap)
    return Question(plans, problem, (*gathered.notes, *_left_out(views.values())))


def _check(options: argparse.Namespace) -> None:
    if options.replicas and options.gpus:
        raise InputError("--replicas and --gpus both say which GPUs there are: give one of them")
    if not 0 <= options.gap < 1:
        raise InputError(f"--gap {options.gap:g}: give a fraction from 0 to 1, such as 0.0001")
    if not (math.isfinite(options.time_limit) and options.time_limit > 0):
        raise InputError(f"--time-limit {options.time_limit:g}: give seconds above 0, such as 10")


def _of_plan(given: list[str], body: Object, plans: int) -> list[str]:
    """What is said of a class without naming a plan is said of the plan that is asked about."""
    if plans == 1:
        return given
    return [text if "/" in text.partition("=")[0] else f"{_key(body)}/{text}" for text in given]


def _found(body: Object) -> Found:
    kind = {"ModelServingPlan": "plan"}.get(str(body.get("kind")), str(body.get("kind", "object")))
    return Found(f"{kind} {body['metadata'].get('name', '')}", body)


def _key(body: Object) -> str:
    return f"{body['metadata']['namespace']}/{body['metadata']['name']}"


def _pools(body: Object) -> set[Pool]:
    kinds = body["spec"].get("accelerators", ())
    return {(kind.get("resource", "nvidia.com/gpu"), tuple(sorted((kind.get("nodeSelector") or {}).items()))) for kind in kinds}


def _supply(
    plans: tuple[GivenPlan, ...], gathered: Gathered, options: argparse.Namespace, fixed: Standing | None
) -> dict[str, FreeUnits]:
    if fixed:
        return {plan.key: _taken(plan, fixed) for plan in plans}
    if options.gpus:
        return units_by_count(plans, options.gpus)
    assert gathered.nodes is not None, "nodes are read where nothing else says which GPUs there are"
    return units_on_nodes(plans, [Found(THE_CLUSTER, body) for body in gathered.nodes])


def _taken(plan: GivenPlan, fixed: Standing) -> FreeUnits:
    """As many units as given replicas take: with them nothing else needs to be known."""
    units = {kind.name: 0 for kind in plan.spec.accelerators}
    for model in plan.spec.models:
        for setup in model.setups:
            units[setup.accelerator] += setup.count * fixed.replicas.get((plan.key, model.name, setup.name), 0)
    return {name: {name: count} for name, count in units.items()}


def _demand(plan: GivenPlan, view: PlanView, free: FreeUnits) -> PlanDemand:
    """A plan as the operator plans it: rates and lengths as followed, speeds as learnt, replicas as they stand."""
    running = {(each.model, each.setup): each.replicas for each in view.setups}
    demand = plan_demand(plan.key, plan.spec, plan.profiles, free, running)
    memory = {(each.model, each.setup): _memory(each.learnt) for each in view.setups if each.learnt}
    classes = {each.name: each for each in view.classes if not each.by_name}
    calibrated = plan.spec.metrics.calibration == "Enabled"
    return replace(
        demand,
        classes=tuple(_followed(entry, classes.get(entry.name)) for entry in demand.classes),
        models=tuple(_corrected(model, memory) if calibrated else model for model in demand.models),
    )


def _followed(entry: ClassDemand, view: ClassView | None) -> ClassDemand:
    if view is None:
        return entry
    rate_rps = entry.rate_rps if view.planned_rps is None else view.planned_rps
    factors = LengthFactors(view.prompt_factor or 1.0, view.output_factor or 1.0)
    return replace(entry, rate_rps=rate_rps, mix=scaled(entry.mix, factors))


def _memory(learnt: Learnt) -> SetupMemory:
    """What plans are made with of all that was learnt; nothing where another operator wrote it in another form."""
    if len(learnt.step) != _FACTORS or len(learnt.ttft) != _BINS:
        return SetupMemory()
    alpha, beta, gamma = learnt.step
    return SetupMemory(samples=learnt.samples, applied=Applied((alpha, beta, gamma), learnt.ttft, learnt.margin))


def _corrected(model: ModelOption, memory: Mapping[tuple[str, str], SetupMemory]) -> ModelOption:
    known = {setup.name: memory[model.name, setup.name] for setup in model.setups if (model.name, setup.name) in memory}
    setups = (
        replace(setup, profile=corrected(setup.profile, known.get(setup.name), _others(known, setup.name)))
        for setup in model.setups
    )
    return replace(model, setups=tuple(setups))


def _others(known: Mapping[str, SetupMemory], name: str) -> list[SetupMemory]:
    return [memory for other, memory in known.items() if other != name]


def _left_out(views: Iterable[PlanView]) -> list[str]:
    """What the operator plans for besides, and this question does not hold."""
    return [
        f"{states.rate(each.planned_rps)} that name {each.name} of plan {view.key} are not counted"
        for view in views
        for each in view.classes
        if each.by_name and each.planned_rps
    ]
