"""The question that the planner answers: everything it may know, frozen.

Several plans compete for the same accelerators, so a problem holds all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from servingplan.latency.profile import EngineProfile, Slo, TokenMix


@dataclass(frozen=True, slots=True)
class SetupOption:
    """One way to deploy a model.

    Attributes:
        accelerator: Name of the plan's accelerator.
        units: Units of the accelerator that one replica takes.
        max_replicas: None for as many as fit.
    """

    name: str
    accelerator: str
    units: int
    profile: EngineProfile
    min_replicas: int = 0
    max_replicas: int | None = None


@dataclass(frozen=True, slots=True)
class ModelOption:
    """A model that a plan may serve.

    Attributes:
        quality: Score between 0 and 1 by request class; every class of the plan is in it.
    """

    name: str
    quality: dict[str, float]
    setups: tuple[SetupOption, ...]


@dataclass(frozen=True, slots=True)
class ClassDemand:
    """A request class and how much of it there is."""

    name: str
    mix: TokenMix
    slo: Slo
    rate_rps: float
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class AcceleratorSupply:
    """An accelerator kind as one plan sees it.

    Attributes:
        free_units: Units free for this project's pods on each node that matches, by node name; a replica sits on one node.
        limit: Units that the plan may take at most; None for all.
    """

    name: str
    resource: str
    free_units: dict[str, int]
    limit: int | None = None
    cost_per_hour: float = 0.0


@dataclass(frozen=True, slots=True)
class PlanDemand:
    """One ModelServingPlan as the planner sees it.

    Attributes:
        key: ``namespace/name``.
        budget_per_hour: Upper bound on cost; None for none.
    """

    key: str
    models: tuple[ModelOption, ...]
    classes: tuple[ClassDemand, ...]
    accelerators: tuple[AcceleratorSupply, ...]
    budget_per_hour: float | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """All plans that share the cluster.

    Attributes:
        fixed_replicas: Replicas that stand, by (plan key, model, setup); None asks the planner to choose them.
    """

    plans: tuple[PlanDemand, ...]
    fixed_replicas: dict[tuple[str, str, str], int] | None = None
    time_limit_s: float = 10.0
    relative_gap: float = 1e-4


@dataclass(frozen=True, slots=True)
class Shortage:
    """Accelerators that the plan lacks to serve everything within its SLO.

    Attributes:
        units: Further units that would do.
    """

    accelerator: str
    units: int


@dataclass(frozen=True, slots=True)
class Allocation:
    """What one setup gets.

    Attributes:
        rate_rps: Requests per second that the plan sends to all its replicas.
        capacity_rps: Requests per second that all its replicas can take within the SLO, for the mix it is sent.
        ttft_mean_s: Predicted at that rate; likewise the others. None where nothing is sent.
    """

    model: str
    setup: str
    accelerator: str
    replicas: int
    units: int
    rate_rps: float
    capacity_rps: float
    ttft_mean_s: float | None = None
    ttft_p95_s: float | None = None
    inter_token_s: float | None = None
    price: float = 0.0

    @property
    def utilization(self) -> float:
        """Planned load as a fraction of the capacity at the SLO."""
        return self.rate_rps / self.capacity_rps if self.capacity_rps > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Route:
    """Where one class goes.

    Attributes:
        shares: Fraction of the class by (model, setup); with ``shed`` it sums to 1.
        shed: Fraction of the class that cannot be served within its SLO.
    """

    request_class: str
    shares: dict[tuple[str, str], float] = field(default_factory=dict)
    shed: float = 0.0

    def by_model(self) -> dict[str, float]:
        """Fraction of the class by model, in the order of the names."""
        total: dict[str, float] = {}
        for (model, _), share in sorted(self.shares.items()):
            total[model] = total.get(model, 0.0) + share
        return total


@dataclass(frozen=True, slots=True)
class PlanDecision:
    """The answer for one plan.

    Attributes:
        allocations: One for every setup of the plan, those with no replica included, in the order of (model, setup).
        feasible: Whether every request is served within its SLO.
        reason: What binds, in one sentence; empty where nothing does.
        quality: Mean score of the answers that are given, weighted by class rate and weight; 0 where none is.
    """

    key: str
    allocations: tuple[Allocation, ...]
    routes: tuple[Route, ...]
    feasible: bool
    reason: str
    shortages: tuple[Shortage, ...]
    quality: float
    cost_per_hour: float


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer for all plans.

    Attributes:
        status: ``optimal``, ``time_limit`` with an incumbent, or ``failed``.
        objective: Value of the quality objective, weighted requests per second times score.
        bound: Proven upper bound on it.
        gap: Relative distance between the two.
    """

    decisions: tuple[PlanDecision, ...]
    status: str
    objective: float
    bound: float
    gap: float

    def of(self, key: str) -> PlanDecision:
        """The decision for one plan.

        Raises:
            KeyError: The plan was not in the problem.
        """
        for decision in self.decisions:
            if decision.key == key:
                return decision
        raise KeyError(key)
