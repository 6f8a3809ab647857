"""The prompt queue: what it must conserve, and what is known of it exactly."""

from __future__ import annotations

import numpy as np
import pytest

from servingplan.latency.backlog import Arrivals, Prefill, backlog, unloaded
from servingplan.latency.distribution import Gridded
from servingplan.latency.grid import shifted, split, uniform

PROMPTS, WEIGHTS = np.array([200.0, 1000.0, 5000.0]), np.array([0.5, 0.35, 0.15])
MEAN = float(WEIGHTS @ PROMPTS)


def replica(budget: float, asynchronous: bool = True) -> Prefill:
    return Prefill(0.015, 0.0, 5.7e-5, 1e-7, budget, asynchronous)


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("budget", [512.0, 2048.0, 8192.0, 50_000.0])
@pytest.mark.parametrize("rate_rps", [1.0, 6.0])
def test_as_many_prompt_tokens_are_computed_as_arrive(rate_rps, budget, asynchronous):
    prefill = replica(budget, asynchronous)
    found = backlog(Arrivals(PROMPTS, WEIGHTS, rate_rps), prefill)
    arriving = rate_rps * MEAN * found.mean_step_s
    computed = (found.mean_step_s - prefill.fixed_s) / (prefill.compute_s + prefill.read_s)
    assert computed == pytest.approx(arriving, rel=0.03)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_prompts_that_are_next_to_nothing_wait_for_steps_alone(asynchronous):
    prefill = replica(2048.0, asynchronous)
    tiny = np.array([1.0])
    found = backlog(Arrivals(tiny, np.ones(1), 1.0), prefill).first_token(tiny, np.ones(1))
    steps = 2.5 if asynchronous else 1.5
    assert found.mean_s == pytest.approx(steps * prefill.fixed_s, rel=0.02)
    # Uniform over the running step.
    assert found.percentile_s(90) - found.percentile_s(10) == pytest.approx(0.8 * prefill.fixed_s, rel=0.1)


def test_a_synchronous_engine_answers_a_step_earlier():
    arrivals = Arrivals(PROMPTS, WEIGHTS, 2.0)
    late, early = (backlog(arrivals, replica(2048.0, each)).first_token(PROMPTS, WEIGHTS) for each in (True, False))
    assert 0.015 < late.mean_s - early.mean_s < 0.060


def test_a_longer_prompt_takes_its_own_steps_more():
    found = backlog(Arrivals(PROMPTS, WEIGHTS, 2.0), replica(2048.0))
    short, long = (found.first_token(np.array([tokens]), np.ones(1)) for tokens in (200.0, 5000.0))
    assert long.mean_s - short.mean_s == pytest.approx(4800 * 5.71e-5 + 2 * 0.015, rel=0.1)


def test_a_prompt_far_longer_than_all_others_takes_its_full_steps():
    found = backlog(Arrivals(np.array([50.0]), np.ones(1), 2.0), replica(2048.0))
    longest = found.first_token(np.array([50.0, 100_000.0]), np.array([0.5, 0.5]))
    own_s = 49 * 0.015 + 100_000 * 5.71e-5
    assert longest.percentile_s(99) == pytest.approx(own_s, rel=0.02)
    assert longest.percentile_s(40) == pytest.approx(found.first_token(np.array([50.0]), np.ones(1)).percentile_s(80), rel=0.05)
    assert longest.masses.sum() == pytest.approx(1)


@pytest.mark.parametrize("budget", [2048.0, 8192.0])
def test_bursts_and_rates_lengthen_the_wait(budget):
    waits = [
        backlog(Arrivals(PROMPTS, WEIGHTS, rate_rps, batch), replica(budget)).first_token(PROMPTS, WEIGHTS).percentile_s(95)
        for rate_rps, batch in ((1.0, 1.0), (4.0, 1.0), (4.0, 2.5), (8.0, 2.5))
    ]
    assert waits == sorted(waits)
    assert waits[-1] > 2 * waits[0]


def test_an_idle_replica_takes_the_steps_of_the_prompt():
    found = unloaded(PROMPTS, WEIGHTS, replica(2048.0))
    steps = [0.015 + 200 * 5.71e-5, 0.015 + 1000 * 5.71e-5, 3 * 0.015 + 5000 * 5.71e-5]
    assert [found.percentile_s(p) for p in (40, 80, 99)] == pytest.approx(steps)
    assert found.mean_s == pytest.approx(float(WEIGHTS @ steps))


def test_tokens_below_the_weight_read_floor_cost_no_computing():
    prefill = Prefill(0.015, 100.0, 5e-5, 1e-7, 2048.0)
    assert prefill.step_s(np.array([0.0, 100.0, 300.0])) == pytest.approx([0.015, 0.015 + 1e-5, 0.015 + 3e-5 + 0.01])


def test_grids_keep_means():
    values, weights = np.array([0.3, 4.75, 9.0]), np.array([0.2, 0.5, 0.3])
    cells = np.arange(12)
    assert split(values, weights, 12) @ cells == pytest.approx(values @ weights)
    assert uniform(np.array([0.4, 1.0, 7.3]), 12) @ cells == pytest.approx([0.2, 0.5, 3.65])
    assert uniform(np.array([0.4, 1.0, 7.3]), 12).sum(axis=1) == pytest.approx([1, 1, 1])
    assert shifted(np.array([0.5, 0.3, 0.2]), 3) == pytest.approx(np.array([[0.5, 0.3, 0.2], [0.0, 0.5, 0.5], [0.0, 0.0, 1.0]]))


def test_an_exponential_delay_adds_its_mean_and_its_tail():
    at_once = Gridded(split(np.array([10.0]), np.ones(1), 50), 0.01)
    late = at_once.delayed(0.4, 0.5)
    assert late.mean_s == pytest.approx(0.1 + 0.4 * 0.5, rel=0.01)
    for percent in (70, 95, 99.9):
        assert late.percentile_s(percent) == pytest.approx(0.1 + 0.5 * np.log(0.4 / (1 - percent / 100)), rel=0.03)
    assert at_once.delayed(0.0, 0.5) is at_once
