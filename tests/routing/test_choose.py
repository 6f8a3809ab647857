"""Who is picked, and who is turned away."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from routing_fleets import BALANCED, LARGE, MIDDLE, SMALL, ask, brain, endpoints, seen, twins

from servingplan.routing.ask import ClassRule, Outcome, Reason
from servingplan.routing.brain import Brain
from servingplan.routing.fleet import Endpoint
from servingplan.routing.preset import Preset, Prices

FREE = Prices(0.0, 0.0)
ALL = [*endpoints(SMALL, SMALL, MIDDLE, LARGE)]


def filled(made: Brain, count: int, **fields: object) -> Brain:
    """A brain that has picked for this many requests, which are all in flight."""
    for at in range(count):
        assert made.choose(ask(**fields), 0.001 * at, 0.0).status == 200
    return made


def test_without_a_price_the_best_model_is_picked():
    assert brain(ALL, FREE).choose(ask(), 0.0, 0.0).terms.model == "72b"


def test_dollars_and_seconds_send_requests_to_smaller_models():
    assert brain(ALL, Prices(8000.0, 0.0)).choose(ask(), 0.0, 0.0).terms.model == "3b"
    assert brain(ALL, Prices(0.0, 0.5)).choose(ask(), 0.0, 0.0).terms.model == "3b"


def test_long_answers_go_to_fast_models_and_short_ones_to_good_ones():
    made = brain(ALL, Preset.LATENCY.prices)
    assert made.choose(ask(output=900), 0.0, 0.0).terms.model == "3b"
    assert made.choose(ask(prompt=50, output=10), 0.0, 0.0).terms.model == "72b"


def test_candidates_are_distinct_ordered_and_as_many_as_asked_for():
    for fallbacks in range(5):
        choice = brain(ALL, fallbacks=fallbacks).choose(ask(), 0.0, 0.5)
        ranked = [choice.terms, *choice.terms.runners_up]
        assert [each.address for each in ranked] == list(choice.candidates)
        assert len(set(choice.candidates)) == len(choice.candidates) == min(4, 1 + fallbacks)
        assert [each.utility for each in ranked] == sorted((each.utility for each in ranked), reverse=True)


def test_terms_add_up():
    made = filled(brain(ALL), 20)
    terms = made.choose(ask(), 0.05, 0.0).terms
    assert terms.utility == pytest.approx(terms.quality - terms.money - terms.latency - terms.first_token - terms.congestion)
    assert terms.congestion == max(terms.externality, terms.capacity)
    assert terms.runners_up


def test_ties_go_round():
    made = brain(twins(5))
    picked = []
    for at in range(15):
        choice = made.choose(ask(), float(at), 0.7)
        made.finished(choice.ticket, at + 0.5, Outcome.COMPLETED)
        picked.append(choice.candidates[0])
    assert sorted(picked[:5]) == sorted(each.address for each in twins(5))
    assert picked[5:10] == picked[10:15] == picked[:5]


def test_requests_in_flight_spread_over_equals():
    made = filled(brain(twins(5)), 20)
    assert set(made.in_flight().values()) == {4.0}


def test_the_draw_spreads_the_picks_of_several_pickers():
    picked = {brain(twins(4), peers=3).choose(ask(), 0.0, draw).candidates[0] for draw in (0.0, 0.3, 0.6, 0.99)}
    assert len(picked) == 4


def test_equal_worlds_give_equal_picks():
    def run(replicas: list[Endpoint]) -> list[object]:
        made, chances = brain(replicas), random.Random(3)
        found = []
        for at in range(200):
            choice = made.choose(ask(chances.uniform(10, 900), chances.uniform(10, 500)), at * 0.03, chances.random())
            found.append((choice.candidates, choice.terms))
            if at > 30:
                made.finished(at - 30, at * 0.03 + 0.01, Outcome.COMPLETED)
        return found

    shuffled = list(ALL)
    random.Random(1).shuffle(shuffled)
    assert run(ALL) == run(shuffled)


STATES = st.tuples(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), min_size=4, max_size=4),
    st.floats(0, 4000),
    st.floats(1, 1500),
    st.floats(0, 1),
)
BAD = st.sampled_from(
    [
        replace(SMALL, pool="slow", model="slow", alpha_s=1.0),
        replace(SMALL, pool="dear", model="dear", input_price=1.0, output_price=1.0),
        replace(SMALL, pool="down", model="down"),
    ]
)


@settings(max_examples=60)
@given(STATES, BAD, st.integers(0, 255))
def test_an_endpoint_that_nobody_would_pick_changes_no_decision(state, engine, last):
    loads, prompt, output, draw = state
    extra = Endpoint(f"10.0.{last}.9:8000", engine, serves=engine.model != "down")
    request = ask(prompt, output)
    picks = []
    for replicas in (ALL, [*ALL, extra]):
        made = brain(replicas)
        busy = [
            dict(zip((each.address for each in ALL), map(float, column), strict=True)) for column in zip(*loads, strict=True)
        ]
        seen(made, replicas, 1.0, running=busy[0], waiting=busy[1])
        first = made.choose(request, 1.1, draw)
        again = made.choose(request, 1.2, draw)
        picks.append([(each.status, each.candidates[:1], each.terms.address, each.terms.utility) for each in (first, again)])
    # Where it alone meets the time to first token, it is picked, whatever it costs.
    assume(all(address != extra.address for _, _, address, _ in picks[1]))
    assert picks[0] == picks[1]


@settings(max_examples=60)
@given(STATES, st.sampled_from(["dollars", "seconds"]), st.floats(1e-6, 0.2), st.floats(1.0, 30.0))
def test_a_higher_price_never_picks_more_of_what_it_prices(state, priced, low, factor):
    loads, prompt, output, draw = state
    busy = {each.address: float(count) for each, (count, _) in zip(ALL, loads, strict=True)}
    picked = []
    for price in (low, low * factor):
        prices = Prices(1e4 * price, 0.02) if priced == "dollars" else Prices(1500.0, price)
        made = seen(brain(ALL, prices), ALL, 1.0, running=busy)
        terms = made.choose(ask(prompt, output), 1.0, draw).terms
        seconds = (terms.latency + terms.externality) / price
        picked.append(terms.cost_dollars if priced == "dollars" else seconds)
    assert picked[1] <= picked[0] * (1 + 1e-9)


def test_several_pickers_do_not_all_send_to_whoever_was_idle():
    idle = ALL[0].address
    replicas = twins(5)
    busy = {each.address: 10.0 for each in replicas if each.address != idle}
    sent = {}
    for peers in (1, 3):
        pickers = [seen(brain(replicas, peers=peers), replicas, 1.0, running=busy) for _ in range(3)]
        picks = [each.choose(ask(), 1.0 + 0.001 * at, 0.1).candidates[0] for at in range(6) for each in pickers]
        sent[peers] = picks.count(idle)
    assert sent[1] == 18
    assert 9 <= sent[3] <= 12


def test_the_class_and_the_request_say_where_it_may_go():
    rules = {"chat": ClassRule("chat", models=frozenset({"14b", "3b"}))}
    assert brain(ALL, FREE, rules=rules).choose(ask(), 0.0, 0.0).terms.model == "14b"
    only = frozenset({"72b"})
    assert brain(ALL, FREE, rules=rules).choose(ask(models=only), 0.0, 0.0).terms.model == "72b"
    address = ALL[0].address
    assert brain(ALL, FREE).choose(ask(subset=frozenset({address, "9.9.9.9:1"})), 0.0, 0.0).candidates == (address,)


@pytest.mark.parametrize(
    "fields",
    [
        {"models": frozenset({"other"})},
        {"subset": frozenset({"9.9.9.9:1"})},
        {"subset": frozenset()},
        {"prompt_tokens": 300_000.0},
    ],
    ids=["model", "address", "no address", "prompt"],
)
def test_where_nobody_may_serve_there_is_no_choice(fields):
    choice = brain(ALL).choose(ask(**fields), 0.0, 0.0)
    assert (choice.status, choice.candidates, choice.ticket, choice.reason) == (503, (), None, Reason.NOBODY)


def test_no_endpoints_at_all():
    assert Brain(BALANCED).choose(ask(), 0.0, 0.0).status == 503
    gone = [replace(each, serves=False) for each in ALL]
    assert brain(gone).choose(ask(), 0.0, 0.0).status == 503


def test_an_endpoint_that_stops_serving_is_dropped_at_once_and_keeps_its_ledger():
    made = filled(brain(twins(2)), 4)
    first, second = twins(2)
    made.configure([replace(first, serves=False), second], {})
    assert made.in_flight() == {first.address: 2.0, second.address: 2.0}
    assert all(made.choose(ask(), 0.1, 0.0).candidates == (second.address,) for _ in range(5))


@settings(max_examples=60)
@given(st.floats(0, 4000), st.floats(1, 3000), st.floats(1e-7, 3e-3), st.sampled_from([None, 100.0, 2000.0]))
def test_the_budget_is_never_exceeded(prompt, output, budget, longest):
    choice = brain(ALL, FREE).choose(ask(prompt, output, budget=budget, max_output_tokens=longest), 0.0, 0.0)
    engines = {each.address: each.engine for each in ALL}
    for address in choice.candidates:
        engine = engines[address]
        assert prompt * engine.input_price + (output if longest is None else longest) * engine.output_price <= budget
    cheapest = prompt * SMALL.input_price + (output if longest is None else longest) * SMALL.output_price
    assert (choice.reason is Reason.BUDGET) == (cheapest > budget)
    assert choice.status == (429 if cheapest > budget else 200)


def test_constraints_are_given_up_in_their_order():
    made = brain(ALL, FREE)
    assert made.choose(ask(inter_token_slo_s=0.02), 0.0, 0.0).terms.model == "14b"
    assert made.choose(ask(e2e_slo_s=2.5), 0.0, 0.0).terms.model == "3b"
    assert brain(ALL, Prices(8000.0, 0.0)).choose(ask(min_quality=0.6), 0.0, 0.0).terms.model == "72b"
    # The time between tokens is given up before the quality.
    both = made.choose(ask(inter_token_slo_s=0.02, min_quality=0.6), 0.0, 0.0).terms
    assert (both.model, both.relaxed) == ("72b", ("inter-token",))
    nothing = made.choose(ask(inter_token_slo_s=1e-6, e2e_slo_s=1e-6, min_quality=0.9), 0.0, 0.0).terms
    assert nothing.relaxed == ("inter-token", "e2e", "quality")


def test_a_kv_cache_without_room_is_left_alone_while_another_has_some():
    tight = replace(LARGE, kv_tokens=4000)
    made = brain(endpoints(tight, SMALL), FREE)
    assert [made.choose(ask(1500), 0.0, 0.0).terms.model for _ in range(4)] == ["72b", "72b", "3b", "3b"]


def overloaded(made: Brain, replicas: list[Endpoint], waiting: float = 200.0) -> Brain:
    return seen(
        made,
        replicas,
        1.0,
        running={each.address: 256.0 for each in replicas},
        waiting={each.address: waiting for each in replicas},
    )


def test_an_endpoint_that_meets_the_first_token_beats_every_one_that_does_not():
    made = brain(ALL, FREE)
    large = next(each for each in ALL if each.engine is LARGE)
    overloaded(made, [large])
    choice = made.choose(ask(), 1.1, 0.0)
    assert choice.terms.model == "14b"
    assert choice.terms.ttft_s < 1.0


def test_without_anyone_that_meets_it_the_request_is_turned_away():
    made = overloaded(brain(ALL), ALL)
    choice = made.choose(ask(), 1.1, 0.0)
    assert (choice.status, choice.candidates, choice.ticket, choice.reason) == (429, (), None, Reason.OVERLOAD)
    assert 1.0 <= choice.retry_after_s <= 30.0
    assert "TTFT" in choice.terms.relaxed
    assert len(made) == 0


def test_without_shedding_the_least_late_is_taken():
    made = overloaded(brain(ALL, FREE, shed=False), ALL)
    seen(made, [ALL[0]], 1.05, running={ALL[0].address: 256.0}, waiting={ALL[0].address: 100.0})
    choice = made.choose(ask(), 1.1, 0.0)
    assert choice.status == 200
    assert choice.candidates[0] == ALL[0].address


def test_without_a_guard_nobody_is_turned_away():
    assert overloaded(brain(ALL, guard_s=None), ALL).choose(ask(), 1.1, 0.0).status == 200


def test_the_bound_is_the_classes_else_the_guard_and_a_request_can_only_tighten_it():
    patient = {"chat": ClassRule("chat", ttft_s=1000.0)}
    assert overloaded(brain(ALL, rules=patient), ALL).choose(ask(), 1.1, 0.0).status == 200
    assert overloaded(brain(ALL, rules=patient), ALL).choose(ask(ttft_slo_s=1.0), 1.1, 0.0).status == 429
    assert overloaded(brain(ALL), ALL).choose(ask(ttft_slo_s=1000.0), 1.1, 0.0).status == 429
    assert overloaded(brain(ALL, guard_s=None), ALL).choose(ask(ttft_slo_s=1.0), 1.1, 0.0).status == 429


def test_a_long_prompt_is_not_overload():
    choice = brain(twins(2)).choose(ask(100_000.0), 0.0, 0.0)
    assert choice.status == 200
    assert choice.terms.ttft_s > 1.0


def offered(made: Brain, mixes: list[dict[str, object]], count: int = 4000) -> list[int]:
    """How many of each mix are served, of equally many that are offered in turn while nothing ends."""
    served = [0] * len(mixes)
    for at in range(count):
        served[at % len(mixes)] += made.choose(ask(**mixes[at % len(mixes)]), 0.001 * at, 0.0).status == 200
    return served


def test_the_lowest_weight_is_turned_away_first():
    tight = [replace(each, engine=replace(each.engine, max_num_seqs=32)) for each in twins(4)]
    light, middle, heavy = offered(brain(tight), [{"weight": 1.0}, {"weight": 6.0}, {"weight": 9.0}], 1200)
    assert light < middle < heavy


def test_a_class_weighs_as_the_plan_says():
    tight = [replace(each, engine=replace(each.engine, max_num_seqs=32)) for each in twins(4)]
    rules = {"chat": ClassRule("chat", weight=1.0), "paid": ClassRule("paid", weight=9.0)}
    light, heavy = offered(brain(tight, rules=rules), [{}, {"request_class": "paid"}], 1200)
    assert light < heavy


def test_a_tenant_that_has_more_than_its_share_is_turned_away_first():
    tight = [replace(each, engine=replace(each.engine, max_num_seqs=32)) for each in twins(4)]
    made = brain(tight)
    modest, greedy = 0, 0
    for at in range(1200):
        is_modest = at % 10 == 0
        status = made.choose(ask(tenant="modest" if is_modest else "greedy"), 0.001 * at, 0.0).status
        modest, greedy = modest + (is_modest and status == 200), greedy + (not is_modest and status == 200)
    assert greedy / 1080 < modest / 120
    assert made.choose(ask(tenant="greedy"), 1.3, 0.0).status == 429


def test_nothing_odd_in_a_request_breaks_the_decision():
    odd = replace(ask(), quality={"3b": float("nan"), "72b": float("inf")}, output_tokens={"3b": float("nan"), "14b": -3.0})
    for prompt in (float("nan"), -5.0, float("inf")):
        choice = brain(ALL).choose(replace(odd, prompt_tokens=prompt), 0.0, 0.0)
        assert choice.status == 200
        assert choice.terms.utility == choice.terms.utility


def test_shares_are_those_since_they_were_asked_for():
    made = filled(brain(ALL, FREE), 4)
    assert made.shares() == {"chat": {"large": 1.0}}
    assert made.shares() == {}
    made.choose(ask(), 1.0, 0.0)
    made.choose(ask(models=frozenset({"3b"})), 1.0, 0.0)
    assert made.shares() == {"chat": {"large": 0.5, "small": 0.5}}
