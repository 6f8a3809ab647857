"""What pickers choose, from counters as they expose them, scraped by a real Prometheus."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from prometheus_client import generate_latest

from servingplan.picker.metrics import Metrics
from servingplan.picker.state import Options, State

EASY, HARD = {"strong": 0.9, "weak": 0.85}, {"strong": 0.6, "weak": 0.3}


def page(sent):
    """The page of a picker after some choices: numbers of requests by class, model and scores."""
    state, metrics = State(Options("choices", "plan")), Metrics()
    metrics.watch(state)
    for name, model, scores, count in sent:
        for _ in range(count):
            state.brain.tally.took(name, model, scores)
    lines = generate_latest(metrics.registry).decode().splitlines()
    assert "# TYPE servingplan_picker_picks_total counter" in lines
    wanted = ("servingplan_picker_picks_total", "servingplan_picker_predicted_quality_total", "servingplan_picker_streams")
    found = {series: float(value) for series, _, value in (line.rpartition(" ") for line in lines if line.startswith(wanted))}
    kinds = Counter(series.partition("{")[0] for series in found)
    assert kinds[wanted[0]] == len({(name, model) for name, model, _, _ in sent})
    assert kinds[wanted[1]] == 2 * kinds[wanted[0]]
    return found


class Began:
    """When the pages begin to tell: at the first of these tests, not when they are collected."""

    at_s = time.time()


def told(sent, until_age_s=None):
    """A page that tells a hundredth of these counts each second."""
    final = page(sent)

    def at(now_s):
        if until_age_s is not None and now_s > Began.at_s - until_age_s:
            return {}
        done = max(0.0, now_s - (Began.at_s - 1000)) / 100
        return {series: value if "streams" in series else value * done for series, value in final.items()}

    return at


CHAT = [("chat", "weak", EASY, 60), ("chat", "strong", HARD, 40)]


@pytest.fixture(scope="module")
def world(make_world, until):
    Began.at_s = time.time()
    world = make_world(
        ("two", "r1", told(CHAT)),
        ("two", "r2", told([("chat", "weak", EASY, 50), ("code", "strong", HARD, 10)])),
        ("two", "gone", told([("chat", "strong", HARD, 500)])),
        ("dark", "r1", told(CHAT)),
        ("dark", "r2", told(CHAT, until_age_s=10)),
    )
    pods = "count(last_over_time(servingplan_picker_streams[5m]))"
    until(lambda: world.prometheus.value(pods) == 5.0, "the pickers are scraped")
    return world


def asked(world, namespace, *routers, **fields):
    return world.asked(namespace, **{"classes": ("chat", "code", "never"), "routers": routers, "picks": True} | fields)


def test_shares_and_gains_are_those_of_the_live_pickers_of_the_plan(world):
    reading = world.until(asked(world, "two", "r1", "r2"), lambda each: each.chosen, "choices are known")
    chat, code = reading.chosen["chat"], reading.chosen["code"]
    assert reading.chosen.keys() == {"chat", "code"}
    assert chat.shares == pytest.approx({"strong": 40 / 150, "weak": 110 / 150}, rel=0.02)
    assert chat.gains["strong"] == pytest.approx((0.9 - 0.6) * -110 / 150 + (0.85 - 0.3) * 110 / 150, rel=0.03)
    assert code.shares == {"strong": 1.0}
    assert code.gains == {"strong": 0.0}
    # The pods tell of the last 240 s; what is read is at most what was counted in the window.
    assert 150 * 2 <= chat.requests <= 150 * 3.3
    assert (chat.window_s, chat.age_s <= 3.0) == (300.0, True)


def test_a_picker_that_is_not_scraped_leaves_the_choices_unknown(world):
    world.until(asked(world, "dark", "r1"), lambda each: each.chosen, "choices are known")
    assert world.read(asked(world, "dark", "r1", "r2")).chosen == {}
    assert world.read(asked(world, "dark", "r1", "ghost")).chosen == {}
    just_ready = {"ghost": time.time()}
    beside = asked(world, "dark", "r1", "ghost", ready_since=just_ready)
    assert world.until(beside, lambda each: each.chosen, "choices are known").chosen.keys() == {"chat"}


def test_nothing_is_asked_of_a_plan_without_pickers(world):
    assert world.read(asked(world, "two", "r1", "r2", picks=False)).chosen == {}
    assert world.read(asked(world, "two")).chosen == {}
