"""The routing table: what the controller decided, as the router and people read it.

One ConfigMap per plan holds it twice: ``table.json`` is this model, the ``*.yaml`` keys are the Envoy resources made from it.
"""

from __future__ import annotations

import hashlib

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

WEIGHT_TOTAL = 1_000_000
"""Routing weights are parts per million: finer than any share a plan can tell apart."""


class _Table(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True, extra="forbid", frozen=True)


class Engine(_Table):
    """How fast one replica is, as live measurements have corrected it.

    A step takes alpha + max(floor, beta * tokens computed) + gamma * KV tokens read.

    Attributes:
        kv_tokens: Tokens that fit in the KV cache; None where it is not known to bind.
    """

    alpha_s: float
    beta_s: float
    gamma_s: float
    floor_s: float = 0.0
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_tokens: int | None = None


class Pool(_Table):
    """The replicas of one setup of one model, reached by the name of their headless Service.

    Attributes:
        name: Name of the setup's Deployment and Service.
        address: DNS name that resolves to the ready replicas.
        price: Congestion price of one request per second on this setup, in quality per request.
        engine: How fast a replica is, for pickers; None where there are none.
        input_price: Dollars per prompt token.
        output_price: Dollars per output token.
    """

    name: str
    setup: str
    address: str
    port: int = 8000
    price: float = 0.0
    engine: Engine | None = None
    input_price: float = 0.0
    output_price: float = 0.0


class ModelEntry(_Table):
    """A model and the pools that serve it.

    Attributes:
        weights: Parts per million of the model's requests by pool name; empty while no replica is ready.
    """

    name: str
    pools: tuple[Pool, ...]
    weights: dict[str, int] = Field(default_factory=dict)


class ClassEntry(_Table):
    """A request class and where it goes.

    Attributes:
        headers: Headers with the exact values that tell the class; empty for the class that takes the rest.
        weights: Parts per million of the requests that are served, by pool name; empty while nothing can serve the class.
        shares: Fraction of the class by model name; with ``shed`` it sums to 1.
        shed: Fraction of the class that is refused with 429.
        prices: Price by model name, in quality per request, of every model that the class may go to. A request drawn with
            probability proportional to exp((score - price) / temperature) goes by the shares.
        ttft_s: Time to first token that the class may expect, for pickers; None without such a bound.
        inter_token_s: The same of the time between tokens.
        e2e_s: The same of the time to the last token.
        quality: Score of the answers by model name.
        min_quality: The class goes to no model that scores below it.
        prompt_tokens: Mean prompt length.
        output_tokens: Mean output length.
        weight: Importance per request: who is served when not all can be.
    """

    name: str
    headers: dict[str, str] = Field(default_factory=dict)
    weights: dict[str, int] = Field(default_factory=dict)
    shares: dict[str, float] = Field(default_factory=dict)
    shed: float = Field(default=0.0, ge=0.0, le=1.0)
    prices: dict[str, float] = Field(default_factory=dict)
    ttft_s: float | None = None
    inter_token_s: float | None = None
    e2e_s: float | None = Field(default=None, validation_alias="e2eS", serialization_alias="e2eS")
    quality: dict[str, float] = Field(default_factory=dict)
    min_quality: float = 0.0
    prompt_tokens: float = 512.0
    output_tokens: float = 128.0
    weight: float = 1.0


class Picker(_Table):
    """What the pickers weigh.

    Attributes:
        per_dollar: Quality that one dollar less for a request is worth.
        per_second: Quality that one second less is worth, at half the scale.
        scale_s: Latency around which seconds are priced.
        power: Power of the latency in its price.
        externality: Weight of the delay that a request adds to the others on its replica.
        guard_s: Time to first token that requests of a class without such a bound may expect.
        shed: Whether what no replica can start in time is refused.
        explain: Whether answers may tell the decision.
        predictor: File of the trained estimator; empty without one.
        replicas: Pickers that share the plan's requests.
    """

    per_dollar: float
    per_second: float
    scale_s: float = 10.0
    power: float = 2.0
    externality: float = 1.0
    guard_s: float | None = 1.0
    shed: bool = True
    explain: bool = False
    predictor: str = ""
    replicas: int = 1


class RoutingTable(_Table):
    """Everything a router needs to know of a plan.

    Attributes:
        temperature: Of the prices, in units of quality.
        picker: What the pickers beside the routers weigh; None where requests are routed by the weights alone.

    Raises:
        ValueError: A weight names a pool that is not in the table, or weights do not sum to ``WEIGHT_TOTAL``.
    """

    namespace: str
    plan: str
    generation: int
    timeout_s: int = 3600
    temperature: float = 0.01
    models: tuple[ModelEntry, ...]
    classes: tuple[ClassEntry, ...]
    picker: Picker | None = None

    @model_validator(mode="after")
    def _weights_are_whole(self) -> RoutingTable:
        pools = {pool.name for model in self.models for pool in model.pools}
        entries: tuple[ModelEntry | ClassEntry, ...] = (*self.models, *self.classes)
        for entry in entries:
            unknown = set(entry.weights) - pools
            if unknown:
                message = f"{entry.name}: weights name no pool of the table: {', '.join(sorted(unknown))}"
                raise ValueError(message)
            if entry.weights and sum(entry.weights.values()) != WEIGHT_TOTAL:
                message = f"{entry.name}: weights sum to {sum(entry.weights.values())}, not to {WEIGHT_TOTAL}"
                raise ValueError(message)
        return self

    @property
    def weighted(self) -> frozenset[str]:
        """Pools that any requests are sent to."""
        entries: tuple[ModelEntry | ClassEntry, ...] = (*self.models, *self.classes)
        return frozenset(pool for entry in entries for pool, weight in entry.weights.items() if weight > 0)

    @property
    def digest(self) -> str:
        """Sixteen hex digits that differ when anything in the table differs."""
        return hashlib.sha256(self.model_dump_json(by_alias=True).encode()).hexdigest()[:16]


def read_table(text: str | None) -> RoutingTable | None:
    """A table as it was written; None where there is none, or someone has spoilt it."""
    try:
        return RoutingTable.model_validate_json(text) if text else None
    except ValidationError:
        return None


def whole_weights(shares: dict[str, float]) -> dict[str, int]:
    """Shares as whole parts per million that sum to the total, by largest remainder; no share above 0 becomes 0.

    Args:
        shares: Non-negative shares by name, in any unit.

    Returns:
        Positive parts by name, in the order of the names; empty when every share is 0.
    """
    total = sum(shares.values())
    if total <= 0:
        return {}
    exact = {name: share / total * WEIGHT_TOTAL for name, share in sorted(shares.items()) if share > 0}
    parts = {name: max(1, int(value)) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (parts[name] - exact[name], name))
    missing = WEIGHT_TOTAL - sum(parts.values())
    if missing < 0:
        # Raising tiny shares to 1 took parts that the largest share can spare.
        parts[max(parts, key=lambda name: (parts[name], name))] += missing
    for name in by_remainder[: max(0, missing)]:
        parts[name] += 1
    return parts
