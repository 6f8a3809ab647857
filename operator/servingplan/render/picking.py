"""What the routing table tells a picker: how fast each pool's replicas are, what their tokens cost, and what is weighed.

Speed is the profile as live measurements have corrected it. A profile of measured points alone becomes the step time that
comes nearest to them.

A model's tokens cost what the plan says. Where it says nothing they cost what the accelerators do: a replica that is as busy
as plans make any (``MAX_UTILIZATION`` of its stable rate, with requests of the plan's declared mix) just earns its
``costPerHour``. Prompt and output tokens share it by the time that each takes of the engine. So a price hangs on the profile
and the declared rates alone: priced by the load of the day, an idle replica would be dear just when it is the one to use.

A preset is a rate of exchange that was measured where a mean request cost ``REFERENCE_REQUEST`` dollars. Other plans have
other prices by factors of a hundred, so it is scaled by what a mean request costs on the mean pool: a preset gives up the same
quality for half the money everywhere. Prices that the plan gives in numbers are taken as they are.

Everything is rounded to three digits, so that a table which says the same is the same. What live measurements change has
hysteresis before it comes here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.optimize import nnls

from servingplan.api import v1alpha1
from servingplan.api.routing_table import Engine, Picker
from servingplan.latency.capacity import MAX_UTILIZATION, stable_rate_rps
from servingplan.latency.profile import EngineProfile, Point, StepTime, TokenMix, blend, uncorrected
from servingplan.planning.build import service_level
from servingplan.planning.problem import PlanDemand
from servingplan.routing.preset import Preset, Prices

REFERENCE_REQUEST = 7.5e-5
"""Dollars of a mean request on the mean of the four models that the presets were measured with."""

PATIENCE_S = 30.0
"""Longest wait for a first token where the plan bounds neither that nor the whole answer: clients have gone by then."""

PREDICTOR_FOLDER = "/etc/servingplan/predictor"

_DIGITS = 3
_LEAST_ALPHA_S = 1e-4
_LEAST_RATE_RPS = 1e-3


@dataclass(frozen=True, slots=True)
class PoolFacts:
    """What a picker knows of a pool.

    Attributes:
        input_price: Dollars per prompt token.
        output_price: Dollars per output token.
    """

    engine: Engine
    input_price: float
    output_price: float

    def request_price(self, mix: TokenMix) -> float:
        """Dollars of a mean request."""
        return self.input_price * mix.prompt_tokens + self.output_price * mix.output_tokens


def pool_facts(spec: v1alpha1.ModelServingPlanSpec, demand: PlanDemand) -> dict[tuple[str, str], PoolFacts]:
    """Speed and prices of every setup by (model, setup).

    Args:
        spec: The plan.
        demand: The plan as measured, with corrected profiles.
    """
    mix = declared_mix(spec, demand)
    costs = {kind.name: float(kind.cost_per_hour) for kind in spec.accelerators}
    given = {model.name: model.price for model in spec.models}
    found = {}
    for model in demand.models:
        for setup in model.setups:
            step, slower = _step(setup.profile)
            price = given[model.name]
            if price is not None:
                prices = float(price.input_per_million) / 1e6, float(price.output_per_million) / 1e6
            else:
                prices = _derived(setup.profile, step, mix, costs[setup.accelerator] * setup.units / 3600)
            found[model.name, setup.name] = PoolFacts(
                engine=_engine(setup.profile, step, slower),
                input_price=rounded(prices[0]),
                output_price=rounded(prices[1]),
            )
    return found


def declared_mix(spec: v1alpha1.ModelServingPlanSpec, demand: PlanDemand) -> TokenMix:
    """The lengths of all the plan's requests, by the rates that the plan declares."""
    rates = {entry.name: float(entry.rate) for entry in spec.request_classes}
    return blend([(max(rates[entry.name], _LEAST_RATE_RPS), entry.mix) for entry in demand.classes if entry.name in rates])


def picker(spec: v1alpha1.ModelServingPlanSpec, facts: Mapping[tuple[str, str], PoolFacts], mix: TokenMix) -> Picker | None:
    """What the plan's pickers weigh; None where it has none.

    Args:
        spec: The plan.
        facts: Of every pool.
        mix: The lengths of all the plan's requests.
    """
    router = spec.router
    if router.policy == "Weights":
        return None
    prices = _weights(router, [pool.request_price(mix) for pool in facts.values()])
    slo = service_level(spec.slo)
    bound = slo.ttft or slo.e2e
    return Picker(
        per_dollar=rounded(prices.per_dollar),
        per_second=rounded(prices.per_second),
        scale_s=prices.scale_s,
        power=prices.power,
        externality=prices.externality,
        guard_s=bound.seconds if bound else PATIENCE_S,
        shed=router.shed,
        explain=router.explain,
        predictor=predictor_file(router),
        replicas=router.replicas,
    )


