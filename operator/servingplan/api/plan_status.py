"""The status of a ModelServingPlan: what the operator reports, and the only part of a plan that it writes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from servingplan.api.fields import LIST_BY_NAME
from servingplan.api.objects import Object

SUMMARY_QUALITY = "quality"
SUMMARY_SLO = "slo"
SUMMARY_GPUS = "gpus"
SUMMARY_ACCELERATORS = "accelerators"
SUMMARY_COST_PER_HOUR = "costPerHour"
"""Keys of ``status.summary``, the short texts behind the columns of ``kubectl get``."""


class Condition(Object):
    """A condition as Kubernetes writes them."""

    type: str = Field(description="Type of the condition.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    observed_generation: int | None = Field(default=None, description="Generation of the spec it speaks of.")
    last_transition_time: str = Field(description="When the status last changed.", json_schema_extra={"format": "date-time"})
    reason: str = Field(description="One word for programs.")
    message: str = Field(default="", description="One sentence for people.")


class LatencySummary(Object):
    """Latencies in seconds."""

    ttft_mean: str | None = Field(default=None, description="Mean time to first token in seconds.")
    ttft_p95: str | None = Field(default=None, description="95th percentile of the time to first token in seconds.")
    inter_token_mean: str | None = Field(default=None, description="Mean inter-token latency in seconds.")
    time: str | None = Field(
        default=None, json_schema_extra={"format": "date-time"}, description="When it was measured; none for a prediction."
    )


class GivenUp(Object):
    """Replicas that did not become ready within their cold start, and when they are tried again."""

    reason: str = Field(description="What kept them, in the words of the scheduler or kubelet.")
    attempts: int = Field(description="Times in a row.")
    retry: str = Field(json_schema_extra={"format": "date-time"}, description="When the next attempt is made.")


class AppliedCorrection(Object):
    """Factors on the profile that plans are made with."""

    step: list[str] = Field(max_length=3, description="On alphaMs and floorMs, on betaMs, on gammaMs.")
    ttft: list[str] = Field(max_length=8, description="Further ones on the time to first token, by load bin.")
    margin: dict[str, str] = Field(default_factory=dict, description="Further margin by bound, such as ttft.p95.")


class CalibrationStatus(Object):
    """What live latency has taught about a setup: the operator's memory, which it reads back after a restart."""

    samples: int = Field(description="Cycles that it was learnt from.")
    log_step: list[str] = Field(max_length=3, description="Logarithms of the factors on the profile's coefficients.")
    covariance: list[str] = Field(max_length=6, description="Their covariance, the lower triangle.")
    log_bias: list[str] = Field(max_length=8, description="Logarithms of measured over predicted TTFT, by load bin.")
    bias_weight: list[str] = Field(max_length=8, description="How much was learnt in each bin.")
    margin: dict[str, str] = Field(default_factory=dict, description="Further margin that was learnt, by bound.")
    drift: list[str] = Field(max_length=2, description="Sums of the drift test, upwards and downwards.")
    drifting: bool = Field(default=False, description="Whether the replicas have changed since it was learnt.")
    applied: AppliedCorrection | None = Field(default=None, description="The part that plans are made with.")


class AllocationStatus(Object):
    """What one setup of one model has."""

    model: str = Field(description="Model.")
    setup: str = Field(description="Setup.")
    accelerator: str = Field(description="Accelerator kind.")
    deployment: str = Field(description="Name of the Deployment.")
    replicas: int = Field(description="Replicas that the plan wants.")
    ready: int = Field(description="Replicas that are ready.")
    units: int = Field(description="Accelerator units that the wanted replicas take.")
    rate: str = Field(description="Requests per second that the plan sends here.")
    utilization: str = Field(description="Planned load as a fraction of the capacity at the SLO.")
    predicted: LatencySummary | None = Field(default=None, description="Latency predicted at the planned load.")
    observed: LatencySummary | None = Field(default=None, description="Latency measured over the last minutes.")
    changed: str | None = Field(
        default=None, json_schema_extra={"format": "date-time"}, description="When the wanted replicas last changed."
    )
    grew: bool | None = Field(default=None, description="Whether that change added replicas.")
    given_up: GivenUp | None = Field(default=None, description="Why no further replica is started for now.")
    calibration: CalibrationStatus | None = Field(default=None, description="What live latency has taught about this setup.")


