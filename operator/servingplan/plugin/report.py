"""A plan on the cluster in sentences: how it stands, what it serves, and what the operator would change. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from servingplan.offline import words
from servingplan.plugin import proposal, states, times
from servingplan.plugin.view import ClassView, PlanView, SetupView


def lines(plan: PlanView, now_s: float) -> Iterator[str]:
    """Everything that the status says."""
    yield f"{plan.key}, mode {plan.mode}, generation {plan.generation} of the spec."
    if not plan.decided:
        yield f"  The operator has not decided on it yet; what follows is of generation {plan.observed_generation}."
    yield from (f"  {text}" for found in plan.conditions if (text := states.condition(found)))
    yield ""
    yield from _what_runs(plan)
    if plan.classes:
        yield "What is asked of it:"
        yield from (f"  {_class(each)}" for each in plan.classes)
        yield ""
    if plan.series:
        yield f"Measured by {', '.join(f'{series}' for _, series in sorted(plan.series.items()))}."
        yield ""
    if busy := states.going_on(plan, now_s):
        yield "What is going on:"
        yield from (f"  {news.text}." for news in busy)
        yield ""
    yield from _proposed(plan, now_s)


def _what_runs(plan: PlanView) -> Iterator[str]:
    if plan.setups:
        achieved = ""
        if plan.quality is not None and plan.cost_per_hour is not None:
            achieved = f", quality {plan.quality:.4f} for {words.money(plan.cost_per_hour)}"
        yield f"What runs{achieved}:"
        for each in plan.setups:
            yield f"  {_setup(each, plan)}"
            if each.learnt:
                yield f"    Learnt: {states.learnt(each.learnt)}."
    else:
        yield "Nothing runs."
    yield ""


def _setup(each: SetupView, plan: PlanView) -> str:
    count = f"{each.replicas} replica{'s' if each.replicas != 1 else ''}"
    ready = "ready" if each.ready == each.replicas else f"of which {each.ready} ready"
    load = f"{states.rate(each.rate_rps)}, {words.percent(each.utilization)} of a full load"
    text = f"{each.model} on {each.setup}: {count}, {ready}; {load}"
    bound = plan.bound_of(each.model)
    statistic = bound.statistic if bound else "p95"
    predicted = each.predicted.ttft_s(statistic) if each.predicted else None
    observed = each.observed.ttft_s(statistic) if each.observed else None
    if predicted is None and observed is None:
        return f"{text}."
    asked = f", asked {words.seconds(bound.seconds)}" if bound else ""
    measured = "not measured" if observed is None else f"measured {words.seconds(observed)}"
    late = " LATE" if bound and observed is not None and observed > bound.seconds else ""
    return f"{text}; TTFT {statistic} predicted {states.maybe_seconds(predicted)}, {measured}{asked}{late}."


def _class(each: ClassView) -> str:
    shares = sorted(((share, model) for model, share in each.weights.items() if share > 0), reverse=True)
    goes = [f"{words.percent(share)} to {model}" for share, model in shares]
    if each.shed > 0:
        goes.append(f"{words.percent(each.shed)} REFUSED")
    rates = [
        f"{words.number(rate)} {what}"
        for rate, what in ((each.observed_rps, "measured"), (each.planned_rps, "planned for"), (each.declared_rps, "declared"))
        if rate is not None
    ]
    longer = [
        f"{what} {factor:.3g} times as long as declared"
        for factor, what in ((each.prompt_factor, "prompts"), (each.output_factor, "outputs"))
        if factor is not None and abs(factor - 1) >= 0.01
    ]
    name = f"Requests that name {each.name}" if each.by_name else f"Class {each.name}"
    routed = "" if each.by_name else f": {words.joined(goes) or 'no route yet'}"
    return f"{name}, requests/s {', '.join(rates) or 'unknown'}{''.join(f'; {text}' for text in longer)}{routed}."


def _proposed(plan: PlanView, now_s: float) -> Iterator[str]:
    if plan.mode != "Recommend":
        return
    if plan.proposal:
        yield from proposal.lines(plan.proposal, now_s)
        yield f"  Approve it with: kubectl servingplan approve {plan.name} {plan.proposal.id} -n {plan.namespace}"
    else:
        yield "Nothing is proposed: what stands is the best that there is now."
    if plan.approval and plan.approval.id:
        yield f"Proposal {plan.approval.id} stands, adopted {times.ago(plan.approval.time, now_s)}."
    yield ""
