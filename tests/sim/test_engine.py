"""The scheduling rules, interpreted: small engines that tests can check block by block."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servingplan.sim import engine
from servingplan.sim.engine import ACTIVE, BLOCK_TOKENS, FINISHED, FIRST_REQUEST, Engine, Limits, Shape, StepCost

ROOMY = Limits(max_num_seqs=8, max_num_batched_tokens=64, prefix_caching=1)
ONE_SECOND_STEPS = StepCost(alpha_s=1.0, floor_s=0.0, beta_s=0.0, gamma_s=0.0)


@dataclass(frozen=True)
class Request:
    arrival_s: float
    prompt: int
    output: int
    hashes: tuple[int, ...] = ()


def engine_of(requests: list[Request], *, kv_blocks: int, limits: Limits) -> Engine:
    longest = max(r.prompt + r.output for r in requests)
    shape = Shape(len(requests), kv_blocks, limits.max_num_seqs, -(-longest // BLOCK_TOKENS), 0)
    e = engine.build(lambda n: [0] * n, lambda n: [0.0] * n, lambda n, m: [[0] * m for _ in range(n)], shape)
    for r, request in enumerate(requests, FIRST_REQUEST):
        e.arrival_s[r], e.prompt[r], e.output[r] = request.arrival_s, request.prompt, request.output
        e.scheduled_s[r] = e.first_token_s[r] = e.finished_s[r] = -1.0
        e.hash_start[r], e.hash_count[r] = len(e.hashes), len(request.hashes)
        e.hashes.extend(request.hashes)
    return e


def play(
    requests: list[Request],
    *,
    kv_blocks: int = 100,
    limits: Limits = ROOMY,
    cost: StepCost = ONE_SECOND_STEPS,
    check: Callable[[Engine], None] = lambda e: None,
) -> Engine:
    """Run the engine to the end, `check` after every decision."""
    e = engine_of(requests, kv_blocks=kv_blocks, limits=limits)
    now_s, arrived = 0.0, FIRST_REQUEST
    for _ in range(100_000):
        while arrived < len(e.status) and e.arrival_s[arrived] <= now_s:
            engine.enqueue(e, arrived)
            arrived += 1
        while engine.in_flight_steps(e) < engine.PIPELINE_DEPTH and engine.compose(e, cost, limits, now_s):
            check(e)
        if engine.in_flight_steps(e):
            now_s = engine.next_end_s(e)
            engine.deliver(e, now_s)
            check(e)
        elif arrived < len(e.status):
            now_s = e.arrival_s[arrived]
        else:
            return e
    raise AssertionError("the engine never came to rest")


def chain(links: list[int], start: int) -> Iterator[int]:
    at = links[start]
    while at != start:
        yield at
        at = links[at]


def check_blocks(e: Engine) -> None:
    """Every KV block is either free or held, and held exactly as often as running requests list it."""
    holders = [0] * len(e.refs)
    for r in chain(e.queue_next, engine.RUNNING):
        for k in range(e.blocks[r]):
            holders[e.table[e.row[r]][k]] += 1
    free = list(chain(e.free_next, engine.NULL_BLOCK))
    assert holders == list(e.refs)
    assert sorted(free) == [b for b in range(1, len(e.refs)) if holders[b] == 0]
    assert e.counts[engine.FREE_BLOCKS] == len(free)
    for r in chain(e.queue_next, engine.RUNNING):
        assert e.computed[r] <= e.blocks[r] * BLOCK_TOKENS


def check_cache(e: Engine) -> None:
    """The prefix cache finds exactly the blocks that carry a key, each under its own."""
    keyed = [b for b in range(1, len(e.refs)) if e.key[b]]
    assert len({e.key[b] for b in keyed}) == len(keyed)
    assert all(engine._find(e, e.key[b]) == b for b in keyed)


requests = st.builds(
    Request,
    arrival_s=st.floats(0, 30),
    prompt=st.integers(1, 150),
    output=st.integers(1, 60),
    hashes=st.lists(st.integers(1, 3), max_size=6).map(tuple),
).map(
    lambda r: Request(
        r.arrival_s,
        r.prompt,
        r.output,
        tuple(hash(r.hashes[: k + 1]) % 10**9 for k in range(min(len(r.hashes), r.prompt // 16))),
    )
)
workloads = st.lists(requests, min_size=1, max_size=12).map(lambda rs: sorted(rs, key=lambda r: r.arrival_s))
limits = st.builds(Limits, st.integers(1, 6), st.sampled_from([8, 16, 48, 512]), st.integers(0, 1))


@settings(max_examples=150, deadline=None)
@given(workloads, limits, st.integers(15, 40))
def test_whatever_comes_blocks_are_never_overcommitted_and_every_request_ends(
    work: list[Request], limit: Limits, kv_blocks: int
) -> None:
    def check(e: Engine) -> None:
        check_blocks(e)
        check_cache(e)
        running = list(chain(e.queue_next, engine.RUNNING))
        assert len(running) == e.counts[engine.N_RUNNING] <= limit.max_num_seqs
        assert all(e.batch_tokens[s] <= limit.max_num_batched_tokens for s in range(engine.PIPELINE_DEPTH))
        assert all(e.status[r] == ACTIVE for r in running)

    e = play(work, kv_blocks=kv_blocks, limits=limit, cost=StepCost(0.01, 0.0, 1e-3, 1e-6), check=check)
    ends = slice(FIRST_REQUEST, None)
    assert e.generated[ends] == e.output[ends]
    assert set(e.status[ends]) == {FINISHED}
    assert set(e.in_flight[ends]) == set(e.pending[ends]) == {0}
    assert all(a < f <= x for a, f, x in zip(e.arrival_s[ends], e.first_token_s[ends], e.finished_s[ends], strict=True))
    assert e.counts[engine.FREE_BLOCKS] == kv_blocks - 1


@settings(max_examples=100, deadline=None)
@given(workloads, limits, st.integers(15, 40))
def test_requests_start_in_the_order_they_came(work: list[Request], limit: Limits, kv_blocks: int) -> None:
    e = play(work, kv_blocks=kv_blocks, limits=limit)
    assert e.scheduled_s[FIRST_REQUEST:] == sorted(e.scheduled_s[FIRST_REQUEST:])


@settings(max_examples=100, deadline=None)
@given(workloads, limits)
def test_without_preemption_every_token_is_computed_once(work: list[Request], limit: Limits) -> None:
    computed: dict[int, int] = {}

    def count(e: Engine) -> None:
        step = e.counts[engine.COMPOSED]
        if step:
            computed[step] = e.batch_tokens[(step - 1) % engine.PIPELINE_DEPTH]

    e = play(work, kv_blocks=400, limits=limit, check=count)
    expected = sum(r.prompt + r.output - 1 for r in work) - e.counts[engine.CACHE_HITS]
    assert e.counts[engine.PREEMPTIONS] == 0
    assert sum(computed.values()) == expected


def test_an_arrival_waits_for_the_rest_of_this_step_and_all_of_the_next() -> None:
    e = play([Request(0, 16, 10), Request(0.5, 16, 1)])
    assert e.first_token_s[FIRST_REQUEST:] == [1.0, 3.0]


def test_an_idle_engine_starts_at_once_and_gives_one_token_a_step() -> None:
    e = play([Request(7.25, 16, 4)])
    assert (e.first_token_s[FIRST_REQUEST], e.finished_s[FIRST_REQUEST]) == (8.25, 11.25)


def test_a_prompt_longer_than_the_token_budget_takes_several_steps() -> None:
    e = play([Request(0, 150, 1)])
    assert e.first_token_s[FIRST_REQUEST] == 3.0


def test_a_finished_request_holds_its_slot_for_one_more_step() -> None:
    e = play([Request(0, 16, 1), Request(0, 16, 10), Request(0, 16, 1)], limits=Limits(2, 64, 1))
    assert e.finished_s[FIRST_REQUEST] == 1.0
    assert e.first_token_s[FIRST_REQUEST + 2] == 3.0, "step 2 was composed before the first was known to be done"


def test_step_time_is_the_larger_of_weight_read_and_compute_plus_the_context() -> None:
    cost = StepCost(alpha_s=0.5, floor_s=2.0, beta_s=0.1, gamma_s=0.01)
    prefill = 0.5 + 0.1 * 40 + 0.01 * 40
    decode = 0.5 + 2.0 + 0.01 * 41
    e = play([Request(0, 40, 2)], cost=cost)
    assert e.first_token_s[FIRST_REQUEST] == pytest.approx(prefill)
    assert e.finished_s[FIRST_REQUEST] == pytest.approx(prefill + decode)


def test_the_last_running_request_is_preempted_and_comes_back_first() -> None:
    # 7 usable blocks: three prompts of two blocks fit, their decoding does not.
    work = [Request(0, 31, 40), Request(0, 31, 40), Request(0, 31, 20), Request(10, 16, 1)]
    e = play(work, kv_blocks=8, limits=Limits(8, 512, 1))
    first, second, third, late = range(FIRST_REQUEST, FIRST_REQUEST + 4)
    assert e.preempted[first] == 0
    assert e.preempted[third] > 0
    assert e.finished_s[third] > e.finished_s[second], "it lost its place among the running"
    assert e.scheduled_s[late] >= e.finished_s[second] > 10, "it waited behind the one sent back, though one block was free"


def test_nobody_is_admitted_whose_whole_prompt_does_not_fit() -> None:
    # 9 usable blocks, 5 taken: a first chunk of the second prompt would fit, all of it would not.
    e = play([Request(0, 72, 5), Request(0, 80, 1)], kv_blocks=10, limits=Limits(8, 16, 1))
    assert e.scheduled_s[FIRST_REQUEST + 1] >= e.finished_s[FIRST_REQUEST]
    assert e.counts[engine.PREEMPTIONS] == 0


def test_a_shared_beginning_is_computed_once_but_never_the_last_token() -> None:
    shared = (11, 22, 33, 44)
    e = play([Request(0, 64, 1, shared), Request(9, 64, 1, shared), Request(19, 80, 1, (*shared, 55))])
    assert e.cached[FIRST_REQUEST:] == [0, 48, 64]


def test_prompts_without_hashes_share_nothing() -> None:
    e = play([Request(0, 64, 1), Request(9, 64, 1)])
    assert e.counts[engine.CACHE_HITS] == 0


def test_without_prefix_caching_nothing_is_found_again() -> None:
    e = play([Request(0, 64, 1, (1, 2, 3)), Request(9, 64, 1, (1, 2, 3))], limits=Limits(8, 64, 0))
    assert e.counts[engine.CACHE_HITS] == 0


def test_the_least_recently_freed_block_is_reused_first_and_a_tail_before_its_head() -> None:
    first, second = (1, 2, 3), (7, 8, 9)
    # 8 usable blocks: after both prompts 2 untouched ones are left; a third prompt of 3 takes the tail of the first.
    work = [Request(0, 48, 1, first), Request(9, 48, 1, second), Request(19, 47, 1)]
    e = play(work, kv_blocks=9)
    found = [engine._find(e, -1 - key) != engine.NULL_BLOCK for key in first + second]
    assert found == [True, True, False, True, True, True]


def test_a_preempted_request_reads_again_what_survives_of_its_blocks() -> None:
    def recomputed(prefix_caching: int) -> int:
        total: dict[int, int] = {}

        def count(e: Engine) -> None:
            step = e.counts[engine.COMPOSED]
            total[step] = e.batch_tokens[(step - 1) % engine.PIPELINE_DEPTH]

        work = [Request(0, 64, 30), Request(0, 64, 30)]
        e = play(work, kv_blocks=10, limits=Limits(8, 64, prefix_caching), check=count)
        assert e.counts[engine.PREEMPTIONS] > 0
        return sum(total.values()) - sum(r.prompt + r.output - 1 for r in work)

    assert 0 < recomputed(1) < recomputed(0)


def test_an_aborted_request_frees_its_blocks_at_once_and_gets_no_more_tokens() -> None:
    limit = Limits(8, 64, 1)
    e = engine_of([Request(0, 32, 50)], kv_blocks=20, limits=limit)
    engine.enqueue(e, FIRST_REQUEST)
    engine.compose(e, ONE_SECOND_STEPS, limit, 0.0)
    engine.compose(e, ONE_SECOND_STEPS, limit, 0.0)
    engine.finish(e, FIRST_REQUEST, 0.5)
    assert e.counts[engine.FREE_BLOCKS] == 19
    engine.deliver(e, 1.0)
    engine.deliver(e, 2.0)
    assert e.generated[FIRST_REQUEST] == 0
    assert e.in_flight[FIRST_REQUEST] == 0
    assert not engine.compose(e, ONE_SECOND_STEPS, limit, 2.0)


@pytest.mark.parametrize("shape", [Shape(1, 1, 4, 4, 0), Shape(1, 8, 0, 4, 0)])
def test_an_engine_that_could_never_run_is_refused(shape: Shape) -> None:
    with pytest.raises(ValueError, match="nothing could ever run"):
        engine.build(lambda n: [0] * n, lambda n: [0.0] * n, lambda n, m: [[0] * m for _ in range(n)], shape)
