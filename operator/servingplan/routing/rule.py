"""What an endpoint is worth to a request, in absolute units.

    utility = quality - per_dollar * cost - per_second * scale * (T / scale)^power - first_token_share * per_second * F
              - max(externality price, capacity price)

T is the predicted time to the last token and F the time to the first one, at the batch that the request would join:

    step = alpha + max(floor, beta * min(n + 1, slots)) + gamma * (KV tokens held + prompt + half the output)
    W    = requests ahead of a slot * usual output tokens * step / slots
    F    = 1.5 * step + compute of (prompt less prefix hits + prompts that wait) + a step for each further chunk + W
    T    = F + output tokens * step
    X    = seconds that the request adds to those in flight: to each of them what it lengthens their steps by, over its
           output and its prefill, and to those that queue its own time in a slot

The externality price of X is the slope of the latency price at T, so that delay costs others what it costs oneself. A
request's length does not cancel, as it does when every term is divided by its largest value: long answers go to cheap and
fast replicas, short ones may use large models at almost no cost in seconds. No term of one endpoint depends on another
endpoint, so one that nobody would pick changes no decision.

W is how long a steady queue takes for so many departures. The spread of it is that of a sum of as many independent gaps,
``W / sqrt(requests ahead)``; the bound on the time to first token is held against ``F`` with a few of these on top, so that it
is kept by most requests and not by half of them.

The plan's dual of a pool is its forecast of the very congestion that X measures live. Charging both would count one queue
twice; the greater of the two is charged. While the forecast is the greater, scarce capacity is kept for those who gain most
from it; once the live queue is longer than foreseen, the queue sets the price.

Max-normalised scores are those of RouteBalance (arXiv 2606.17949); absolute prices and the externality are the congestion
toll of Pigou as in Naor (Econometrica 37(1), 1969).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from servingplan.routing.fleet import Fleet, Vector
from servingplan.routing.preset import Prices

_WAITED_STEPS = 0.5
"""Of the running step, on average, before the first step that the request can be in."""
_SPREADS = 2.33
"""Spreads of the wait above its mean that ninety-nine of a hundred stay below."""


@dataclass(frozen=True, slots=True)
class Load:
    """What endpoints hold; every array is (endpoints,).

    Attributes:
        in_flight: Requests.
        held_tokens: In the KV cache, or about to be.
        waiting_tokens: Of prompts that are not computed yet.
        usual_output: Mean length of the answers of late.
    """

    in_flight: Vector
    held_tokens: Vector
    waiting_tokens: Vector
    usual_output: Vector


@dataclass(frozen=True, slots=True)
class Need:
    """What a request needs; arrays are (endpoints,).

    Attributes:
        prompt: Tokens.
        output: Tokens that it is likely to get.
        hits: Prompt tokens likely to be in the prefix cache.
    """

    prompt: float
    output: Vector
    quality: Vector
    hits: Vector


@dataclass(frozen=True, slots=True)
class Factors:
    """How much slower each endpoint is than its engine's figures, (endpoints,).

    Attributes:
        step: In every step.
        prefill: From the first step that a request is in to its first token.
        wait: For a slot.
    """

    step: Vector
    prefill: Vector
    wait: Vector


@dataclass(frozen=True, slots=True)
class Latency:
    """Predicted times, (endpoints,) in seconds.

    Attributes:
        prefill_s, wait_s: Parts of the time to first token, before the learnt factors on them.
        high_ttft_s: What the time to first token is very likely to stay below.
        added_s: To all others together.
        slots: Requests that run at once, as the KV cache allows.
    """

    prefill_s: Vector
    wait_s: Vector
    ttft_s: Vector
    high_ttft_s: Vector
    step_s: Vector
    e2e_s: Vector
    added_s: Vector
    slots: Vector


@dataclass(frozen=True, slots=True)
class Score:
    """Terms in units of quality, and the cost in dollars; all (endpoints,)."""

    utility: Vector
    money: Vector
    latency: Vector
    first_token: Vector
    externality: Vector
    congestion: Vector
    cost: Vector


def running_step_s(fleet: Fleet, load: Load, factors: Factors) -> Vector:
    """(endpoints,) seconds of a step of what runs now; tokens are emitted at its inverse."""
    compute = np.maximum(fleet.floor_s, fleet.beta_s * np.minimum(load.in_flight, fleet.slots))
    return _positive((fleet.alpha_s + compute + fleet.gamma_s * np.minimum(load.held_tokens, fleet.kv_tokens)) * factors.step)


def latency(fleet: Fleet, load: Load, need: Need, factors: Factors) -> Latency:
    """Times that the request may expect on each endpoint, and cause there."""
    held = load.held_tokens + (need.prompt + 0.5 * need.output)
    with_it = load.in_flight + 1.0
    slots = np.maximum(np.minimum(fleet.kv_tokens * with_it / np.maximum(held, 1.0), fleet.slots), 1.0)
    read = fleet.gamma_s * np.minimum(held, fleet.kv_tokens)
    batch = np.minimum(with_it, slots)
    compute = np.maximum(fleet.floor_s, fleet.beta_s * batch)
    step = _positive((fleet.alpha_s + compute + read) * factors.step)

    fresh = need.prompt - need.hits
    tokens = np.maximum(fresh, 1.0) + load.waiting_tokens
    prefill = (np.maximum(fleet.floor_s, fleet.beta_s * (batch + tokens)) - compute) * factors.step
    chunks = np.floor(tokens / fleet.budget) * step
    prefill_s = (1.0 + _WAITED_STEPS) * step + prefill + chunks
    queued = np.maximum(with_it - slots, 0.0)
    wait_s = queued * load.usual_output * step / slots
    waited = wait_s * factors.wait
    ttft = prefill_s * factors.prefill + waited
    high = ttft + waited * _SPREADS / np.sqrt(np.maximum(queued, 1.0))

    others = np.minimum(load.in_flight, slots)
    without = fleet.alpha_s + np.maximum(fleet.floor_s, fleet.beta_s * others)
    without = (without + fleet.gamma_s * np.minimum(load.held_tokens, fleet.kv_tokens)) * factors.step
    longer = np.maximum(step - without, 0.0) * need.output
    own_prefill = np.maximum(fleet.beta_s * (batch + fresh) - np.maximum(fleet.floor_s, fleet.beta_s * batch), 0.0)
    added = others * (longer + own_prefill * factors.step) + queued * need.output * step / slots
    return Latency(prefill_s, wait_s, ttft, high, step, ttft + need.output * step, added, slots)


def idle_ttft_s(fleet: Fleet, need: Need, factors: Factors) -> Vector:
    """(endpoints,) times to first token with nobody else there: no waiting makes them shorter."""
    none = np.zeros(len(fleet))
    alone = Load(none, none, none, none)
    return latency(fleet, alone, need, factors).ttft_s


def score(fleet: Fleet, need: Need, times: Latency, capacity: Vector, prices: Prices) -> Score:
    """The utility of each endpoint and its terms.

    Args:
        fleet: The endpoints.
        need: The request.
        times: From ``latency``.
        capacity: (endpoints,) capacity price of each endpoint's pool, in quality per request.
        prices: The weights.
    """
    cost = need.prompt * fleet.input_price + need.output * fleet.output_price
    money = prices.per_dollar * cost
    relative = times.e2e_s / prices.scale_s
    slope = relative ** (prices.power - 1.0)
    late = (prices.per_second * prices.scale_s) * slope * relative
    first = (prices.per_second * prices.first_token_share) * times.ttft_s
    externality = (prices.externality * prices.per_second * prices.power) * slope * times.added_s
    congestion = np.maximum(externality, capacity)
    utility = need.quality - money - late - first - congestion
    return Score(utility, money, late, first, externality, congestion, cost)


def _positive(seconds: Vector) -> Vector:
    return np.maximum(seconds, 1e-6)
