"""From the program's values to the decisions of the plans."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from servingplan.latency.capacity import latency
from servingplan.latency.profile import TokenMix
from servingplan.planning.columns import Column, Frame
from servingplan.planning.problem import Allocation, ClassDemand, Plan, PlanDecision, Route, Shortage
from servingplan.planning.program import Solution


def answer(asked: Frame, solution: Solution, short: dict[tuple[int, str], int]) -> Plan:
    """The plan that a solution stands for.

    Args:
        asked: What was asked.
        solution: Values of the program's variables.
        short: Units that are lacking, by (plan index, accelerator).
    """
    decisions = tuple(_decision(index, asked, solution, short) for index in range(len(asked.plans)))
    objective = sum(
        entry.weight * column.model.quality[entry.name] * float(solution.flow[k, s])
        for k, (_, entry) in enumerate(asked.classes)
        for s, column in enumerate(asked.columns)
        if solution.flow[k, s] > 0
    )
    return Plan(decisions, solution.status, objective, objective * (1 + solution.gap), solution.gap)


def _decision(index: int, asked: Frame, solution: Solution, short: dict[tuple[int, str], int]) -> PlanDecision:
    columns = asked.columns
    mine = [s for s, column in enumerate(columns) if column.plan == index]
    entries = [(k, entry) for k, (owner, entry) in enumerate(asked.classes) if owner == index]
    routes = tuple(_route(k, entry, [(s, columns[s]) for s in mine], solution) for k, entry in entries)
    shortages = tuple(Shortage(name, units) for (owner, name), units in sorted(short.items()) if owner == index)
    unmet = [columns[s] for s in mine if solution.unmet[s] > 0.5]
    shed = [route for route in routes if route.shed > 0]
    unattainable = asked.unattainable[index]
    return PlanDecision(
        key=asked.plans[index].key,
        allocations=tuple(_allocation(columns[s], s, entries, solution) for s in mine),
        routes=routes,
        feasible=not unattainable and not shed and not unmet,
        reason=_reason(unattainable, shed, unmet, shortages),
        shortages=shortages,
        quality=_quality(entries, [(s, columns[s]) for s in mine], solution),
        cost_per_hour=float(sum(columns[s].cost * solution.replicas[s] for s in mine)),
    )


def _quality(entries: list[tuple[int, ClassDemand]], columns: list[tuple[int, Column]], solution: Solution) -> float:
    """Mean score of the answers that are given; 0 where none is."""
    served = scored = 0.0
    for k, entry in entries:
        for s, column in columns:
            weight = entry.weight * float(solution.flow[k, s])
            served += weight
            scored += weight * column.model.quality[entry.name] if weight else 0.0
    return scored / served if served > 0 else 0.0


def _reason(unattainable: str, shed: list[Route], unmet: list[Column], shortages: tuple[Shortage, ...]) -> str:
    parts = [unattainable] if unattainable else []
    if unmet:
        names = ", ".join("/".join(column.key) for column in unmet)
        parts.append(f"minReplicas of {names} do not fit the free accelerators, limits and budget")
    if shed:
        parts.append(
            "the accelerators allowed cannot carry "
            + ", ".join(f"{route.shed:.1%} of class {route.request_class}" for route in shed)
        )
    if shortages:
        parts.append("GPUs short: " + ", ".join(f"{shortage.units} more {shortage.accelerator}" for shortage in shortages))
    return "; ".join(parts)


def _allocation(column: Column, s: int, entries: list[tuple[int, ClassDemand]], solution: Solution) -> Allocation:
    replicas = int(solution.replicas[s])
    rate = float(solution.flow[:, s].sum())
    load = sum(solution.flow[k, s] / column.capacity[e.name] for k, e in entries if solution.flow[k, s] > 0)
    base = Allocation(
        model=column.model.name,
        setup=column.setup.name,
        accelerator=column.setup.accelerator,
        replicas=replicas,
        units=replicas * column.setup.units,
        rate_rps=rate,
        capacity_rps=float(rate / load * replicas) if load > 0 else 0.0,
        price=float(solution.price[s]),
    )
    if rate <= 0 or replicas == 0:
        return base
    found = latency(column.setup.profile, _blend(s, entries, solution), rate / replicas)
    return replace(
        base,
        ttft_mean_s=found.ttft_mean_s,
        ttft_p95_s=found.ttft_s(95.0),
        inter_token_s=found.inter_token_s,
    )


def _blend(s: int, entries: list[tuple[int, ClassDemand]], solution: Solution) -> TokenMix:
    """The mix that a setup is sent: moments of the classes by their share of its requests."""
    flows = np.array([solution.flow[k, s] for k, _ in entries])
    share = flows / flows.sum()

    def moments(means: list[float], cvs: list[float]) -> tuple[float, float]:
        mean = float(share @ np.array(means))
        second = float(share @ (np.array(means) ** 2 * (1 + np.array(cvs) ** 2)))
        return mean, float(np.sqrt(max(0.0, second / mean**2 - 1)))

    prompt, prompt_cv = moments([e.mix.prompt_tokens for _, e in entries], [e.mix.prompt_cv for _, e in entries])
    output, output_cv = moments([e.mix.output_tokens for _, e in entries], [e.mix.output_cv for _, e in entries])
    return TokenMix(prompt, output, prompt_cv, output_cv)


def _route(k: int, entry: ClassDemand, columns: list[tuple[int, Column]], solution: Solution) -> Route:
    if entry.rate_rps <= 0:
        return Route(entry.name)
    shares = {column.key: float(solution.flow[k, s] / entry.rate_rps) for s, column in columns if solution.flow[k, s] > 0}
    return Route(entry.name, shares, float(solution.refused[k] / entry.rate_rps))
