"""The fleet that routers are compared on."""

from __future__ import annotations

import numpy as np
import pytest

from baselines import fixed, models
from servingplan.routing.preset import Prices
from virtualfleet import arrivals, drive, engines, frontier, outcome, predictors, profile, tiers
from virtualfleet.outcome import Point
from virtualfleet.workload import Workload

TIER = tiers.TIERS[0]


def step_s(sequences: int, kv_tokens: float, prompt_tokens: float = 0) -> float:
    return float(profile.true_step_s(TIER, sequences, kv_tokens, prompt_tokens))


def fleet(prompts: list[int], outputs: list[int], slots: int = 256) -> engines.Fleet:
    return engines.build(np.array(prompts), np.repeat(np.array(outputs)[:, None], len(tiers.TIERS), axis=1), slots)


def workload(n: int = 300, rate_rps: float = 30.0) -> Workload:
    chance = np.random.default_rng(5)
    output = chance.integers(5, 400, (n, 4))
    prompt, quality = chance.integers(5, 300, n), chance.random((n, 4))
    return Workload(
        np.cumsum(chance.exponential(1 / rate_rps, n)),
        chance.random(n),
        np.arange(n),
        prompt,
        np.full((n, 2), -1),
        quality,
        output,
        quality,
        output.astype(float),
        tiers.cost(prompt, output),
        0,
    )


def point(quality: float, cost: float, p95_s: float) -> Point:
    return Point(quality, cost, p95_s, p95_s, 0, 0, 0, 0, 0, 0, 0)


def test_a_lone_request_takes_the_steps_of_its_tokens() -> None:
    f = fleet([100], [3])
    engines.send(f, 0, 0, 2.0)
    engines.advance(f, np.inf)
    first_s = 2.0 + step_s(1, 100, 100)
    assert f.first_s[0] == pytest.approx(first_s)
    assert f.ended_s[0] == pytest.approx(first_s + step_s(1, 101) + step_s(1, 102))
    assert (f.kv[0], f.running[0], f.waiting[0]) == (0, 0, 0)


def test_what_comes_at_the_same_time_shares_a_step_and_what_comes_later_waits_for_the_next() -> None:
    f = fleet([10, 20, 30], [9, 9, 9])
    for request, at_s in ((0, 0.0), (1, 0.0), (2, 0.001)):
        engines.send(f, request, 0, at_s)
    engines.advance(f, np.inf)
    shared_s = step_s(2, 30, 30)
    assert f.first_s[:2] == pytest.approx([shared_s, shared_s])
    assert f.first_s[2] == pytest.approx(shared_s + step_s(3, 62, 30))


def test_a_full_batch_makes_others_wait_until_somebody_ends() -> None:
    f = fleet([10, 10, 10], [2, 5, 1], slots=2)
    for request in range(3):
        engines.send(f, request, 0, 0.0)
    engines.advance(f, 0.011)
    assert (f.running[0], *engines.waiting_now(f, 0, 0.011)) == (2, 1, 10)
    engines.advance(f, np.inf)
    assert f.first_s[2] > f.ended_s[0] > f.first_s[0]


def test_a_step_takes_no_more_prompts_than_its_budget_but_one_longer_prompt() -> None:
    f = fleet([3000, 1500, 1500], [2, 2, 2])
    for request in range(3):
        engines.send(f, request, 0, 0.0)
    engines.advance(f, np.inf)
    assert f.first_s[0] == pytest.approx(step_s(1, 3000, 3000))
    assert f.first_s[0] < f.first_s[1] < f.first_s[2]


def test_halting_on_the_way_changes_nothing() -> None:
    work = workload()
    whole, halting = (engines.build(work.prompt_tokens, work.output_tokens, 16) for _ in range(2))
    for r, at_s in enumerate(work.arrival_s):
        for f in (whole, halting):
            engines.send(f, r, r % 13, at_s)
        engines.advance(halting, at_s)
    engines.advance(whole, np.inf)
    engines.advance(halting, np.inf)
    assert np.array_equal(whole.ended_s, halting.ended_s)
    assert np.array_equal(whole.first_s, halting.first_s)


