"""Continuous batching as vLLM V1 does it, one scheduling step at a time.

A step is a batch of tokens. It is composed in this order:

1. Running requests, oldest first, each with all the tokens it still lacks: one when it decodes, the rest of its
   prompt when it prefills, cut to what is left of the token budget. A running request whose next token finds no free
   KV block preempts the *last* running request, which loses its blocks and goes to the *head* of the waiting queue.
2. Unless somebody was preempted, waiting requests first come first served while there are budget and sequence slots,
   and only if the whole prompt (with what it had generated before a preemption) fits in the free blocks.

A step takes ``alpha + max(floor, beta * tokens) + gamma * context`` seconds, ``context`` being the KV tokens its
requests attend to and ``floor`` the time to read the weights. Scheduling is asynchronous with a depth of two: a step
is composed while the one before it computes, so an arrival waits for the rest of this step and all of the next, and a
finished request holds its slot and its blocks for one more step.

KV blocks hold 16 tokens. With prefix caching a full block stays findable by its key after it is freed, until it is
handed out again; the free queue gives the least recently used block first, a request's tail before its head. Keys are
the caller's block hashes where it gives them (prompts with shared beginnings) and private to the request elsewhere.

Left out: speculative decoding, LoRA, pipeline parallelism, KV transfer, and blocks of unlike attention kinds. A prompt
block that two requests compute at the same time is stored twice and found once, as in vLLM.

Every function works on an `Engine` of plain lists (interpreted: the server needs neither numpy nor numba) and on one of
arrays (compiled by `servingplan.sim.replay`): one source for wall-clock and for virtual time. So everything here stays
in the subset numba compiles.

Source: scheduler and block pool of vLLM 0.19 (``vllm/v1/core``), whose behaviour is described here and not copied.
"""

from collections.abc import Callable, MutableSequence, Sequence
from typing import Any, NamedTuple

Ints = MutableSequence[int]
Floats = MutableSequence[float]
Table = Sequence[Ints]

BLOCK_TOKENS = 16
PIPELINE_DEPTH = 2

NULL_BLOCK = 0
"""Never handed out; the sentinel of the free queue."""

WAITING, RUNNING, FIRST_REQUEST = 0, 1, 2
"""Rows of the request columns: the sentinels of the two queues, then the requests."""

NEW, QUEUED, ACTIVE, FINISHED = 0, 1, 2, 3
"""Values of `Engine.status`."""

(
    FREE_BLOCKS,
    N_WAITING,
    N_RUNNING,
    FREE_ROWS,
    COMPOSED,
    DELIVERED,
    OUTPUTS,
    ARRIVED,
    TICKS,
    PREEMPTIONS,
    CACHE_QUERIES,
    CACHE_HITS,
    NEXT_UID,
    N_COUNTS,
) = range(14)
"""Places in `Engine.counts`. CACHE_* are in tokens."""

_PRIVATE_KEY_BITS = 20
KEY_MASK = (1 << 62) - 1
"""Bits of a caller's block hash that are kept."""


class StepCost(NamedTuple):
    """Time of one engine step: ``alpha_s + max(floor_s, beta_s * tokens) + gamma_s * context_tokens``."""

    alpha_s: float
    floor_s: float
    beta_s: float
    gamma_s: float


class Limits(NamedTuple):
    """Scheduler limits, under the names of vLLM's flags."""

    max_num_seqs: int
    max_num_batched_tokens: int
    prefix_caching: int


class Shape(NamedTuple):
    """Sizes of an engine.

    Attributes:
        requests: request rows.
        kv_blocks: KV blocks with the null block, vLLM's ``num_gpu_blocks``.
        max_num_seqs: sequences that may run at once.
        blocks_per_sequence: the most blocks one sequence can hold.
        hashes: caller-given block keys.
    """

    requests: int
    kv_blocks: int
    max_num_seqs: int
    blocks_per_sequence: int
    hashes: int


