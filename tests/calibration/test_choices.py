"""What pickers choose: how its worth is counted, and when plans follow it."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from servingplan.calibration.choices import HeldChoice, chosen, follow_choices, from_status, to_status
from servingplan.calibration.readings import Chosen

NOW_S = 1_800_000_000.0
WINDOW_S = 300.0


@dataclass
class Counts:
    picks: dict[str, float]
    quality: dict[tuple[str, str], float]


def counted(requests):
    """Counts of requests, each the model that it was sent to and its scores."""
    counts = Counts({}, {})
    for model, scores in requests:
        counts.picks[model] = counts.picks.get(model, 0.0) + 1
        for other, score in scores.items():
            counts.quality[model, other] = counts.quality.get((model, other), 0.0) + score
    return counts


EASY, HARD = {"strong": 0.9, "weak": 0.85}, {"strong": 0.6, "weak": 0.3}


def test_choosing_is_worth_what_is_lost_when_the_model_is_drawn():
    """The strong model scores less on what it is sent than on all, and is worth its choice all the same."""
    found = chosen("chat", counted([("weak", EASY)] * 60 + [("strong", HARD)] * 40), WINDOW_S)
    assert (found.requests, found.shares) == (100.0, {"strong": 0.4, "weak": 0.6})
    made = 0.6 * 0.85 + 0.4 * 0.6
    drawn = 0.4 * (0.6 * 0.9 + 0.4 * 0.6) + 0.6 * (0.6 * 0.85 + 0.4 * 0.3)
    # As many as go elsewhere of one model come from the other.
    swapped = 0.4 * 0.6
    assert swapped * (found.gains["strong"] + found.gains["weak"]) == pytest.approx(made - drawn)
    assert found.gains["strong"] > 0
    assert found.gains["weak"] > 0


def test_choosing_is_worth_nothing_where_all_requests_are_alike_or_all_go_one_way():
    alike = chosen("chat", counted([("weak", EASY)] * 60 + [("strong", EASY)] * 40), WINDOW_S)
    assert alike.gains == pytest.approx({"strong": 0.0, "weak": 0.0})
    assert chosen("chat", counted([("weak", EASY)] * 30 + [("weak", HARD)] * 30), WINDOW_S).gains == {"weak": 0.0}


def test_choosing_badly_costs():
    found = chosen("chat", counted([("weak", HARD)] * 50 + [("strong", EASY)] * 50), WINDOW_S)
    assert max(found.gains.values()) < -0.1


def test_a_score_that_is_not_known_is_not_zero():
    counts = counted([("weak", EASY)] * 60 + [("strong", HARD)] * 40)
    del counts.quality["weak", "strong"]
    assert chosen("chat", counts, WINDOW_S).gains == {}
    assert chosen("chat", Counts({}, {}), WINDOW_S) is None


def seen(requests=1000.0, gains=None, **shares):
    return Chosen("chat", requests, shares, gains or {}, WINDOW_S)


def followed(held, what, now_s=NOW_S):
    after, news = follow_choices({"chat": held} if held else {}, {"chat": what}, now_s)
    return after.get("chat"), news


def test_the_first_window_with_enough_requests_is_taken_and_said():
    assert followed(None, seen(49.0, large=1.0)) == (None, ())
    held, news = followed(None, seen(large=0.314, small=0.686))
    assert held.shares == {"large": 0.31, "small": 0.69}
    assert news == ("pickers send of class chat 31% to large, 69% to small",)


@pytest.mark.parametrize("requests", [60, 300, 3000])
def test_chance_moves_nothing_for_an_hour(requests):
    chance = random.Random(requests)
    held, _ = followed(None, seen(3000.0, large=0.3, small=0.7))
    for window in range(1, 13):
        large = sum(chance.random() < 0.3 for _ in range(requests)) / requests
        after, news = followed(held, seen(float(requests), large=large, small=1 - large), NOW_S + window * WINDOW_S)
        assert (after, news) == (held, ())


def test_a_change_is_followed_the_further_the_more_requests_show_it():
    held = HeldChoice(NOW_S - WINDOW_S, {"large": 0.2, "small": 0.8})
    few, _ = followed(held, seen(200.0, large=0.6, small=0.4))
    many, _ = followed(held, seen(5000.0, large=0.6, small=0.4))
    assert few.shares == {"large": 0.4, "small": 0.6}
    assert 0.55 < many.shares["large"] < 0.6


def test_a_window_from_before_the_last_move_moves_nothing_again():
    held = HeldChoice(NOW_S - WINDOW_S + 1, {"large": 0.2, "small": 0.8})
    assert followed(held, seen(large=0.6, small=0.4)) == (held, ())
    assert followed(held, seen(large=0.6, small=0.4), NOW_S + 1)[0] != held


def test_a_model_that_is_no_longer_chosen_fades_away():
    held, now_s = HeldChoice(0.0, {"large": 0.5, "small": 0.5}), NOW_S
    for _ in range(10):
        now_s += WINDOW_S
        held = followed(held, seen(small=1.0), now_s)[0]
    assert held.shares["small"] >= 0.97


def test_a_gain_moves_when_enough_requests_show_it():
    held = HeldChoice(0.0, {"large": 0.5, "small": 0.5}, {"large": 0.02})
    assert followed(held, seen(gains={"large": 0.03}, large=0.5, small=0.5))[0] == held
    moved, _ = followed(held, seen(2000.0, gains={"large": 0.08, "small": -0.04}, large=0.5, small=0.5))
    assert moved.gains == {"large": pytest.approx(0.07, abs=0.001), "small": pytest.approx(-0.033, abs=0.001)}


def test_classes_of_which_nothing_is_known_keep_what_is_held():
    held = {"chat": HeldChoice(NOW_S, {"large": 1.0})}
    assert follow_choices(held, {}, NOW_S + 1e6) == (held, ())


def test_the_status_holds_everything_and_what_cannot_be_read_is_nothing():
    held = HeldChoice(NOW_S, {"large": 0.31, "small": 0.69}, {"large": -0.012})
    written = to_status(held, "2026-11-22T16:00:00Z")
    assert written.model_dump(by_alias=True) == {
        "time": "2026-11-22T16:00:00Z",
        "shares": {"large": "0.31", "small": "0.69"},
        "gains": {"large": "-0.012"},
    }
    assert from_status(written, NOW_S) == held
    for spoilt in ({"large": "much"}, {"large": "1.5"}, {"large": "nan"}, {}):
        assert from_status(written.model_copy(update={"shares": spoilt}), NOW_S) is None
    assert from_status(written.model_copy(update={"gains": {"large": "nan"}}), NOW_S) is None
