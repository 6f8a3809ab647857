"""Ejection, prefix index, capacity prices and patience, each on its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routing_fleets import BALANCED, LARGE, MIDDLE, SMALL, ask, brain, endpoints, seen, twins

from servingplan.routing.ask import Outcome
from servingplan.routing.capacity import CapacityPrices
from servingplan.routing.prefix import PrefixIndex
from servingplan.routing.pressure import Pressure

TRIO = twins(3)
A, B, C = (each.address for each in TRIO)


def fail(made, address, now_s, times=3):
    for _ in range(times):
        made.failed(address, now_s)


def picked(made, now_s):
    """Where requests go that end at once."""
    found = set()
    for _ in range(6):
        choice = made.choose(ask(), now_s, 0.0)
        made.finished(choice.ticket, now_s, Outcome.CANCELLED)
        found.update(choice.candidates)
    return found


def test_failures_in_a_row_eject_and_one_in_between_does_not():
    made = brain(TRIO)
    fail(made, A, 0.0, times=2)
    choice = made.choose(ask(subset=frozenset({A})), 0.0, 0.0)
    made.first_byte(choice.ticket, 0.1)
    fail(made, A, 0.2, times=2)
    assert made.ejected(0.2) == set()
    fail(made, A, 0.3, times=1)
    assert made.ejected(0.3) == {A}
    assert picked(made, 0.4) == {B, C}


def test_an_ejected_endpoint_is_tried_with_one_request_until_it_serves():
    made = brain(TRIO)
    fail(made, A, 0.0)
    assert picked(made, 1.9) == {B, C}
    probe = next(each for each in (made.choose(ask(), 2.1, 0.0) for _ in range(3)) if each.candidates[0] == A)
    assert all(made.choose(ask(), 2.2, 0.0).candidates[0] != A for _ in range(6))
    made.first_byte(probe.ticket, 2.5)
    assert made.ejected(2.5) == set()
    assert A in {made.choose(ask(), 2.6, 0.0).candidates[0] for _ in range(6)}


def test_a_probe_that_fails_doubles_the_wait():
    made, now_s = brain(TRIO), 0.0
    fail(made, A, now_s)
    for wait_s in (2, 4, 8, 16, 32, 60, 60):
        assert A not in picked(made, now_s + wait_s - 0.01)
        now_s += wait_s + 0.01
        seen(made, TRIO, now_s)
        probe = made.choose(ask(subset=frozenset({A})), now_s, 0.0)
        assert probe.terms.relaxed == ()
        made.finished(probe.ticket, now_s, Outcome.FAILED)


def test_failures_that_were_under_way_do_not_lengthen_the_ejection():
    made = brain(TRIO)
    fail(made, A, 0.0, times=40)
    assert A in picked(made, 2.1)


def test_silence_ejects_and_a_scrape_takes_back():
    made = brain(TRIO)
    for at in range(12):
        made.silent(A, 0.25 * at)
        assert (A in made.ejected(0.25 * at)) == (0.25 * at >= 1.5)
    assert picked(made, 2.8) == {B, C}
    seen(made, TRIO[:1], 3.0)
    assert made.ejected(3.0) == set()


def test_trials_of_a_silent_endpoint_that_end_without_a_sign_of_life_become_rarer():
    made, now_s = brain(TRIO), 0.0
    for at in range(7):
        now_s = 0.25 * at
        made.silent(A, now_s)
    for wait_s in (2, 4, 8, 16):
        assert A not in picked(made, now_s + wait_s - 0.01)
        now_s += wait_s + 0.01
        probe = made.choose(ask(subset=frozenset({A})), now_s, 0.0)
        made.finished(probe.ticket, now_s, Outcome.CANCELLED)
        assert made.ejected(now_s) == {A}
    seen(made, TRIO[:1], now_s)
    assert made.ejected(now_s) == set()


def test_an_endpoint_that_refuses_connections_gets_nobody_until_a_scrape_succeeds():
    made = brain(TRIO)
    for at in range(120):
        made.gone(A, 0.25 * at)
        assert picked(made, 0.25 * at) == {B, C}
    seen(made, TRIO[:1], 30.0)
    assert made.ejected(30.0) == set()
    made.gone(A, 30.1)
    seen(made, TRIO[:1], 30.2)
    assert A in picked(made, 30.2)


def test_an_endpoint_that_fails_requests_and_then_refuses_connections_is_not_taken_back_by_a_scrape():
    made = brain(TRIO)
    fail(made, A, 0.0)
    made.gone(A, 2.1)
    seen(made, TRIO[:1], 2.2)
    assert made.ejected(2.2) == {A}


def test_a_scrape_does_not_take_back_an_endpoint_whose_requests_fail():
    made = brain(TRIO)
    fail(made, A, 0.0)
    seen(made, TRIO, 0.5)
    assert made.ejected(0.5) == {A}


def test_an_endpoint_that_serves_is_not_silent():
    made = brain(TRIO)
    choice = made.choose(ask(subset=frozenset({A})), 0.0, 0.0)
    made.first_byte(choice.ticket, 1.5)
    for at in range(12):
        made.silent(A, 0.25 * at)
    assert made.ejected(2.9) == set()


def test_with_all_of_them_ejected_the_least_bad_is_tried():
    made = brain(TRIO)
    for address, times in ((A, 5), (B, 3), (C, 4)):
        fail(made, address, 0.0, times)
    choice = made.choose(ask(), 0.5, 0.0)
    assert choice.status == 200
    assert choice.candidates == (B, C, A)
    assert choice.terms.relaxed == ("health",)


def test_a_timeout_without_a_first_byte_is_a_failure_and_a_cancelled_request_is_not():
    made = brain(TRIO)
    for outcome, ejected in ((Outcome.CANCELLED, set()), (Outcome.TIMED_OUT, {A})):
        for _ in range(3):
            made.finished(made.choose(ask(subset=frozenset({A})), 0.0, 0.0).ticket, 0.1, outcome)
        assert made.ejected(0.2) == ejected


def test_prefixes_match_from_the_first_block_without_a_gap():
    index, rows = PrefixIndex(), {"a": 0, "b": 1, "c": 2}
    index.sent("a", (1, 2, 3, 4))
    index.sent("b", (1, 2, 9))
    assert index.matched((1, 2, 3, 8), rows).tolist() == [0.75, 0.5, 0.0]
    assert index.matched((5, 2, 3), rows).tolist() == [0.0, 0.0, 0.0]
    index.keep(["b", "c"])
    assert index.matched((1, 2, 3, 8), rows).tolist() == [0.0, 0.5, 0.0]
    index.sent("c", (1, 2, 3, 4))
    assert index.matched((1, 2, 3, 4), rows).tolist() == [0.0, 0.5, 1.0]


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.lists(st.integers(0, 12), max_size=6), st.booleans()), max_size=40))
def test_the_index_knows_the_last_blocks_of_each_endpoint_and_no_others(events):
    """Against lists that are searched one by one."""
    index, rows, lists = PrefixIndex(blocks=5), {"a": 0, "b": 1, "c": 2}, {"a": [], "b": [], "c": []}
    for name, blocks, leaves in events:
        if leaves:
            index.keep([each for each in "abc" if each != name])
            lists[name] = []
        else:
            index.sent(name, blocks)
            for block in reversed(blocks):
                lists[name] = [each for each in lists[name] if each != block] + [block]
            lists[name] = lists[name][-5:]
    for probe in ((1, 2, 3), (4,), tuple(range(13)), (12, 0)):
        want = [0.0] * 3
        for name, row in rows.items():
            depth = next((at for at, block in enumerate(probe) if block not in lists[name]), len(probe))
            want[row] = depth / len(probe)
        assert index.matched(probe, rows).tolist() == want
    assert len(index) == len({block for each in lists.values() for block in each})


def strained(strain: float, *, dual: float = 0.1, seconds: int = 600) -> float:
    prices = CapacityPrices()
    prices.configure({"pool": dual})
    for at in range(seconds):
        prices.meter(np.array([strain]), float(at))
    return float(prices.prices[0])


def test_a_capacity_price_falls_with_slack_and_rises_where_the_guard_binds():
    assert strained(0.1) < strained(0.5) < strained(0.99) < strained(1.0) == pytest.approx(0.1)
    assert strained(1.2) == pytest.approx(0.1 + 0.1 * 599 / 180)
    assert strained(0.0, seconds=61) == pytest.approx(0.1 * np.exp(-1.0), rel=0.01)
    assert strained(2.0, seconds=20_000) == pytest.approx(1.0, rel=0.01)
    assert 0 < strained(1.2, dual=0.0) < 0.1


def test_a_new_dual_changes_the_price_in_proportion_and_an_old_one_lets_it_go_on():
    prices = CapacityPrices()
    prices.configure({"a": 0.1, "b": 0.2})
    for at in range(100):
        prices.meter(np.zeros(2), float(at))
    moved = prices.prices.copy()
    prices.configure({"a": 0.1, "b": 0.3, "c": 0.4})
    assert prices.prices.tolist() == pytest.approx([moved[0], 1.5 * moved[1], 0.4])
    for at in range(100, 400):
        prices.meter(np.full(3, 2.0), float(at))
    assert prices.prices[0] > 0.1
    prices.configure({"a": 0.2, "b": 0.0, "c": 0.4})
    assert prices.prices[:2].tolist() == [0.2, 0.0], "what had climbed above its dual starts at the new one"


def test_a_pause_moves_the_price_little():
    prices = CapacityPrices()
    prices.configure({"pool": 0.1})
    prices.meter(np.zeros(1), 0.0)
    prices.meter(np.zeros(1), 10_000.0)
    assert 0.09 < prices.prices[0] < 0.1


def test_the_plans_dual_keeps_scarce_capacity_for_those_who_gain_from_it():
    scarce = replace(LARGE, capacity_price=0.2)
    free, dear = brain(endpoints(SMALL, MIDDLE, LARGE)), brain(endpoints(SMALL, MIDDLE, scarce))
    gains = replace(ask(20, 20), quality={"3b": 0.1, "14b": 0.2, "72b": 0.9})
    even = replace(ask(20, 20), quality={"3b": 0.5, "14b": 0.55, "72b": 0.65})
    assert [made.choose(each, 0.0, 0.0).terms.model for made in (free, dear) for each in (gains, even)] == [
        "72b", "72b", "72b", "14b",
    ]  # fmt: skip
    assert dear.capacity_prices()["large"] == pytest.approx(0.2)


def test_capacity_prices_are_metered_by_the_decisions_themselves():
    made = brain(twins(2, replace(SMALL, capacity_price=0.1)), BALANCED)
    for at in range(200):
        seen(made, twins(2), float(at))
        made.finished(made.choose(ask(), float(at), 0.0).ticket, float(at) + 0.5, Outcome.COMPLETED)
    assert made.capacity_prices()["small"] < 0.05


def test_patience_falls_with_weight_and_with_a_tenants_share():
    pressure = Pressure()
    assert pressure.patience(1.0, "") == 1.0
    for _ in range(10):
        pressure.enters(4.0, "big")
    pressure.enters(1.0, "little")
    assert pressure.patience(4.0, "little") == 1.0
    assert pressure.patience(1.0, "little") == pytest.approx(0.625)
    assert 0.5 <= pressure.patience(4.0, "big") < 0.6
    assert pressure.patience(1.0, "big") < pressure.patience(1.0, "little")
    for _ in range(10):
        pressure.leaves(4.0, "big")
    pressure.leaves(1.0, "little")
    assert pressure.patience(0.1, "big") == 1.0
