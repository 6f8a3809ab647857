"""How long a request takes on a replica under load, and the load that the replica takes within an SLO.

With coefficients, latency follows from the prompt queue (``latency.backlog``) and from the running requests
(``latency.decode``); with measured points alone it is interpolated (``latency.measured``). A request is of a class with lengths
of its own, among the background of all the requests that share the replica.

The form is trusted within a declared range (``margin``): Poisson arrivals up to 70 % of the stable rate, with prompts, not
slots or KV memory, as what binds. Outside it predictions have to stay below an SLO by more, and no plan loads a replica beyond
``MAX_UTILIZATION``. Rates that drift within the planning window are outside of every such form.

Where live measurements have corrected the profile (``latency.correction``), everything here is as corrected.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from servingplan.latency.correction import Highest, Scaled, bound_key, total_margin
from servingplan.latency.decode import stable_step_rate_rps
from servingplan.latency.distribution import Between, Distribution, Exponential, mixed
from servingplan.latency.levels import LOADS, MAX_UTILIZATION, Replica, at_load, load_at, place
from servingplan.latency.margins import base_margin, declared_margin
from servingplan.latency.measured import ladder, measured_rate_rps
from servingplan.latency.mix import TokenMix
from servingplan.latency.profile import Bound, EngineProfile, Slo, uncorrected

__all__ = [
    "MAX_UTILIZATION",
    "Latency",
    "attains",
    "capacity_rps",
    "latency",
    "margin",
    "stable_rate_rps",
    "utilization",
]

_LAST = LOADS.index(MAX_UTILIZATION)
_BISECTIONS = 30


@dataclass(frozen=True, slots=True)
class Latency:
    """Latency of one class's requests at one load.

    Attributes:
        ttft: Time to first token.
        inter_token_s: Mean over requests of the mean time between a request's tokens.
        decode_s: Mean time from the first to the last token.
        stretch: Seconds of decode that a second of waiting for the first token adds.
    """

    ttft: Distribution
    inter_token_s: float
    decode_s: float
    stretch: float = 0.0

    @property
    def ttft_mean_s(self) -> float:
        """Mean time to first token."""
        return self.ttft.mean_s

    @property
    def e2e_mean_s(self) -> float:
        """Mean time to the last token."""
        return self.ttft.mean_s + self.decode_s

    def ttft_s(self, percentile: float | None) -> float:
        """Time to first token at a percentile between 0 and 100, or its mean for None."""
        return self.ttft.mean_s if percentile is None else self.ttft.percentile_s(percentile)

    def e2e_s(self, percentile: float | None) -> float:
        """Time to the last token, for outputs as they are on average; only the first token is random."""
        return self.e2e_mean_s + (1 + self.stretch) * (self.ttft_s(percentile) - self.ttft_mean_s)


def stable_rate_rps(profile: EngineProfile, mix: TokenMix) -> float:
    """The rate at which queues start to grow without end, in requests per second; 0 where no request fits.

    The inverse rate of a blend is the mean of those of its parts, as long as the same of slots, KV memory and budget binds all.
    """
    plain, slower = uncorrected(profile)
    if plain.step is None:
        return measured_rate_rps(plain.points, mix) / slower
    return stable_step_rate_rps(plain, plain.step, mix) / slower


def latency(
    profile: EngineProfile, mix: TokenMix, rate_rps: float, background: TokenMix | None = None, arrival_cv: float = 1.0
) -> Latency:
    """Latency of the requests of a class.

    Args:
        profile: The replica.
        mix: Lengths of the requests in question.
        rate_rps: All requests per second to this replica; clamped to 99 % of the stable rate.
        background: Lengths of all requests to this replica; None where all are of `mix`.
        arrival_cv: Coefficient of variation of the times between arrivals; below 1 it counts as 1.

    Raises:
        ValueError: A request does not fit in the KV memory.
    """
    stable_rps = stable_rate_rps(profile, background or mix)
    if stable_rps <= 0:
        raise ValueError("a request of the mean length does not fit in the KV memory")
    load = min(rate_rps / stable_rps, LOADS[-1])
    if profile.step is None:
        return _measured(profile, mix, load)
    index, share = place(load)
    low, high = (_at_index(profile, mix, background or mix, arrival_cv, at) for at in (index, index + 1))
    return Latency(
        ttft=Between(low.ttft, high.ttft, share),
        inter_token_s=mixed(low.inter_token_s, high.inter_token_s, share),
        decode_s=mixed(low.decode_s, high.decode_s, share),
        stretch=mixed(low.stretch, high.stretch, share),
    )


@lru_cache(maxsize=4096)
def utilization(
    profile: EngineProfile, mix: TokenMix, slo: Slo, background: TokenMix | None = None, arrival_cv: float = 1.0
) -> float:
    """The largest load at which requests of a class keep their SLO with the margin.

    Returns:
        A fraction of the background's stable rate, at most ``MAX_UTILIZATION``; 0 where the SLO is kept at no load.
    """
    asked = _Asked(profile, mix, slo, background or mix, arrival_cv)
    if stable_rate_rps(profile, asked.background) <= 0 or (idle := asked.worst(0)) > 1:
        return 0.0
    if (loaded := asked.worst(_LAST)) <= 1:
        return MAX_UTILIZATION
    return asked.crossing(asked.last_kept(idle, loaded))


def attains(profile: EngineProfile, mix: TokenMix, slo: Slo) -> bool:
    """Whether an idle replica keeps the SLO with the margin: exactly where ``utilization`` is above 0, and found faster."""
    return stable_rate_rps(profile, mix) > 0 and _Asked(profile, mix, slo, mix, 1.0).worst(0) <= 1


def capacity_rps(
    profile: EngineProfile, mix: TokenMix, slo: Slo, background: TokenMix | None = None, arrival_cv: float = 1.0
) -> float:
    """The largest rate at which a replica keeps the SLO, in requests of the mix per second; 0 where it does at none."""
    return utilization(profile, mix, slo, background, arrival_cv) * stable_rate_rps(profile, mix)


def margin(
    profile: EngineProfile, background: TokenMix, utilization: float, arrival_cv: float = 1.0, key: str | None = None
) -> float:
    """The fraction by which a predicted time to first token must stay below its bound at a utilisation.

    It is the declared one (``latency.margins``), and what was learnt beyond it.

    Args:
        profile: The replica.
        background: Lengths of all requests to this replica.
        utilization: Fraction of the background's stable rate.
        arrival_cv: Coefficient of variation of the times between arrivals.
        key: The bound (``correction.bound_key``) whose corrected margin is asked for; None for the largest of all.
    """
    index, share = place(min(utilization, LOADS[-1]))
    plain, _ = uncorrected(profile)
    low, high = (declared_margin(plain, background, arrival_cv, at) for at in (index, index + 1))
    declared = mixed(low, high, share)
    return total_margin(declared, profile.correction.further_margin(key)) if profile.correction else declared


class _Bounded(NamedTuple):
    """A latency over its bound: the wait for the first token in it, and the rest; with the margin learnt for the bound."""

    waiting: float
    rest: float
    further: float

    def raised(self, margin: float, base_margin: float) -> float:
        waiting, rest = (total_margin(each, self.further) for each in (margin, base_margin))
        return self.waiting / (1 - waiting) + self.rest / (1 - rest)

    def towards(self, other: _Bounded, share: float) -> _Bounded:
        return _Bounded(mixed(self.waiting, other.waiting, share), mixed(self.rest, other.rest, share), self.further)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A class with its SLO on a replica."""

    profile: EngineProfile
    mix: TokenMix
    slo: Slo
    background: TokenMix
    arrival_cv: float

    def at(self, index: int) -> list[_Bounded]:
        return self.bounded(_at_index(self.profile, self.mix, self.background, self.arrival_cv, index))

    def bounded(self, found: Latency) -> list[_Bounded]:
        def over(metric: str, bound: Bound, waiting_s: float, rest_s: float) -> _Bounded:
            further = 0.0
            if self.profile.correction:
                further = self.profile.correction.further_margin(bound_key(metric, bound.percentile))
            return _Bounded(waiting_s / bound.seconds, rest_s / bound.seconds, further)

        slo, bounded = self.slo, []
        if slo.ttft:
            bounded.append(over("ttft", slo.ttft, found.ttft_s(slo.ttft.percentile), 0.0))
        if slo.inter_token:
            bounded.append(over("interToken", slo.inter_token, 0.0, found.inter_token_s))
        if slo.e2e:
            waiting_s = found.ttft_s(slo.e2e.percentile)
            bounded.append(over("e2e", slo.e2e, waiting_s, found.e2e_s(slo.e2e.percentile) - waiting_s))
        return bounded

    def margins(self, index: int) -> tuple[float, float]:
        """The declared ones, on the wait for the first token and on the rest."""
        plain, _ = uncorrected(self.profile)
        return declared_margin(plain, self.background, self.arrival_cv, index), base_margin(plain, index)

    def worst(self, index: int) -> float:
        """The largest latency over its bound at a solved load, margin included."""
        margins = self.margins(index)
        return max((each.raised(*margins) for each in self.at(index)), default=0.0)

    def last_kept(self, idle: float, loaded: float) -> int:
        """The last solved load at which the SLO is kept, given the worst of an idle and of a fully loaded replica."""
        low, high, middle = 0, _LAST, _guess(idle, loaded)
        while high - low > 1:
            middle = min(max(middle, low + 1), high - 1)
            kept = self.worst(middle) <= 1
            low, high = (middle, high) if kept else (low, middle)
            # The guess is near: look beside it first.
            middle = low + 1 if kept else high - 1
        return low

    def crossing(self, below: int) -> float:
        """The load between a solved one and the next at which the SLO is just kept."""
        low, high = self.at(below), self.at(below + 1)
        margins = list(zip(self.margins(below), self.margins(below + 1), strict=True))

        def kept(share: float) -> bool:
            if self.profile.step is None:
                found = self.bounded(_measured(self.profile, self.mix, load_at(below, share)))
            else:
                found = [one.towards(other, share) for one, other in zip(low, high, strict=True)]
            waiting, rest = (mixed(*pair, share) for pair in margins)
            return all(each.raised(waiting, rest) <= 1 for each in found)

        start, end = 0.0, 1.0
        for _ in range(_BISECTIONS):
            share = (start + end) / 2
            start, end = (share, end) if kept(share) else (start, share)
        return load_at(below, start)


