"""What is in flight, whatever is told of it and in whatever order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from servingplan.routing.ledger import GONE, Flight, Ledger

STEP_S = 0.01


def ledger(rows: int = 2) -> Ledger:
    made = Ledger()
    made.rebuild(np.full(rows, -1))
    made.advance(0.0)
    made.set_pace(np.full(rows, STEP_S), np.full(rows, 1000.0))
    return made


def flight(
    ticket: int, row: int = 0, now_s: float = 0.0, *, prompt: float = 100.0, output: float = 50.0, due_s: float = 0.2
) -> Flight:
    return Flight(ticket, row, prompt, prompt, output, now_s, now_s + due_s)


def test_a_request_goes_from_its_prompt_to_its_tokens_to_nothing():
    book = ledger()
    one = flight(1)
    book.reserve(one, 0.0)
    assert (book.flying[0], book.held()[0], book.waiting_tokens()[0]) == (1, 100, 100)
    book.advance(0.05)
    assert book.waiting_tokens()[0] == pytest.approx(50)
    book.begin(one, 0.1)
    assert book.waiting_tokens()[0] == 0
    book.advance(0.3)
    assert book.held()[0] == pytest.approx(100 + 20)
    book.release(1, 0.4)
    assert_empty(book)


def test_without_an_event_the_first_byte_is_when_it_was_predicted():
    book = ledger()
    one = flight(1, due_s=0.1)
    book.reserve(one, 0.0)
    book.advance(0.05)
    assert one.waiting
    book.advance(0.1)
    book.advance(0.3)
    assert not one.waiting
    assert book.emitted(one) == pytest.approx(20)


def test_a_first_byte_later_than_predicted_starts_the_tokens_anew():
    book = ledger()
    one = flight(1, due_s=0.1)
    book.reserve(one, 0.0)
    book.advance(0.2)
    book.begin(one, 0.3)
    book.advance(0.4)
    assert book.emitted(one) == pytest.approx(10)
    assert (book.decoding[0], book.flying[0]) == (1, 1)


def test_the_usual_length_follows_the_picks():
    book = ledger()
    for ticket in range(200):
        book.reserve(flight(ticket, output=100.0 if ticket < 100 else 300.0), 0.0)
        assert book.usual[0] == pytest.approx(100.0) if ticket < 100 else 100.0 < book.usual[0] < 300.0
    assert book.usual.tolist() == [pytest.approx(300.0, rel=0.05), 0.0]


def test_a_prompt_stops_the_tokens_of_the_others():
    alone, together = ledger(), ledger()
    for book in (alone, together):
        book.reserve(flight(1), 0.0)
        book.begin(book.flight(1), 0.0)
        book.advance(0.5)
    late = flight(2, now_s=0.5, prompt=100.0)
    together.reserve(late, 0.5)
    together.begin(late, 0.7)
    alone.advance(0.7)
    # 100 tokens at 1000 a second are a tenth of a second, or ten steps.
    assert alone.emitted(alone.flight(1)) - together.emitted(together.flight(1)) == pytest.approx(10)


def test_what_was_in_flight_then_is_remembered_until_it_is_asked_for():
    book = ledger()
    for ticket in range(4):
        book.reserve(flight(ticket, now_s=ticket), float(ticket))
    book.release(0, 10.0)
    assert book.flying_at(0, 1.5) == 2
    assert book.flying_at(0, 5.0) == 4
    assert book.flying_at(0, 20.0) == 3


def test_endpoints_that_stay_keep_theirs_and_those_that_go_leave_nothing():
    book = ledger(3)
    for row in range(3):
        book.reserve(flight(row, row), 0.0)
    book.rebuild(np.array([2, -1, 0]))
    assert book.flying.tolist() == [1, 0, 1]
    assert book.flight(1).row == GONE
    for ticket in range(3):
        book.release(ticket, 1.0)
    assert_empty(book)


def test_the_oldest_are_found():
    book = ledger()
    for ticket in range(5):
        book.reserve(flight(ticket, now_s=float(ticket)), float(ticket))
    assert book.older_than(1.0) == [0, 1]


def assert_empty(book: Ledger) -> None:
    for column in (book.flying, book.held(), book.waiting_tokens(), book.decoding):
        assert np.all(column == 0.0)


EVENTS = st.lists(
    st.tuples(st.sampled_from(["reserve", "begin", "release", "advance", "move"]), st.integers(0, 7), st.floats(0, 0.7)),
    max_size=60,
)


@given(EVENTS)
def test_any_order_of_events_keeps_the_counts_and_ends_at_zero(events):
    book, now_s, inside = ledger(3), 0.0, set()
    for what, ticket, wait_s in events:
        now_s += wait_s
        known = book.flight(ticket)
        if what == "reserve" and known is None:
            book.reserve(flight(ticket, ticket % 3, now_s), now_s)
            inside.add(ticket)
        elif what == "begin" and known is not None:
            book.begin(known, now_s)
        elif what == "release":
            assert (book.release(ticket, now_s) is not None) == (ticket in inside)
            inside.discard(ticket)
        elif what == "move" and known is not None:
            book.release(ticket, now_s)
            known.row = (known.row + 1) % 3
            book.reserve(known, now_s)
        elif what == "advance":
            book.advance(now_s)
        assert book.flying.sum() == len(book) == len(inside)
        assert np.all(book.decoding <= book.flying)
        for column in (book.flying, book.decoding, book.held(), book.waiting_tokens()):
            assert np.all(column >= 0)
    for ticket in list(inside):
        book.release(ticket, now_s)
    assert_empty(book)


@given(st.lists(st.tuples(st.floats(0, 2), st.floats(0.01, 3)), min_size=1, max_size=12))
def test_the_sums_are_those_of_all_requests_one_by_one(stays):
    """The difference of sums equals what is got by going through the requests."""
    book = ledger(1)
    starts = sorted(start for start, _ in stays)
    for ticket, start in enumerate(starts):
        book.advance(start)
        one = flight(ticket, 0, start, prompt=0.0, output=75.0)
        book.reserve(one, start)
        book.begin(one, start)
    book.advance(2.5)
    emitted = [(2.5 - start) / STEP_S for start in starts]
    assert book.held()[0] == pytest.approx(sum(emitted), abs=1e-6)
