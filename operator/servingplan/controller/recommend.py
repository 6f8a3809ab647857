"""Mode Recommend: what would be done is shown, and done exactly so once it is approved."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from servingplan.api import plan_status
from servingplan.api.routing_table import RoutingTable, whole_weights
from servingplan.controller.case import Case
from servingplan.controller.choose import Chosen
from servingplan.controller.figures import shown
from servingplan.controller.memory import SetupKey
from servingplan.controller.times import text_of
from servingplan.planning.problem import Plan, PlanDecision


def approved(case: Case) -> tuple[dict[SetupKey, int], plan_status.Approval]:
    """The replicas that are approved, with the approval that says so or why the present one is not followed."""
    before = case.memory.approval or plan_status.Approval()
    wish, proposal = case.plan.approval, case.memory.proposal
    stands = {key: count for key, count in case.memory.replicas.items() if key in case.pools}
    if not wish or wish == before.id:
        return stands, before.model_copy(update={"refused": None})
    if proposal is None:
        return stands, before.model_copy(update={"refused": f"{wish} is not proposed: nothing is, what stands is as good"})
    if proposal.id != wish:
        said = f"{wish} is stale: {proposal.id} was proposed at {proposal.time} because {proposal.reason}"
        return stands, before.model_copy(update={"refused": said})
    if proposal.generation != case.plan.generation:
        said = f"{wish} is stale: it was made for generation {proposal.generation}, the spec is at {case.plan.generation}"
        return stands, before.model_copy(update={"refused": said})
    changed = {(entry.model, entry.setup): entry.after for entry in proposal.setups}
    return stands | changed, plan_status.Approval(
        id=wish, time=None, generation=case.plan.generation, weights=proposal.weights, refused=None
    )


def proposed(
    case: Case, stands: Mapping[SetupKey, int], now: Plan | None, best: Chosen, reason: str, now_s: float
) -> plan_status.Proposal | None:
    """The proposal for a plan; the one that is shown already where it is the same; None where there is nothing to change."""
    if best.planned is None:
        return case.memory.proposal
    after = {key: best.target[case.key, *key] for key in case.pools}
    answer = best.planned.of(case.key)
    if all(stands.get(key, 0) == count for key, count in after.items()):
        return None
    weights = _weights(answer)
    content = [case.plan.generation, sorted((*key, n) for key, n in after.items()), weights]
    shown_now = case.memory.proposal
    if shown_now is not None and shown_now.id == _identity(content, shown_now.time):
        return shown_now
    time = text_of(now_s)
    standing = now.of(case.key) if now is not None else None
    return plan_status.Proposal(
        id=_identity(content, time),
        weights=weights,
        time=time,
        generation=case.plan.generation,
        reason=reason,
        setups=[
            plan_status.ProposedSetup(
                model=key[0], setup=key[1], accelerator=setup.accelerator, before=stands.get(key, 0), after=after[key]
            )
            for key, setup in case.setups.items()
            if stands.get(key, 0) != after[key]
        ],
        routes=_routes(case, standing, answer),
        before=_outlook(case, standing),
        after=_outlook(case, answer),
    )


def _identity(content: list[object], time: str) -> str:
    """Of the time too: an approval that came too late must not hold for an equal proposal of another day."""
    return hashlib.sha256(json.dumps([content, time], sort_keys=True).encode()).hexdigest()[:8]


def _weights(answer: PlanDecision) -> dict[str, dict[str, str]]:
    """Shares to whole percents: a proposal that differs by less is the same."""
    return {
        route.request_class: {"/".join(key): f"{share:.2f}" for key, share in sorted(route.shares.items()) if share >= 0.005}
        for route in answer.routes
    }


def _routes(case: Case, standing: PlanDecision | None, answer: PlanDecision) -> list[plan_status.ProposedRoute]:
    before = {route.request_class: route for route in standing.routes} if standing else {}
    names = {entry.name for entry in case.spec.request_classes}
    found = []
    for route in answer.routes:
        if route.request_class not in names:
            continue
        old = before.get(route.request_class)
        found.append(
            plan_status.ProposedRoute.model_validate(
                {
                    "class": route.request_class,
                    "before": {name: shown(share) for name, share in old.by_model().items()} if old else {},
                    "after": {name: shown(share) for name, share in route.by_model().items()},
                    "ttftBefore": _slowest(standing, route.request_class),
                    "ttftAfter": _slowest(answer, route.request_class),
                }
            )
        )
    return found


def _slowest(answer: PlanDecision | None, name: str) -> str | None:
    """The largest predicted p95 among the setups that a class uses."""
    if answer is None:
        return None
    used = {key for route in answer.routes if route.request_class == name for key in route.shares}
    found = [a.predicted.ttft_p95_s for a in answer.allocations if a.predicted and (a.model, a.setup) in used]
    return shown(max(found)) if found else None


def _outlook(case: Case, answer: PlanDecision | None) -> plan_status.Outlook:
    if answer is None:
        return plan_status.Outlook(quality="0", cost_per_hour="0")
    rates = {entry.name: float(entry.rate) for entry in case.spec.request_classes}
    rates |= {name: entry.planned_rps for name, entry in case.memory.demand.classes.items()}
    total = sum(rates.get(route.request_class, 0.0) for route in answer.routes) or 1.0
    shed = sum(rates.get(route.request_class, 0.0) * route.shed for route in answer.routes) / total
    return plan_status.Outlook(quality=shown(answer.quality), cost_per_hour=shown(answer.cost_per_hour), shed=shown(shed))


def stamped(approval: plan_status.Approval, now_s: float) -> plan_status.Approval:
    """An approval that is followed from now on."""
    return approval.model_copy(update={"time": text_of(now_s)})


def as_approved(case: Case, table: RoutingTable, approval: plan_status.Approval) -> RoutingTable:
    """The table with the weights that were approved, once everything that they name is ready.

    Until then, and where something that they name has failed, the table stands as it was made for what is ready.
    """
    wanted: dict[str, dict[str, int]] = {}
    for name, shares in approval.weights.items():
        keys = {tuple(text.split("/", 1)): float(share) for text, share in shares.items()}
        pools = {case.pools.get((model, setup)): share for (model, setup), share in keys.items() if share > 0}
        if None in pools or any(case.ready.get((model, setup), 0) == 0 for (model, setup), share in keys.items() if share > 0):
            return table
        wanted[name] = whole_weights({pool: share for pool, share in pools.items() if pool is not None})
    classes = tuple(
        entry.model_copy(update={"weights": wanted[entry.name]}) if wanted.get(entry.name) else entry for entry in table.classes
    )
    return table.model_copy(update={"classes": classes})
