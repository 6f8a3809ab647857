"""A plan in sentences: what is planned, what holds it back, what would help, and the way out where not everything is served."""

from __future__ import annotations

from collections.abc import Iterator

from servingplan.offline import whatif, words
from servingplan.offline.errors import SolveError
from servingplan.offline.plans import Pool
from servingplan.offline.question import Question
from servingplan.planning.problem import (
    Allocation,
    Binding,
    ClassDemand,
    Infeasible,
    Plan,
    PlanDecision,
    PlanDemand,
    Problem,
    Route,
    Scope,
)

MORE_LATENCY = 1.1
MOST_LATENCY = 16.0
"""Beyond this factor an SLO is another SLO."""


def explain(question: Question, plan: Plan) -> Iterator[str]:
    """Lines of text; those that need further solves come as they are found."""
    for demand in question.problem.plans:
        decision = plan.of(demand.key)
        yield from _planned(demand, decision, plan)
        yield ""
        yield from _held_back(demand, decision, _used_up(question, plan, demand))
        yield ""
    if isinstance(plan, Infeasible):
        yield "The way out. Each of these alone, solved again, serves everything within its SLO:"
        yield from _ways_out(question, plan)
        yield ""
    yield "What more would buy, each solved again:"
    yield from _more(question, plan)


def _planned(demand: PlanDemand, decision: PlanDecision, plan: Plan) -> Iterator[str]:
    verdict = "everything is served within its SLO" if decision.feasible else "NOT everything is served within its SLO"
    yield f"{demand.key}: {verdict}."
    if decision.reason:
        yield f"  Why: {decision.reason}."
    used = words.gpus(words.units_used(demand, decision.allocations))
    yield f"  Quality {decision.quality:.4f}, {_proof(plan)}; {words.money(decision.cost_per_hour)} for {used}."
    for slo in dict.fromkeys(entry.slo for entry in demand.classes):
        names = [entry.name for entry in demand.classes if entry.slo == slo]
        whose = "all requests together" if demand.scope is Scope.PLAN else f"class {words.joined(names)}"
        yield f"  Asked for {whose}: {words.bounds(slo)}."
    running = [each for each in decision.allocations if each.replicas]
    yield from (f"  {_setup(each, demand)}" for each in running)
    entries = {entry.name: entry for entry in demand.classes}
    yield from (f"  {_route(route, entries[route.request_class])}" for route in decision.routes)


def _proof(plan: Plan) -> str:
    if plan.gap <= words.PROVED:
        return "proved to be the best that there is"
    return f"at most {words.percent(plan.gap)} below the best that there may be"


def _setup(each: Allocation, demand: PlanDemand) -> str:
    replicas = f"{each.replicas} replica{'s' if each.replicas > 1 else ''} ({each.units} {each.accelerator})"
    take = "take" if each.replicas > 1 else "takes"
    if each.predicted is None:
        return f"{each.model} on {each.setup}: {replicas}, idle{' until a node is lost' if demand.tolerate_nodes else ''}."
    found = each.predicted
    load = "a full load" if each.utilization > 0.995 else f"{words.percent(each.utilization)} of a full load"
    margin = (
        f"; planned {words.percent(found.margin)} below the bound, so uncertain is the prediction"
        if found.margin >= 0.01
        else ""
    )
    return (
        f"{each.model} on {each.setup}: {replicas} {take} {words.number(each.rate_rps)} requests/s, {load};"
        f" TTFT mean {words.seconds(found.ttft_mean_s)}, p95 {words.seconds(found.ttft_p95_s)},"
        f" {words.seconds(found.inter_token_s)} between tokens{margin}."
    )


def _route(route: Route, entry: ClassDemand) -> str:
    shares = sorted(((share, model) for model, share in route.by_model().items() if share > 0), reverse=True)
    parts = [f"{words.percent(share)} to {model}" for share, model in shares]
    if route.shed > 0:
        refused = words.number(route.shed * entry.rate_rps)
        parts.append(f"{words.percent(route.shed)} REFUSED ({refused} requests/s)")
    return f"Class {route.request_class}, {words.number(entry.rate_rps)} requests/s: {words.joined(parts) or 'no requests'}."


