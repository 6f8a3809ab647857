"""An engine that is fed piece by piece does what a replay of all its requests at once does."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servingplan.sim.engine import StepCost
from servingplan.sim.fleet import Engine
from servingplan.sim.replay import Replica, Workload, replay

COST = StepCost(5e-3, 3e-3, 1e-4, 1e-6)
lengths = st.lists(st.tuples(st.floats(0, 20), st.integers(1, 300), st.integers(1, 80)), min_size=1, max_size=40)


def fed(engine: Engine, workload: Workload, cuts: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """(n,) times of the first and of the last tokens; at every cut what came before it has been offered, and nothing else."""
    first_s, finished_s = (np.full(len(workload.arrival_s), -1.0) for _ in range(2))
    for begun_s, until_s in pairwise([0.0, *sorted(cuts), np.inf]):
        these = (workload.arrival_s >= begun_s) & (workload.arrival_s < until_s)
        engine.offer_all(workload.arrival_s[these], workload.prompt_tokens[these], workload.output_tokens[these])
        engine.advance(until_s)
        news = engine.collect()
        assert np.all(first_s[news.first] < 0)
        assert np.all((news.first_token_s < until_s) & (news.finished_s.max(initial=0.0) < until_s).all())
        first_s[news.first], finished_s[news.finished] = news.first_token_s, news.finished_s
    return first_s, finished_s


@settings(max_examples=60, deadline=None)
@given(lengths.map(sorted), st.lists(st.floats(0, 25), max_size=30), st.integers(1, 5), st.integers(25, 60))
def test_what_is_fed_in_pieces_ends_as_a_replay_of_the_whole_does(
    work: list[tuple[float, int, int]], cuts: list[float], seqs: int, kv_blocks: int
) -> None:
    workload = Workload(*(np.array(column) for column in zip(*work, strict=True)))
    replica = Replica(COST, kv_blocks, seqs, 128, prefix_caching=False)
    expected = replay(workload, replica)
    engine = Engine(replica, longest_tokens=400)
    # A cut at the very time of an arrival is the sharpest.
    first_s, finished_s = fed(engine, workload, [*cuts, float(workload.arrival_s[len(work) // 2])])
    np.testing.assert_array_equal(first_s, expected.first_token_s)
    np.testing.assert_array_equal(finished_s, expected.finished_s)
    assert engine.steps == expected.steps
    assert engine.preemptions == expected.preempted.sum()
    assert (engine.running, engine.waiting, engine.kv_usage, len(engine.unfinished())) == (0, 0, 0.0, 0)


def test_an_engine_grows_with_the_requests_that_it_is_offered() -> None:
    n = 3000
    chance = np.random.default_rng(5)
    workload = Workload(np.cumsum(chance.exponential(0.1, n)), chance.integers(1, 400, n), chance.integers(1, 60, n))
    replica = Replica(COST, kv_blocks=400, max_num_seqs=16, prefix_caching=False)
    first_s, finished_s = fed(Engine(replica, longest_tokens=512), workload, list(np.arange(0.0, 300.0, 10.0)))
    expected = replay(workload, replica)
    np.testing.assert_array_equal(first_s, expected.first_token_s)
    np.testing.assert_array_equal(finished_s, expected.finished_s)


def test_what_is_under_way_is_counted() -> None:
    engine = Engine(Replica(StepCost(1.0, 0.0, 0.0, 0.0), kv_blocks=101, max_num_seqs=2), longest_tokens=64)
    for _ in range(3):
        engine.offer(0.0, 16, 8)
    assert (engine.running, engine.waiting) == (0, 3)
    engine.advance(2.5)
    assert (engine.running, engine.waiting, engine.unfinished().tolist()) == (2, 1, [0, 1, 2])
    assert engine.kv_usage == pytest.approx(4 / 100), "both have a second block for their outputs"
    assert engine.collect().first.tolist() == [0, 1]
    assert engine.collect().first.tolist() == []


@pytest.mark.parametrize(
    ("arrival_s", "prompt", "output", "message"),
    [(4.0, 1, 1, "after one of 5"), (6.0, 0, 1, "at least one"), (6.0, 300, 21, "never fits in 320")],
)
def test_a_request_that_cannot_be_taken_is_refused_in_words(arrival_s: float, prompt: int, output: int, message: str) -> None:
    engine = Engine(Replica(COST, kv_blocks=21), longest_tokens=10_000)
    engine.advance(5.0)
    with pytest.raises(ValueError, match=message):
        engine.offer(arrival_s, prompt, output)
