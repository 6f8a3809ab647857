"""What a brain makes of what it is told."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routing_fleets import BALANCED, SMALL, ask, brain, seen, twins

from servingplan.routing.ask import Outcome
from servingplan.routing.brain import Brain
from servingplan.routing.fleet import Scrape

PAIR = twins(2)
A, B = (each.address for each in PAIR)


def settled(made: Brain) -> bool:
    held = (made._ledger.held(), made._ledger.waiting_tokens(), made._ledger.flying)
    return (
        len(made) == 0
        and not any(column.any() for column in held)
        and not made._pressure._weights
        and not made._pressure._tenants
    )


@pytest.mark.parametrize("outcome", Outcome)
def test_the_end_of_a_request_releases_it_once(outcome):
    made = brain(PAIR)
    tickets = [made.choose(ask(), 0.0, 0.0).ticket for _ in range(3)]
    made.first_byte(tickets[0], 0.1)
    for ticket in (*tickets, *tickets, 999):
        made.finished(ticket, 0.2, outcome)
        made.first_byte(ticket, 0.3)
    assert settled(made)


def test_a_retry_moves_the_request_and_counts_against_who_failed_it():
    made = brain(PAIR, fallbacks=1)
    for at in range(3):
        choice = made.choose(ask(subset=frozenset({A})), at, 0.0)
        made.first_byte(choice.ticket, at + 0.1, B)
        assert made.in_flight() == {A: 0.0, B: at + 1.0}
    assert made.ejected(2.2) == {A}


def test_a_retry_that_is_told_at_the_end_counts_as_well():
    made = brain(PAIR)
    for at in range(3):
        choice = made.choose(ask(subset=frozenset({A})), at, 0.0)
        made.finished(choice.ticket, at + 0.1, Outcome.COMPLETED, address=B)
    assert made.ejected(2.2) == {A}
    assert settled(made)


def test_a_retry_at_an_unknown_address_leaves_nothing_behind():
    made = brain(PAIR)
    choice = made.choose(ask(), 0.0, 0.0)
    made.first_byte(choice.ticket, 0.1, "10.9.9.9:1")
    assert set(made.in_flight().values()) == {0.0}
    made.finished(choice.ticket, 0.2, Outcome.COMPLETED)
    assert settled(made)


def test_what_nobody_told_the_end_of_expires():
    made = brain(PAIR, time_limit_s=60.0)
    early, late = (made.choose(ask(), now_s, 0.0).ticket for now_s in (0.0, 30.0))
    assert made.expire(59.0) == 0
    assert made.expire(61.0) == 1
    assert early not in made._open
    assert late in made._open
    assert made.expire(1e6) == 1
    assert settled(made)


def test_endpoints_that_leave_take_their_requests_with_them():
    made = brain(PAIR)
    tickets = [made.choose(ask(), 0.0, 0.0).ticket for _ in range(4)]
    made.configure(PAIR[1:], {})
    assert made.in_flight() == {B: 2.0}
    for ticket in tickets:
        made.finished(ticket, 0.1, Outcome.COMPLETED)
    assert settled(made)


def test_a_new_pod_at_an_old_address_starts_afresh():
    made = brain(PAIR)
    made.choose(ask(subset=frozenset({A})), 0.0, 0.0)
    made.configure([replace(PAIR[0], engine=replace(SMALL, pool="other")), PAIR[1]], {})
    assert made.in_flight() == {A: 0.0, B: 0.0}


def test_a_plan_that_changes_the_figures_of_a_pool_keeps_what_is_in_flight():
    made = brain(PAIR)
    made.choose(ask(subset=frozenset({A})), 0.0, 0.0)
    made.configure([replace(each, engine=replace(SMALL, alpha_s=0.02)) for each in PAIR], {})
    assert made.in_flight() == {A: 1.0, B: 0.0}


def test_a_slow_first_token_is_learnt_and_forgotten():
    made = brain(PAIR)
    only = ask(subset=frozenset({A}))
    before = made.choose(only, 0.0, 0.0)
    made.finished(before.ticket, 0.0, Outcome.CANCELLED)
    now_s = 1.0
    for _ in range(60):
        choice = made.choose(only, now_s, 0.0)
        made.first_byte(choice.ticket, now_s + 3 * before.terms.ttft_s)
        made.finished(choice.ticket, now_s + 1.0, Outcome.COMPLETED)
        now_s += 1.0
        seen(made, PAIR, now_s)
    slow = made.choose(only, now_s, 0.0)
    assert 1.7 < slow.terms.ttft_s / before.terms.ttft_s <= 2.01
    made.finished(slow.ticket, now_s, Outcome.CANCELLED)
    assert made.choose(ask(), now_s, 0.0).candidates[0] == B
    seen(made, PAIR, now_s + 3600)
    later = made.choose(only, now_s + 3600, 0.0)
    assert later.terms.ttft_s == pytest.approx(before.terms.ttft_s, rel=0.01)


def test_response_headers_are_no_first_token():
    made = brain(PAIR)
    only = ask(subset=frozenset({A}))
    first = made.choose(only, 0.0, 0.0)
    for at in range(1, 40):
        made.first_byte(first.ticket, float(at - 1) + 0.001)
        made.finished(first.ticket, float(at), Outcome.COMPLETED)
        seen(made, PAIR, float(at))
        again = made.choose(only, float(at), 0.0)
        assert again.terms.ttft_s == pytest.approx(first.terms.ttft_s)
        first = again


def test_slow_tokens_are_learnt_from_answers():
    made = brain(PAIR)
    only = ask(subset=frozenset({A}))
    plain = made.choose(only, 0.0, 0.0)
    made.finished(plain.ticket, 0.0, Outcome.CANCELLED)
    for at in range(80):
        seen(made, PAIR, 10.0 * at)
        choice = made.choose(only, 10.0 * at, 0.0)
        made.first_byte(choice.ticket, 10.0 * at + 0.05)
        # Half of the tokens that a step time of ten milliseconds gives.
        made.finished(choice.ticket, 10.0 * at + 4.05, Outcome.COMPLETED, output_tokens=200.0)
    assert made.choose(only, 800.0, 0.0).terms.inter_token_s > 1.6 * plain.terms.inter_token_s


def test_prompts_go_where_their_beginning_is():
    made = brain(twins(6), prices=replace(BALANCED, first_token_share=1.0))
    prefix = tuple(range(20))
    first = made.choose(ask(4000.0, 20.0, prefix=prefix), 0.0, 0.9)
    made.finished(first.ticket, 1.0, Outcome.COMPLETED)
    for at in range(3):
        again = made.choose(ask(4000.0, 20.0, prefix=(*prefix[:15], 100 + at)), 2.0 + at, 0.0)
        made.finished(again.ticket, 2.5 + at, Outcome.COMPLETED)
        assert again.candidates[0] == first.candidates[0]
        assert again.terms.prefix_tokens == pytest.approx(0.9 * 4000 * 15 / 16)
    other = made.choose(ask(4000.0, 20.0, prefix=(207, 208, 209)), 9.0, 0.0)
    assert other.candidates[0] != first.candidates[0]


def test_matches_that_an_endpoint_does_not_bear_out_count_no_more():
    found = {}
    for share in (None, 0.0, 0.3, 0.95):
        made, prefix = brain(PAIR), tuple(range(10))
        for at in range(100):
            choice = made.choose(ask(subset=frozenset({A}), prefix=prefix), float(at), 0.0)
            made.finished(choice.ticket, at + 0.5, Outcome.COMPLETED)
            made.observe(A, Scrape(at + 0.6, 0.0, 0.0, None, share), at + 0.6)
        found[share] = choice.terms.prefix_tokens / 200.0
    assert found == {None: pytest.approx(0.9), 0.0: 0.0, 0.3: pytest.approx(0.3, abs=0.03), 0.95: pytest.approx(0.9)}


def test_other_weights_leave_what_is_known():
    made = brain(PAIR)
    made.choose(ask(), 0.0, 0.0)
    before = made.in_flight()
    made.retune(replace(BALANCED, per_dollar=0.0), guard_s=None, shed=False, peers=2)
    assert made.in_flight() == before
    assert made.choose(ask(), 0.1, 0.0).terms.money == 0.0


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["choose", "first", "finished", "failed", "silent", "observe", "expire", "configure"]),
        st.integers(1, 12),
        st.sampled_from([None, A, B, "10.9.9.9:1"]),
        st.sampled_from(list(Outcome)),
        st.floats(0, 5),
    ),
    max_size=50,
)


@settings(max_examples=80)
@given(EVENTS)
def test_any_order_of_events_ends_with_nothing_in_flight(events):
    made, now_s = brain(PAIR, time_limit_s=20.0), 0.0
    for what, number, address, outcome, wait_s in events:
        now_s += wait_s
        if what == "choose":
            choice = made.choose(ask(tenant=str(number), weight=number), now_s, wait_s / 6)
            assert choice.status == 429 or len(set(choice.candidates)) == len(choice.candidates) > 0
        elif what == "first":
            made.first_byte(number, now_s, address)
        elif what == "finished":
            made.finished(number, now_s, outcome, 50.0, address)
        elif what == "failed":
            made.failed(address or A, now_s)
        elif what == "silent":
            made.silent(address or A, now_s)
        elif what == "observe":
            made.observe(address or A, Scrape(now_s - wait_s, number, number / 2, 0.5), now_s)
        elif what == "expire":
            made.expire(now_s)
        else:
            made.configure(PAIR[number % 2 :], {})
        assert all(count >= 0 for count in made.in_flight().values())
        assert sum(made.in_flight().values()) <= len(made)
    made.expire(now_s + 100.0)
    assert settled(made)