def _used_up(question: Question, plan: Plan, demand: PlanDemand) -> list[str]:
    """Accelerators of which all that a plan may use is taken, by it or by the others."""
    taken: dict[Pool, int] = {}
    for each in question.problem.plans:
        for allocation in plan.of(each.key).allocations:
            pool = question.pool(each.key, allocation.accelerator)
            taken[pool] = taken.get(pool, 0) + allocation.units
    own = words.units_used(demand, plan.of(demand.key).allocations)
    return [
        kind.name
        for kind in demand.accelerators
        if kind.name in own
        and (taken[question.pool(demand.key, kind.name)] >= sum(kind.free_units.values()) or own[kind.name] == kind.limit)
    ]


def _held_back(demand: PlanDemand, decision: PlanDecision, used_up: list[str]) -> Iterator[str]:
    # A price of nothing at the margin does not say that a whole replica more would not help.
    priced = {binding.name for binding in decision.bindings}
    taken = [name for name in used_up if name not in priced]
    if not decision.bindings and not taken:
        yield (
            f"Nothing holds {demand.key} back." if decision.feasible else f"No supply, limit or budget holds {demand.key} back."
        )
        return
    yield f"What holds {demand.key} back, dearest first:"
    total = sum(entry.weight * entry.rate_rps for entry in demand.classes)
    for binding in decision.bindings:
        yield f"  {_binding(demand, binding)}; {_worth(binding, decision, total)}."
    for name in taken:
        yield f"  {_binding(demand, Binding('accelerator', name, 0.0))}."


def _binding(demand: PlanDemand, binding: Binding) -> str:
    kinds = {kind.name: kind for kind in demand.accelerators}
    if binding.kind == "accelerator":
        kind = kinds[binding.name]
        there = sum(kind.free_units.values())
        return f"All {there if kind.limit is None else min(there, kind.limit)} {binding.name} that it may use are taken"
    if binding.kind == "limit":
        return f"The limit of {kinds[binding.name].limit} {binding.name} is reached"
    if binding.kind == "budget":
        return f"The budget of {words.money(demand.budget_per_hour or 0.0)} is spent"
    if binding.kind == "maxReplicas":
        return f"maxReplicas of {binding.name} is reached"
    return f"All the mean {words.NAMES.get(binding.name, binding.name)} that the requests together may have is used up"


_UNITS = {"accelerator": "GPU", "limit": "GPU", "budget": "unit of cost per hour", "maxReplicas": "replica", "slo": "second"}


def _worth(binding: Binding, decision: PlanDecision, total_rps: float) -> str:
    unit = _UNITS.get(binding.kind, "unit")
    if decision.feasible:
        return f"at the margin one more {unit} is worth {words.number(binding.price / total_rps, 2)} of quality"
    return f"at the margin one more {unit} serves {words.number(binding.price, 2)} more requests/s, by weight"


def _more(question: Question, plan: Plan) -> Iterator[str]:
    problem = question.problem
    if problem.standing is None:
        for pool, name in _pools(question).items():
            yield f"  {_more_units(question, plan, pool, name)}"
    yield f"  10 % more latency: {_change(question, plan, whatif.with_slo(problem, MORE_LATENCY))}"
    for demand in problem.plans:
        if demand.budget_per_hour is not None and problem.standing is None:
            budget = demand.budget_per_hour * 1.1
            change = _change(question, plan, whatif.with_budget(problem, demand.key, budget))
            yield f"  10 % more budget for {demand.key} ({words.money(budget)}): {change}"


def _pools(question: Question) -> dict[Pool, str]:
    """Every kind of GPU that a setup wants, with the name that the first plan gives it."""
    found: dict[Pool, str] = {}
    for demand in question.problem.plans:
        wanted = {setup.accelerator for model in demand.models for setup in model.setups}
        for kind in demand.accelerators:
            if kind.name in wanted:
                found.setdefault(question.pool(demand.key, kind.name), kind.name)
    return found


def _more_units(question: Question, plan: Plan, pool: Pool, name: str) -> str:
    """What one more unit buys; where it buys nothing, what the next size of a replica does."""
    sizes = {
        setup.units
        for demand in question.problem.plans
        for model in demand.models
        for setup in model.setups
        if question.pool(demand.key, setup.accelerator) == pool
    }
    for units in sorted({1} | sizes):
        change = _change(question, plan, whatif.with_units(question, {pool: units}))
        if change != _NOTHING:
            few = "" if units == 1 else f" (fewer than {units} change nothing)"
            return f"{units} more {name}{few}: {change}"
    return f"{' or '.join(map(str, sorted({1} | sizes)))} more {name}: {_NOTHING}"


_NOTHING = "nothing changes."


