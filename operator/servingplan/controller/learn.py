"""From what was measured to what is remembered: rates and lengths at every look, corrections once a cycle."""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import fmean, pvariance

from servingplan.calibration.choices import follow_choices
from servingplan.calibration.demand import DemandSettings, follow_demand
from servingplan.calibration.lengths import as_measured
from servingplan.calibration.memory import SetupMemory
from servingplan.calibration.readings import Found
from servingplan.calibration.setup import Sample, faded, learn
from servingplan.controller import demands
from servingplan.controller.case import Case
from servingplan.controller.memory import Memory, SetupKey
from servingplan.controller.policy import Policy
from servingplan.controller.slo import missed
from servingplan.latency.profile import Bound, Slo, blend
from servingplan.planning.problem import ClassDemand

BURN_FACTOR = 2.0
"""A bound burns where this many times as many requests miss it as may."""
_EARLY = 0.5
_STEADY = 0.3
_MISSED, _MOST_HEADROOM = 0.2, 2.0
_ENOUGH_REQUESTS = 30.0


@dataclass(frozen=True, slots=True)
class Learnt:
    """What is remembered now.

    Attributes:
        news: What moved enough to plan anew for, one phrase each.
        burning: Bounds that are being missed, one phrase each.
    """

    memory: Memory
    news: tuple[str, ...] = ()
    burning: tuple[str, ...] = ()


def learnt(case: Case, policy: Policy, now_s: float) -> Learnt:
    """What one look at the world adds to the memory of a plan; nothing where the metrics say nothing."""
    if case.spec.router.policy == "Weights":
        case = replace(case, memory=replace(case.memory, choices={}))
    if case.readings.found is not Found.FOUND:
        return Learnt(case.memory)
    memory, news = case.memory, []
    if case.spec.metrics.rates == "Measured":
        declared = {entry.name: entry for entry in demands.declared(case).classes}
        settings = DemandSettings(dwell_s=policy.dwell_s)
        followed, reason = follow_demand(memory.demand, case.readings, declared, sent(case), _horizon_s(case, policy), settings)
        memory = replace(memory, demand=followed)
        news += [reason] if reason else []
    memory, moved = _with_choices(case, memory)
    news += moved
    burning = burns(case)
    memory = _judged(replace(case, memory=memory), now_s)
    if (spare := demands.headroom(replace(case, memory=memory))) != demands.headroom(case):
        news.append(f"{spare:.2f} times the measured load is planned for, as bursts missed the SLO")
    due_s = policy.cycle_s * (_EARLY if burning else 1.0)
    if case.spec.metrics.calibration == "Enabled" and case.readings.taken_s - memory.learnt_s >= due_s:
        memory, corrected = _calibrated(replace(case, memory=memory), memory, now_s)
        news += corrected
    return Learnt(memory, tuple(news), burning)


def _with_choices(case: Case, memory: Memory) -> tuple[Memory, tuple[str, ...]]:
    """The memory with what pickers choose of late, and what moved."""
    if case.spec.router.policy == "Weights":
        return memory, ()
    classes = {entry.name for entry in case.spec.request_classes}
    held = {name: each for name, each in memory.choices.items() if name in classes}
    seen = {name: each for name, each in case.readings.chosen.items() if name in classes}
    after, news = follow_choices(held, seen, case.readings.taken_s)
    return replace(memory, choices=after), news


def sent(case: Case) -> dict[str, dict[str, float]]:
    """Share of every class by pool: as pickers chose of late where there are any, else as the published table sends it."""
    found = weighted(case)
    pools = {model: [pool for (name, _), pool in case.pools.items() if name == model] for model, _ in case.pools}
    ready = {case.pools[key]: float(count) for key, count in case.ready.items() if key in case.pools}
    for name, choices in case.readings.chosen.items():
        planned, shares = found.get(name, {}), dict[str, float]()
        for model, share in choices.shares.items():
            # Within a model pickers follow the load, which weights and replicas do as well.
            parts = {pool: planned.get(pool, 0.0) for pool in pools.get(model, [])}
            parts = parts if any(parts.values()) else {pool: ready.get(pool, 0.0) for pool in parts}
            total = sum(parts.values())
            shares |= {pool: share * part / total for pool, part in parts.items() if part > 0}
        if shares:
            found[name] = shares
    return found


