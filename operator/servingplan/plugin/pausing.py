"""Pausing a plan, and letting it go on as it was. Pure: what to patch, and what to say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from servingplan.plugin.reading import ANNOTATION_MODE
from servingplan.plugin.view import PlanView

_MODES = ("Auto", "Recommend")


@dataclass(frozen=True, slots=True)
class Change:
    """What a command does to a plan.

    Attributes:
        patch: A merge patch; None where there is nothing to do.
        text: One or two sentences.
    """

    patch: dict[str, Any] | None
    text: str


def pause(plan: PlanView) -> Change:
    """Holds replicas and weights as they are."""
    if plan.mode == "Paused":
        return Change(None, f"plan {plan.key} is paused already")
    patch = {"metadata": {"annotations": {ANNOTATION_MODE: plan.mode}}, "spec": {"mode": "Paused"}}
    return Change(
        patch, f"plan {plan.key} is paused: replicas and weights are held as they are (mode was {plan.mode}). {_undone(plan)}"
    )


def resume(plan: PlanView) -> Change:
    """Goes back to the mode before the pause."""
    if plan.mode != "Paused":
        return Change(None, f"plan {plan.key} is not paused; its mode is {plan.mode}")
    mode = plan.mode_before_pause if plan.mode_before_pause in _MODES else _MODES[0]
    patch = {"metadata": {"annotations": {ANNOTATION_MODE: None}}, "spec": {"mode": mode}}
    kept = "as before the pause" if plan.mode_before_pause in _MODES else "the default, as no mode was kept"
    return Change(patch, f"plan {plan.key} goes on in mode {mode}, {kept}. {_undone(plan)}")


def _undone(plan: PlanView) -> str:
    if plan.gitops:
        return (
            f"{plan.gitops} applies this plan and will set the mode back at its next sync: change spec.mode at the source too."
        )
    return "A GitOps tool that owns the spec would set the mode back at its next sync."
