"""What is read off a run."""

from __future__ import annotations

import numpy as np
import pytest

from virtual import traffic
from virtual.analysis import Change, changes, moved_units, returns, slope, windows
from virtual.engines import REFUSED, Outcome


def outcome(arrival_s: list[float], ttft_s: list[float], pool: list[int]) -> Outcome:
    n = len(arrival_s)
    requests = traffic.Requests(np.array(arrival_s), np.zeros(n, int), np.ones(n, int), np.ones(n, int), ("chat",))
    first_s = np.array(arrival_s) + np.array(ttft_s)
    return Outcome(requests, ("large", "small"), np.array(pool), first_s, first_s)


def test_a_window_keeps_its_target_by_its_own_requests_and_those_that_never_came_count():
    seen = outcome([0, 1, 61, 62, 63, 130], [0.1, 0.2, 0.1, 3.0, 0.1, np.nan], [0, 0, 0, 0, 1, 0])
    found = {(w.pool, w.minute): (w.requests, w.kept) for w in windows(seen, {"chat": 1.0}, 0.0, 600.0)}
    assert found == {("large", 0): (2, True), ("large", 1): (2, False), ("small", 1): (1, True), ("large", 2): (1, False)}


def test_what_was_refused_is_in_no_window():
    assert windows(outcome([0.0], [np.nan], [REFUSED]), {"chat": 1.0}, 0.0, 60.0) == []


def sequence(*counts: int) -> list[Change]:
    return changes([10.0 * at for at in range(len(counts))], [{"large": count} for count in counts])


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((3, 3, 3), 0),
        ((3, 4, 5, 6), 0),
        ((3, 4, 3), 1),
        ((4, 3, 5), 1),
        ((3, 5, 4, 4), 0),
        ((3, 4, 4, 4, 4, 4, 3), 0),
        ((3, 4, 4, 4, 3), 1),
    ],
    ids=str,
)
def test_a_number_that_is_left_and_come_back_to_within_the_dwell_is_found(counts, expected):
    assert len(returns(sequence(*counts), dwell_s=50.0)) == expected


def test_units_that_change_their_setup_move_once():
    targets = [{"large": 3, "small": 4}, {"large": 2, "small": 6}, {"large": 2, "small": 6}, {"large": 3, "small": 6}]
    found = changes([0.0, 30.0, 60.0, 90.0], targets)
    assert moved_units(found, {"large": 2, "small": 1}, 60.0, 120.0).tolist() == [2.0, 2.0, 0.0]


def test_a_slope_is_found_with_its_interval():
    hours = np.linspace(0, 1, 360)
    source = np.random.default_rng(4)
    rising, low, high = slope(hours, 100 + 5 * hours + source.normal(0, 0.3, 360))
    assert rising == pytest.approx(5, abs=0.5)
    assert low < rising < high
    assert high - low < 1
    flat = slope(hours, 100 + source.normal(0, 0.3, 360))
    assert flat[1] < 0 < flat[2]