def weighted(case: Case) -> dict[str, dict[str, float]]:
    """Share of every class by pool, by the weights of the published table."""
    if case.published is None:
        return {}
    return {
        entry.name: {pool: weight / sum(entry.weights.values()) for pool, weight in entry.weights.items()}
        for entry in case.published.classes
        if entry.weights
    }


def bounds_by_pool(case: Case) -> dict[str, dict[str, Slo]]:
    """SLOs of the classes that each pool is planned to be sent, by class: of others a picker sees to each request's own."""
    slos = {entry.name: entry.slo for entry in demands.declared(case).classes}
    found: dict[str, dict[str, Slo]] = {}
    for name, shares in weighted(case).items():
        for pool, share in shares.items():
            if share > 0 and name in slos:
                found.setdefault(pool, {})[name] = slos[name]
    return found


def _judged(case: Case, now_s: float) -> Memory:
    """The memory after the SLOs were held against one more window.

    What the forms cannot know, bursts shorter than any window above all, is left to this: a missed window raises the headroom,
    a kept one takes a ninety-ninth of that back, so that in the long run one window in a hundred is missed. Windows in which
    replicas were missing or cold do not count, because more of them were asked for already; nor does a miss under more load
    than is planned for, because the forecast learns of that.
    """
    memory, readings = case.memory, case.readings
    if readings.taken_s - memory.judged_s < readings.window_s or not _settled(case, now_s):
        return memory
    late = burns(case, factor=1.0)
    if not late and not any(pool.ttft and pool.ttft.count >= _ENOUGH_REQUESTS for pool in readings.pools.values()):
        return memory
    if late and _beyond(case):
        return memory
    moved = memory.headroom + (_MISSED if late else -_MISSED / 99)
    return replace(memory, judged_s=readings.taken_s, headroom=min(_MOST_HEADROOM, max(1.0, moved)))


def _beyond(case: Case) -> bool:
    """Whether more of a class came in the window than is planned for, headroom left out."""
    for name, entry in case.memory.demand.classes.items():
        history = case.readings.classes.get(name)
        if history is not None:
            count = max(1, round(case.readings.window_s / history.window_s))
            rates = history.rates_rps[-count:]
            if rates and fmean(rates) > entry.planned_rps:
                return True
    return False


def _settled(case: Case, now_s: float) -> bool:
    """Whether everything that is wanted has been ready for a whole window."""
    return all(
        case.ready[key] >= case.memory.kept(key).replicas
        and all(now_s - pod.ready_changed_s >= case.readings.window_s for pod in case.pods[pool] if pod.serves)
        for key, pool in case.pools.items()
    )


def burns(case: Case, factor: float = BURN_FACTOR) -> tuple[str, ...]:
    """Bounds on the time to first token that too many of a pool's requests miss: ``factor`` times as many as may."""
    found = []
    for pool, slos in sorted(bounds_by_pool(case).items()):
        reading = case.readings.pools.get(pool)
        if reading is None or reading.ttft is None or reading.ttft.count < _ENOUGH_REQUESTS:
            continue
        for name, slo in sorted(slos.items()):
            if slo.ttft and (said := missed(reading.ttft, slo.ttft, factor)):
                found.append(f"{name} on {pool}: {said}")
    return tuple(found)


def _horizon_s(case: Case, policy: Policy) -> float:
    """How far ahead replicas are planned: those that are asked for now answer only then."""
    return max(setup.cold_start_seconds for setup in case.setups.values()) + policy.tick_s


def _calibrated(case: Case, memory: Memory, now_s: float) -> tuple[Memory, list[str]]:
    """The memory with one more cycle of corrections."""
    setups, news, shares = dict(memory.setups), [], sent(case)
    classes = {entry.name: entry for entry in demands.routed(case).classes}
    base = {(model.name, setup.name): setup.profile for model in demands.declared(case).models for setup in model.setups}
    samples = {key: _sample(case, key, shares, classes, now_s) for key in case.pools if key in base}
    sampled = any(sample is not None for sample in samples.values())
    for key, sample in samples.items():
        kept = memory.kept(key)
        before = kept.calibration
        if sample is None:
            if sampled and before is not None and _spared(case, key, shares):
                setups[key] = replace(kept, calibration=faded(before))
            continue
        after = learn(base[key], before or SetupMemory(), sample)
        setups[key] = replace(kept, calibration=after)
        if after.applied is not None and after.applied != (before.applied if before else None):
            news.append(f"{'/'.join(key)} takes {after.applied.step[0]:.2f} times as long as its profile says")
    # Where nothing was learnt nothing is written: an idle plan stays as it is.
    return (replace(memory, setups=setups, learnt_s=case.readings.taken_s) if setups != memory.setups else memory), news


