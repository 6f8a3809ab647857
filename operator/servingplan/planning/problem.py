"""The question that the planner answers, and its answer: everything it may know, frozen.

Several plans compete for the same accelerators, so a problem holds all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from servingplan.latency.profile import EngineProfile, Slo, TokenMix


class Scope(Enum):
    """What an SLO is a promise about.

    ROUTE: every class keeps it on every setup that it uses. PLAN: the request-weighted mean over all that the plan serves.
    """

    ROUTE = "Route"
    PLAN = "Plan"


@dataclass(frozen=True, slots=True)
class SetupOption:
    """One way to deploy a model.

    Attributes:
        accelerator: Name of the plan's accelerator.
        units: Units of the accelerator that one replica takes.
        max_replicas: None for as many as fit.
        current_replicas: Replicas that run now; of plans of equal quality and cost the one that starts the fewest wins.
        cold_start_s: Seconds from the start of a replica to its first answer; they weigh how dear starting one is.
    """

    name: str
    accelerator: str
    units: int
    profile: EngineProfile
    min_replicas: int = 0
    max_replicas: int | None = None
    current_replicas: int = 0
    cold_start_s: float = 120.0


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
class Choice:
    """What those who choose a model by the request make of a class.

    Attributes:
        share: Fraction of the class that they send to the model.
        worth: What a request is worth, in quality, beyond the model's score for the class when it is one that they send there;
            not negative.
    """

    share: float
    worth: float


@dataclass(frozen=True, slots=True)
class ClassDemand:
    """A request class and how much of it there is.

    Attributes:
        slo: With the plan's scope PLAN its bounds are on means, and equal for all classes of the plan.
        weight: Importance per request, of quality and of who is served when not all can be.
        min_quality: The class goes to no model that scores below it.
        arrival_cv: Coefficient of variation of the times between arrivals; 1 is Poisson.
        chosen: By model, where the class goes when it is chosen by the request; empty where only the plan's shares count.
    """

    name: str
    mix: TokenMix
    slo: Slo
    rate_rps: float
    weight: float = 1.0
    min_quality: float = 0.0
    arrival_cv: float = 1.0
    chosen: dict[str, Choice] = field(default_factory=dict)


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
        tolerate_nodes: Nodes that may be lost, 0 or 1, with everything still served within its SLO by the replicas that are
            left; replicas are taken to be spread evenly over their nodes.
        max_started_units: Units that replicas which do not run yet may take; None for any number.
    """

    key: str
    models: tuple[ModelOption, ...]
    classes: tuple[ClassDemand, ...]
    accelerators: tuple[AcceleratorSupply, ...]
    budget_per_hour: float | None = None
    scope: Scope = Scope.ROUTE
    tolerate_nodes: int = 0
    max_started_units: int | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """Replicas that are given instead of asked for.

    Attributes:
        replicas: By (plan key, model, setup); what is not named has none.
        strictest: By the same key, the class that a plan has kept the setup strict for (``Allocation.strictest``). It fixes
            which classes a setup may serve; where it is lacking, the planner chooses that too.
    """

    replicas: dict[tuple[str, str, str], int]
    strictest: dict[tuple[str, str, str], str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Problem:
    """All plans that share the cluster.

    Attributes:
        standing: Replicas that stand; None asks the planner to choose them.
        overload: With ``standing``, whether what exceeds the capacity is served late (True) or refused (False).
        relative_gap: Distance between the plan's quality and its proven bound at which the search may end.
        slack: Fraction of the quality that may be given up for less cost and churn.
    """

    plans: tuple[PlanDemand, ...]
    standing: Standing | None = None
    overload: bool = True
    time_limit_s: float = 10.0
    relative_gap: float = 1e-4
    slack: float = 0.0


@dataclass(frozen=True, slots=True)
class Shortage:
    """Accelerators that the plan lacks to serve everything within its SLO.

    Attributes:
        units: Further units that would do.
    """

    accelerator: str
    units: int


@dataclass(frozen=True, slots=True)
class Prediction:
    """Latency that one setup's requests may expect at the planned load, in seconds.

    Attributes:
        margin: Fraction by which the planner wants the prediction to stay below the SLO, because it is that uncertain.
    """

    ttft_mean_s: float
    ttft_p50_s: float
    ttft_p95_s: float
    ttft_p99_s: float
    inter_token_s: float
    e2e_mean_s: float
    margin: float


@dataclass(frozen=True, slots=True)
class Allocation:
    """What one setup gets.

    Attributes:
        rate_rps: Requests per second that the plan sends to all its replicas.
        capacity_rps: Requests per second that all its replicas can take within the SLO, for the mix it is sent.
        strictest: The class whose SLO says how far it may be loaded; classes that need it less loaded do not come here.
        predicted: Latency at the planned rate; None where nothing is sent.
        price: Congestion price: quality that one more request per second of the mix it is sent costs the other requests.
    """

    model: str
    setup: str
    accelerator: str
    replicas: int
    units: int
    rate_rps: float
    capacity_rps: float
    strictest: str = ""
    predicted: Prediction | None = None
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
        prices: Price by model, in quality per request, of every model that the class may go to: a request drawn with
            probability proportional to exp((score - price) / temperature) realises the shares.
        value: What one more request per second of the class would add to the objective, per unit of the class's weight.
    """

    request_class: str
    shares: dict[tuple[str, str], float] = field(default_factory=dict)
    shed: float = 0.0
    prices: dict[str, float] = field(default_factory=dict)
    value: float = 0.0

    def by_model(self) -> dict[str, float]:
        """Fraction of the class by model, in the order of the names."""
        total: dict[str, float] = {}
        for (model, _), share in sorted(self.shares.items()):
            total[model] = total.get(model, 0.0) + share
        return total


@dataclass(frozen=True, slots=True)
class Binding:
    """A row of the program that holds the plan back.

    Attributes:
        kind: ``accelerator`` (all free units are taken), ``limit``, ``budget``, ``maxReplicas``, ``slo`` (the plan-wide mean).
        name: Of the accelerator, of model/setup, or of the latency that binds.
        price: What one more unit (a GPU, one of cost per hour, a replica, a second) adds, in weighted requests per second: of
            quality where everything is served, of requests served where it is not. From the linear relaxation.
    """

    kind: str
    name: str
    price: float


@dataclass(frozen=True, slots=True)
class PlanDecision:
    """The answer for one plan.

    Attributes:
        allocations: One for every setup of the plan, those with no replica included, in the order of (model, setup).
        feasible: Whether every request is served within its SLO.
        reason: What binds, in one sentence; empty where nothing does.
        shortages: The cheapest further accelerators with which everything would be served.
        quality: Mean score of the answers that are given, weighted by class rate and weight; 0 where none is.
        choice: What choosing by the request is worth beyond it, by ``ClassDemand.chosen``, as far as the shares keep to it.
        relaxed: Factor on the class's SLO that the plan was made for, by class; those whose SLO some setup keeps are not in it.
        bindings: Rows that hold it back, dearest first.
    """

    key: str
    allocations: tuple[Allocation, ...]
    routes: tuple[Route, ...]
    feasible: bool
    reason: str
    shortages: tuple[Shortage, ...]
    quality: float
    cost_per_hour: float
    relaxed: dict[str, float] = field(default_factory=dict)
    bindings: tuple[Binding, ...] = ()
    choice: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer for all plans.

    Attributes:
        status: ``optimal``, or ``time_limit`` with an incumbent.
        objective: Value of the quality objective, weighted requests per second times score with what choosing adds to it.
        bound: Proven upper bound on it, for as much refused.
        gap: Relative distance between the two.
        seconds: Time that the solver took; no part of the answer, so equal plans may differ in it.
    """

    decisions: tuple[PlanDecision, ...]
    status: str
    objective: float
    bound: float
    gap: float
    seconds: float = field(default=0.0, compare=False, repr=False)

    def of(self, key: str) -> PlanDecision:
        """The decision for one plan.

        Raises:
            KeyError: The plan was not in the problem.
        """
        for decision in self.decisions:
            if decision.key == key:
                return decision
        raise KeyError(key)


@dataclass(frozen=True, slots=True)
class Infeasible(Plan):
    """The answer where not everything can be served within its SLO: the least that has to give.

    The decisions are the plan that refuses least by weight; each says what it refuses, what binds and what would do.
    """
