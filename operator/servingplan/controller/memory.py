"""What the operator told of a plan last, read back from its status: the only thing that one pass leaves to the next."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import ValidationError

from servingplan.api import plan_status
from servingplan.calibration import choices, demand, written
from servingplan.calibration.choices import HeldChoice
from servingplan.calibration.demand import DemandMemory
from servingplan.calibration.memory import SetupMemory
from servingplan.controller.times import seconds_of
from servingplan.controller.world import PlanObject

SetupKey = tuple[str, str]
"""Model and setup."""


@dataclass(frozen=True, slots=True)
class GivenUp:
    """Replicas that did not become ready in time.

    Attributes:
        attempts: Times in a row.
        retry_s: When the next attempt is made, in seconds since the epoch.
    """

    reason: str
    attempts: int
    retry_s: float

    def holds(self, now_s: float) -> bool:
        """Whether no attempt is made yet."""
        return now_s < self.retry_s


@dataclass(frozen=True, slots=True)
class Kept:
    """A setup as it was last reported.

    Attributes:
        replicas: Replicas that were wanted.
        changed_s: When that last changed, in seconds since the epoch; 0 for never.
        grew: Whether that change added replicas.
    """

    replicas: int = 0
    changed_s: float = 0.0
    grew: bool = False
    given_up: GivenUp | None = None
    calibration: SetupMemory | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """A plan as it was last reported.

    Attributes:
        setups: By (model, setup).
        choices: What pickers make of the classes.
        learnt_s: When corrections were last learnt, in seconds since the epoch; 0 for never.
        judged_s: When the latency was last held against the SLOs.
        headroom: Multiple of the measured load that is planned for.
        generation: Of the spec that was decided upon; 0 where nothing ever was.
    """

    setups: dict[SetupKey, Kept] = field(default_factory=dict)
    demand: DemandMemory = field(default_factory=DemandMemory)
    choices: dict[str, HeldChoice] = field(default_factory=dict)
    learnt_s: float = 0.0
    judged_s: float = 0.0
    headroom: float = 1.0
    generation: int = 0
    proposal: plan_status.Proposal | None = None
    approval: plan_status.Approval | None = None

    def kept(self, key: SetupKey) -> Kept:
        """A setup; one that was never spoken of has nothing."""
        return self.setups.get(key, Kept())

    @property
    def replicas(self) -> dict[SetupKey, int]:
        """Replicas that were wanted."""
        return {key: kept.replicas for key, kept in self.setups.items()}


def recall(plan: PlanObject) -> Memory:
    """What a plan's status says; nothing where it cannot be read, which an edit by hand or another version may cause."""
    try:
        status = plan_status.ModelServingPlanStatus.model_validate(plan.status)
    except ValidationError:
        return Memory()
    metrics = status.metrics or plan_status.MetricsStatus()
    return Memory(
        setups={(entry.model, entry.setup): _kept(entry) for entry in status.allocations},
        demand=demand.from_status(status.demand),
        choices={entry.request_class: held for entry in status.routes if (held := _held(entry.picked))},
        learnt_s=seconds_of(metrics.time or ""),
        judged_s=seconds_of(metrics.judged or ""),
        headroom=_factor(metrics.headroom),
        generation=(status.observed_generation or 0) if status.objective else 0,
        proposal=status.proposal,
        approval=status.approval,
    )


def _factor(text: str | None) -> float:
    try:
        return max(1.0, float(text or 1))
    except ValueError:
        return 1.0


def _held(picked: plan_status.PickedStatus | None) -> HeldChoice | None:
    return choices.from_status(picked, seconds_of(picked.time)) if picked else None


def _kept(entry: plan_status.AllocationStatus) -> Kept:
    lost = entry.given_up
    return Kept(
        replicas=entry.replicas,
        changed_s=seconds_of(entry.changed) if entry.changed else 0.0,
        grew=bool(entry.grew),
        given_up=GivenUp(lost.reason, lost.attempts, seconds_of(lost.retry)) if lost else None,
        calibration=written.from_status(entry.calibration) if entry.calibration else None,
    )
