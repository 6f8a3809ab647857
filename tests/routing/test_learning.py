"""Factors learnt from times to first token and from lengths of answers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from servingplan.routing.learning import Learnt


def learnt() -> Learnt:
    made = Learnt()
    made.rebuild(np.array([-1, -1]))
    return made


def test_the_larger_part_of_the_prediction_learns():
    made = learnt()
    for at in range(300):
        # A prefill of 0.1 s that takes 0.15 s, alone and before a wait of 1 s that takes 0.6 s.
        made.first_token(0, 0.1, 0.0, 0.15, float(at))
        made.first_token(0, 0.1, 1.0, 0.15 + 0.6, float(at))
    factors = made.factors(300.0)
    assert factors.prefill.tolist() == [pytest.approx(1.5, rel=0.03), 1.0]
    assert factors.wait.tolist() == [pytest.approx(0.6, rel=0.03), 1.0]
    assert factors.step.tolist() == [1.0, 1.0]


def test_one_outlier_moves_little_and_all_of_them_no_further_than_the_bound():
    made = learnt()
    made.first_token(0, 0.1, 0.0, 1e6, 0.0)
    assert made.factors(0.0).prefill[0] == pytest.approx(math.exp(0.05))
    for _ in range(500):
        made.first_token(0, 0.1, 0.0, 1e6, 0.0)
        made.first_token(1, 0.1, 0.0, 1e-6, 0.0)
    assert made.factors(0.0).prefill.tolist() == [pytest.approx(2.0), pytest.approx(0.5)]


def test_half_of_it_is_forgotten_in_five_minutes():
    made = learnt()
    for _ in range(500):
        made.first_token(0, 0.1, 0.0, 1e6, 0.0)
    assert made.factors(300.0).prefill[0] == pytest.approx(2.0**0.5)
    assert made.factors(1e6).prefill[0] == pytest.approx(1.0)


def test_the_step_settles_where_the_clock_counts_what_is_emitted():
    made = learnt()
    for at in range(400):
        by_clock = 100.0 / made.factors(float(at)).step[0]
        made.tokens(0, by_clock, 80.0, float(at))
    assert made.factors(400.0).step[0] == pytest.approx(1.25, rel=0.02)


@pytest.mark.parametrize("tokens", [(5.0, 100.0), (100.0, 5.0), (0.0, 0.0)])
def test_short_answers_say_nothing(tokens):
    made = learnt()
    made.tokens(0, *tokens, 0.0)
    assert made.factors(0.0).step[0] == 1.0


@pytest.mark.parametrize("times", [(0.0, 0.0, 1.0), (0.1, 0.0, 0.0), (0.1, 0.0, -1.0)])
def test_times_that_make_no_sense_say_nothing(times):
    made = learnt()
    made.first_token(0, *times, 0.0)
    assert made.factors(0.0).prefill[0] == 1.0
