"""Lengths of requests: samples, moments and blends."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from servingplan.latency.capacity import stable_rate_rps
from servingplan.latency.mix import BLEND_PAIRS, lengths, output_gaps, prompt_lengths
from servingplan.latency.profile import EngineProfile, StepTime, TokenMix, blend

SHORT = TokenMix.of([(100.0, 400.0), (200.0, 10.0), (150.0, 50.0)] * 200)
LONG = TokenMix(prompt_tokens=4000, output_tokens=100, prompt_cv=0.5, output_cv=1.5)
STEP = StepTime(0.0137, 57e-6, 60e-9)

mixes = st.builds(TokenMix, st.floats(10, 5000), st.floats(2, 1000), st.floats(0, 2), st.floats(0, 2))


def test_a_sample_gives_its_own_moments():
    mix = TokenMix.of([(100.0, 10.0), (300.0, 30.0)])
    assert (mix.prompt_tokens, mix.output_tokens) == (200, 20)
    assert (mix.prompt_cv, mix.output_cv, mix.correlation) == pytest.approx((0.5, 0.5, 1.0))
    assert mix.prompt_output_product == pytest.approx((100 * 10 + 300 * 30) / 2)


def test_the_order_of_a_sample_does_not_move_its_moments():
    pairs = [(float(7 * k % 101 + 1), float(13 * k % 89 + 1)) for k in range(500)]
    one = TokenMix.of(pairs)
    random.Random(3).shuffle(pairs)
    other = TokenMix.of(pairs)
    assert (one.prompt_tokens, one.prompt_cv, one.correlation) == (other.prompt_tokens, other.prompt_cv, other.correlation)


@pytest.mark.parametrize("pairs", [[], [(0.0, 5.0)], [(5.0, 0.5)]], ids=["empty", "no prompt", "no output"])
def test_a_sample_without_tokens_is_no_sample(pairs):
    with pytest.raises(ValueError, match="at least one"):
        TokenMix.of(pairs)


@given(mixes)
def test_the_grid_of_moments_has_the_mean_lengths(mix):
    prompts, outputs, weights = lengths(mix)
    assert weights.sum() == pytest.approx(1)
    assert weights @ prompts == pytest.approx(mix.prompt_tokens)
    assert weights @ outputs == pytest.approx(mix.output_tokens)


def test_the_grid_of_moments_has_the_spread():
    prompts, weights = prompt_lengths(TokenMix(1000, 100, prompt_cv=1.0))
    assert np.sqrt(weights @ prompts**2 / 1000**2 - 1) == pytest.approx(1.0, rel=0.03)


def test_a_large_sample_is_merged_and_keeps_its_means():
    chance = np.random.default_rng(4)
    mix = TokenMix.of([(float(a), float(b)) for a, b in chance.integers(1, 5000, (20_000, 2))])
    shape = lengths(mix)
    assert len(shape.prompts) <= 512
    assert shape.weights @ shape.prompts == pytest.approx(mix.prompt_tokens)
    assert shape.weights @ shape.outputs == pytest.approx(mix.output_tokens)


def test_a_blend_has_the_exact_moments_of_its_parts():
    mix = blend([(3.0, SHORT), (1.0, LONG)])
    assert mix.prompt_tokens == pytest.approx((3 * SHORT.prompt_tokens + LONG.prompt_tokens) / 4)
    squares = [part.prompt_tokens**2 * (1 + part.prompt_cv**2) for part in (SHORT, LONG)]
    assert mix.prompt_tokens**2 * (1 + mix.prompt_cv**2) == pytest.approx((3 * squares[0] + squares[1]) / 4)
    assert mix.prompt_output_product == pytest.approx((3 * SHORT.prompt_output_product + LONG.prompt_output_product) / 4)
    assert mix.held_token_steps == pytest.approx((3 * SHORT.held_token_steps + LONG.held_token_steps) / 4)


def test_a_blend_of_blends_stays_bounded_and_exact():
    mix = SHORT
    for _ in range(5):
        mix = blend([(1.0, mix), (1.0, LONG)])
    assert len(mix.sample) <= BLEND_PAIRS
    assert mix.prompt_tokens == pytest.approx(SHORT.prompt_tokens / 32 + LONG.prompt_tokens * 31 / 32)
    shape = lengths(mix)
    assert shape.weights @ shape.prompts == pytest.approx(mix.prompt_tokens)


@given(st.permutations([(0.3, SHORT), (2.0, LONG), (0.1, TokenMix(50, 50)), (0.2, SHORT), (0.0, TokenMix(9, 9))]))
def test_the_order_of_the_parts_does_not_count(parts):
    assert blend(parts) == blend([(0.5, SHORT), (2.0, LONG), (0.1, TokenMix(50, 50))])


def test_one_part_is_itself_and_none_is_an_error():
    assert blend([(2.0, LONG), (0.0, SHORT)]) is LONG
    with pytest.raises(ValueError, match="requests"):
        blend([(0.0, LONG)])


@pytest.mark.parametrize("profile", [EngineProfile(step=STEP, max_num_seqs=64), EngineProfile(step=STEP, kv_tokens=60_000)])
def test_the_inverse_stable_rate_of_a_blend_is_the_mean_of_its_parts(profile):
    parts = [
        (3.0, TokenMix(500, 400)),
        (1.0, TokenMix(900, 300, 0.3, 1.2)),
        (0.5, TokenMix.of([(700.0, 500.0), (90.0, 200.0)])),
    ]
    expected = sum(rate / stable_rate_rps(profile, mix) for rate, mix in parts) / 4.5
    assert 1 / stable_rate_rps(profile, blend(parts)) == pytest.approx(expected)


def test_outputs_of_one_token_have_no_gaps():
    gaps, shares = output_gaps(TokenMix.of([(10.0, 1.0), (10.0, 5.0)]))
    assert (gaps @ shares, shares.sum()) == pytest.approx((2.0, 0.5))
    assert output_gaps(TokenMix(10, 1, 1.0, 0.0))[1].sum() < 1e-9
