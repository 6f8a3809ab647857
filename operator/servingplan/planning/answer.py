"""From the program's values to the decisions of the plans."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from servingplan.latency.capacity import latency, margin
from servingplan.latency.profile import TokenMix, blend
from servingplan.planning.columns import Column, SetupKey
from servingplan.planning.prices import class_prices
from servingplan.planning.problem import Allocation, ClassDemand, Infeasible, Plan, PlanDecision, Prediction, Route, Shortage
from servingplan.planning.routing import Pairs
from servingplan.planning.solution import Solution


@dataclass(frozen=True)
class Answer:
    """A solution of a frame, and what it sends where.

    Attributes:
        pairs: What was asked.
        solution: Values of the program's variables.
        given: Whether the replicas were given.
    """

    pairs: Pairs
    solution: Solution
    given: bool = False

    @cached_property
    def flows(self) -> dict[int, dict[int, float]]:
        """Requests per second by column and class."""
        found: dict[int, dict[int, float]] = {}
        for k, j, share in zip(self.pairs.classes, self.pairs.columns, self.solution.share, strict=True):
            if share > 0:
                found.setdefault(int(j), {})[int(k)] = float(share * self.pairs.rate[k])
        return found

    def blends(self) -> dict[SetupKey, TokenMix]:
        """Mix of requests that every setup in use is sent."""
        asked = self.pairs.asked
        return {
            asked.setup_key(asked.columns[j]): blend([(rate, asked.classes[k][1].mix) for k, rate in flow.items()])
            for j, flow in self.flows.items()
        }

    def plan(self, short: dict[tuple[int, str], int], seconds: float) -> Plan:
        """The plan that the solution stands for.

        Args:
            short: Units that are lacking, by (plan index, accelerator).
            seconds: Time it took.
        """
        found = self.solution
        decisions = tuple(self._decision(index, short) for index in range(len(self.pairs.asked.plans)))
        gap = max(0.0, found.bound - found.quality) / max(abs(found.quality), 1e-12) if found.bound > found.quality else 0.0
        kind = Plan if all(decision.feasible for decision in decisions) else Infeasible
        return kind(decisions, found.status, found.quality, max(found.bound, found.quality), gap, seconds)

    def _decision(self, index: int, short: dict[tuple[int, str], int]) -> PlanDecision:
        asked, solution = self.pairs.asked, self.solution
        entries = [(k, entry) for k, (owner, entry) in enumerate(asked.classes) if owner == index]
        setups = [s for s, columns in enumerate(asked.setups) if asked.columns[columns[0]].plan == index]
        by_name = {entry.name: self._route(k, entry) for k, entry in entries}
        plan = asked.plans[index]
        routes = tuple(by_name.get(entry.name) or Route(entry.name) for entry in plan.classes)
        shortages = tuple(Shortage(name, units) for (owner, name), units in sorted(short.items()) if owner == index)
        unmet = ["/".join(asked.columns[asked.setups[s][0]].key) for s in setups if solution.unmet[s] > 0.5]
        shed = [route for route in routes if route.shed > 0]
        exposed = [(entry.name, float(solution.refused_after_loss[k])) for k, entry in entries]
        exposed = [(name, part) for name, part in exposed if part > 0] if plan.tolerate_nodes else []
        unattainable = asked.unattainable[index]
        what = "replicas given" if self.given else "accelerators allowed"
        return PlanDecision(
            key=plan.key,
            allocations=tuple(self._allocation(s) for s in setups),
            routes=routes,
            feasible=not unattainable and not shed and not unmet and not exposed,
            reason=_reason(unattainable, shed, unmet, exposed, shortages, what),
            shortages=shortages,
            quality=self._quality(entries),
            cost_per_hour=float(
                sum(column.cost * solution.replicas[j] for j, column in enumerate(asked.columns) if column.plan == index)
            ),
            relaxed=asked.relaxed[index],
            bindings=solution.bindings.get(index, ()),
            choice=self._choice(entries, by_name),
        )

    def _quality(self, entries: list[tuple[int, ClassDemand]]) -> float:
        """Mean score of the answers that are given; 0 where none is."""
        columns = self.pairs.asked.columns
        mine = dict(entries)
        served = scored = 0.0
        for j, flow in self.flows.items():
            for k, rate in flow.items():
                if k in mine:
                    served += mine[k].weight * rate
                    scored += mine[k].weight * rate * columns[j].model.quality[mine[k].name]
        return scored / served if served > 0 else 0.0

    def _choice(self, entries: list[tuple[int, ClassDemand]], routes: dict[str, Route]) -> float:
        """What choosing by the request is worth beyond the mean score of the answers that are given; 0 where none is."""
        served = worth = 0.0
        for _, entry in entries:
            shares = routes[entry.name].by_model()
            weight = entry.weight * entry.rate_rps
            served += weight * sum(shares.values())
            worth += weight * sum(each.worth * min(each.share, shares.get(name, 0.0)) for name, each in entry.chosen.items())
        return worth / served if served > 0 else 0.0

    def _allocation(self, s: int) -> Allocation:
        asked, solution = self.pairs.asked, self.solution
        columns = asked.setups[s]
        j = next((j for j in columns if solution.replicas[j] > 0), columns[0])
        column, flow = asked.columns[j], self.flows.get(j, {})
        replicas, rate = int(solution.replicas[j]), sum(flow.values())
        load = sum(rate_rps / column.capacity[asked.classes[k][1].name] for k, rate_rps in flow.items())
        return Allocation(
            model=column.model.name,
            setup=column.setup.name,
            accelerator=column.setup.accelerator,
            replicas=replicas,
            units=replicas * column.setup.units,
            rate_rps=rate,
            capacity_rps=rate / load * replicas if load > 0 else 0.0,
            strictest=column.strictest if replicas > 0 else "",
            predicted=self._prediction(column, flow, replicas) if load > 0 and replicas > 0 else None,
            price=float(solution.column_price[j]) * load / rate if rate > 0 else 0.0,
        )

    def _prediction(self, column: Column, flow: dict[int, float], replicas: int) -> Prediction:
        entries = {k: self.pairs.asked.classes[k][1] for k in flow}
        mix = blend([(rate, entries[k].mix) for k, rate in flow.items()])
        cv = max(entry.arrival_cv for entry in entries.values())
        load = sum(rate / column.stable[entries[k].name] for k, rate in flow.items()) / replicas
        found = latency(column.setup.profile, mix, sum(flow.values()) / replicas, arrival_cv=cv)
        return Prediction(
            ttft_mean_s=found.ttft_mean_s,
            ttft_p50_s=found.ttft_s(50.0),
            ttft_p95_s=found.ttft_s(95.0),
            ttft_p99_s=found.ttft_s(99.0),
            inter_token_s=found.inter_token_s,
            e2e_mean_s=found.e2e_mean_s,
            margin=margin(column.setup.profile, mix, load, cv),
        )

    def _route(self, k: int, entry: ClassDemand) -> Route:
        asked, solution = self.pairs.asked, self.solution
        shares: dict[tuple[str, str], float] = {}
        congestion: dict[str, float] = {}
        quality: dict[str, float] = {}
        for p in np.where(self.pairs.classes == k)[0]:
            column = asked.columns[self.pairs.columns[p]]
            price = float(solution.column_price[self.pairs.columns[p]]) / column.capacity[entry.name] / entry.weight
            congestion[column.model.name] = min(price, congestion.get(column.model.name, np.inf))
            quality[column.model.name] = column.model.quality[entry.name]
            if solution.share[p] > 0:
                shares[column.key] = shares.get(column.key, 0.0) + float(solution.share[p])
        by_model = Route(entry.name, shares).by_model()
        return Route(
            request_class=entry.name,
            shares=shares,
            shed=float(solution.refused[k]),
            prices=class_prices(quality, by_model, congestion),
            value=float(solution.class_value[k]) / entry.weight,
        )


def _reason(
    unattainable: str,
    shed: list[Route],
    unmet: list[str],
    exposed: list[tuple[str, float]],
    shortages: tuple[Shortage, ...],
    what: str,
) -> str:
    parts = [unattainable] if unattainable else []
    if unmet:
        parts.append(f"minReplicas of {', '.join(unmet)} do not fit the free accelerators, limits and budget")
    if shed:
        parts.append(
            f"the {what} cannot carry " + ", ".join(f"{route.shed:.1%} of class {route.request_class}" for route in shed)
        )
    elif exposed:
        parts.append(
            "after the loss of a node the others could not carry "
            + ", ".join(f"{part:.1%} of class {name}" for name, part in exposed)
        )
    if shortages:
        parts.append("GPUs short: " + ", ".join(f"{shortage.units} more {shortage.accelerator}" for shortage in shortages))
    return "; ".join(parts)