def _spared(case: Case, key: SetupKey, shares: dict[str, dict[str, float]]) -> bool:
    """Whether a setup serves and is sent nothing."""
    pool = case.pools[key]
    reading = case.readings.pools.get(pool)
    idle = reading is not None and not reading.dark and not reading.rate_rps
    return idle and case.ready[key] > 0 and not any(by_pool.get(pool) for by_pool in shares.values())


def _sample(
    case: Case, key: SetupKey, shares: dict[str, dict[str, float]], classes: dict[str, ClassDemand], now_s: float
) -> Sample | None:
    """What a setup's replicas measured; None where it says nothing: too few requests, or replicas that are still cold."""
    pool = case.pools[key]
    reading = case.readings.pools.get(pool)
    if reading is None or reading.dark or reading.ttft is None or reading.rate_rps is None or not reading.replicas:
        return None
    if reading.ttft.count < _ENOUGH_REQUESTS:
        return None
    serving = [pod for pod in case.pods[pool] if pod.serves]
    if any(now_s - pod.ready_changed_s < case.readings.window_s for pod in serving):
        return None
    parts = [(shares[name].get(pool, 0.0) * entry.rate_rps, entry) for name, entry in classes.items() if name in shares]
    parts += [(entry.rate_rps, entry) for name, entry in classes.items() if name == demands.name_class(key[0])]
    parts = [(rate, entry) for rate, entry in parts if rate > 0]
    if not parts:
        return None
    within = _within(case, [entry.name for _, entry in parts if entry.name in shares])
    if within is None:
        return None
    return Sample(
        replicas=reading.replicas,
        rate_rps=reading.rate_rps / reading.replicas,
        mix=as_measured(blend([(rate, entry.mix) for rate, entry in parts]), reading),
        arrival_cv=max(entry.arrival_cv for _, entry in parts),
        requests=reading.ttft.count,
        ttft=reading.ttft,
        inter_token=reading.inter_token,
        e2e=reading.e2e,
        bounds=_bounds([entry.slo for _, entry in parts]),
        unevenness=max(
            (_unevenness(rates, case.readings.classes[name].window_s) for name, rates in within.items() if rates), default=None
        ),
        work=1.0,
    )


def _unevenness(rates: tuple[float, ...], window_s: float) -> float:
    """Standard deviation of some windows' rates, beyond that of Poisson arrivals, over their mean."""
    mean = fmean(rates)
    if mean <= 0:
        return 0.0
    return max(0.0, pvariance(rates) - mean / window_s) ** 0.5 / mean


def _within(case: Case, names: list[str]) -> dict[str, tuple[float, ...]] | None:
    """Rates of classes in the short windows that the reading spans; None where one began or ended in it, and has no one rate.

    Rates that nobody measures may have been anything: they count as even where the plan does not ask for measured ones.
    """
    found = {}
    for name in names:
        history = case.readings.classes.get(name)
        if history is None:
            if case.spec.metrics.rates == "Measured":
                return None
            continue
        count = max(1, round(case.readings.window_s / history.window_s))
        rates = history.rates_rps[-count:]
        if len(rates) < count or min(rates) < _STEADY * max(rates):
            return None
        found[name] = rates
    return found


def _bounds(slos: list[Slo]) -> tuple[tuple[str, Bound], ...]:
    """Every kind of bound once, the tightest."""
    tightest: dict[tuple[str, float | None], Bound] = {}
    for slo in slos:
        for metric, bound in (("ttft", slo.ttft), ("interToken", slo.inter_token), ("e2e", slo.e2e)):
            if bound is None:
                continue
            key = (metric, bound.percentile)
            if key not in tightest or bound.seconds < tightest[key].seconds:
                tightest[key] = bound
    return tuple((metric, bound) for (metric, _), bound in sorted(tightest.items(), key=lambda item: str(item[0])))
