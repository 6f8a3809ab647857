"""SLOs that no setup keeps even when idle: relaxed by the least factor that one keeps, and said in a sentence.

A number that is too small must not turn into an outage.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from servingplan.latency.capacity import Latency, attains, stable_rate_rps
from servingplan.latency.profile import Slo
from servingplan.planning.means import METRICS, idle_latency, seconds_of
from servingplan.planning.problem import ClassDemand, PlanDemand, Scope, SetupOption

_FACTORS = (1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0, 32.0, 64.0, 256.0, 1024.0)
_LABELS = {"ttft": "TTFT", "inter_token": "inter-token latency", "e2e": "e2e"}


@dataclass(frozen=True, slots=True)
class Attainable:
    """A plan whose every class has a setup that keeps its SLO when idle, as far as any factor makes that true.

    Attributes:
        factors: Factor on the SLO by class, of those that were relaxed.
        sentence: What was asked, and what the fastest setup does; empty where nothing was relaxed.
    """

    plan: PlanDemand
    factors: dict[str, float]
    sentence: str


def scaled(slo: Slo, factor: float) -> Slo:
    """An SLO with every bound multiplied."""
    bounds = (slo.ttft, slo.inter_token, slo.e2e)
    return Slo(*(replace(bound, seconds=bound.seconds * factor) if bound else None for bound in bounds)) if factor != 1 else slo


def attainable(plan: PlanDemand) -> Attainable:
    """Relaxes what no setup of the plan keeps."""
    if plan.scope is Scope.PLAN:
        return _relaxed_mean(plan)
    classes, factors, sentences = [], {}, []
    for entry in plan.classes:
        if entry.rate_rps <= 0:
            classes.append(entry)
            continue
        usable = _usable(plan, entry)
        factor = next((f for f in _FACTORS if _kept(entry, usable, f)), None)
        if factor is None:
            sentences.append(_no_way(plan, entry, usable))
        elif factor > 1:
            sentences.append(_too_strict(entry, usable))
            factors[entry.name] = factor
        classes.append(replace(entry, slo=scaled(entry.slo, factor or 1.0)))
    return Attainable(replace(plan, classes=tuple(classes)), factors, "; ".join(sentences))


def _relaxed_mean(plan: PlanDemand) -> Attainable:
    """One mean over all requests: kept if every class on its fastest setup would keep it together."""
    asked = [entry for entry in plan.classes if entry.rate_rps > 0]
    homeless = [entry for entry in asked if not _fitting(_usable(plan, entry), entry)]
    served = [entry for entry in asked if entry not in homeless]
    sentences = [_no_way(plan, entry, _usable(plan, entry)) for entry in homeless]
    if not served:
        return Attainable(plan, {}, "; ".join(sentences))
    slo, total = served[0].slo, sum(entry.rate_rps for entry in served)
    fastest = dict.fromkeys(METRICS, 0.0)
    for entry in served:
        found = [seconds_of(value) for value in _idle(_usable(plan, entry), entry)]
        for name in METRICS:
            fastest[name] += entry.rate_rps / total * min(seconds[name] for seconds in found)
    bounds = {name: bound.seconds for name in fastest if (bound := getattr(slo, name)) is not None}
    # A little room for the load itself: at the very bound nothing could be served at all.
    ratio = max((1.2 * fastest[name] / seconds for name, seconds in bounds.items()), default=0.0)
    factor = next((f for f in _FACTORS if f >= ratio), _FACTORS[-1])
    if factor == 1:
        return Attainable(plan, {}, "; ".join(sentences))
    wants = ", ".join(f"{_LABELS[name]} {seconds:g} s (idle {fastest[name]:.3g} s)" for name, seconds in bounds.items())
    sentences.append(f"the fastest setups cannot keep the plan's mean latency, even idle: {wants}")
    classes = tuple(replace(entry, slo=scaled(entry.slo, factor)) for entry in plan.classes)
    return Attainable(replace(plan, classes=classes), {entry.name: factor for entry in served}, "; ".join(sentences))


def _idle(setups: list[SetupOption], entry: ClassDemand) -> list[Latency]:
    return [idle_latency(setup.profile, entry.mix) for setup in _fitting(setups, entry)]


def _usable(plan: PlanDemand, entry: ClassDemand) -> list[SetupOption]:
    return [s for model in plan.models if model.quality[entry.name] >= entry.min_quality for s in model.setups]


def _fitting(setups: list[SetupOption], entry: ClassDemand) -> list[SetupOption]:
    return [setup for setup in setups if stable_rate_rps(setup.profile, entry.mix) > 0]


def _kept(entry: ClassDemand, setups: list[SetupOption], factor: float) -> bool:
    slo = scaled(entry.slo, factor)
    return any(attains(setup.profile, entry.mix, slo) for setup in setups)


def _no_way(plan: PlanDemand, entry: ClassDemand, usable: list[SetupOption]) -> str:
    if not usable and any(model.setups for model in plan.models):
        best = max(model.quality[entry.name] for model in plan.models)
        return (
            f"no model scores {entry.min_quality:g} for class {entry.name}: the best scores {best:g}, so lower its minQuality"
        )
    return f"no setup can hold a request of class {entry.name}: check kvTokens against its token lengths"


def _too_strict(entry: ClassDemand, setups: list[SetupOption]) -> str:
    idle, slo, wants = _idle(setups, entry), entry.slo, []
    if slo.ttft:
        fastest = min(found.ttft_s(slo.ttft.percentile) for found in idle)
        wants.append(f"TTFT {slo.ttft.seconds:g} s (the fastest setup takes {fastest:.3g} s unloaded)")
    if slo.inter_token:
        fastest = min(found.inter_token_s for found in idle)
        wants.append(f"inter-token latency {slo.inter_token.seconds:g} s (the fastest takes {fastest:.3g} s)")
    if slo.e2e:
        fastest = min(found.e2e_s(slo.e2e.percentile) for found in idle)
        wants.append(f"e2e {slo.e2e.seconds:g} s (the fastest takes {fastest:.3g} s)")
    return f"no setup keeps the SLO of class {entry.name} even unloaded: {', '.join(wants)}"
