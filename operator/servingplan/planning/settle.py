"""Whether an answer keeps its SLOs among the requests that really meet on a setup, and how far to load it so that it does."""

from __future__ import annotations

from servingplan.latency.capacity import latency, margin
from servingplan.planning.answer import Answer
from servingplan.planning.columns import SetupKey, kept_utilization
from servingplan.planning.means import METRICS
from servingplan.planning.problem import Scope

_LATE = 2e-3
"""A load above the level by less than this fraction is the iteration's own accuracy."""


def kept_levels(found: Answer) -> dict[SetupKey, float] | None:
    """Utilisation by setup at which the classes that it is sent keep their SLOs together; None where all do already."""
    asked, blends = found.pairs.asked, found.blends()
    levels: dict[SetupKey, float] = {}
    late = False
    for j, flow in found.flows.items():
        column = asked.columns[j]
        key = asked.setup_key(column)
        if asked.plans[column.plan].scope is Scope.PLAN:
            continue
        entries = [asked.classes[k][1] for k in flow]
        kept = min(kept_utilization(entry, column.setup, (blends[key],)) for entry in entries)
        load = sum(rate / column.stable[asked.classes[k][1].name] for k, rate in flow.items()) / found.solution.replicas[j]
        late = late or load > kept * (1 + _LATE)
        # A class that has to leave must not drag the level to nothing.
        levels[key] = max(kept, 0.05 * column.utilization)
    late = late or any(_mean_late(found, index) for index, plan in enumerate(asked.plans) if plan.scope is Scope.PLAN)
    return levels if late else None


def _mean_late(found: Answer, index: int) -> bool:
    """Whether a plan's mean latency, with the requests that meet, exceeds its bound."""
    asked, blends = found.pairs.asked, found.blends()
    slo = next((entry.slo for owner, entry in asked.classes if owner == index), None)
    total, seconds = 0.0, dict.fromkeys(METRICS, 0.0)
    for j, flow in found.flows.items():
        column = asked.columns[j]
        if column.plan != index:
            continue
        mix = blends[asked.setup_key(column)]
        replicas = found.solution.replicas[j]
        cv = max(asked.classes[k][1].arrival_cv for k in flow)
        load = sum(rate / column.stable[asked.classes[k][1].name] for k, rate in flow.items()) / replicas
        raised = 1.0 + margin(column.setup.profile, mix, load, cv)
        for k, rate in flow.items():
            one = latency(column.setup.profile, asked.classes[k][1].mix, sum(flow.values()) / replicas, mix, cv)
            total += rate
            seconds["ttft"] += raised * rate * one.ttft_mean_s
            seconds["inter_token"] += raised * rate * one.inter_token_s
            seconds["e2e"] += raised * rate * one.e2e_mean_s
    bounds = {metric: getattr(slo, metric) for metric in METRICS}
    return any(bound and total and seconds[name] / total > bound.seconds * (1 + _LATE) for name, bound in bounds.items())