class Engine(NamedTuple):
    """Whole state of one engine, as columns.

    Attributes:
        counts: (N_COUNTS,) integers.
        queue_next, queue_prev: (requests,) links of the waiting and the running queue.
        status: (requests,) NEW, QUEUED, ACTIVE or FINISHED.
        uid: (requests,) a number never used twice, the root of private block keys.
        prompt, output, generated: (requests,) tokens asked for and delivered so far.
        pending: (requests,) tokens composed but not delivered yet.
        computed: (requests,) tokens whose KV is in, or on its way into, the request's blocks.
        in_flight: (requests,) composed steps that still name the request.
        blocks, registered: (requests,) KV blocks held, and how many of them were offered to the prefix cache.
        row: (requests,) row of `table`, while active.
        cached: (requests,) prompt tokens found in the prefix cache at first admission.
        preempted: (requests,) times preempted.
        hash_start, hash_count: (requests,) slice of `hashes` that names the leading prompt blocks.
        arrival_s, scheduled_s, first_token_s, finished_s: (requests,) times; negative until they happen.
        hashes: (all hashes,) 62-bit block keys given by callers.
        free_next, free_prev: (blocks,) links of the free queue.
        refs, key, key_next: (blocks,) holders, cache key (0: not cached), next block of the same bucket.
        bucket: (power of two,) first block of each bucket of the cache, 0 for none.
        table: (max_num_seqs, blocks per sequence) block numbers of active requests.
        rows: (max_num_seqs,) stack of unused rows of `table`.
        batch: (2, max_num_seqs) requests of the steps under way.
        sampled: (2, max_num_seqs) 1 where the step gives that request a token.
        batch_size: (2,) their lengths.
        batch_tokens: (2,) tokens computed in the step.
        batch_end_s: (2,) when the step ends.
        outputs: (max_num_seqs,) requests that the last delivered step gave a token.
    """

    counts: Ints
    queue_next: Ints
    queue_prev: Ints
    status: Ints
    uid: Ints
    prompt: Ints
    output: Ints
    generated: Ints
    pending: Ints
    computed: Ints
    in_flight: Ints
    blocks: Ints
    registered: Ints
    row: Ints
    cached: Ints
    preempted: Ints
    hash_start: Ints
    hash_count: Ints
    arrival_s: Floats
    scheduled_s: Floats
    first_token_s: Floats
    finished_s: Floats
    hashes: Ints
    free_next: Ints
    free_prev: Ints
    refs: Ints
    key: Ints
    key_next: Ints
    bucket: Ints
    table: Table
    rows: Ints
    batch: Table
    sampled: Table
    batch_size: Ints
    batch_tokens: Ints
    batch_end_s: Floats
    outputs: Ints


REQUEST_TIMES = ("arrival_s", "scheduled_s", "first_token_s", "finished_s")
REQUEST_COLUMNS = Engine._fields[1 : Engine._fields.index(REQUEST_TIMES[0])]


def build(
    make_ints: Callable[[int], Any], make_floats: Callable[[int], Any], make_table: Callable[[int, int], Any], shape: Shape
) -> Engine:
    """An empty engine.

    Args:
        make_ints: gives a column of that many integer zeros.
        make_floats: gives a column of that many floating zeros.
        make_table: gives integer zeros of that many rows and columns.
        shape: sizes of the engine.

    Raises:
        ValueError: on an engine without a usable block or sequence slot.
    """
    if shape.kv_blocks < 2 or shape.max_num_seqs < 1:
        raise ValueError(f"{shape.kv_blocks} KV blocks and {shape.max_num_seqs} sequences: nothing could ever run")
    seqs, n_blocks = shape.max_num_seqs, shape.kv_blocks
    columns: dict[str, Any] = {name: make_ints(FIRST_REQUEST + shape.requests) for name in REQUEST_COLUMNS}
    columns |= {name: make_floats(FIRST_REQUEST + shape.requests) for name in REQUEST_TIMES}
    columns |= {name: make_ints(n_blocks) for name in ("free_next", "free_prev", "refs", "key", "key_next")}
    columns |= {name: make_ints(seqs) for name in ("rows", "outputs")}
    columns |= {name: make_table(PIPELINE_DEPTH, seqs) for name in ("batch", "sampled")}
    columns |= {name: make_ints(PIPELINE_DEPTH) for name in ("batch_size", "batch_tokens")}
    e = Engine(
        counts=make_ints(N_COUNTS),
        hashes=make_ints(shape.hashes),
        bucket=make_ints(1 << n_blocks.bit_length()),
        table=make_table(seqs, shape.blocks_per_sequence),
        batch_end_s=make_floats(PIPELINE_DEPTH),
        **columns,
    )
    e.queue_next[RUNNING] = e.queue_prev[RUNNING] = RUNNING
    e.free_next[:] = [*range(1, n_blocks), NULL_BLOCK]
    e.free_prev[:] = [n_blocks - 1, *range(n_blocks - 1)]
    e.rows[:] = range(seqs)
    e.counts[FREE_BLOCKS] = n_blocks - 1
    e.counts[FREE_ROWS] = seqs
    e.counts[NEXT_UID] = 1
    e.counts[ARRIVED] = FIRST_REQUEST
    return e


