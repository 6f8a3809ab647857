"""What was decided, and what was recorded about it, latest first. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from servingplan.offline.table import columns
from servingplan.plugin import states, times
from servingplan.plugin.view import DecisionView, PlanView

_EVENTS = 12


def lines(plan: PlanView, events: Sequence[dict[str, Any]] | None, now_s: float) -> Iterator[str]:
    """The decisions as a table, then the Events.

    Args:
        plan: The plan.
        events: As the API server has them; None where they may not be read.
        now_s: Seconds since the epoch.
    """
    if plan.history:
        yield from _decisions(plan.history, now_s)
    else:
        yield f"Nothing was decided on plan {plan.key} yet."
    yield ""
    if events is None:
        yield "Events may not be read here."
    elif events:
        yield from _events(events, now_s)
    else:
        yield "No Event of the last hour is left; Kubernetes forgets them."


def _decisions(history: tuple[DecisionView, ...], now_s: float) -> list[str]:
    rows = []
    for decision, moved in zip(history, states.steps(history), strict=True):
        replicas = ", ".join(f"{count} {name}" for name, count in sorted(decision.replicas.items())) or "none"
        rows.append(
            (
                times.clock(decision.time, now_s),
                times.ago(decision.time, now_s).removesuffix(" ago"),
                str(decision.generation),
                decision.reason,
                replicas,
                ", ".join(moved) or ("no change" if decision is not history[-1] else "-"),
            )
        )
    return columns(("TIME", "AGE", "GENERATION", "REASON", "REPLICAS", "CHANGE"), rows, "lrrlll")


def _events(events: Sequence[dict[str, Any]], now_s: float) -> list[str]:
    ordered = sorted(events, key=lambda event: (_when(event), event["metadata"].get("name", "")), reverse=True)
    rows = []
    for event in ordered[:_EVENTS]:
        count = (event.get("series") or {}).get("count") or event.get("count") or 1
        again = f" (x{count})" if count > 1 else ""
        rows.append(
            (
                times.clock(_when(event), now_s),
                times.ago(_when(event), now_s).removesuffix(" ago"),
                event.get("type", ""),
                event.get("reason", ""),
                " ".join(str(event.get("message", "")).split()) + again,
            )
        )
    found = columns(("TIME", "AGE", "EVENT", "REASON", "MESSAGE"), rows, "lrlll")
    left = len(ordered) - len(rows)
    return [*found, f"and {left} earlier"] if left else found


def _when(event: dict[str, Any]) -> str:
    series = (event.get("series") or {}).get("lastObservedTime")
    created = event["metadata"].get("creationTimestamp", "")
    return str(series or event.get("lastTimestamp") or event.get("eventTime") or created)