def _change(question: Question, before: Plan, problem: Problem) -> str:
    """How the answer to another problem differs in what is refused, quality and cost."""
    try:
        after = whatif.answer(problem)
    except SolveError:
        return "no answer within the time limit."
    several = len(question.plans) > 1
    found = []
    for demand in question.problem.plans:
        was, now = before.of(demand.key), after.of(demand.key)
        parts = _differences(demand, was, now, 2 * max(before.gap, after.gap, question.problem.relative_gap))
        if parts:
            found.append((f"{demand.key} " if several else "") + ", ".join(parts))
    return "; ".join(found) + "." if found else _NOTHING


def _differences(demand: PlanDemand, was: PlanDecision, now: PlanDecision, noise: float) -> list[str]:
    parts = []
    refused = [_refused_rps(demand, decision) for decision in (was, now)]
    if abs(refused[0] - refused[1]) > 1e-4 * max(refused):
        left = f"{words.number(refused[1])} instead of {words.number(refused[0])} requests/s" if refused[1] else "nothing"
        parts.append(f"refuses {left}")
    elif now.feasible and not was.feasible:
        parts.append("serves everything within its SLO")
    better = now.quality - was.quality
    if abs(better) > noise * max(was.quality, now.quality):
        parts.append(f"quality {now.quality:.4f} instead of {was.quality:.4f}")
    dearer = now.cost_per_hour - was.cost_per_hour
    if abs(dearer) >= 0.005:
        parts.append(f"costs {abs(dearer):,.2f} per hour {'more' if dearer > 0 else 'less'}")
    return parts


def _refused_rps(demand: PlanDemand, decision: PlanDecision) -> float:
    rates = {entry.name: entry.rate_rps for entry in demand.classes}
    return sum(rates[route.request_class] * route.shed for route in decision.routes)


def _ways_out(question: Question, plan: Infeasible) -> Iterator[str]:
    problem = question.problem
    behind = [decision.key for decision in plan.decisions if not decision.feasible]
    found = False
    ways = [_fewer_requests(problem, behind), _looser_slo(problem, behind)]
    if problem.standing is None:
        ways = [_more_gpus(question, plan), *(_larger_budget(problem, key) for key in behind), *ways]
    for way in ways:
        if way:
            found = True
            yield f"  {way}"
    if not found:
        yield "  None: neither more GPUs nor a longer latency nor fewer requests do; see the reasons above."


def _more_gpus(question: Question, plan: Plan) -> str:
    more: dict[Pool, int] = {}
    for decision in plan.decisions:
        for short in decision.shortages:
            pool = question.pool(decision.key, short.accelerator)
            more[pool] = more.get(pool, 0) + short.units
    if not more:
        return ""
    after = whatif.served(whatif.with_units(question, more))
    if after is None:
        return ""
    names = _pools(question)
    dearer = sum(d.cost_per_hour for d in after.decisions) - sum(d.cost_per_hour for d in plan.decisions)
    cost = f", for {dearer:,.2f} per hour more" if dearer >= 0.005 else ""
    return f"GPUs: {words.gpus({f'more {names[pool]}': units for pool, units in more.items()})}{cost}."


def _larger_budget(problem: Problem, key: str) -> str:
    (demand,) = (each for each in problem.plans if each.key == key)
    if demand.budget_per_hour is None:
        return ""
    free = whatif.with_budget(problem, key, None)
    after = whatif.served(whatif.regardless_of_quality(free))
    if after is None:
        return ""
    return f"Money: a budget of {words.money(after.of(key).cost_per_hour)} for {key} instead of {demand.budget_per_hour:,.2f}."


def _looser_slo(problem: Problem, behind: list[str]) -> str:
    found = whatif.least_factor(lambda factor: whatif.with_slo(problem, factor, behind), MOST_LATENCY)
    if not found:
        return ""
    slos = {entry.slo: None for demand in problem.plans if demand.key in behind for entry in demand.classes}
    bounds = "; or ".join(words.bounds(slo, found.factor) for slo in slos)
    return f"Latency: {words.number(found.factor)} times as much ({bounds})."


def _fewer_requests(problem: Problem, behind: list[str]) -> str:
    found = whatif.largest_factor(lambda factor: whatif.with_rate(problem, factor, behind))
    if not found:
        return ""
    rates = [
        f"{entry.name} {words.number(entry.rate_rps * found.factor)}"
        for demand in problem.plans
        if demand.key in behind
        for entry in demand.classes
    ]
    return f"Requests: {words.percent(found.factor)} of them ({words.joined(rates)} requests/s)."