def _link(e: Engine, sentinel: int, before: int, r: int) -> None:
    """Put request `r` in the queue of `sentinel`, in front of `before`."""
    after = e.queue_prev[before]
    e.queue_next[after] = r
    e.queue_prev[r] = after
    e.queue_next[r] = before
    e.queue_prev[before] = r
    e.counts[N_WAITING if sentinel == WAITING else N_RUNNING] += 1
    e.status[r] = QUEUED if sentinel == WAITING else ACTIVE


def _unlink(e: Engine, r: int) -> None:
    """Take request `r` out of the queue it is in."""
    e.queue_next[e.queue_prev[r]] = e.queue_next[r]
    e.queue_prev[e.queue_next[r]] = e.queue_prev[r]
    e.counts[N_WAITING if e.status[r] == QUEUED else N_RUNNING] -= 1


def _block_key(e: Engine, r: int, k: int) -> int:
    """Cache key of block `k` of request `r`; callers' hashes are negative, private keys positive: they never meet."""
    if k < e.hash_count[r]:
        return -1 - e.hashes[e.hash_start[r] + k]
    return (e.uid[r] << _PRIVATE_KEY_BITS) + k


def _bucket_of(e: Engine, key: int) -> int:
    return ((key >> _PRIVATE_KEY_BITS) * 40503 + key) & (len(e.bucket) - 1)


def _find(e: Engine, key: int) -> int:
    """The block cached under `key`, or NULL_BLOCK."""
    b = e.bucket[_bucket_of(e, key)]
    while b != NULL_BLOCK and e.key[b] != key:
        b = e.key_next[b]
    return b


def _forget(e: Engine, b: int) -> None:
    """Drop block `b` from the prefix cache, if it is there."""
    key = e.key[b]
    if key == 0:
        return
    i = _bucket_of(e, key)
    if e.bucket[i] == b:
        e.bucket[i] = e.key_next[b]
    else:
        before = e.bucket[i]
        while e.key_next[before] != b:
            before = e.key_next[before]
        e.key_next[before] = e.key_next[b]
    e.key[b] = 0


def _hold(e: Engine, b: int) -> None:
    """Add a holder to block `b`, taking it out of the free queue when it is the first."""
    if e.refs[b] == 0:
        e.free_next[e.free_prev[b]] = e.free_next[b]
        e.free_prev[e.free_next[b]] = e.free_prev[b]
        e.counts[FREE_BLOCKS] -= 1
    e.refs[b] += 1


def _drop_blocks(e: Engine, r: int) -> None:
    """Give back all blocks of `r`, tail first, and its row."""
    held = e.table[e.row[r]]
    for k in range(e.blocks[r] - 1, -1, -1):
        b = held[k]
        e.refs[b] -= 1
        if e.refs[b] == 0:
            last = e.free_prev[NULL_BLOCK]
            e.free_next[last] = b
            e.free_prev[b] = last
            e.free_next[b] = NULL_BLOCK
            e.free_prev[NULL_BLOCK] = b
            e.counts[FREE_BLOCKS] += 1
    e.blocks[r] = 0
    e.registered[r] = 0
    e.computed[r] = 0
    e.rows[e.counts[FREE_ROWS]] = e.row[r]
    e.counts[FREE_ROWS] += 1


def _reserve(e: Engine, r: int, tokens: int) -> bool:
    """Let `r` hold blocks for `tokens` tokens; False, and nothing changed, when too few are free."""
    need = (tokens + BLOCK_TOKENS - 1) // BLOCK_TOKENS
    if need - e.blocks[r] > e.counts[FREE_BLOCKS]:
        return False
    for k in range(e.blocks[r], need):
        b = e.free_next[NULL_BLOCK]
        _forget(e, b)
        _hold(e, b)
        e.table[e.row[r]][k] = b
    e.blocks[r] = max(e.blocks[r], need)
    return True


def _offer_to_cache(e: Engine, limits: Limits, r: int) -> None:
    """Make the full blocks of `r` findable; a block whose content is cached already stays private."""
    full = min(e.computed[r], e.prompt[r] + e.generated[r]) // BLOCK_TOKENS
    if full <= e.registered[r] or limits.prefix_caching == 0:
        return
    for k in range(e.registered[r], full):
        key = _block_key(e, r, k)
        b = e.table[e.row[r]][k]
        if e.key[b] == 0 and _find(e, key) == NULL_BLOCK:
            i = _bucket_of(e, key)
            e.key[b] = key
            e.key_next[b] = e.bucket[i]
            e.bucket[i] = b
    e.registered[r] = full


