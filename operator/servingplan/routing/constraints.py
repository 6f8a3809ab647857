"""What an endpoint must meet to be picked, and what is given up first when none meets everything.

Never given up: an endpoint that serves, the models and addresses the request may go to, a prompt and answer that fit in the KV
cache at all, and the budget. A request whose ``max_output_tokens`` is known is within its budget even if it uses all of them;
else its expected cost is.

Given up one after the other, while no endpoint meets what is left, in this order:

    1. inter-token   the bound on the time between tokens
    2. e2e           the bound on the time to the last token
    3. KV room       a KV cache that holds the request beside what is there now
    4. quality       the least quality
    5. TTFT          the bound on the time to first token, by its high estimate
    6. health        not ejected; of ejected ones, the one with the fewest failures

So an endpoint that misses the time to first token loses to every healthy one that meets it, whatever else they miss.
"""

from __future__ import annotations

import numpy as np

from servingplan.routing.ask import Ask, ClassRule
from servingplan.routing.fleet import Fleet, Mask, Vector
from servingplan.routing.rule import Latency, Need

NAMES = ("inter-token", "e2e", "KV room", "quality", "TTFT", "health")
TTFT = 16.0
HEALTH = 32.0


def permitted(fleet: Fleet, ask: Ask, rule: ClassRule) -> Mask:
    """(endpoints,) which serve a model and have an address that the request may go to."""
    may = fleet.serves
    models = ask.models if ask.models is not None else rule.models
    if models is not None:
        among = [name in models for name in fleet.models]
        may = may if all(among) else may & np.array(among, dtype=np.bool_)[fleet.model_of]
    if ask.subset is not None:
        inside = np.zeros(len(fleet), dtype=np.bool_)
        inside[[fleet.row_of[address] for address in ask.subset if address in fleet.row_of]] = True
        may = may & inside
    return may


def holds(fleet: Fleet, need: Need) -> Mask:
    """(endpoints,) whose KV cache could hold the request if it were alone."""
    return need.prompt + need.output <= fleet.kv_tokens


def affordable(fleet: Fleet, ask: Ask, need: Need, budget: float) -> Mask:
    """(endpoints,) on which the request costs no more than a budget."""
    longest = need.output if ask.max_output_tokens is None else max(0.0, ask.max_output_tokens)
    return need.prompt * fleet.input_price + longest * fleet.output_price <= budget


def missed(fleet: Fleet, ask: Ask, need: Need, times: Latency, ttft_s: float, badness: Vector) -> Vector:
    """(endpoints,) sums of powers of two by what is missed: the least sum misses least in the order of the constraints.

    Args:
        fleet: The endpoints.
        ask: The request.
        need: What the request needs.
        times: What it may expect.
        ttft_s: Bound on the time to first token.
        badness: From ``Ejection.badness``.
    """
    weighed = [(4.0, times.held_tokens > fleet.kv_tokens), (TTFT, times.high_ttft_s > ttft_s)]
    if ask.inter_token_slo_s is not None:
        weighed.append((1.0, times.step_s > ask.inter_token_slo_s))
    if ask.e2e_slo_s is not None:
        weighed.append((2.0, times.e2e_s > ask.e2e_slo_s))
    if ask.min_quality > 0:
        weighed.append((8.0, need.quality < ask.min_quality))
    tier = HEALTH * badness if np.count_nonzero(badness) else fleet.nothing
    for weight, misses in weighed:
        # Mostly nobody misses anything, and nothing need be added up.
        if np.count_nonzero(misses):
            tier = tier + weight * misses
    return tier


def names(tier: float) -> tuple[str, ...]:
    """What an endpoint misses, in the order in which it is given up."""
    bits = int(tier)
    found = [name for at, name in enumerate(NAMES[:-1]) if bits >> at & 1]
    return (*found, NAMES[-1]) if tier >= HEALTH else tuple(found)
