"""What the plugin shows of a plan, in numbers, with everything that may be missing marked as such. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

Statistic = Literal["p95", "mean"]


@dataclass(frozen=True, slots=True)
class ConditionView:
    """A condition.

    Attributes:
        since: When its status last changed, as Kubernetes writes it.
    """

    type: str
    status: str
    reason: str
    message: str
    since: str


@dataclass(frozen=True, slots=True)
class LatencyView:
    """Latencies in seconds; None where unknown.

    Attributes:
        time: When they were measured; empty for a prediction.
    """

    ttft_mean_s: float | None = None
    ttft_p95_s: float | None = None
    inter_token_s: float | None = None
    time: str = ""

    def ttft_s(self, statistic: Statistic) -> float | None:
        """The time to first token that a bound speaks of."""
        return self.ttft_mean_s if statistic == "mean" else self.ttft_p95_s


@dataclass(frozen=True, slots=True)
class Learnt:
    """What live latency has taught about a setup.

    Attributes:
        samples: Cycles that it was learnt from.
        step: Factors on alpha, beta and gamma of the profile that plans are made with; empty while none are.
        ttft: Further factors on the time to first token, by load bin.
        margin: Further margin by bound.
    """

    samples: int
    drifting: bool
    step: tuple[float, ...] = ()
    ttft: tuple[float, ...] = ()
    margin: dict[str, float] = field(default_factory=dict)

    @property
    def slowness(self) -> float | None:
        """How many times as long as by its profile a step takes, the geometric mean over the coefficients."""
        if not self.step or min(self.step) <= 0:
            return None
        return math.exp(sum(map(math.log, self.step)) / len(self.step))


@dataclass(frozen=True, slots=True)
class GivenUpView:
    """Why no further replica is started for now."""

    reason: str
    attempts: int
    retry: str


@dataclass(frozen=True, slots=True)
class SetupView:
    """What one setup of one model has; latency None where nothing is predicted or measured."""

    model: str
    setup: str
    accelerator: str
    replicas: int
    ready: int
    units: int
    rate_rps: float
    utilization: float
    predicted: LatencyView | None
    observed: LatencyView | None
    changed: str
    grew: bool | None
    given_up: GivenUpView | None
    learnt: Learnt | None

    @property
    def name(self) -> str:
        """``model/setup``."""
        return f"{self.model}/{self.setup}"


@dataclass(frozen=True, slots=True)
class BoundView:
    """A bound on the time to first token."""

    seconds: float
    percentile: int | None

    @property
    def statistic(self) -> Statistic:
        """The figure of the status that is held against it: of percentiles it has the 95th alone."""
        return "mean" if self.percentile is None else "p95"


@dataclass(frozen=True, slots=True)
class ClassView:
    """One request class, or the requests that name one model.

    Attributes:
        by_name: Whether they name the model, which is then ``name``.
        observed_rps: None while unknown.
        planned_rps: None where the status does not say.
    """

    name: str
    by_name: bool
    weights: dict[str, float]
    shed: float
    declared_rps: float | None
    observed_rps: float | None
    planned_rps: float | None
    routed_rps: float | None
    prompt_factor: float | None
    output_factor: float | None
    bound: BoundView | None

    @property
    def rate_rps(self) -> float | None:
        """The best that is known of its rate."""
        return next((rate for rate in (self.observed_rps, self.planned_rps, self.declared_rps) if rate is not None), None)


@dataclass(frozen=True, slots=True)
class KindView:
    """An accelerator kind of the plan.

    Attributes:
        used: Units that the plan takes.
        limit: Units that it may take; None for all.
        selector: Labels of its nodes.
    """

    name: str
    resource: str
    selector: dict[str, str]
    limit: int | None
    used: int


@dataclass(frozen=True, slots=True)
class OutlookView:
    """What a plan comes to."""

    quality: float
    cost_per_hour: float
    shed: float


@dataclass(frozen=True, slots=True)
class SetupChange:
    """Replicas before and after."""

    model: str
    setup: str
    accelerator: str
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class RouteChange:
    """Shares by model before and after, with the predicted 95th percentile of the time to first token."""

    name: str
    before: dict[str, float]
    after: dict[str, float]
    ttft_before_s: float | None
    ttft_after_s: float | None


@dataclass(frozen=True, slots=True)
class ProposalView:
    """What the operator would do."""

    id: str
    time: str
    generation: int
    reason: str
    setups: tuple[SetupChange, ...]
    routes: tuple[RouteChange, ...]
    before: OutlookView
    after: OutlookView


@dataclass(frozen=True, slots=True)
class ApprovalView:
    """The proposal that stands; ``refused`` names one that does not."""

    id: str
    time: str
    refused: str


@dataclass(frozen=True, slots=True)
class DecisionView:
    """One decision of the past; replicas by ``model/setup``."""

    time: str
    generation: int
    reason: str
    replicas: dict[str, int]


@dataclass(frozen=True, slots=True)
class PlanView:
    """A plan at one moment.

    Attributes:
        generation: Generation of the spec.
        observed_generation: Generation that the status speaks of; 0 while there is none.
        quality, cost_per_hour, gap, quality_bound: None before the first decision.
        slo: The bounds in words; empty before the first decision.
        series: The name by which each series was found.
        learnt_at: When corrections were last learnt.
        history: Latest first.
        mode_before_pause: Kept by ``pause``; empty where nothing is.
        approval_asked: Proposal that the annotation names; empty where it is not set.
        gitops: The tool that owns the plan's spec; empty where none shows.
    """

    namespace: str
    name: str
    mode: str
    generation: int
    observed_generation: int
    conditions: tuple[ConditionView, ...]
    setups: tuple[SetupView, ...]
    classes: tuple[ClassView, ...]
    kinds: tuple[KindView, ...]
    models: tuple[str, ...]
    quality: float | None
    quality_bound: float | None
    cost_per_hour: float | None
    gap: float | None
    slo: str
    proposal: ProposalView | None
    approval: ApprovalView | None
    history: tuple[DecisionView, ...]
    router_address: str
    router_ready: int | None
    series: dict[str, str]
    learnt_at: str
    mode_before_pause: str
    approval_asked: str
    gitops: str

    @property
    def key(self) -> str:
        """``namespace/name``."""
        return f"{self.namespace}/{self.name}"

    @property
    def decided(self) -> bool:
        """Whether the status speaks of the present spec."""
        return self.observed_generation == self.generation and bool(self.conditions)

    def condition(self, kind: str) -> ConditionView | None:
        """The condition of a type."""
        return next((each for each in self.conditions if each.type == kind), None)

    def bound_of(self, model: str) -> BoundView | None:
        """The tightest bound on the time to first token among the classes that go to a model."""
        bounds = [each.bound for each in self.classes if each.bound and each.weights.get(model, 0) > 0]
        return min(bounds, key=lambda bound: bound.seconds, default=None)
