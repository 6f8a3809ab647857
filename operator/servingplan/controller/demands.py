"""The planner's questions about a plan: as its spec declares it, and as it was measured and learnt."""

from __future__ import annotations

import math
from dataclasses import replace

from servingplan.calibration.demand import DemandMemory
from servingplan.calibration.lengths import scaled
from servingplan.calibration.setup import corrected
from servingplan.controller.case import Case
from servingplan.latency.profile import TokenMix, blend
from servingplan.planning.build import choices, plan_demand, service_level
from servingplan.planning.problem import Choice, ClassDemand, ModelOption, PlanDemand
from servingplan.render import picking

IDLE_RPS = 1e-3
_LEAST_QUALITY = 1e-3
_DOUBT = 1.1
"""A load above the planned one by less than this is served a little late: the margins are for that."""
_HEADROOM_STEP, _EPSILON = 0.05, 1e-6


def declared(case: Case) -> PlanDemand:
    """The demand as the spec declares it."""
    return plan_demand(case.key, case.spec, case.plan.profiles, case.free, case.running)


def planned(case: Case) -> PlanDemand:
    """The demand that replicas are chosen for."""
    memory = case.memory.demand
    spare = headroom(case)
    rates = {name: spare * entry.planned_rps for name, entry in memory.classes.items()}
    return _measured(case, rates, {name: spare * entry.planned_rps for name, entry in memory.models.items()})


def routed(case: Case) -> PlanDemand:
    """The demand that weights are made for. A class that nobody asks for yet still needs a way."""
    memory = case.memory.demand
    rates = {name: entry.routed_rps for name, entry in memory.classes.items()}
    found = _measured(case, rates, {name: entry.routed_rps for name, entry in memory.models.items()})
    return replace(found, classes=tuple(replace(e, rate_rps=max(e.rate_rps, IDLE_RPS)) for e in found.classes))


def present(case: Case) -> PlanDemand:
    """The demand that is there now beyond doubt, as far as that is known: what is short for it cannot wait."""
    found, memory = routed(case), case.memory.demand.classes
    now_rps = {name: entry.observed_rps for name, entry in memory.items() if entry.observed_rps is not None}
    classes = tuple(
        replace(e, rate_rps=max(IDLE_RPS, min(e.rate_rps, now_rps.get(e.name, e.rate_rps)) / _DOUBT)) for e in found.classes
    )
    return replace(found, classes=classes)


def refusing(case: Case) -> PlanDemand:
    """The demand by which requests are refused: as routed, where that is beyond doubt above what is planned."""
    found, most = routed(case), {entry.name: entry.rate_rps for entry in planned(case).classes}
    classes = tuple(
        replace(e, rate_rps=min(e.rate_rps, max(most[e.name], e.rate_rps / _DOUBT, IDLE_RPS)) if e.name in most else e.rate_rps)
        for e in found.classes
    )
    return replace(found, classes=classes)


def headroom(case: Case) -> float:
    """Multiple of the measured load that is planned for, in steps, so that its slow decline is no change of the problem."""
    return round(1 + _HEADROOM_STEP * math.floor((case.memory.headroom - 1) / _HEADROOM_STEP + _EPSILON), 4)


def name_class(model: str) -> str:
    """What the requests that name a model are called beside the classes; no class can be called so."""
    return f"model {model}"


def _measured(case: Case, rates: dict[str, float], named: dict[str, float]) -> PlanDemand:
    base = declared(case)
    memory = case.memory.demand
    classes = tuple(
        replace(
            entry,
            rate_rps=rates.get(entry.name, entry.rate_rps),
            mix=_scaled(entry.mix, memory, entry.name),
        )
        for entry in base.classes
    )
    found = replace(base, classes=classes, models=_corrected(case, base.models))
    return _with_named(case, _with_choices(case, found), named)


def _with_choices(case: Case, demand: PlanDemand) -> PlanDemand:
    """The demand with what pickers make of the classes; as it is where there are none."""
    held = case.memory.choices
    facts = picking.pool_facts(case.spec, demand) if held else {}
    weighs = picking.picker(case.spec, facts, picking.declared_mix(case.spec, demand)) if facts else None
    if weighs is None:
        return demand

    def chosen(entry: ClassDemand) -> dict[str, Choice]:
        open_to = [m for m in demand.models if m.setups and m.quality[entry.name] >= entry.min_quality]
        scores = {model.name: model.quality[entry.name] for model in open_to}
        prices = {
            name: min(fact.request_price(entry.mix) for (model, _), fact in facts.items() if model == name) for name in scores
        }
        money = {name: weighs.per_dollar * price for name, price in prices.items()}
        return choices(held[entry.name].shares, held[entry.name].gains, scores, money)

    return replace(demand, classes=tuple(replace(e, chosen=chosen(e)) if e.name in held else e for e in demand.classes))


def _scaled(mix: TokenMix, memory: DemandMemory, name: str) -> TokenMix:
    entry = memory.classes.get(name)
    return scaled(mix, entry.factors) if entry else mix


def _corrected(case: Case, models: tuple[ModelOption, ...]) -> tuple[ModelOption, ...]:
    if case.spec.metrics.calibration == "Disabled":
        return models
    found = []
    for model in models:
        known = {setup.name: case.memory.kept((model.name, setup.name)).calibration for setup in model.setups}
        setups = (
            replace(
                setup,
                profile=corrected(
                    setup.profile, known[setup.name], [m for name, m in known.items() if m is not None and name != setup.name]
                ),
            )
            for setup in model.setups
        )
        found.append(replace(model, setups=tuple(setups)))
    return tuple(found)


def _with_named(case: Case, demand: PlanDemand, named: dict[str, float]) -> PlanDemand:
    """The demand with the requests that name a model as classes that can only go there."""
    listed = {model.name for model in demand.models}
    asked = {name: rate for name, rate in named.items() if rate > 0 and name in listed}
    if not asked:
        return demand
    mix = blend([(max(entry.rate_rps, IDLE_RPS), entry.mix) for entry in demand.classes])
    qualities = {model.name: max(_LEAST_QUALITY, float(model.quality.default)) for model in case.spec.models}
    extra = tuple(
        ClassDemand(name_class(name), mix, service_level(case.spec.slo), rate, min_quality=qualities[name])
        for name, rate in sorted(asked.items())
    )
    models = tuple(
        replace(
            model,
            quality=model.quality | {name_class(name): qualities[name] if name == model.name else 0.0 for name in asked},
        )
        for model in demand.models
    )
    return replace(demand, classes=(*demand.classes, *extra), models=models)
