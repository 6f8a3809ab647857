"""From the routing table and the endpoints of its pools to what the decision is made with. Pure.

A table that cannot be used is refused in one sentence, and whoever read it goes on with the one before. What is refused is
what would misroute: text that is no table, the table of another plan, or one that says of no pool how fast it is. A single pool
without that is left to the weights, which is how it is served without a picker.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from servingplan.api.load import sentence
from servingplan.api.routing_table import Pool, RoutingTable
from servingplan.routing.ask import ClassRule
from servingplan.routing.fleet import Endpoint, Engine
from servingplan.routing.preset import Preset, Prices

SERVICE_LABEL = "kubernetes.io/service-name"

Members = Mapping[str, Mapping[str, bool]]
"""By pool the addresses of its pods, and whether each serves."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A table that is not used.

    Attributes:
        message: One sentence that says why.
    """

    message: str


def read(text: str, namespace: str, plan: str) -> RoutingTable | Refused:
    """The routing table of a plan from its JSON."""
    try:
        table = RoutingTable.model_validate_json(text)
    except ValidationError as error:
        return Refused(f"The routing table cannot be read: {sentence(error)}")
    if (table.namespace, table.plan) != (namespace, plan):
        return Refused(f"The routing table is of {table.namespace}/{table.plan}, not of {namespace}/{plan}.")
    if table.picker and not any(pool.engine for pool in pools(table).values()):
        return Refused("The routing table says of no pool how fast it is, so nothing can be decided with it.")
    try:
        weighing(table)
    except ValueError as error:
        return Refused(f"The routing table's picker cannot be used: {error}.")
    return table


@dataclass(frozen=True, slots=True)
class Weighing:
    """What the decision weighs, whatever the endpoints.

    Attributes:
        guard_s: Time to first token that a request may expect where its class tells none; None without a guard.
        shed: Whether what no replica can start in time is refused.
        peers: Pickers that share the plan's requests.
        time_limit_s: The longest that a request may take.
    """

    prices: Prices
    guard_s: float | None = 1.0
    shed: bool = True
    peers: int = 1
    time_limit_s: float = 3600.0


def weighing(table: RoutingTable) -> Weighing:
    """What a table says of the weights; those of the balanced preset where it says nothing.

    Raises:
        ValueError: They are out of range.
    """
    given = table.picker
    if given is None:
        return Weighing(Preset.BALANCED.prices, time_limit_s=float(table.timeout_s))
    prices = Prices(
        per_dollar=given.per_dollar,
        per_second=given.per_second,
        scale_s=given.scale_s,
        power=given.power,
        externality=given.externality,
    )
    return Weighing(prices, given.guard_s, given.shed, max(1, given.replicas), float(table.timeout_s))


def pools(table: RoutingTable) -> dict[str, Pool]:
    """The pools of a table by name."""
    return {pool.name: pool for model in table.models for pool in model.pools}


def members(slices: Iterable[Mapping[str, Any]], ports: Mapping[str, int]) -> dict[str, dict[str, bool]]:
    """The pods behind the Services of pools.

    A pod serves if it is ready and not on its way out in every slice that lists it: while it moves from one slice to another
    both may. Where a pool has IPv4 addresses the others are left out, as the router does, or every pod would count twice.

    Args:
        slices: EndpointSlices as the API server has them, of any Services.
        ports: Port by pool; Services of other names are left out.
    """
    by_family: dict[str, dict[str, dict[str, bool]]] = {}
    for each in slices:
        pool = (each.get("metadata", {}).get("labels") or {}).get(SERVICE_LABEL, "")
        family = each.get("addressType", "IPv4")
        if pool not in ports or family not in {"IPv4", "IPv6"}:
            continue
        found = by_family.setdefault(pool, {}).setdefault(family, {})
        for endpoint in each.get("endpoints") or ():
            if endpoint.get("addresses"):
                address = join(endpoint["addresses"][0], ports[pool])
                found[address] = _serves(endpoint.get("conditions") or {}) and found.get(address, True)
    return {pool: next(families[name] for name in sorted(families)) for pool, families in by_family.items()}


def _serves(conditions: Mapping[str, Any]) -> bool:
    # What a condition leaves open counts as ready, by the definition of the API.
    return conditions.get("ready") is not False and not conditions.get("terminating")


def join(host: str, port: int) -> str:
    """An address as Envoy writes it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def endpoints(table: RoutingTable, known: Members) -> tuple[Endpoint, ...]:
    """The endpoints to decide among, sorted by pool and address.

    Those that do not serve are among them: what is still in flight there has to be accounted for.
    """
    found: list[Endpoint] = []
    for model in sorted(table.models, key=lambda model: model.name):
        for pool in sorted(model.pools, key=lambda pool: pool.name):
            if (engine := _engine(model.name, pool)) is not None:
                found += (Endpoint(address, engine, serves) for address, serves in sorted(known.get(pool.name, {}).items()))
    return tuple(found)