def _preempt(e: Engine, r: int) -> None:
    """Send running request `r` back to the head of the waiting queue; its KV is to be computed again."""
    _unlink(e, r)
    _drop_blocks(e, r)
    _link(e, WAITING, e.queue_next[WAITING], r)
    e.preempted[r] += 1
    e.counts[PREEMPTIONS] += 1


def _schedule(e: Engine, limits: Limits, r: int, tokens: int, slot: int) -> int:
    """Put `tokens` tokens of `r`, whose blocks are reserved, in the step being composed; its context length."""
    e.computed[r] += tokens
    _offer_to_cache(e, limits, r)
    samples = e.computed[r] == e.prompt[r] + e.generated[r] + e.pending[r]
    n = e.batch_size[slot]
    e.batch[slot][n] = r
    e.sampled[slot][n] = 1 if samples else 0
    e.batch_size[slot] = n + 1
    e.in_flight[r] += 1
    if samples:
        e.pending[r] += 1
    return e.computed[r]


def _admit(e: Engine, limits: Limits, r: int, now_s: float) -> bool:
    """Move waiting request `r` to running if all of it fits; True if it did."""
    length = e.prompt[r] + e.generated[r]
    # The last token is computed even when cached: its logits give the next token.
    findable = (length - 1) // BLOCK_TOKENS if limits.prefix_caching else 0
    hits = 0
    idle_hits = 0
    while hits < findable:
        b = _find(e, _block_key(e, r, hits))
        if b == NULL_BLOCK:
            break
        if e.refs[b] == 0:
            idle_hits += 1
        hits += 1
    need = (length + BLOCK_TOKENS - 1) // BLOCK_TOKENS - hits
    if need + idle_hits > e.counts[FREE_BLOCKS]:
        return False
    _unlink(e, r)
    _link(e, RUNNING, RUNNING, r)
    e.counts[FREE_ROWS] -= 1
    e.row[r] = e.rows[e.counts[FREE_ROWS]]
    for k in range(hits):
        b = _find(e, _block_key(e, r, k))
        _hold(e, b)
        e.table[e.row[r]][k] = b
    e.blocks[r] = hits
    e.registered[r] = hits
    e.computed[r] = hits * BLOCK_TOKENS
    if e.scheduled_s[r] < 0:
        e.scheduled_s[r] = now_s
        e.cached[r] = e.computed[r]
        e.counts[CACHE_QUERIES] += e.prompt[r]
        e.counts[CACHE_HITS] += e.computed[r]
    return True


def _compose_running(e: Engine, limits: Limits, slot: int) -> tuple[int, int, bool]:
    """Schedule the running requests; (tokens, context, whether somebody was preempted)."""
    budget = limits.max_num_batched_tokens
    context = 0
    preempted = False
    r = e.queue_next[RUNNING]
    while r != RUNNING and budget > 0:
        if e.generated[r] + e.pending[r] >= e.output[r]:
            # Its last token is under way: it only waits to be delivered.
            r = e.queue_next[r]
            continue
        tokens = min(e.prompt[r] + e.generated[r] + e.pending[r] - e.computed[r], budget)
        while e.status[r] == ACTIVE and not _reserve(e, r, e.computed[r] + tokens):
            _preempt(e, e.queue_prev[RUNNING])
            preempted = True
        if e.status[r] != ACTIVE:
            break
        context += _schedule(e, limits, r, tokens, slot)
        budget -= tokens
        r = e.queue_next[r]
    return limits.max_num_batched_tokens - budget, context, preempted


def compose(e: Engine, cost: StepCost, limits: Limits, now_s: float) -> bool:
    """Compose the next step.

    Args:
        e: the engine; at most one step may be under way.
        cost: step-time coefficients.
        limits: scheduler limits.
        now_s: the present time.

    Returns:
        Whether there was anything to compose. The step starts when the one under way ends, or now.
    """
    slot = e.counts[COMPOSED] % PIPELINE_DEPTH
    e.batch_size[slot] = 0
    tokens, context, preempted = _compose_running(e, limits, slot)
    while not preempted and tokens < limits.max_num_batched_tokens and e.counts[N_RUNNING] < limits.max_num_seqs:
        r = e.queue_next[WAITING]
        if r == WAITING or not _admit(e, limits, r, now_s):
            break
        chunk = min(e.prompt[r] + e.generated[r] - e.computed[r], limits.max_num_batched_tokens - tokens)
        _reserve(e, r, e.computed[r] + chunk)
        context += _schedule(e, limits, r, chunk, slot)
        tokens += chunk
    if tokens == 0:
        return False
    start_s = now_s
    if e.counts[COMPOSED] > e.counts[DELIVERED]:
        start_s = max(now_s, e.batch_end_s[1 - slot])
    e.batch_tokens[slot] = tokens
    e.batch_end_s[slot] = start_s + cost.alpha_s + max(cost.floor_s, cost.beta_s * tokens) + cost.gamma_s * context
    e.counts[COMPOSED] += 1
    return True


