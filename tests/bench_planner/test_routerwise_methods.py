from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from routerwise.algorithms import Effort, assigned, dual_prices, dual_value, optimize_beta, project, select_setup
from routerwise.baselines import equal_split, isolated, sequential, size_proportional
from routerwise.cells import Cell, Curve, Scores
from routerwise.exact import Side, best_replicas, best_routing, best_score, best_setup
from routerwise.setups import TENSOR_PARALLEL, TENTHS, ModelSetup, Space

EFFORT = Effort(dual_steps=30, fraction_steps=20, beta_steps=12)


def _cell(seed: int, gpus: int = 2, models: int = 2, rate_rps: float = 14.0, ttft_s: float = 0.5) -> Cell:
    """Random scores of 30 prompts and a curve per setup that bends upwards; larger models score more and take longer."""
    source = np.random.default_rng(seed)
    scores = np.clip(np.linspace(0.3, 0.6, models) + source.normal(0, 0.2, (30, models)), 0, 1).round(2)
    curves = {}
    for model in range(models):
        for tp in (size for size in TENSOR_PARALLEL if size <= gpus):
            for tenths in TENTHS:
                limit_rps = 12 * tp**0.8 * tenths / 10 / (1 + model)
                loads = np.linspace(0, 0.9, 8)
                curves[model, ModelSetup(tp, tenths)] = Curve(limit_rps * loads, 0.05 * (1 + model) * 10 / tenths / (1 - loads))
    names = tuple(f"m{model}" for model in range(models))
    return Cell(Scores(names, scores, np.full(30, 1 / 30)), Space((7.0,) * models, gpus), curves, rate_rps, ttft_s)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-2, 2), min_size=2, max_size=5), st.lists(st.floats(0.3, 1.5), min_size=5, max_size=5))
def test_projection_is_the_nearest_point_of_the_capped_simplex(point: list[float], caps: list[float]) -> None:
    caps = np.maximum(caps[: len(point)], 1.05 / len(point))
    found = project(np.array(point), caps)
    nearest = minimize(
        lambda w: ((w - point) ** 2).sum(),
        np.full(len(point), 1 / len(point)),
        jac=lambda w: 2 * (w - point),
        bounds=[(0, cap) for cap in caps],
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        method="SLSQP",
        options={"ftol": 1e-14},
    )
    assert found.sum() == pytest.approx(1)
    assert found == pytest.approx(nearest.x, abs=1e-5)


def test_projection_on_the_whole_simplex() -> None:
    assert project(np.array([0.9, 0.5, -1.0]), np.ones(3)) == pytest.approx([0.7, 0.3, 0.0])
    assert project(np.array([5.0, 0.0]), np.ones(2)) == pytest.approx([1.0, 0.0])


def test_prices_realise_the_fractions_where_no_scores_tie() -> None:
    source = np.random.default_rng(3)
    scores = Scores(("a", "b", "c"), source.random((1000, 3)), np.full(1000, 1 / 1000))
    wanted = np.array([0.6, 0.3, 0.1])
    prices, value = dual_prices(scores, wanted, np.zeros(3), Effort(dual_steps=2000))
    assert assigned(scores, prices) == pytest.approx(wanted, abs=5e-3)
    assert value == pytest.approx(dual_value(scores, prices, wanted))
    assert best_score(scores, wanted) <= value <= best_score(scores, wanted) + 1e-4


def test_a_rule_with_prices_cannot_split_prompts_whose_scores_tie() -> None:
    scores = Scores(("a", "b"), np.array([[1.0, 0.5]]), np.ones(1))
    prices, value = dual_prices(scores, np.array([0.5, 0.5]), np.zeros(2), Effort(dual_steps=500))
    assert value == pytest.approx(0.75, abs=1e-3)
    assert sorted(assigned(scores, prices)) == [0.0, 1.0]


@pytest.mark.parametrize("seed", range(4))
def test_the_algorithms_never_beat_the_exact_routing(seed: int) -> None:
    cell = _cell(seed)
    feasible = 0
    for setup in cell.space.retained()[::10]:
        upper, found = best_routing(cell, setup, Side.OUTER), optimize_beta(cell, setup, EFFORT)
        if found is None:
            continue
        feasible += 1
        assert found.ttft_s <= cell.ttft_s
        assert upper is not None
        assert best_score(cell.scores, found.fractions) <= upper.score + 1e-7
    assert feasible


def test_the_algorithms_come_near_the_exact_routing() -> None:
    cell = _cell(1)
    setup = (ModelSetup(1, 10), ModelSetup(1, 10))
    exact, found = (
        best_routing(cell, setup),
        optimize_beta(cell, setup, Effort(dual_steps=50, fraction_steps=40, beta_steps=16)),
    )
    assert exact is not None
    assert found is not None
    assert best_score(cell.scores, found.fractions) == pytest.approx(exact.score, abs=5e-3)


def test_chords_and_tangents_enclose_the_routing() -> None:
    cell = _cell(2)
    for setup in cell.space.retained()[::4]:
        inner, outer = best_routing(cell, setup), best_routing(cell, setup, Side.OUTER)
        if inner is not None:
            assert outer is not None
            assert inner.score <= outer.score + 1e-9


