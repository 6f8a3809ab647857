"""How much is asked of a plan: what its classes and models are planned and routed for, remembered in its status.

What replicas are planned for moves only when the need is off by enough (``rates.follow``), so that equal needs give equal
problems, and a restart finds what was planned for in the status. What weights are made for follows more closely. A class that
cannot be measured at the moment keeps what it has; a class that never was has no entry, and its declared rate stands.

Requests that name a model have entries of their own, since nobody has declared them: a model has one from its first request
until nothing has come for a whole dwell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Protocol

from servingplan.api.plan_status import DemandStatus
from servingplan.calibration.lengths import LengthFactors, follow_factors, measured_factors
from servingplan.calibration.rates import DWELL_S, Forecast, follow, forecast
from servingplan.calibration.readings import Found, RateHistory, Readings
from servingplan.latency.mix import TokenMix

LEAST_RPS = 0.01
"""What a declared class is planned for although nobody uses it, so that its next request finds a replica."""

_STALE_WINDOWS = 3


class Declared(Protocol):
    """What a spec says of a class; ``planning.problem.ClassDemand`` is one."""

    @property
    def rate_rps(self) -> float:
        """Requests per second."""

    @property
    def mix(self) -> TokenMix:
        """Their lengths."""

    @property
    def arrival_cv(self) -> float:
        """Coefficient of variation of the times between arrivals."""


@dataclass(frozen=True, slots=True)
class Held:
    """What is remembered of one class, or of the requests that name one model.

    Attributes:
        planned_rps: What replicas are planned for.
        routed_rps: What weights are made for.
        observed_rps: What was measured; moves by a fifth or more, so that a quiet plan's status is not written anew.
        prompt_factor: Measured prompt lengths as a multiple of the declared ones.
        output_factor: The same of the output lengths.
    """

    planned_rps: float
    routed_rps: float
    observed_rps: float | None = None
    prompt_factor: float = 1.0
    output_factor: float = 1.0

    @property
    def factors(self) -> LengthFactors:
        """Both factors."""
        return LengthFactors(self.prompt_factor, self.output_factor)


@dataclass(frozen=True, slots=True)
class DemandMemory:
    """What is remembered of all, by class and by named model."""

    classes: dict[str, Held] = field(default_factory=dict)
    models: dict[str, Held] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DemandSettings:
    """How readily what is held follows what is measured.

    Attributes:
        dwell_s: Replicas are needed for what came within this time.
        up: Fraction by which the need exceeds the planned rate before that moves.
        down: The same of falling short.
        routed_up: The same of the rate that weights are made for.
        routed_down: The same of falling short.
        length: The same of the length factors, both ways.
    """

    dwell_s: float = DWELL_S
    up: float = 0.10
    down: float = 0.20
    routed_up: float = 0.05
    routed_down: float = 0.10
    length: float = 0.05


_CALM = 0.2
_UNDECLARED = Held(0.0, 0.0)


def follow_demand(
    memory: DemandMemory,
    readings: Readings,
    declared: Mapping[str, Declared],
    shares: Mapping[str, Mapping[str, float]],
    horizon_s: float,
    settings: DemandSettings = DemandSettings(),
) -> tuple[DemandMemory, str]:
    """What to remember after a look at the metrics.

    Args:
        memory: What was remembered.
        readings: What was measured.
        declared: What the spec says, by class.
        shares: What the routing table sends, as a fraction by class and pool.
        horizon_s: Seconds until a replica that is asked for now is warm.
        settings: How readily to follow.

    Returns:
        What to remember, and what moved in what replicas are planned for, in words; no words where nothing did.
    """
    kept = {name: memory.classes[name] for name in sorted(memory.classes) if name in declared}
    if readings.found is not Found.FOUND:
        return DemandMemory(kept, dict(memory.models)), ""
    before = {name: kept.get(name, _as_declared(entry)) for name, entry in sorted(declared.items())}
    forecasts = _forecasts(before, kept, readings, declared, horizon_s, settings)
    flows_rps = {name: forecasts[name].level_rps if name in forecasts else before[name].routed_rps for name in before}
    lengths = measured_factors(
        readings.pools,
        {name: {pool: share * flows_rps[name] for pool, share in shares.get(name, {}).items()} for name in before},
        {name: entry.mix for name, entry in declared.items()},
    )
    after = {}
    for name in sorted(kept.keys() | forecasts.keys()):
        factors = follow_factors(before[name].factors, lengths[name], near=settings.length)
        held = replace(before[name], prompt_factor=factors.prompt, output_factor=factors.output)
        least_rps = min(LEAST_RPS, declared[name].rate_rps)
        after[name] = _followed(held, forecasts[name], least_rps, settings) if name in forecasts else held
    models = _follow_models(memory.models, readings.models, horizon_s, settings)
    moved = [*_moves("class", {name: before[name] for name in after}, after), *_moves("model", memory.models, models)]
    return DemandMemory(after, models), "; ".join(moved)


def to_status(memory: DemandMemory) -> list[DemandStatus]:
    """The memory as it stands in a plan's status."""
    return [
        *(_written(held, request_class=name) for name, held in sorted(memory.classes.items())),
        *(_written(held, model=name) for name, held in sorted(memory.models.items())),
    ]


