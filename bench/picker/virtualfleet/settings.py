"""What is compared: arrivals by name, and as many settings of every router as of ours.

A hypervolume depends on how settings are spread as much as on the rule. So every side has a grid of six by six whose spacing
was chosen, from several, for its own volume on seeds that no table uses.
"""

from __future__ import annotations

from functools import cache

from baselines.routebalance import Rule
from servingplan.routing.preset import Prices
from virtualfleet import prompts, workload
from virtualfleet.prompts import Prompts
from virtualfleet.workload import Arrivals, Workload

FIRST_SEED = 100
TUNING_SEEDS = range(12)

_PER_DOLLAR = (0, 1000, 2500, 5000, 10000, 20000)
_PER_SECOND = (0, 0.003, 0.01, 0.03, 0.06, 0.12)
_MINMAX = (0, 0.3, 0.6, 1.2, 2.5, 6)
_RAW = (0, 0.1, 0.25, 0.5, 1, 2)
_SIMPLEX = 13
SQUARE_RPS = (40.0, 6.0)
GAMMA_RPS = 18.0
SURGE_RPS = (100.0, 12.0)


def ours() -> list[Prices]:
    """36 pairs of prices."""
    return [Prices(per_dollar, per_second) for per_dollar in _PER_DOLLAR for per_second in _PER_SECOND]


def route_balance(*, minmax: bool) -> list[Rule]:
    """36 triples of weights that sum to 1, by ratios of cost and latency to quality."""
    spaced = _MINMAX if minmax else _RAW
    return [_rule(1.0, latency, cost, minmax=minmax) for cost in spaced for latency in spaced]


def simplex(*, minmax: bool) -> list[Rule]:
    """105 triples: all thirteenths."""
    steps = [(a, b, _SIMPLEX - a - b) for a in range(_SIMPLEX + 1) for b in range(_SIMPLEX + 1 - a)]
    return [_rule(float(a), float(b), float(c), minmax=minmax) for a, b, c in steps]


def _rule(quality: float, latency: float, cost: float, *, minmax: bool) -> Rule:
    total = quality + latency + cost
    return Rule(quality / total, latency / total, cost / total, minmax=minmax)


def arrivals(name: str) -> Arrivals:
    """By name: ``square`` (40 and 6 req/s in turn), ``surge`` (100 and 12), ``gamma`` (18, shape 0.3), or a Poisson rate."""
    if name in {"square", "surge"}:
        return workload.square(*(SQUARE_RPS if name == "square" else SURGE_RPS))
    if name == "gamma":
        return workload.gamma(GAMMA_RPS)
    return workload.poisson(float(name))


def rate_rps(name: str) -> float:
    """The mean rate."""
    return {"square": sum(SQUARE_RPS) / 2, "gamma": GAMMA_RPS}.get(name) or float(name)


@cache
def _prompts(name: str) -> Prompts:
    return prompts.load(name)


def sample(name: str, come: str, seed: int) -> Workload:
    """One run's requests of a set of prompts."""
    return workload.draw(_prompts(name), arrivals(come), seed)


def pool(name: str) -> Prompts:
    """The whole set of prompts."""
    return _prompts(name)