class PickedStatus(Object):
    """What pickers make of a class, as plans take it into account: the operator's memory, which it reads back."""

    time: str = Field(json_schema_extra={"format": "date-time"}, description="When it last moved.")
    shares: dict[str, str] = Field(default_factory=dict, description="Share of the class by model that pickers sent there.")
    gains: dict[str, str] = Field(
        default_factory=dict, description="Quality that choosing the model by the request is worth, by the model."
    )


class RouteStatus(Object):
    """Where one class goes."""

    request_class: str = Field(alias="class", description="Request class.")
    weights: dict[str, str] = Field(default_factory=dict, description="Share of the class by model; with shed it sums to 1.")
    shed: str = Field(default="0", description="Share of the class that is refused with 429.")
    picked: PickedStatus | None = Field(default=None, description="What pickers make of the class; none without a picker.")
    distance: str | None = Field(
        default=None, description="Share of the class that pickers sent to other models than the weights say, of late."
    )


class DemandStatus(Object):
    """How much there is of one request class, or of the requests that name one model."""

    request_class: str | None = Field(default=None, alias="class", description="Request class.")
    model: str | None = Field(default=None, description="Model that the requests name, instead of a class.")
    observed: str | None = Field(default=None, description="Requests per second that were measured; none while unknown.")
    planned: str = Field(description="Requests per second that replicas are planned for.")
    routed: str = Field(description="Requests per second that weights are made for.")
    prompt_factor: str | None = Field(default=None, description="Measured prompt lengths as a multiple of those in the spec.")
    output_factor: str | None = Field(default=None, description="The same of the output lengths.")


class ProposedSetup(Object):
    """A setup that a proposal changes."""

    model: str = Field(description="Model.")
    setup: str = Field(description="Setup.")
    accelerator: str = Field(description="Accelerator kind.")
    before: int = Field(description="Replicas now.")
    after: int = Field(description="Replicas proposed.")


class ProposedRoute(Object):
    """A class whose weights a proposal changes."""

    request_class: str = Field(alias="class", description="Request class.")
    before: dict[str, str] = Field(default_factory=dict, description="Share of the class by model now.")
    after: dict[str, str] = Field(default_factory=dict, description="Share of the class by model as proposed.")
    ttft_before: str | None = Field(default=None, description="Predicted p95 of the time to first token now, in seconds.")
    ttft_after: str | None = Field(default=None, description="The same as proposed.")


class Outlook(Object):
    """What a plan comes to."""

    quality: str = Field(description="Mean quality of the answers.")
    cost_per_hour: str = Field(description="Cost of the accelerators.")
    shed: str = Field(default="0", description="Share of all requests that is refused.")


class Proposal(Object):
    """What the operator would do, in mode Recommend."""

    id: str = Field(description="Names exactly this proposal; kubectl servingplan approve sends it.")
    weights: dict[str, dict[str, str]] = Field(
        default_factory=dict, description="Share of every class by model/setup once everything proposed is ready."
    )
    time: str = Field(json_schema_extra={"format": "date-time"}, description="When it was made.")
    generation: int = Field(description="Generation of the spec it follows.")
    reason: str = Field(description="Why it was made.")
    setups: list[ProposedSetup] = Field(default_factory=list, max_length=256, description="Replicas that would change.")
    routes: list[ProposedRoute] = Field(default_factory=list, max_length=32, description="Weights, before and after.")
    before: Outlook = Field(description="What stands comes to.")
    after: Outlook = Field(description="What is proposed comes to.")


