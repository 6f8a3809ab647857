"""What is counted of the choices: by whom a request was sent where, and what every model would have scored."""

from __future__ import annotations

import math

from routing_fleets import LARGE, QUALITY, SMALL, ask, brain, endpoints

from servingplan.routing.tally import Tally


def test_every_model_s_score_is_summed_under_the_model_that_was_chosen():
    tally = Tally()
    tally.took("chat", "large", {"large": 0.75, "small": 0.5})
    tally.took("chat", "large", {"large": 0.5, "small": 0.25})
    tally.took("chat", "small", {"large": 0.5, "small": 0.5})
    tally.took("code", "small", {"large": 0.0, "small": 0.5})
    found = {key: (sent.requests, sent.quality) for key, sent in tally.sent.items()}
    assert found == {
        ("chat", "large"): (2, {"large": 1.25, "small": 0.75}),
        ("chat", "small"): (1, {"large": 0.5, "small": 0.5}),
        ("code", "small"): (1, {"large": 0.0, "small": 0.5}),
    }


def test_sums_only_grow_whatever_a_predictor_says():
    tally = Tally()
    for score in (0.5, math.nan, math.inf, -1.0):
        tally.took("chat", "large", {"large": score})
    assert tally.sent["chat", "large"].quality == {"large": 0.5}


def test_a_request_that_names_its_model_is_no_choice():
    made = brain(endpoints(SMALL, LARGE))
    for models in (None, frozenset({"72b"}), None):
        assert made.choose(ask(models=models), 0.0, 0.0).status == 200
    assert sum(sent.requests for sent in made.tally.sent.values()) == 2
    (sent,) = {tuple(sent.quality) for sent in made.tally.sent.values()}
    assert set(sent) == set(QUALITY)
