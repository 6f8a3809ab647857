"""From a plan's spec to the planner's question."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

from servingplan.api import v1alpha1 as api
from servingplan.latency.profile import Bound, EngineProfile, Point, Slo, StepTime, TokenMix
from servingplan.planning.problem import AcceleratorSupply, Choice, ClassDemand, ModelOption, PlanDemand, Scope, SetupOption

DEFAULT_PERCENTILE = 95.0
LEAST_WORTH = 0.01
"""What a choice by the request is worth where nothing more is known of it: it was made by the load and the prompt."""
MOST_WORTH = 0.1
"""What it is worth at most: predicted quality is not measured quality, and what pickers do depends on the plan itself."""


def plan_demand(
    key: str,
    spec: api.ModelServingPlanSpec,
    profiles: dict[tuple[str, str], api.Profile],
    free_units: dict[str, dict[str, int]],
    current: dict[tuple[str, str], int] | None = None,
) -> PlanDemand:
    """One plan as the planner sees it.

    Args:
        key: ``namespace/name``.
        spec: The plan's spec.
        profiles: Profile by (model, setup), with references resolved; a setup without one is left out.
        free_units: Units free by accelerator name and node name.
        current: Replicas that run now by (model, setup); None where nothing runs yet.
    """
    return PlanDemand(
        key=key,
        models=tuple(_model(model, spec, profiles, current or {}) for model in spec.models),
        classes=tuple(_class(entry, spec) for entry in spec.request_classes),
        accelerators=tuple(
            AcceleratorSupply(
                name=kind.name,
                resource=kind.resource,
                free_units=free_units.get(kind.name, {}),
                limit=kind.limit,
                cost_per_hour=float(kind.cost_per_hour),
            )
            for kind in spec.accelerators
        ),
        budget_per_hour=float(spec.budget.cost_per_hour) if spec.budget else None,
        scope=Scope(spec.slo.scope),
        tolerate_nodes=spec.tolerate_nodes,
    )


def engine_profile(profile: api.Profile) -> EngineProfile:
    """A profile in seconds."""
    return EngineProfile(
        step=_step(profile.coefficients) if profile.coefficients else None,
        points=tuple(
            Point(point.concurrency, point.prompt_tokens, point.output_tokens, _s(point.ttft_ms), _s(point.tpot_ms))
            for point in profile.points or ()
        ),
        max_num_seqs=profile.max_num_seqs,
        max_num_batched_tokens=profile.max_num_batched_tokens,
        kv_tokens=profile.kv_tokens,
    )


def service_level(slo: api.ServiceLevelObjective) -> Slo:
    """An SLO with the default percentile filled in."""
    return Slo(ttft=_bound(slo.ttft), inter_token=_bound(slo.inter_token_latency), e2e=_bound(slo.e2e))


def choices(
    shares: Mapping[str, float], gains: Mapping[str, float], scores: Mapping[str, float], money: Mapping[str, float]
) -> dict[str, Choice]:
    """What was measured of the choices by the request, as it is planned with.

    A choice is worth its gain in quality, and what it saves of the money of the other model with the best score: that is where
    the class's scores alone would send the request.

    Args:
        shares: Fraction of the class by model.
        gains: Quality that choosing the model by the request was worth, by model.
        scores: Score by model, of every model that the class may go to.
        money: What a mean request costs there, in units of quality.
    """
    found = {}
    for model, share in sorted(shares.items()):
        if share > 0 and model in scores:
            others = [other for other in sorted(scores) if other != model]
            best = max(others, key=lambda other: scores[other], default=model)
            worth = round(gains.get(model, 0.0) + money[best] - money[model], 3)
            found[model] = Choice(share, min(MOST_WORTH, max(LEAST_WORTH, worth)))
    return found


def token_mix(entry: api.RequestClass) -> TokenMix:
    """The lengths of a class's requests: the sample where there is one, else the moments."""
    if entry.lengths:
        return TokenMix.of(tuple((float(one.prompt_tokens), float(one.output_tokens)) for one in entry.lengths))
    prompt, output = entry.prompt_tokens or api.DEFAULT_PROMPT_TOKENS, entry.output_tokens or api.DEFAULT_OUTPUT_TOKENS
    return TokenMix(
        prompt_tokens=float(prompt.mean),
        output_tokens=float(output.mean),
        prompt_cv=float(prompt.cv),
        output_cv=float(output.cv),
    )


def _s(milliseconds: Decimal) -> float:
    return float(milliseconds) / 1e3


def _step(coefficients: api.Coefficients) -> StepTime:
    return StepTime(
        alpha_s=_s(coefficients.alpha_ms),
        beta_s=_s(coefficients.beta_ms),
        gamma_s=_s(coefficients.gamma_ms),
        floor_s=_s(coefficients.floor_ms),
    )


def _bound(target: api.LatencyTarget | None) -> Bound | None:
    if target is None:
        return None
    if target.statistic == "Mean":
        return Bound(float(target.seconds), None)
    return Bound(float(target.seconds), float(target.percentile or DEFAULT_PERCENTILE))


def _model(
    model: api.Model,
    spec: api.ModelServingPlanSpec,
    profiles: dict[tuple[str, str], api.Profile],
    current: dict[tuple[str, str], int],
) -> ModelOption:
    return ModelOption(
        name=model.name,
        quality={entry.name: float(model.quality.of(entry.name)) for entry in spec.request_classes},
        setups=tuple(
            SetupOption(
                name=setup.name,
                accelerator=setup.accelerator,
                units=setup.count,
                profile=engine_profile(profiles[model.name, setup.name]),
                min_replicas=setup.min_replicas,
                max_replicas=setup.max_replicas,
                current_replicas=current.get((model.name, setup.name), 0),
                cold_start_s=float(setup.cold_start_seconds),
            )
            for setup in model.setups
            if (model.name, setup.name) in profiles
        ),
    )


def _class(entry: api.RequestClass, spec: api.ModelServingPlanSpec) -> ClassDemand:
    return ClassDemand(
        name=entry.name,
        mix=token_mix(entry),
        slo=service_level(entry.slo or spec.slo),
        rate_rps=float(entry.rate),
        weight=float(entry.weight),
        min_quality=float(entry.min_quality),
        arrival_cv=float(entry.arrival_cv),
    )
