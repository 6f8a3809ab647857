"""Latency of a closed loop: C clients, each of which sends its next request when the last one has ended.

Time is counted in engine steps, because steps with prompts are long and a clock in seconds would count them double. With n
requests decoding in the mean step, n / (o - 1) requests end in a step and as many prompts are computed in their place,
whatever the step takes. For one client the other C - 1 do the disturbing: it meets some of their prompts on its way to its
first token and the others while it decodes, so TPOT is the step at that rate of prompts, and

    TTFT = c0 + (s + backlog) T + own steps + prompts met,    cycle = (o - 1) + s + backlog + own steps, n = C (o - 1) / cycle

s being the steps from arrival to the first step that holds the request. The cycle hardly depends on n, so iteration finds the
fixed point in a few rounds, inside a bracket. Only min(C, max_num_seqs, KV / (i + o / 2)) requests run at once, and the token
budget keeps n below budget (o - 1) / (i + o - 1); clients beyond that wait, and what is missing from the cycle is their wait.

A benchmark whose clients all start at once adds the wait within that first wave for the share of requests in it.

Lengths are taken as constant. Loops of fixed lengths can lock in step, which moves time between TTFT and TPOT and hardly
changes their sum; ``Client.bunching`` says how much.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from servingplan.latency.profile import StepTime

Array = npt.NDArray[np.float64]

_ITERATIONS = 6
_BUSIEST = 0.8


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds the batch of an engine.

    Attributes:
        kv_tokens: Tokens that fit in the KV cache; None where it is not known to bind.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    kv_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Extra:
    """Costs of the step beside alpha, beta and gamma.

    Attributes:
        prompt_s: Engine time for each prompt, whatever its length, in which no request decodes.
        ramp_s: A cost that saturates, ``ramp_s * (1 - exp(-computed tokens / ramp_tokens))``: reading the experts of a sparse
            model (all are read once the batch is large), or leaving the captured graphs (steps with prompts do).
        ramp_tokens: See above.
        idle_slots: Requests that wait although the batch has room. TensorRT-LLM's closed loops wait as if there were one:
            their time to first token grows with the output length by a share 1 / C of the whole request.
    """

    prompt_s: float = 0.0
    ramp_s: float = 0.0
    ramp_tokens: float = 1.0
    idle_slots: float = 0.0


NO_EXTRA = Extra()


@dataclass(frozen=True, slots=True)
class Client:
    """What the measuring side adds to the engine's time.

    Attributes:
        overhead_s: Constant part of the time to first token outside the engine: network, tokeniser, API server.
        first_wave: Share of the measured requests that were sent together at the start.
        start_steps: Engine steps from a request's arrival to the start of the step that computes its prompt.
        bunching: How often a prompt meets others, against chance: 0 where the clients keep out of step, above 1 where they
            move together.
    """

    overhead_s: float = 0.0
    first_wave: float = 0.0
    start_steps: float = 1.5
    bunching: float = 1.0


@dataclass(frozen=True, slots=True)
class Loops:
    """Closed loops, one element each.

    Attributes:
        concurrency: (loops,) clients.
        prompt_tokens: (loops,)
        output_tokens: (loops,) at least 2.
    """

    concurrency: Array
    prompt_tokens: Array
    output_tokens: Array


def predict(
    loops: Loops, step: StepTime, limits: Limits, client: Client, first_wave: Array | None = None, extra: Extra = NO_EXTRA
) -> tuple[Array, Array]:
    """Mean time to first token and mean time per further output token, in seconds.

    Args:
        loops: What is sent.
        step: The engine's coefficients.
        limits: What bounds its batch.
        client: What the measuring side adds.
        first_wave: (loops,) replaces the client's where loops differ.
        extra: Further costs of the step.

    Returns:
        TTFT (loops,) and TPOT (loops,); NaN where a request does not fit in the KV cache.
    """
    clients, prompts, gaps = loops.concurrency, loops.prompt_tokens, loops.output_tokens - 1
    most = np.minimum(np.maximum(1.0, clients - extra.idle_slots), limits.max_num_seqs)
    if limits.kv_tokens is not None:
        fitting = limits.kv_tokens / (prompts + loops.output_tokens / 2)
        most = np.where(fitting >= 1, np.minimum(most, fitting), np.nan)
    low, high = np.zeros_like(most), np.minimum(most, 0.999 * limits.max_num_batched_tokens * gaps / (prompts + gaps))
    decoding = high
    for _ in range(_ITERATIONS):
        at = _state(loops, step, limits, client, decoding, most, extra)
        wanted = most * gaps / at.cycle_steps
        low, high = np.where(wanted >= decoding, decoding, low), np.where(wanted >= decoding, high, decoding)
        # The cycle hardly depends on the batch, so the batch it asks for is all but the solution; else bisect.
        decoding = np.where((wanted > low) & (wanted < high), wanted, np.where(wanted >= high, high, (low + high) / 2))
    at = _state(loops, step, limits, client, decoding, most, extra)
    # Where the token budget holds the batch down, the steps missing from the cycle are spent waiting.
    ttft_s = at.ttft_s + (most * gaps / decoding - at.cycle_steps) * at.step_s
    ttft_s += (clients / most - 1) * (ttft_s + gaps * at.tpot_s)
    wave = client.first_wave if first_wave is None else first_wave
    return ttft_s + wave * _first_wave_s(loops, step, limits, most), at.tpot_s


@dataclass(frozen=True, slots=True)
class _State:
    """The loops at a given number of decoding requests.

    Attributes:
        step_s: Mean step.
        tpot_s: Mean step that a decoding request sees, without its own prompt.
        ttft_s: Of an admitted request.
        cycle_steps: Steps from one request of a client to its next.
    """

    step_s: Array
    tpot_s: Array
    ttft_s: Array
    cycle_steps: Array


@dataclass(frozen=True, slots=True)
class _Costs:
    """Times of steps at a given number of decoding requests, all (loops,).

    Attributes:
        chunks: Steps that a prompt is cut into.
        base_s: What every step takes, whatever it computes.
        prompt_s: What a prompt takes beside its tokens.
    """

    loops: Loops
    step: StepTime
    extra: Extra
    decoding: Array
    chunks: Array
    base_s: Array
    prompt_s: Array

    def compute_s(self, tokens: Array) -> Array:
        """The part of a step that depends on its tokens, beside what decodes read."""
        ramp_s = -self.extra.ramp_s * np.expm1(-tokens / self.extra.ramp_tokens)
        return np.asarray(np.maximum(self.step.floor_s, self.step.beta_s * tokens) + ramp_s, dtype=np.float64)

    def decode_s(self) -> Array:
        """A step without prompts."""
        return self.base_s + self.compute_s(self.decoding)

    def mean_s(self, starting: Array) -> Array:
        """The mean step with that many prompts begun in each; prompts of one step share the floor and the ramp."""
        busy = 1 - np.exp(-starting * self.chunks)
        tokens = self.decoding + starting * self.loops.prompt_tokens / np.maximum(busy, 1e-9)
        with_prompts_s = self.base_s + self.compute_s(tokens)
        return np.asarray((1 - busy) * self.decode_s() + busy * with_prompts_s + starting * self.prompt_s, dtype=np.float64)

    def added_s(self) -> Array:
        """What a prompt adds to the steps that compute it."""
        share = self.decoding + self.loops.prompt_tokens / self.chunks
        return self.chunks * (self.compute_s(share) - self.compute_s(self.decoding)) + self.prompt_s


def _state(loops: Loops, step: StepTime, limits: Limits, client: Client, decoding: Array, most: Array, extra: Extra) -> _State:
    prompts, gaps = loops.prompt_tokens, loops.output_tokens - 1
    ending, shared = decoding / gaps, 1 - 1 / most
    others = ending * shared
    room = np.maximum(limits.max_num_batched_tokens - decoding * shared, 1.0)
    chunks = np.ceil(prompts / room)
    base_s = step.alpha_s + step.gamma_s * decoding * (prompts + loops.output_tokens / 2)
    reread_s = step.gamma_s * prompts * (chunks + 1) / 2
    costs = _Costs(loops, step, extra, decoding, chunks, base_s, extra.prompt_s + reread_s)

    load = np.minimum(_BUSIEST, others * prompts / room)
    backlog = client.bunching * load / (2 * (1 - load)) * prompts / room
    # A lone client finds the engine idle.
    start_steps = client.start_steps * np.minimum(1.0, most - 1) + backlog
    by_chance = others * (start_steps + chunks)
    # Clients evenly out of step meet only where their prompts cannot be kept apart. Whom a request does not meet on its way
    # to the first token it meets later.
    met = np.maximum(client.bunching * by_chance, by_chance - 0.5)
    step_s = costs.mean_s(ending)
    tpot_s = costs.mean_s(np.maximum(0.0, others + (by_chance - met) / gaps))

    waiting = start_steps / (start_steps + chunks)
    own_tokens = np.minimum(chunks * room, prompts * (1 + met * (1 - waiting)))
    own_s = (
        chunks * (base_s + costs.compute_s(decoding + own_tokens / chunks)) + reread_s + extra.prompt_s * own_tokens / prompts
    )
    return _State(
        step_s=step_s,
        tpot_s=tpot_s,
        ttft_s=client.overhead_s + start_steps * costs.decode_s() + waiting * met * costs.added_s() + own_s,
        cycle_steps=gaps + chunks + start_steps + client.overhead_s / step_s,
    )


def _first_wave_s(loops: Loops, step: StepTime, limits: Limits, most: Array) -> Array:
    """Mean time that a request of a wave of `most` spends on the others' prompts."""
    wave = most * loops.prompt_tokens
    mean = np.where(wave <= limits.max_num_batched_tokens, wave, (wave + limits.max_num_batched_tokens) / 2)
    return np.asarray(step.beta_s * np.maximum(0.0, mean - loops.prompt_tokens), dtype=np.float64)
