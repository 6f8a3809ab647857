"""Whether an answer keeps its SLOs among the requests that really meet on a setup, and what the setup takes of them if not."""

from __future__ import annotations

from servingplan.latency.capacity import latency, margin, utilization
from servingplan.planning.answer import Answer
from servingplan.planning.columns import Seen, SetupKey
from servingplan.planning.means import METRICS, seconds_of
from servingplan.planning.problem import Scope

_LATE = 2e-3
"""A load above what is kept by less than this fraction is the iteration's own accuracy."""
_LEAST = 0.05
"""A class that has to leave must not drag a setup to nothing."""


def seen(found: Answer, before: dict[SetupKey, Seen]) -> dict[SetupKey, Seen] | None:
    """What is known of the setups once an answer has broken an SLO; None if it keeps them all.

    Capacities are only ever lowered: what a mix of classes takes beyond the linear form is left as a reserve, so that a looser
    SLO or another accelerator cannot make a plan worse.

    Args:
        found: The answer.
        before: What was known when it was asked for.
    """
    asked, blends = found.pairs.asked, found.blends()
    shown = dict(before)
    for j, flow in found.flows.items():
        column = asked.columns[j]
        key = asked.setup_key(column)
        if asked.plans[column.plan].scope is Scope.PLAN:
            continue
        entries = [(asked.classes[k][1], rate / found.solution.replicas[j]) for k, rate in flow.items()]
        kept = min(utilization(column.setup.profile, e.mix, e.slo, blends[key], e.arrival_cv) for e, _ in entries)
        load = sum(rate / column.stable[entry.name] for entry, rate in entries)
        if load > kept * (1 + _LATE):
            filled = sum(rate / column.capacity[entry.name] for entry, rate in entries)
            factor = before[key].factor if key in before else 1.0
            shown[key] = Seen(blends[key], max(_LEAST, factor * min(1.0, filled * kept / load)))
    for index, plan in enumerate(asked.plans):
        if plan.scope is Scope.PLAN and _mean_late(found, index):
            mine = {asked.setup_key(asked.columns[j]) for j in found.flows if asked.columns[j].plan == index}
            shown |= {key: Seen(blends[key]) for key in mine}
    return None if shown == before else shown


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
            for metric, value in seconds_of(one).items():
                seconds[metric] += raised * rate * value
    bounds = {metric: getattr(slo, metric) for metric in METRICS}
    return any(bound and total and seconds[name] / total > bound.seconds * (1 + _LATE) for name, bound in bounds.items())
