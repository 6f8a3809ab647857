"""Approving a proposal: exactly the one that was shown, or a reason why not.

The approval is an annotation that the user sets and the operator only reads. It names the proposal, so what comes to be is what
was seen, or nothing: the operator adopts no proposal of another name.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from servingplan.api import v1alpha1
from servingplan.plugin import times
from servingplan.plugin.cluster import Cluster
from servingplan.plugin.errors import PluginError
from servingplan.plugin.reading import read_plan
from servingplan.plugin.view import PlanView

_LOOK_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Answer:
    """What the operator says to an approval.

    Attributes:
        adopted: Whether it carries the proposal out.
        text: One sentence.
    """

    adopted: bool
    text: str


def stale(plan: PlanView, wanted: str, now_s: float) -> str:
    """Why a proposal cannot be approved; empty where it can.

    Args:
        plan: The plan now.
        wanted: The proposal's id; empty for the present one, whichever it is.
        now_s: Seconds since the epoch.
    """
    if plan.mode == "Paused":
        return f"plan {plan.key} is paused: resume it first, and it proposes what it would do"
    if plan.mode != "Recommend":
        return f"plan {plan.key} is in mode {plan.mode}, in which the operator asks for no approval: it does what it decides"
    proposal = plan.proposal
    if proposal is None:
        return _nothing_proposed(plan, wanted)
    if wanted and proposal.id != wanted:
        made = f"{times.clock(proposal.time, now_s)}, {times.ago(proposal.time, now_s)}"
        return f"proposal {wanted} is stale: {proposal.id} replaced it ({made}), because: {proposal.reason}"
    if proposal.generation != plan.generation:
        return (
            f"proposal {proposal.id} is stale: it follows generation {proposal.generation} of the spec, which is at"
            f" {plan.generation} now; wait for the next proposal"
        )
    return ""


def _nothing_proposed(plan: PlanView, wanted: str) -> str:
    meant = f"proposal {wanted}" if wanted else "a proposal"
    if not plan.decided:
        return f"{meant} cannot be approved: the operator has not decided on generation {plan.generation} of the spec yet"
    return f"{meant} cannot be approved: nothing is proposed, because what stands is the best for plan {plan.key} now"


def adopted(plan: PlanView, wanted: str) -> bool:
    """Whether the proposal is the one that stands already."""
    return bool(wanted) and plan.approval is not None and plan.approval.id == wanted


def answer(before: PlanView, plan: PlanView, wanted: str, now_s: float) -> Answer | None:
    """What the operator has made of the approval by now; None while it has said nothing.

    Args:
        before: The plan when the approval was given.
        plan: The plan now.
        wanted: The proposal that was approved.
        now_s: Seconds since the epoch.
    """
    if adopted(plan, wanted):
        return Answer(True, f"proposal {wanted} is approved, and the operator carries it out")
    if plan.approval_asked != wanted:
        other = f"approved {plan.approval_asked} instead" if plan.approval_asked else "withdrew the approval"
        return Answer(False, f"somebody {other} in the meantime")
    refused = plan.approval.refused if plan.approval else ""
    earlier = before.approval.refused if before.approval else ""
    # What the operator said to an earlier approval stands until it has looked at this one.
    if refused and (refused != earlier or wanted in refused):
        return Answer(False, f"the operator does not follow the approval: {refused}")
    if reason := stale(plan, wanted, now_s):
        return Answer(False, f"too late: {reason}")
    return None


def approve(cluster: Cluster, plan: PlanView, wanted: str) -> None:
    """Sets the annotation.

    Raises:
        PluginError: It cannot be set.
    """
    patch = {"metadata": {"annotations": {v1alpha1.APPROVE_ANNOTATION: wanted}}}
    cluster.patch_plan(plan.namespace, plan.name, patch)


def _withdraw(cluster: Cluster, plan: PlanView, wanted: str) -> None:
    """Takes an approval back that came to nothing: else an equal proposal of some later day would be approved by it."""
    if plan.approval_asked == wanted:
        cluster.patch_plan(plan.namespace, plan.name, {"metadata": {"annotations": {v1alpha1.APPROVE_ANNOTATION: None}}})


def wait(cluster: Cluster, before: PlanView, wanted: str, timeout_s: float, sleep: Callable[[float], None] = time.sleep) -> str:
    """Waits until the operator has adopted the proposal; returns a sentence that says so.

    Raises:
        PluginError: It has not; the message says what happened instead.
    """
    end_s = time.monotonic() + timeout_s
    while True:
        plan = read_plan(cluster.plan(before.namespace, before.name))
        found = answer(before, plan, wanted, time.time())
        if found and found.adopted:
            return found.text
        if found:
            _withdraw(cluster, plan, wanted)
            raise PluginError(found.text)
        if time.monotonic() >= end_s:
            raise PluginError(
                f"the operator has not answered within {timeout_s:g} s; the approval of {wanted} stands and is taken up when it"
                " looks again: see that servingplan-controller runs"
            )
        # Nothing tells the plugin of a change but a look.
        sleep(min(_LOOK_EVERY_S, max(0.0, end_s - time.monotonic())))