class Approval(Object):
    """The proposal that was approved last, which is what stands in mode Recommend."""

    id: str = Field(default="", description="The proposal; empty while none was adopted.")
    time: str | None = Field(default=None, json_schema_extra={"format": "date-time"}, description="When it was adopted.")
    generation: int | None = Field(default=None, description="Generation of the spec that it followed.")
    weights: dict[str, dict[str, str]] = Field(
        default_factory=dict, description="Share of every class by model/setup, as it was approved."
    )
    refused: str | None = Field(default=None, description="Why the present approval is not followed.")


class MetricsStatus(Object):
    """Where the figures come from."""

    series: dict[str, str] = Field(default_factory=dict, description="The name by which each series was found.")
    time: str | None = Field(
        default=None, json_schema_extra={"format": "date-time"}, description="When corrections were last learnt."
    )
    judged: str | None = Field(
        default=None, json_schema_extra={"format": "date-time"}, description="When the latency was last held against the SLOs."
    )
    headroom: str | None = Field(
        default=None, description="Multiple of the measured load that is planned for, because bursts within it missed an SLO."
    )


class ObjectiveStatus(Object):
    """What the plan achieves."""

    quality: str = Field(description="Mean quality of the answers, weighted by class.")
    cost_per_hour: str = Field(description="Cost of the accelerators in use.")
    choice: str | None = Field(
        default=None,
        description="What choosing by the request is worth beyond it, in quality and in money saved; none without a picker.",
    )
    bound: str | None = Field(default=None, description="Proven upper bound on the quality with what choosing is worth.")
    gap: str | None = Field(default=None, description="Relative distance between the bound and the plan.")


class Decision(Object):
    """One decision of the past."""

    time: str = Field(description="When it was taken.", json_schema_extra={"format": "date-time"})
    generation: int = Field(description="Generation of the spec it followed.")
    reason: str = Field(description="Why it was taken.")
    replicas: dict[str, int] = Field(default_factory=dict, description="Replicas by model/setup.")


class RouterStatus(Object):
    """What the router serves."""

    address: str = Field(description="Address inside the cluster.")
    ready: int = Field(description="Router pods that are ready.")
    generation: int | None = Field(default=None, description="Generation of the plan in the table that every pod serves.")
    table: str | None = Field(default=None, description="Hash of the routing table that every pod serves.")


class ModelServingPlanStatus(Object):
    """What is."""

    observed_generation: int | None = Field(default=None, description="Generation that this status speaks of.")
    conditions: list[Condition] = Field(
        default_factory=list,
        json_schema_extra=LIST_BY_NAME | {"x-kubernetes-list-map-keys": ["type"]},
        description="Ready, Reconciling, Stalled, Feasible, RoutingSynced, MetricsAvailable, SLOMet, Calibrated.",
    )
    allocations: list[AllocationStatus] = Field(default_factory=list, description="What every setup in use has.")
    routes: list[RouteStatus] = Field(default_factory=list, description="Where every class goes.")
    objective: ObjectiveStatus | None = Field(default=None, description="What the plan achieves.")
    demand: list[DemandStatus] = Field(default_factory=list, max_length=64, description="How much is asked of the plan.")
    metrics: MetricsStatus | None = Field(default=None, description="Where the measured figures come from.")
    proposal: Proposal | None = Field(default=None, description="What the operator would do, in mode Recommend.")
    approval: Approval | None = Field(default=None, description="The proposal that was approved last.")
    router: RouterStatus | None = Field(default=None, description="What the router serves.")
    accelerators: dict[str, int] = Field(default_factory=dict, description="Units in use by accelerator kind.")
    summary: dict[str, str] = Field(default_factory=dict, description="Short texts for the columns of kubectl get.")
    history: list[Decision] = Field(default_factory=list, max_length=10, description="The last ten decisions.")