def predictor_file(router: v1alpha1.Router) -> str:
    """Where a picker finds its estimator; empty without one."""
    return f"{PREDICTOR_FOLDER}/{router.predictor.config_map_key_ref.key}" if router.predictor else ""


def rounded(value: float) -> float:
    """The value to three significant digits."""
    return float(f"{value:.{_DIGITS - 1}e}") if math.isfinite(value) else 0.0


def _weights(router: v1alpha1.Router, request_prices: list[float]) -> Prices:
    if router.prices is not None:
        given = router.prices
        return Prices(
            per_dollar=float(given.per_dollar),
            per_second=float(given.per_second),
            scale_s=float(given.scale_seconds),
            power=float(given.power),
            externality=float(given.externality),
        )
    preset = Preset(router.preset or Preset.BALANCED.value).prices
    level = sum(request_prices) / len(request_prices) if request_prices else 0.0
    per_dollar = preset.per_dollar * REFERENCE_REQUEST / level if level > 0 else 0.0
    return Prices(per_dollar, preset.per_second, preset.scale_s, preset.power, preset.externality)


def _engine(profile: EngineProfile, step: StepTime, slower: float) -> Engine:
    return Engine(
        alpha_s=rounded(step.alpha_s * slower),
        beta_s=rounded(step.beta_s * slower),
        gamma_s=rounded(step.gamma_s * slower),
        floor_s=rounded(step.floor_s * slower),
        max_num_seqs=profile.max_num_seqs,
        max_num_batched_tokens=profile.max_num_batched_tokens,
        kv_tokens=profile.kv_tokens,
    )


def _step(profile: EngineProfile) -> tuple[StepTime, float]:
    """Coefficients of a step, and the factor by which the corrected one is longer."""
    plain, slower = uncorrected(profile)
    return plain.step or _step_of(plain.points), slower


@lru_cache(maxsize=256)
def _step_of(points: tuple[Point, ...]) -> StepTime:
    """The coefficients nearest to measured points, in relative error.

    In a closed loop of c requests with P prompt and L output tokens a step computes c (1 + P/L) tokens and reads c (P + L/2).
    The time to first token holds a queue, except at the lowest concurrency.
    """
    alone = min(point.concurrency for point in points)
    rows = []
    for point in points:
        prompt, output = point.prompt_tokens, point.output_tokens
        tokens, read = point.concurrency * (1 + prompt / output), point.concurrency * (prompt + output / 2)
        rows.append(np.array([1.0, tokens, read]) / point.tpot_s)
        if point.concurrency == alone:
            rows.append(np.array([1.0, float(prompt), 0.0]) / point.ttft_s)
    matrix = np.array(rows)
    # Columns differ by factors of a million.
    scale = np.maximum(matrix.max(axis=0), 1e-12)
    found = nnls(matrix / scale, np.ones(len(rows)))[0] / scale
    return StepTime(max(_LEAST_ALPHA_S, float(found[0])), float(found[1]), float(found[2]))


def _derived(profile: EngineProfile, step: StepTime, mix: TokenMix, cost_per_s: float) -> tuple[float, float]:
    """Dollars per prompt and per output token with which a busy replica earns what it costs."""
    rate_rps = MAX_UTILIZATION * stable_rate_rps(profile, mix)
    if rate_rps <= 0 or cost_per_s <= 0:
        return 0.0, 0.0
    prompt, output = mix.prompt_tokens, mix.output_tokens
    held = prompt + output / 2
    # What one request in flight adds to a step; with it, how many are in flight at this rate, by Little's law.
    added_s = step.beta_s * (1 + prompt / output) + step.gamma_s * held
    busy = rate_rps * output * added_s
    running = rate_rps * output * step.alpha_s / (1 - busy) if busy < 1 else math.inf
    running = min(float(profile.max_num_seqs), max(1.0, running))
    of_prompt_s, of_output_s = step.beta_s, step.alpha_s / running + step.beta_s + step.gamma_s * held
    level = cost_per_s / rate_rps / (prompt * of_prompt_s + output * of_output_s)
    return level * of_prompt_s, level * of_output_s