@pytest.mark.parametrize("come", [lambda n, c: arrivals.poisson(23, n, c), lambda n, c: arrivals.gamma(23, n, c)])
def test_arrivals_keep_their_rate(come) -> None:
    times = come(40_000, np.random.default_rng(1))
    assert np.all(np.diff(times) >= 0)
    assert len(times) / times[-1] == pytest.approx(23, rel=0.03)


def test_a_square_wave_has_its_two_rates_in_turn() -> None:
    times = arrivals.square(40, 6, 20_000, np.random.default_rng(1), phase_s=15)
    counts = np.histogram(times, np.arange(0, times[-1], 15))[0]
    assert counts[0::2].mean() / 15 == pytest.approx(40, rel=0.05)
    assert counts[1::2].mean() / 15 == pytest.approx(6, rel=0.1)


def test_the_volume_of_boxes_is_that_of_a_fine_grid() -> None:
    gains = np.random.default_rng(3).uniform(-0.2, 1, (12, 3)).round(1)
    cells = (np.arange(10) + 0.5) / 10
    covered = [np.any((gains > (x, y, z)).all(1) & (gains > 0).all(1)) for x in cells for y in cells for z in cells]
    assert frontier.hypervolume(gains) == pytest.approx(np.mean(covered))


def test_a_point_is_matched_by_one_that_is_as_good_in_all_three() -> None:
    ours = [point(0.5, 2.0, 9.0), point(0.6, 3.0, 12.0)]
    assert frontier.matched([point(0.5, 2.0, 9.0), point(0.6, 2.5, 12.0)], ours) == 0.5


def test_predictions_never_see_their_own_fold() -> None:
    chance = np.random.default_rng(2)
    vectors = chance.normal(size=(400, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    fold, columns = predictors.folds(400), chance.random((400, 2))
    told = columns.copy()
    told[fold == 0] = 99.0
    before, after = (predictors.neighbours(vectors, fold, each)[fold == 0] for each in (columns, told))
    assert np.array_equal(before, after)


def test_a_serial_scorer_takes_one_at_a_time() -> None:
    assert models.serial_s(np.array([0.0, 0.01, 0.5]), 0.1) == pytest.approx([0.1, 0.2, 0.6])


def sent_to(work: Workload, model: int, way: int) -> list[int]:
    """Instances that requests of one model are sent to; uncompiled, for compiling takes longer than the test."""
    f = engines.build(work.prompt_tokens, work.output_tokens, 256)
    models_of = np.full(len(work), model)
    fixed.run.py_func(f, models_of, work.arrival_s, way, work.draw, tiers.by_instance("kv_tokens"), work.blocks, 0)
    return f.instance.tolist()


def test_round_robin_goes_round_the_instances_of_the_model_or_all() -> None:
    assert sent_to(workload(6), 0, fixed.ROUND_ROBIN) == [0, 1, 2, 0, 1, 2]
    assert sent_to(workload(14), fixed.ANY_MODEL, fixed.ROUND_ROBIN) == [*range(13), 0]


def test_the_shortest_queue_is_an_idle_instance_while_there_is_one() -> None:
    assert sorted(sent_to(workload(13, rate_rps=1e6), fixed.ANY_MODEL, fixed.SHORTEST_QUEUE)) == list(range(13))


def test_the_picker_serves_all_and_its_ledger_returns_to_zero() -> None:
    driven = drive.Drive(workload(), Prices(1500, 0.02), drive.Settings(overhead_s=0.01))
    found = driven.run()
    assert np.isfinite(found.e2e_s).all()
    assert found.ttft_s.min() > 0.01
    (brain,) = driven.brains
    assert len(brain) == 0
    assert set(brain.in_flight().values()) == {0.0}


def test_shed_requests_score_nothing_and_are_never_good() -> None:
    work = workload(300, rate_rps=2000.0)
    found = drive.Drive(work, Prices(0, 0.02), drive.Settings(slots=2, guard_s=0.2)).run()
    assert 0 < found.shed < 1
    shed = np.isinf(found.e2e_s)
    assert found.shed == shed.mean()
    assert not found.quality[shed].any()
    assert not found.good[shed].any()
    assert outcome.Outcome.point(found).goodput == found.good.mean()