def test_lines_lie_on_their_side_of_the_curve_and_touch_it_at_the_points() -> None:
    curve = _cell(0).curves[0, ModelSetup(1, 10)]
    for rate_rps in np.linspace(0, curve.limit_rps, 57):
        waiting = rate_rps * curve.at(rate_rps)[0]
        chord, tangent = (float((a + b * rate_rps).max()) for a, b in (curve.chords, curve.tangents))
        assert tangent <= waiting + 1e-12
        assert waiting <= chord + 1e-12
    for rate_rps, ttft_s in zip(curve.rates_rps, curve.ttft_s, strict=True):
        assert max(a + b * rate_rps for a, b in zip(*curve.chords, strict=True)) == pytest.approx(rate_rps * ttft_s)


def test_chords_of_a_noisy_curve_are_convex_and_never_below_it() -> None:
    curve = Curve(np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.1, 0.4, 0.4, 0.5]))
    for rate_rps, ttft_s in zip(curve.rates_rps, curve.ttft_s, strict=True):
        assert max(a + b * rate_rps for a, b in zip(*curve.chords, strict=True)) >= rate_rps * ttft_s - 1e-12
    assert list(curve.chords[1]) == sorted(curve.chords[1])


def test_a_share_of_a_gpu_is_slower_by_as_much() -> None:
    whole = Curve(np.array([0.0, 4.0]), np.array([0.1, 0.3]))
    assert whole.slowed(0.5).at(1.0) == pytest.approx((2 * whole.at(2.0)[0], 4 * whole.at(2.0)[1]))
    assert whole.slowed(0.5).limit_rps == 2.0


@pytest.mark.parametrize(("seed", "rate_rps"), [(0, 8.0), (1, 14.0), (2, 15.5)])
def test_the_joint_program_is_the_best_of_all_enumerated_setups(seed: int, rate_rps: float) -> None:
    cell = _cell(seed, rate_rps=rate_rps)
    found = [answer for setup in cell.space.retained() if (answer := best_routing(cell, setup))]
    best = best_setup(cell)
    assert best is not None
    assert best.score == pytest.approx(max(answer.score for answer in found), rel=1e-5)
    assert best.setup() in cell.space.retained()
    routed = best_routing(cell, best.setup())
    assert routed is not None
    assert routed.score == pytest.approx(best.score, rel=1e-5)


def test_the_joint_program_keeps_to_what_memory_allows() -> None:
    cell = replace(_cell(0, rate_rps=8.0), space=Space((34.0, 34.0), 2))
    best = best_setup(cell)
    assert best is not None
    assert best.setup() in cell.space.retained()
    assert best_setup(replace(cell, space=Space((45.0, 45.0), 2))) is None


def test_an_impossible_bound_is_infeasible_for_all() -> None:
    cell = _cell(0, ttft_s=0.01)
    setup = (ModelSetup(1, 10), ModelSetup(1, 10))
    assert best_setup(cell) is None
    assert best_replicas(cell) is None
    assert best_routing(cell, setup) is None
    assert optimize_beta(cell, setup, EFFORT) is None
    assert select_setup(cell, [setup], EFFORT) is None
    assert sequential(cell) is None


def test_replicas_serve_what_one_instance_per_model_cannot() -> None:
    cell = _cell(0, gpus=4, rate_rps=34.0)
    replicated, single = best_replicas(cell), best_setup(cell)
    assert replicated is not None
    assert single is None or replicated.score > single.score
    assert sum(part.tp * n for (_, part), n in replicated.replicas.items()) <= 4


def test_the_algorithms_pick_the_better_setup() -> None:
    cell = _cell(1)
    setups = [(ModelSetup(1, 10), ModelSetup(1, 10)), (ModelSetup(2, 9), ModelSetup(2, 1))]
    scores = [answer.score if (answer := best_routing(cell, setup)) else 0.0 for setup in setups]
    chosen = select_setup(cell, setups, EFFORT)
    assert chosen is not None
    assert chosen[0] == setups[int(np.argmax(scores))]


def test_fixed_allocations_are_the_nearest_retained_setups() -> None:
    cell = _cell(0, gpus=4, models=3, rate_rps=10.0)
    cell = replace(cell, space=Space((10.0, 10.0, 20.0), 4))
    one, two = ModelSetup(1, 10), ModelSetup(2, 10)
    third = (ModelSetup(2, 7), ModelSetup(2, 7), ModelSetup(2, 6))
    scored = {(one, one, two): 0.4, (two, one, one): 0.5, third: 0.6, (one, two, one): None}
    assert size_proportional(cell, scored) == 0.4
    assert isolated(cell, scored) == 0.5
    assert equal_split(cell, scored) == 0.6
    assert size_proportional(cell, scored | {(one, one, two): None}) is None


def test_allocating_first_never_beats_the_joint_optimum() -> None:
    for seed in range(3):
        for rate_rps in (10.0, 20.0, 30.0):
            cell = _cell(seed, gpus=4, rate_rps=rate_rps)
            joint, alone = best_replicas(cell), sequential(cell)
            assert alone is None or (joint is not None and alone <= joint.score + 1e-3)


def test_allocating_first_is_perfect_while_everything_fits() -> None:
    cell = _cell(0, gpus=4, rate_rps=2.0)
    assert sequential(cell) == pytest.approx(cell.scores.ceiling)
