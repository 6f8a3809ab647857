"""What scrapes tell beyond our own ledger."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from routing_fleets import SMALL, twins

from servingplan.routing.fleet import Scrape, fleet_of
from servingplan.routing.fusion import Fusion
from servingplan.routing.ledger import Flight, Ledger
from servingplan.routing.rule import Load, Need

FLEET = fleet_of(twins(2))
NEED = Need(100.0, np.array([200.0, 200.0]), np.ones(2), np.zeros(2))


class Rig:
    """A ledger and a fusion of two endpoints."""

    def __init__(self, peers: int = 1, engine=SMALL):
        self.fleet = fleet_of(twins(2, engine))
        self.ledger, self.fusion = Ledger(), Fusion(peers)
        self.ledger.rebuild(np.array([-1, -1]))
        self.fusion.rebuild(np.array([-1, -1]))
        self.tickets = 0

    def pick(self, now_s: float, count: int = 1, row: int = 0) -> None:
        for _ in range(count):
            self.tickets += 1
            self.ledger.reserve(Flight(self.tickets, row, 100.0, 100.0, 200.0, now_s, 1e9), now_s)

    def scrape(self, taken_s: float, running: float, waiting: float = 0.0, usage: float | None = None, row: int = 0) -> None:
        kv_tokens = float(self.fleet.kv_tokens[row])
        self.fusion.observe(row, Scrape(taken_s, running, waiting, usage), self.ledger, kv_tokens)

    def load(self, now_s: float) -> Load:
        return self.fusion.load(self.fleet, self.ledger, NEED, now_s)


def test_an_endpoint_that_was_never_seen_counts_as_half_full():
    rig = Rig()
    rig.scrape(0.0, 0.0, row=1)
    assert rig.load(0.0).in_flight.tolist() == [128.0, 0.0]
    rig.pick(0.0, 200)
    assert rig.load(0.0).in_flight.tolist() == [200.0, 0.0]


def test_what_we_sent_ourselves_is_not_counted_twice():
    rig = Rig()
    rig.pick(0.0, 5)
    rig.scrape(1.0, 5.0)
    assert rig.load(1.0).in_flight[0] == pytest.approx(5)


def test_a_scrape_is_compared_with_what_was_in_flight_when_it_was_taken():
    rig = Rig()
    rig.pick(0.0, 5)
    rig.pick(1.2, 7)
    rig.ledger.release(1, 1.3)
    rig.scrape(1.0, 9.0)
    # Nine were there, five of them ours: four are foreign, and eleven of ours are there now.
    assert rig.load(1.0).in_flight[0] == pytest.approx(4 + 11)


def test_fewer_than_ours_is_nothing_foreign():
    rig = Rig()
    rig.pick(0.0, 5)
    rig.scrape(1.0, 2.0)
    assert rig.load(1.0).in_flight[0] == pytest.approx(5)


def test_an_older_scrape_than_the_last_is_ignored():
    rig = Rig()
    rig.scrape(2.0, 10.0)
    rig.scrape(1.0, 50.0)
    assert rig.load(2.0).in_flight[0] == pytest.approx(10)


def test_the_other_pickers_are_taken_to_do_what_we_did():
    rig = Rig(peers=3)
    rig.scrape(1.0, 0.0)
    rig.pick(1.01, 2)
    assert rig.load(1.02).in_flight[0] == pytest.approx(2 * 3, rel=0.1)
    # What the next scrape counts beyond ours is no longer extrapolated.
    rig.scrape(1.03, 6.0)
    assert rig.load(1.03).in_flight[0] == pytest.approx(6)


def test_the_longer_ago_the_more_may_be_there():
    rig = Rig()
    for row in (0, 1):
        rig.scrape(0.0, 10.0, row=row)
    rig.scrape(0.5, 10.0, row=1)
    rig.fusion._mean[:] = 10.0
    loads = [rig.load(now_s).in_flight for now_s in (0.5, 1.0, 3.0)]
    assert all(early[0] < late[0] for early, late in pairwise(loads))
    assert all(each[0] > each[1] for each in loads)


def test_a_surge_of_others_is_believed_and_then_less_so():
    rig = Rig()
    for at in range(100):
        rig.scrape(0.25 * at, 10.0)
    rig.scrape(25.0, 100.0)
    assert rig.load(25.0).in_flight[0] == pytest.approx(100)
    assert rig.load(33.0).in_flight[0] < 70


def test_a_silent_endpoint_comes_to_count_as_half_full():
    rig = Rig()
    rig.scrape(0.0, 0.0)
    found = [rig.load(now_s).in_flight[0] for now_s in (0.0, 5.0, 15.0, 25.0, 40.0)]
    assert found[:2] == [0.0, 0.0]
    assert found == sorted(found)
    assert found[-1] == pytest.approx(128)


def test_tokens_held_by_others_come_from_the_scraped_usage():
    rig = Rig()
    rig.scrape(0.0, 10.0, usage=0.1)
    assert rig.load(0.0).held_tokens[0] == pytest.approx(20_000)
    rig.scrape(1.0, 10.0)
    assert rig.load(1.0).held_tokens[0] == pytest.approx(10 * (100 + 100))


def test_prompts_of_others_wait_as_the_queue_says():
    rig = Rig()
    rig.scrape(0.0, 6.0, waiting=2.0)
    assert rig.load(0.0).waiting_tokens[0] == pytest.approx(2 * 100)


@pytest.mark.parametrize("wrong", [float("nan"), -3.0, float("inf")])
def test_figures_that_make_no_sense_count_as_nothing(wrong):
    rig = Rig(engine=replace(SMALL, kv_tokens=None))
    rig.scrape(0.0, wrong, wrong, wrong)
    load = rig.load(0.0)
    assert load.in_flight[0] == load.held_tokens[0] == load.waiting_tokens[0] == 0
    rig.scrape(wrong, 5.0)
    assert np.isfinite(rig.load(1.0).in_flight[0])
