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

    @property
    def tokens(self) -> Vector:
        """Tokens that it holds in the KV cache, on average over its stay."""
        tokens = 0.5 * self.output
        tokens += self.prompt
        return tokens


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
        held_tokens: In the KV cache, with the request.
    """

    prefill_s: Vector
    wait_s: Vector
    ttft_s: Vector
    high_ttft_s: Vector
    step_s: Vector
    e2e_s: Vector
    added_s: Vector
    slots: Vector
    held_tokens: Vector


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
    return _positive(_step_s(fleet, np.minimum(load.in_flight, fleet.slots), load.held_tokens, factors))


def latency(fleet: Fleet, load: Load, need: Need, factors: Factors) -> Latency:
    """Times that the request may expect on each endpoint, and cause there.

    Where nobody waits for a slot, what follows from waiting is left out: it would be 0.
    """
    in_flight, beta_s = load.in_flight, fleet.beta_s
    held = load.held_tokens + need.tokens
    with_it = in_flight + 1.0
    slots = fleet.kv_tokens * with_it
    slots /= np.maximum(held, 1.0)
    np.minimum(slots, fleet.slots, out=slots)
    np.maximum(slots, 1.0, out=slots)
    batch = np.minimum(with_it, slots)
    step = _positive(_step_s(fleet, batch, held, factors))

    fresh = need.prompt - need.hits
    tokens = np.maximum(fresh, 1.0)
    tokens += load.waiting_tokens
    computes = np.maximum(fleet.floor_s, beta_s * batch)
    prefill_s = batch + tokens
    prefill_s *= beta_s
    np.maximum(prefill_s, fleet.floor_s, out=prefill_s)
    prefill_s -= computes
    prefill_s *= factors.step
    prefill_s += (1.0 + _WAITED_STEPS) * step
    tokens /= fleet.budget
    np.floor(tokens, out=tokens)
    tokens *= step
    prefill_s += tokens
    ttft = prefill_s * factors.prefill

    others = np.minimum(in_flight, slots)
    longer = _step_s(fleet, others, load.held_tokens, factors)
    np.subtract(step, longer, out=longer)
    np.maximum(longer, 0.0, out=longer)
    longer *= need.output
    fresh += batch
    fresh *= beta_s
    fresh -= computes
    np.maximum(fresh, 0.0, out=fresh)
    fresh *= factors.step
    longer += fresh
    longer *= others

    own = need.output * step
    queued = np.maximum(with_it - slots, 0.0)
    wait_s, high = fleet.nothing, ttft
    if np.count_nonzero(queued):
        per_slot = queued * step
        per_slot /= slots
        wait_s = per_slot * load.usual_output
        waited = wait_s * factors.wait
        ttft = ttft + waited
        high = ttft + waited * _SPREADS / np.sqrt(np.maximum(queued, 1.0))
        longer += per_slot * need.output
    own += ttft
    return Latency(prefill_s, wait_s, ttft, high, step, own, longer, slots, held)


def _step_s(fleet: Fleet, batch: Vector, held_tokens: Vector, factors: Factors) -> Vector:
    """(endpoints,) seconds of a step over so many requests and KV tokens."""
    step = fleet.beta_s * batch
    np.maximum(step, fleet.floor_s, out=step)
    step += fleet.alpha_s
    read = np.minimum(held_tokens, fleet.kv_tokens)
    read *= fleet.gamma_s
    step += read
    step *= factors.step
    return step


def idle_ttft_s(fleet: Fleet, need: Need, factors: Factors) -> Vector:
    """(endpoints,) times to first token with nobody else there: no waiting makes them shorter."""
    none = fleet.nothing
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
    cost = need.prompt * fleet.input_price
    cost += need.output * fleet.output_price
    money = prices.per_dollar * cost
    relative = times.e2e_s / prices.scale_s
    slope = relative if prices.power == 2.0 else relative ** (prices.power - 1.0)
    late = (prices.per_second * prices.scale_s) * slope
    late *= relative
    first = (prices.per_second * prices.first_token_share) * times.ttft_s
    externality = (prices.externality * prices.per_second * prices.power) * slope
    externality *= times.added_s
    congestion = np.maximum(externality, capacity)
    utility = need.quality - money
    utility -= late
    utility -= first
    utility -= congestion
    return Score(utility, money, late, first, externality, congestion, cost)


def _positive(seconds: Vector) -> Vector:
    return np.maximum(seconds, 1e-6, out=seconds)