def from_status(entries: Sequence[DemandStatus]) -> DemandMemory:
    """The memory that a plan's status holds; an entry that cannot be read counts as never measured."""
    memory = DemandMemory()
    for entry in entries:
        held = _read(entry)
        if held is not None and entry.request_class:
            memory.classes[entry.request_class] = held
        elif held is not None and entry.model:
            memory.models[entry.model] = held
    return memory


def _usable(histories: Mapping[str, RateHistory]) -> list[tuple[str, RateHistory]]:
    return [
        (name, history)
        for name, history in sorted(histories.items())
        if history.rates_rps and history.age_s <= _STALE_WINDOWS * history.window_s
    ]


def _forecasts(
    held: Mapping[str, Held],
    kept: Mapping[str, Held],
    readings: Readings,
    declared: Mapping[str, Declared],
    horizon_s: float,
    settings: DemandSettings,
) -> dict[str, Forecast]:
    return {
        name: forecast(
            history, held[name].planned_rps, horizon_s, dwell_s=settings.dwell_s, arrival_cv=declared[name].arrival_cv
        )
        for name, history in _usable(readings.classes)
        # A plan that nobody has used yet is planned as it declares itself; its first request begins the measuring.
        if name in declared and (name in kept or any(history.rates_rps))
    }


def _as_declared(entry: Declared) -> Held:
    rate_rps = _rounded(entry.rate_rps)
    return Held(rate_rps, rate_rps)


def _followed(held: Held, found: Forecast, least_rps: float, settings: DemandSettings) -> Held:
    return replace(
        held,
        planned_rps=follow(held.planned_rps, max(least_rps, found.needed_rps), up=settings.up, down=settings.down),
        routed_rps=follow(held.routed_rps, max(least_rps, found.routed_rps), up=settings.routed_up, down=settings.routed_down),
        observed_rps=follow(held.observed_rps or 0.0, found.level_rps, up=_CALM, down=_CALM),
    )


def _follow_models(
    held: Mapping[str, Held], histories: Mapping[str, RateHistory], horizon_s: float, settings: DemandSettings
) -> dict[str, Held]:
    models = dict(held)
    for name, history in _usable(histories):
        before = held.get(name, _UNDECLARED)
        found = forecast(history, before.planned_rps, horizon_s, dwell_s=settings.dwell_s)
        models[name] = _followed(before, found, 0.0, settings)
    return {name: models[name] for name in sorted(models) if models[name].planned_rps > 0}


def _moves(kind: str, before: Mapping[str, Held], after: Mapping[str, Held]) -> list[str]:
    words = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name, _UNDECLARED), after.get(name, _UNDECLARED)
        if old.planned_rps != new.planned_rps:
            words.append(f"load of {kind} {name} {old.planned_rps:.3g} -> {new.planned_rps:.3g} requests/s")
        if old.prompt_factor != new.prompt_factor:
            words.append(f"prompts of {kind} {name} {new.prompt_factor:.2g} times as long")
        if old.output_factor != new.output_factor:
            words.append(f"outputs of {kind} {name} {new.output_factor:.2g} times as long")
    return words


def _written(held: Held, request_class: str | None = None, model: str | None = None) -> DemandStatus:
    return DemandStatus.model_validate(
        {
            "request_class": request_class,
            "model": model,
            "observed": None if held.observed_rps is None else _text(held.observed_rps),
            "planned": _text(held.planned_rps),
            "routed": _text(held.routed_rps),
            "prompt_factor": _text(held.prompt_factor) if held.prompt_factor != 1 else None,
            "output_factor": _text(held.output_factor) if held.output_factor != 1 else None,
        }
    )


def _read(entry: DemandStatus) -> Held | None:
    try:
        held = Held(
            planned_rps=float(entry.planned),
            routed_rps=float(entry.routed),
            observed_rps=None if entry.observed is None else float(entry.observed),
            prompt_factor=float(entry.prompt_factor or 1),
            output_factor=float(entry.output_factor or 1),
        )
    except ValueError:
        return None
    rates = (held.planned_rps, held.routed_rps, held.observed_rps or 0.0)
    sound = all(math.isfinite(rate) and rate >= 0 for rate in rates)
    return held if sound and all(math.isfinite(one) and one > 0 for one in (held.prompt_factor, held.output_factor)) else None


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def _text(value: float) -> str:
    """Five significant digits, never with an exponent."""
    return format(Decimal(f"{value:.5g}"), "f")
