"""One decision: all endpoints scored for one request, ordered, and put into words."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from servingplan.routing import constraints, rule
from servingplan.routing.ask import Ask, Terms
from servingplan.routing.fleet import Fleet, Mask, Rows, Vector
from servingplan.routing.preset import Prices

_TIE = 1e-12
_UNKNOWN_OUTPUT_TOKENS = 256.0
_IDLE_STRETCH = 2.0
"""A request that waits no longer than it would compute alone is not turned away, however long its prompt is."""
_LATE_PRICE = 100.0
"""Quality per second among endpoints that all miss the time to first token: the least late is taken."""


@dataclass(frozen=True, slots=True)
class View:
    """The figures of one decision; arrays are (endpoints,).

    Attributes:
        badness: From ``Ejection.badness``.
        tier: From ``constraints.missed``.
        value: What orders the endpoints of a tier: the utility, less the lateness of those that miss the time to first token.
    """

    fleet: Fleet
    load: rule.Load
    need: rule.Need
    factors: rule.Factors
    times: rule.Latency
    score: rule.Score
    capacity: Vector
    badness: Vector
    tier: Vector
    value: Vector


def need_of(fleet: Fleet, ask: Ask, hit_share: Vector | None) -> rule.Need:
    """What a request needs of each endpoint; figures that are not finite or below 0 count as unknown.

    Args:
        fleet: The endpoints.
        ask: The request.
        hit_share: (endpoints,) fraction of the prompt that is likely to be in the prefix cache; None for nothing.
    """
    prompt = ask.prompt_tokens if math.isfinite(ask.prompt_tokens) and ask.prompt_tokens > 0 else 0.0
    known = [each for each in ask.output_tokens.values() if math.isfinite(each) and each >= 0]
    other = sum(known) / len(known) if known else _UNKNOWN_OUTPUT_TOKENS
    longest = math.inf if ask.max_output_tokens is None else max(0.0, ask.max_output_tokens)
    outputs, qualities = [], []
    for model in fleet.models:
        output = ask.output_tokens.get(model, other)
        outputs.append(max(1.0, min(longest, output if math.isfinite(output) and output >= 0 else other)))
        quality = ask.quality.get(model, 0.0)
        qualities.append(quality if math.isfinite(quality) else 0.0)
    hits = fleet.nothing if hit_share is None else prompt * hit_share
    return rule.Need(prompt, np.array(outputs).take(fleet.model_of), np.array(qualities).take(fleet.model_of), hits)


def view_of(
    fleet: Fleet,
    ask: Ask,
    load: rule.Load,
    need: rule.Need,
    factors: rule.Factors,
    capacity: Vector,
    prices: Prices,
    ttft_s: float,
    badness: Vector,
) -> View:
    """Scores all endpoints; ``ttft_s`` is the bound that orders them."""
    times = rule.latency(fleet, load, need, factors)
    scored = rule.score(fleet, need, times, capacity, prices)
    tier = constraints.missed(fleet, ask, need, times, ttft_s, badness)
    value = scored.utility
    if tier is not fleet.nothing and np.count_nonzero(late := times.high_ttft_s > ttft_s):
        value = value - _LATE_PRICE * times.high_ttft_s * late
    return View(fleet, load, need, factors, times, scored, capacity, badness, tier, value)


def ordered(view: View, may: Mask, assigned: Vector, draw: float, *, spread: bool, fallbacks: int) -> list[int]:
    """Rows of the candidates, best first.

    Args:
        view: The figures.
        may: (endpoints,) which may be picked; at least one.
        assigned: (endpoints,) when each was last picked, in picks; 0 for never.
        draw: In [0, 1).
        spread: Whether the draw decides every tie, so that several pickers do not follow one order; else the endpoint that
            was picked least lately is taken, and the draw decides among those that never were.
        fallbacks: Candidates after the first; ejected endpoints are none unless the first is one.
    """
    if view.tier is view.fleet.nothing and (found := _alike(view, may, assigned, draw, spread, fallbacks)):
        return found
    rows = may.nonzero()[0]
    order: Rows = rows[np.lexsort((-view.value[rows], view.tier[rows]))]
    best = int(order[0])
    tied = rows[(view.tier[rows] == view.tier[best]) & (view.value[rows] >= _lowest(view.value.item(best)))]
    best = _settled(tied, assigned, draw, spread) if len(tied) > 1 else best
    if view.badness[best] == 0:
        order = order[view.badness[order] == 0]
    return [best, *(row for row in order.tolist() if row != best)][: 1 + fallbacks]


def _alike(view: View, may: Mask, assigned: Vector, draw: float, spread: bool, fallbacks: int) -> list[int]:
    """``ordered`` where no endpoint misses anything, without sorting; empty where utilities are no numbers."""
    value = view.value.copy()
    allowed = int(np.count_nonzero(may))
    if allowed < len(value):
        value[~may] = -np.inf
    best = int(value.argmax())
    top = value.item(best)
    if not top > -math.inf:
        return []
    tied = (value >= _lowest(top)).nonzero()[0]
    found = [_settled(tied, assigned, draw, spread) if len(tied) > 1 else best]
    for _ in range(min(fallbacks, allowed - 1)):
        value[found[-1]] = -np.inf
        found.append(int(value.argmax()))
    return found


def _lowest(top: float) -> float:
    """The value from which on endpoints count as equal to the best."""
    return top - _TIE * max(1.0, abs(top))


def _settled(tied: Rows, assigned: Vector, draw: float, spread: bool) -> int:
    if not spread:
        last = assigned[tied]
        tied = tied[last == last.min()]
    return int(tied[min(int(draw * len(tied)), len(tied) - 1)])


def late_s(view: View, row: int, bound_s: float, patience: float) -> float:
    """By how many seconds a request misses its time to first token on an endpoint; 0 or less where it may be served.

    The bound is ``patience`` times the time to first token that was asked for, or times a multiple of what the endpoint takes
    when it is idle if that is longer: where only the prompt's length is to blame, coming back later does not help.
    """
    idle = rule.idle_ttft_s(view.fleet, view.need, view.factors)
    return float(view.times.high_ttft_s[row]) - patience * max(bound_s, _IDLE_STRETCH * float(idle[row]))


def strain(view: View, bound_s: float) -> Vector:
    """(pools,) least time to first token of a pool's healthy endpoints, as a fraction of what it may be; 1 where none is."""
    idle = rule.idle_ttft_s(view.fleet, view.need, view.factors)
    found = np.full(len(view.fleet.pools), np.inf)
    rows = view.fleet.serves & (view.badness == 0)
    ratio = view.times.high_ttft_s / np.maximum(bound_s, _IDLE_STRETCH * idle)
    np.minimum.at(found, view.fleet.pool_of[rows], ratio[rows])
    return np.where(np.isinf(found), 1.0, found)


def terms_of(view: View, rows: list[int]) -> Terms:
    """The terms of the first row, with those of the others as its runners-up."""
    return _terms(view, rows[0], tuple(_terms(view, row) for row in rows[1:]))


def _terms(view: View, row: int, runners_up: tuple[Terms, ...] = ()) -> Terms:
    engine, scored, times = view.fleet.endpoints[row].engine, view.score, view.times
    return Terms(
        address=view.fleet.endpoints[row].address,
        pool=engine.pool,
        model=engine.model,
        utility=scored.utility.item(row),
        quality=view.need.quality.item(row),
        money=scored.money.item(row),
        latency=scored.latency.item(row),
        first_token=scored.first_token.item(row),
        externality=scored.externality.item(row),
        capacity=view.capacity.item(row),
        congestion=scored.congestion.item(row),
        cost_dollars=scored.cost.item(row),
        ttft_s=times.ttft_s.item(row),
        high_ttft_s=times.high_ttft_s.item(row),
        inter_token_s=times.step_s.item(row),
        e2e_s=times.e2e_s.item(row),
        in_flight=view.load.in_flight.item(row),
        prefix_tokens=view.need.hits.item(row),
        relaxed=constraints.names(float(view.tier[row])),
        runners_up=runners_up,
    )