def _guess(idle: float, loaded: float) -> int:
    """The solved load at which a latency linear in the interpolation's measure would reach its bound."""
    share = (1 - idle) / (loaded - idle) if loaded > idle else 1.0
    low, high = (1 / (1.1 - LOADS[at]) for at in (0, _LAST))
    return sum(1 / (1.1 - load) <= low + share * (high - low) for load in LOADS[1:_LAST])


def _at_index(profile: EngineProfile, mix: TokenMix, background: TokenMix, arrival_cv: float, index: int) -> Latency:
    """Latency at one of the solved loads."""
    plain, slower = uncorrected(profile)
    if plain.step is None:
        return _measured(profile, mix, LOADS[index])
    found = at_load(Replica(plain, plain.step, background, arrival_cv), mix, index)
    if profile.correction is None:
        return Latency(found.ttft, found.inter_token_s, found.decode_s, found.stretch)
    parts = [
        Scaled(_first_token(plain, mix, background, arrival_cv, at), slower * profile.correction.ttft_factor(LOADS[at]))
        for at in profile.correction.reaching(LOADS[: index + 1])
    ]
    ttft = parts[0] if len(parts) == 1 else Highest(tuple(parts))
    return Latency(ttft, slower * found.inter_token_s, slower * found.decode_s, found.stretch)


def _first_token(plain: EngineProfile, mix: TokenMix, background: TokenMix, arrival_cv: float, index: int) -> Distribution:
    assert plain.step is not None, "measured points have no solved loads"
    return at_load(Replica(plain, plain.step, background, arrival_cv), mix, index).ttft


def _measured(profile: EngineProfile, mix: TokenMix, load: float) -> Latency:
    steps = ladder(profile.points, mix)
    rate_rps = load * steps.rates_rps[-1]
    _, slower = uncorrected(profile)
    waits = slower * profile.correction.rising_factor(load) if profile.correction else slower
    tpot_s = slower * steps.tpot_s(rate_rps)
    return Latency(Exponential(waits * steps.ttft_s(rate_rps)), tpot_s, max(0.0, mix.output_tokens - 1) * tpot_s)