def _engine(model: str, pool: Pool) -> Engine | None:
    if pool.engine is None:
        return None
    return Engine(
        pool=pool.name,
        model=model,
        alpha_s=pool.engine.alpha_s,
        beta_s=pool.engine.beta_s,
        gamma_s=pool.engine.gamma_s,
        floor_s=pool.engine.floor_s,
        max_num_seqs=pool.engine.max_num_seqs,
        max_num_batched_tokens=pool.engine.max_num_batched_tokens,
        kv_tokens=pool.engine.kv_tokens,
        input_price=pool.input_price,
        output_price=pool.output_price,
        capacity_price=pool.price,
    )


def class_rules(table: RoutingTable) -> dict[str, ClassRule]:
    """What the plan says of each class, by its name."""
    return {
        entry.name: ClassRule(
            name=entry.name,
            weight=entry.weight,
            ttft_s=entry.ttft_s,
            models=frozenset(model for model, score in entry.quality.items() if score >= entry.min_quality) or None,
        )
        for entry in table.classes
    }


@dataclass(frozen=True, slots=True)
class Share:
    """How much of a class one pool serves.

    Attributes:
        planned: By the weights of the plan; all shares of a class sum to 1.
        realised: By what was decided of late; None as long as nothing was.
    """

    request_class: str
    pool: str
    planned: float
    realised: float | None


def shares(table: RoutingTable, realised: Mapping[str, Mapping[str, float]]) -> list[Share]:
    """The plan's shares beside the realised ones, sorted by class and pool.

    Args:
        table: The plan.
        realised: Requests by class and pool, in any unit.
    """
    found: list[Share] = []
    for entry in sorted(table.classes, key=lambda entry: entry.name):
        of_class, weights = realised.get(entry.name, {}), entry.weights
        asked, planned = sum(of_class.values()), sum(weights.values())
        found += (
            Share(
                request_class=entry.name,
                pool=pool,
                planned=weights.get(pool, 0) / planned if planned else 0.0,
                realised=of_class.get(pool, 0.0) / asked if asked > 0 else None,
            )
            for pool in sorted({*of_class, *weights})
        )
    return found


def distance(found: Iterable[Share]) -> dict[str, float]:
    """How far each class is from the plan: the fraction of its requests that would have to go elsewhere, from 0 to 1.

    Classes of which nothing was decided of late are left out.
    """
    apart: dict[str, float] = {}
    for share in found:
        if share.realised is not None:
            apart[share.request_class] = apart.get(share.request_class, 0.0) + abs(share.realised - share.planned) / 2
    return apart


def checked(address: str) -> str:
    """The address, if it is an IP address and a port.

    Raises:
        ValueError: It is not.
    """
    host, _, port = address.rpartition(":")
    if join(str(ipaddress.ip_address(host.strip("[]"))), int(port)) != address or not 0 < int(port) < 65536:
        raise ValueError(address)
    return address
