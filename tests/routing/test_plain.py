"""The vectorised decision against the same rule in plain loops, over random endpoints, loads and requests."""

import math

import numpy as np
import pytest
from routing_fleets import endpoints

from servingplan.routing import decision, rule
from servingplan.routing.ask import Ask
from servingplan.routing.fleet import Engine, fleet_of
from servingplan.routing.preset import Prices

GUARD_S = 1.0


def state(seed):
    """Endpoints with what they hold, a request, and prices; empty and crowded ones, with and without a cache that binds."""
    draw = np.random.default_rng(seed)
    pick = draw.choice
    engines = [
        Engine(
            f"pool-{at}", f"model-{at % 3}", draw.uniform(0.005, 0.04), draw.uniform(2e-5, 2e-4), draw.uniform(0, 2e-7),
            pick([0.0, 0.004]), int(pick([4, 32, 256])), int(pick([512, 8192])), pick([None, 2_000, 200_000]),
            draw.uniform(0, 4e-7), draw.uniform(0, 1e-6),
        )
        for at in range(draw.integers(1, 5))
    ]  # fmt: skip
    fleet = fleet_of(endpoints(*[engines[at % len(engines)] for at in range(draw.integers(1, 12))]))
    size, most = len(fleet), pick([0, 3, 60])
    load = rule.Load(draw.integers(0, most + 1, size) * 1.0, *(draw.uniform(0, top, size) for top in (most * 800, 4000, 300)))
    factors = rule.Factors(*(draw.uniform(0.5, 2.0, size) for _ in range(3)))
    models = [f"model-{at}" for at in range(3)]
    ask = Ask(
        "chat", draw.lognormal(6, 1.3), dict(zip(models, draw.random(3), strict=True)),
        dict(zip(models, draw.lognormal(5, 0.7, 3), strict=True)),
        inter_token_slo_s=pick([None, 0.03]), e2e_slo_s=pick([None, 4.0]), min_quality=pick([0.0, 0.5]),
    )  # fmt: skip
    prices = Prices(1500.0, pick([0.003, 0.1]), power=pick([1.0, 2.0, 3.0]), first_token_share=pick([0.0, 0.5]))
    hits, capacity = pick([0.0, 0.9]) * draw.random(size), pick([0.0, 0.05]) * draw.random(size)
    badness = np.where(draw.random(size) < pick([0.0, 0.3]), draw.integers(1, 9, size), 0.0)
    return fleet, ask, load, factors, hits, capacity, badness, prices


def plain(fleet, ask, load, factors, hit, capacity, badness, prices, row):
    """Tier and value of one endpoint, and its times, as the rule's text has them."""
    engine = fleet.endpoints[row].engine
    n, held, waiting, usual = (
        float(column[row]) for column in (load.in_flight, load.held_tokens, load.waiting_tokens, load.usual_output)
    )
    slower, prefill_slower, wait_slower = (float(each[row]) for each in (factors.step, factors.prefill, factors.wait))
    room = math.inf if engine.kv_tokens is None else engine.kv_tokens
    output, quality = max(1.0, ask.output_tokens[engine.model]), ask.quality[engine.model]
    prompt, fresh = ask.prompt_tokens, ask.prompt_tokens * (1 - hit)
    after = held + prompt + output / 2
    slots = max(1.0, min(engine.max_num_seqs, room * (n + 1) / max(1.0, after)))

    def compute(tokens):
        return max(engine.floor_s, engine.beta_s * tokens)

    def step_s(batch, tokens):
        return slower * (engine.alpha_s + compute(batch) + engine.gamma_s * min(tokens, room))

    batch, others, queued = min(n + 1, slots), min(n, slots), max(0.0, n + 1 - slots)
    step, tokens = step_s(batch, after), max(1.0, fresh) + waiting
    prefill = 1.5 * step + slower * (compute(batch + tokens) - compute(batch)) + tokens // engine.max_num_batched_tokens * step
    waited = wait_slower * queued * usual * step / slots
    ttft = prefill_slower * prefill + waited
    high = ttft + 2.33 * waited / math.sqrt(max(1.0, queued))
    e2e = ttft + output * step
    own = slower * max(0.0, engine.beta_s * (batch + fresh) - compute(batch))
    added = others * (output * max(0.0, step - step_s(others, held)) + own) + queued * output * step / slots

    slope = (e2e / prices.scale_s) ** (prices.power - 1)
    money = prices.per_dollar * (prompt * engine.input_price + output * engine.output_price)
    toll = max(prices.externality * prices.per_second * prices.power * slope * added, float(capacity[row]))
    value = quality - money - prices.per_second * (slope * e2e + prices.first_token_share * ttft) - toll
    missed = (
        ask.inter_token_slo_s is not None and step > ask.inter_token_slo_s,
        ask.e2e_slo_s is not None and e2e > ask.e2e_slo_s,
        after > room,
        ask.min_quality > 0 and quality < ask.min_quality,
        high > GUARD_S,
    )
    tier = sum(2**at for at, misses in enumerate(missed) if misses) + 32 * float(badness[row])
    return tier, value - (100 * high if high > GUARD_S else 0.0), (step, ttft, high, e2e, added)


@pytest.mark.parametrize("seed", range(300))
def test_the_decision_is_that_of_plain_loops(seed):
    fleet, ask, load, factors, hits, capacity, badness, prices = state(seed)
    may = np.random.default_rng(seed).random(len(fleet)) < 0.8
    may[seed % len(fleet)] = True
    need = decision.need_of(fleet, ask, hits)
    view = decision.view_of(fleet, ask, load, need, factors, capacity, prices, GUARD_S, badness)
    tiers, values, times = zip(
        *(plain(fleet, ask, load, factors, float(hits[at]), capacity, badness, prices, at) for at in range(len(fleet))),
        strict=True,
    )
    got = (view.times.step_s, view.times.ttft_s, view.times.high_ttft_s, view.times.e2e_s, view.times.added_s)
    np.testing.assert_allclose(np.array(got).T, times, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(view.tier, tiers)
    np.testing.assert_allclose(view.value, values, rtol=1e-9, atol=1e-12)

    order = sorted(np.flatnonzero(may).tolist(), key=lambda at: (tiers[at], -values[at]))
    if badness[order[0]] == 0:
        order = [at for at in order if badness[at] == 0]
    assert decision.ordered(view, may, np.zeros(len(fleet)), 0.0, spread=False, fallbacks=3) == order[:4]
