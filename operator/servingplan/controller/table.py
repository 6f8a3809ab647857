"""The routing table that a plan's weights end at: shares become weights, and pickers learn of engines, prices and targets."""

from __future__ import annotations

from servingplan.api import v1alpha1
from servingplan.api.routing_table import ClassEntry, ModelEntry, Pool, RoutingTable, whole_weights
from servingplan.controller import demands
from servingplan.controller.case import Case
from servingplan.controller.memory import SetupKey
from servingplan.latency.profile import TokenMix
from servingplan.planning.build import service_level
from servingplan.planning.prices import TEMPERATURE
from servingplan.planning.problem import PlanDecision, Route
from servingplan.render import names, picking


def full_table(case: Case, sharing: PlanDecision | None, shed: dict[str, float]) -> RoutingTable:
    """The table that the weights end at; without an answer, the published one."""
    spec, plan = case.spec, case.plan
    published = {entry.name: entry for entry in case.published.classes} if case.published else {}
    prices = {(a.model, a.setup): round(a.price, 6) for a in sharing.allocations} if sharing else {}
    routes = {route.request_class: route for route in sharing.routes} if sharing else {}
    standing = {(a.model, a.setup): a.replicas for a in sharing.allocations} if sharing else dict(case.ready)
    demand = demands.routed(case)
    # By the weights alone nobody asks how fast a replica is, and what live metrics correct would publish the table anew.
    facts = picking.pool_facts(spec, demand) if spec.router.policy == "Online" else {}
    mixes = {entry.name: entry.mix for entry in (demand if facts else demands.declared(case)).classes}

    def entry_of(entry: v1alpha1.RequestClass) -> ClassEntry:
        route, old = routes.get(entry.name), published.get(entry.name)
        known = _known(spec, entry, mixes[entry.name])
        if route is None and old is not None:
            return known.model_copy(update={name: getattr(old, name) for name in ("weights", "shares", "shed", "prices")})
        route = route or Route(entry.name)
        return known.model_copy(
            update={
                "weights": whole_weights({case.pools[key]: share for key, share in route.shares.items()}),
                "shares": {name: round(share * (1 - shed.get(entry.name, 0.0)), 6) for name, share in route.by_model().items()},
                "shed": round(shed.get(entry.name, 0.0), 6),
                "prices": {name: round(price, 6) for name, price in route.prices.items()},
            }
        )

    return RoutingTable(
        namespace=plan.owner.namespace,
        plan=plan.owner.name,
        generation=plan.generation,
        timeout_s=spec.router.timeout_seconds,
        temperature=TEMPERATURE,
        models=tuple(
            ModelEntry(
                name=model.name,
                pools=tuple(_pool(case, (model.name, setup.name), prices, facts) for setup in model.setups),
                weights=_model_weights(case, model, standing, routes),
            )
            for model in spec.models
        ),
        # Only one class may be without headers; last, it takes what no other class matches.
        classes=tuple(entry_of(entry) for entry in sorted(spec.request_classes, key=lambda entry: entry.match is None)),
        picker=picking.picker(spec, facts, picking.declared_mix(spec, demand)),
    )


def _known(spec: v1alpha1.ModelServingPlanSpec, entry: v1alpha1.RequestClass, mix: TokenMix) -> ClassEntry:
    """What the table says of a class whatever its weights."""
    slo = service_level(entry.slo or spec.slo)
    return ClassEntry(
        name=entry.name,
        headers=dict(entry.match.headers) if entry.match else {},
        ttft_s=slo.ttft.seconds if slo.ttft else None,
        inter_token_s=slo.inter_token.seconds if slo.inter_token else None,
        e2e_s=slo.e2e.seconds if slo.e2e else None,
        quality={model.name: float(model.quality.of(entry.name)) for model in spec.models},
        min_quality=float(entry.min_quality),
        prompt_tokens=picking.rounded(mix.prompt_tokens),
        output_tokens=picking.rounded(mix.output_tokens),
        weight=float(entry.weight),
    )


def _pool(case: Case, key: SetupKey, prices: dict[SetupKey, float], facts: dict[SetupKey, picking.PoolFacts]) -> Pool:
    name, known = case.pools[key], facts.get(key)
    return Pool(
        name=name,
        setup=key[1],
        address=names.pool_address(case.plan.owner.namespace, name),
        port=names.VLLM_PORT,
        price=prices.get(key, 0.0),
        engine=known.engine if known else None,
        input_price=known.input_price if known else 0.0,
        output_price=known.output_price if known else 0.0,
    )


def _model_weights(
    case: Case, model: v1alpha1.Model, standing: dict[SetupKey, int], routes: dict[str, Route]
) -> dict[str, int]:
    """How requests that name the model are split over its setups: as planned, or by the accelerators behind each."""
    route = routes.get(demands.name_class(model.name))
    if route is not None and route.shares:
        return whole_weights({case.pools[key]: share for key, share in route.shares.items()})
    return whole_weights(
        {
            case.pools[model.name, setup.name]: float(standing.get((model.name, setup.name), 0) * setup.count)
            for setup in model.setups
        }
    )
