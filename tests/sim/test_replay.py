"""The engine in virtual time: compiled like interpreted, and both like a real server's request logs."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servingplan.sim.engine import StepCost
from servingplan.sim.fit import fit
from servingplan.sim.replay import Outcome, Replica, Workload, replay
from servingplan.sim.runlog import errors, read_run

DATA = Path(os.environ.get("SERVINGPLAN_DATA", Path(__file__).parents[3] / "shared/data")) / "perf/vllm_requests"
NO_COST_YET = StepCost(0.0, 0.0, 0.0, 0.0)

# max_num_seqs, budget and KV blocks are those of each run's meta.json; the first run did not log its blocks, of which
# its 96 GB hold more than these requests ever need.
RUNS = {
    "rtxpro6000_llama31_8b_tp1": Replica(NO_COST_YET, kv_blocks=25_000, max_num_seqs=128),
    "rtx4090_llama31_8b_tp1": Replica(NO_COST_YET, kv_blocks=2_588, max_num_seqs=256),
}

lengths = st.lists(st.tuples(st.floats(0, 20), st.integers(1, 300), st.integers(1, 80)), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(lengths.map(sorted), st.integers(1, 5), st.integers(25, 60), st.booleans(), st.booleans())
def test_compiled_and_interpreted_runs_agree_to_the_last_bit(
    work: list[tuple[float, int, int]], seqs: int, kv_blocks: int, prefix_caching: bool, shared: bool
) -> None:
    arrival_s, prompt, output = (np.array(column) for column in zip(*work, strict=True))
    hashes = [tuple(range(1, 1 + int(tokens) // 16)) for tokens in prompt] if shared else None
    workload = Workload(arrival_s, prompt, output, hashes)
    replica = Replica(StepCost(5e-3, 3e-3, 1e-4, 1e-6), kv_blocks, seqs, 128, prefix_caching)
    compiled = replay(workload, replica, tick_s=0.5)
    interpreted = replay(workload, replica, tick_s=0.5, compiled=False)
    for name in Outcome.__slots__:
        np.testing.assert_array_equal(getattr(compiled, name), getattr(interpreted, name), err_msg=name)


def test_a_series_longer_than_one_buffer_is_whole() -> None:
    workload = Workload(np.array([0.0, 9.0]), np.array([10, 10]), np.array([128, 128]))
    outcome = replay(workload, Replica(StepCost(2**-7, 0, 0, 0), 100), tick_s=2**-10)
    assert len(outcome.running) == 10 * 2**10
    assert np.sum(outcome.running) == 2 * 2**10, "two requests of one second each"


@pytest.mark.parametrize(
    ("workload", "message"),
    [
        (Workload(np.array([1.0, 0.0]), np.array([1, 1]), np.array([1, 1])), "ascending"),
        (Workload(np.array([0.0]), np.array([0]), np.array([1])), "at least one"),
        (Workload(np.array([0.0]), np.array([300]), np.array([21])), "never fits in 320"),
    ],
)
def test_a_workload_that_cannot_be_replayed_is_refused_in_words(workload: Workload, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replay(workload, Replica(NO_COST_YET, kv_blocks=21))


@pytest.mark.parametrize("name", RUNS)
def test_a_real_log_is_met_on_the_half_that_was_not_fitted(name: str) -> None:
    if not (DATA / f"{name}.requests.jsonl").exists():
        pytest.skip(f"needs the request logs under {DATA}")
    log = read_run(DATA, name)
    fitted = fit(log, RUNS[name], slice(0, 150))
    found = errors(log, replay(log.workload, fitted, tick_s=0.01), slice(150, 300))
    print(f"\n{name}: " + ", ".join(f"{key} {100 * value:+.2f} %" for key, value in found.items()))
    allowed = {
        "queued TTFT p50": 0.05, "queued TTFT p95": 0.05, "e2e p50": 0.05, "e2e p95": 0.05, "inter-token p50": 0.02,
        "inter-token p95": 0.12, "unqueued TTFT mean": 0.12, "running series": 0.04, "waiting series": 0.04,
    }  # fmt: skip
    assert found.keys() == allowed.keys()
    assert {key: value for key, value in found.items() if abs(value) > allowed[key]} == {}