def in_flight_steps(e: Engine) -> int:
    """Steps composed and not delivered."""
    return e.counts[COMPOSED] - e.counts[DELIVERED]


def next_end_s(e: Engine) -> float:
    """When the oldest step under way ends; only meaningful while there is one."""
    return e.batch_end_s[e.counts[DELIVERED] % PIPELINE_DEPTH]


def deliver(e: Engine, now_s: float) -> None:
    """Hand out the tokens of the oldest step under way, which ends at `now_s`.

    The requests that got one are ``outputs[:counts[OUTPUTS]]``; those with their last have status FINISHED.
    """
    slot = e.counts[DELIVERED] % PIPELINE_DEPTH
    e.counts[DELIVERED] += 1
    e.counts[OUTPUTS] = 0
    for i in range(e.batch_size[slot]):
        r = e.batch[slot][i]
        e.in_flight[r] -= 1
        if e.sampled[slot][i] == 0 or e.status[r] == FINISHED:
            continue
        e.pending[r] -= 1
        e.generated[r] += 1
        if e.generated[r] == 1:
            e.first_token_s[r] = now_s
        if e.generated[r] == e.output[r]:
            finish(e, r, now_s)
        e.outputs[e.counts[OUTPUTS]] = r
        e.counts[OUTPUTS] += 1


def finish(e: Engine, r: int, now_s: float) -> None:
    """End request `r`, done or aborted, wherever it is; its blocks are free at once."""
    if e.status[r] == ACTIVE:
        _drop_blocks(e, r)
    _unlink(e, r)
    e.status[r] = FINISHED
    e.finished_s[r] = now_s


def enqueue(e: Engine, r: int) -> None:
    """Append request `r`, whose lengths and arrival are set, to the waiting queue."""
    e.uid[r] = e.counts[NEXT_UID]
    e.counts[NEXT_UID] += 1
    _link(e, WAITING, WAITING, r)


def run(e: Engine, cost: StepCost, limits: Limits, clock_s: Floats, tick_s: float, series: Table) -> bool:
    """Run in virtual time until all requests are done or the series is full.

    Args:
        e: the engine, its requests in order of arrival.
        cost: step-time coefficients.
        limits: scheduler limits.
        clock_s: (1,) the virtual time, left where the run stopped.
        tick_s: interval of the series.
        series: (ticks, 3) running requests, waiting requests, KV blocks in use at ``i * tick_s``.

    Returns:
        Whether the run came to its end; if not, the series is full: call again with another one.
    """
    n = len(e.status)
    usable = len(e.refs) - 1
    ticked = 0
    while True:
        while e.counts[ARRIVED] < n and e.arrival_s[e.counts[ARRIVED]] <= clock_s[0]:
            enqueue(e, e.counts[ARRIVED])
            e.counts[ARRIVED] += 1
        while in_flight_steps(e) < PIPELINE_DEPTH and compose(e, cost, limits, clock_s[0]):
            pass
        if in_flight_steps(e) > 0:
            until_s = next_end_s(e)
        elif e.counts[ARRIVED] < n:
            until_s = e.arrival_s[e.counts[ARRIVED]]
        else:
            return True
        while e.counts[TICKS] * tick_s < until_s:
            if ticked == len(series):
                return False
            series[ticked][0] = e.counts[N_RUNNING]
            series[ticked][1] = e.counts[N_WAITING]
            series[ticked][2] = usable - e.counts[FREE_BLOCKS]
            ticked += 1
            e.counts[TICKS] += 1
        clock_s[0] = until_s
        if in_flight_steps(e) > 0:
            deliver(e, until_s)


COMPILED = (
    _link,
    _unlink,
    _block_key,
    _bucket_of,
    _find,
    _forget,
    _hold,
    _drop_blocks,
    _reserve,
    _offer_to_cache,
    _preempt,
    _schedule,
    _admit,
    _compose_running,
    compose,
    in_flight_steps,
    next_end_s,
    deliver,
    finish,
    enqueue,
)
"""What `run` calls, for whoever compiles it."""
