"""Figures and states in the words of a person. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from servingplan.offline.words import number, seconds
from servingplan.plugin import times
from servingplan.plugin.view import ConditionView, DecisionView, Learnt, PlanView

_CONDITIONS = {
    ("Ready", "True"): "It serves as decided",
    ("Ready", "False"): "It does not serve as decided yet",
    ("Feasible", "True"): "Everything can be served within its SLO",
    ("Feasible", "False"): "NOT everything can be served within its SLO",
    ("Feasible", "Unknown"): "Whether everything can be served is not known",
    ("RoutingSynced", "True"): "Every router serves the present routing table",
    ("RoutingSynced", "False"): "Routers serve an earlier routing table",
    ("RoutingSynced", "Unknown"): "What the routers serve is not known",
    ("MetricsAvailable", "True"): "Metrics arrive",
    ("MetricsAvailable", "False"): "Metrics do NOT arrive, so replicas are held",
    ("MetricsAvailable", "Unknown"): "There are no metrics",
    ("SLOMet", "True"): "The SLO is kept, as measured",
    ("SLOMet", "False"): "The SLO is MISSED, as measured",
    ("SLOMet", "Unknown"): "Whether the SLO is kept is not measured",
    ("Stalled", "True"): "It is stalled until somebody changes it",
    ("Reconciling", "True"): "It is being carried out",
}
_CALM = {("Stalled", "False"), ("Reconciling", "False")}
"""States that only say that there is nothing to say."""


def condition(found: ConditionView) -> str:
    """One line, or nothing where there is nothing to tell."""
    if (found.type, found.status) in _CALM:
        return ""
    text = _CONDITIONS.get((found.type, found.status), f"{found.type} is {found.status}")
    said = f": {found.message}" if found.message else ""
    return f"{text} ({found.reason}){said}."


def rate(rate_rps: float | None) -> str:
    """Requests per second; a dash where they are not known."""
    return "-" if rate_rps is None else f"{number(rate_rps)}/s"


def maybe_seconds(value_s: float | None) -> str:
    """Seconds; a dash where they are not known."""
    return "-" if value_s is None else seconds(value_s)


def learnt(found: Learnt) -> str:
    """What live latency has taught, against the profile."""
    cycles = f"{found.samples} cycle{'s' if found.samples != 1 else ''}"
    factor = found.slowness
    if factor is None:
        text = f"nothing is corrected yet after {cycles}"
    elif 0.99 < factor < 1.01:
        text = f"as fast as its profile, learnt from {cycles}"
    else:
        parts = ", ".join(f"{name} x{value:.3g}" for name, value in zip(("alpha", "beta", "gamma"), found.step, strict=False))
        text = f"steps take {factor:.3g} times as long as by its profile ({parts}), learnt from {cycles}"
    return f"{text}; it has CHANGED since and is learnt anew" if found.drifting else text


def changes(before: Mapping[str, int], after: Mapping[str, int]) -> list[str]:
    """How replicas by setup differ, the largest change first: ``+2 large/tp2 (1 to 3)``."""
    moved = {name: after.get(name, 0) - before.get(name, 0) for name in sorted(before.keys() | after.keys())}
    ordered = sorted(((-abs(by), name, by) for name, by in moved.items() if by), key=lambda entry: entry[:2])
    return [f"{by:+d} {name} ({before.get(name, 0)} to {after.get(name, 0)})" for _, name, by in ordered]


def steps(history: tuple[DecisionView, ...]) -> list[list[str]]:
    """How every decision's replicas differ from those of the one before; of the oldest that is kept that is not known."""
    found = [changes(older.replicas, newer.replicas) for newer, older in itertools.pairwise(history)]
    return [*found, []] if history else []


@dataclass(frozen=True, slots=True)
class News:
    """Something that is not at rest, or waits for somebody.

    Attributes:
        text: One sentence without its full stop.
        bad: Whether it is worse than work in progress.
    """

    text: str
    bad: bool = False


def going_on(plan: PlanView, now_s: float) -> list[News]:
    """What is going on, the most pressing first."""
    return [
        *_held(plan),
        *_given_up(plan, now_s),
        *_waiting(plan, now_s),
        *_unwell(plan),
        *_moving(plan, now_s),
        *(
            News(f"{each.name} has changed its speed and is learnt anew")
            for each in plan.setups
            if each.learnt and each.learnt.drifting
        ),
    ]


def _held(plan: PlanView) -> list[News]:
    if plan.mode == "Paused":
        return [News("paused: replicas and weights are held as they are")]
    if not plan.decided:
        return [News(f"generation {plan.generation} of the spec is not decided on yet")]
    return []


def _given_up(plan: PlanView, now_s: float) -> Iterator[News]:
    for setup in plan.setups:
        if found := setup.given_up:
            often = f", {found.attempts} times in a row" if found.attempts > 1 else ""
            yield News(f"{setup.name} given up{often}: {found.reason}; tried again {times.ahead(found.retry, now_s)}", bad=True)


def _waiting(plan: PlanView, now_s: float) -> Iterator[News]:
    if plan.proposal and plan.mode == "Recommend":
        made = times.ago(plan.proposal.time, now_s)
        yield News(f"proposal {plan.proposal.id} waits for approval, made {made}: {plan.proposal.reason}")
    if plan.approval and plan.approval.refused:
        yield News(f"the last approval is not followed: {plan.approval.refused}", bad=True)


def _unwell(plan: PlanView) -> list[News]:
    quiet = {("Ready", "Progressing"), ("Ready", "Paused"), ("MetricsAvailable", "NotConfigured")}
    given_up = any(setup.given_up for setup in plan.setups)
    found: dict[str, News] = {}
    for kind in ("Feasible", "Stalled", "Ready", "MetricsAvailable", "SLOMet", "RoutingSynced"):
        state = plan.condition(kind)
        at_rest = "False" if kind == "Stalled" else "True"
        if state is None or state.status == at_rest or not state.message or (kind, state.reason) in quiet:
            continue
        # What was given up is told above, with when it is tried again.
        if not (kind == "Ready" and given_up):
            found.setdefault(state.message, News(f"{state.reason}: {state.message}", bad=state.status != "Unknown"))
    return list(found.values())


def _moving(plan: PlanView, now_s: float) -> Iterator[News]:
    for setup in plan.setups:
        since = f", asked for {times.ago(setup.changed, now_s)}" if setup.changed else ""
        if setup.ready < setup.replicas and not setup.given_up:
            yield News(f"{setup.name} starts: {setup.ready} of {setup.replicas} ready{since}")
        elif setup.ready > setup.replicas:
            yield News(f"{setup.name} shrinks: {setup.ready} still ready, {setup.replicas} wanted{since}")
