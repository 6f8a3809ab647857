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


class RouteStatus(Object):
    """Where one class goes."""

    request_class: str = Field(alias="class", description="Request class.")
    weights: dict[str, str] = Field(default_factory=dict, description="Share of the class by model; with shed it sums to 1.")
    shed: str = Field(default="0", description="Share of the class that is refused with 429.")


class ObjectiveStatus(Object):
    """What the plan achieves."""

    quality: str = Field(description="Mean quality of the answers, weighted by class.")
    cost_per_hour: str = Field(description="Cost of the accelerators in use.")
    bound: str | None = Field(default=None, description="Proven upper bound on the quality.")
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
        description="Ready, Reconciling, Stalled, Feasible, RoutingSynced, MetricsAvailable, SLOMet.",
    )
    allocations: list[AllocationStatus] = Field(default_factory=list, description="What every setup in use has.")
    routes: list[RouteStatus] = Field(default_factory=list, description="Where every class goes.")
    objective: ObjectiveStatus | None = Field(default=None, description="What the plan achieves.")
    router: RouterStatus | None = Field(default=None, description="What the router serves.")
    accelerators: dict[str, int] = Field(default_factory=dict, description="Units in use by accelerator kind.")
    summary: dict[str, str] = Field(default_factory=dict, description="Short texts for the columns of kubectl get.")
    history: list[Decision] = Field(default_factory=list, max_length=10, description="The last ten decisions.")
