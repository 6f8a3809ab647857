"""The work of each request's decode phase, read off a request log.

Between its first and its last token a request of o tokens sees o - 1 engine steps, whatever they take. What those steps
computed follows from the log alone: every other request's tokens are spread evenly between its first and its last, its
context grows with them, and its prompt is computed just before its first token. So

    last - first = alpha (o - 1) + sum of max(floor, beta * tokens) + gamma * sum of context

is linear in the coefficients where there is no floor. A request that did not queue waits half a step, another one (the
engine schedules asynchronously) and the steps of its own prompt and of those computed with it:

    first - arrival = (1.5 + prompt steps) T + beta * prompt tokens,   T = alpha + beta * batch + gamma * context

which tells alpha from beta where all steps look alike. Only requests with enough steps are judged. A preempted request
saw more steps than it has tokens; it stands out by its residual and the robust loss passes over it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from servingplan.latency.closedloop import Array
from servingplan.latency.fit_measurements import RequestLog
from servingplan.latency.profile import StepTime

_FEWEST_STEPS = 20
_START_STEPS = 1.5
_QUEUED = 8.0


@dataclass(frozen=True, slots=True)
class UnqueuedWork:
    """Work done between arrival and first token of the judged requests that did not queue.

    Attributes:
        seconds: (requests,) time to first token.
        steps: (requests,) expected in that time.
        decodes: (requests,) tokens of decoding requests in a step.
        context: (requests,) KV tokens read in a step.
        prompts: (requests,) prompt tokens computed, its own among them.
    """

    seconds: Array
    steps: Array
    decodes: Array
    context: Array
    prompts: Array

    def log_errors(self, step: StepTime) -> Array:
        """Logarithm of predicted over logged time to first token, (requests,)."""
        base_s = step.alpha_s + np.maximum(step.floor_s, step.beta_s * self.decodes) + step.gamma_s * self.context
        return np.asarray(np.log((self.steps * base_s + step.beta_s * self.prompts) / self.seconds), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class LoggedWork:
    """Work done during the judged requests' decode phases.

    Attributes:
        seconds: (requests,) from first to last token.
        steps: (requests,) in that time.
        overlap: (requests, segments) share of each stretch between two events of the log that lies in that time.
        segment_steps: (segments,) steps in the stretch.
        segment_decodes: (segments,) tokens of decoding requests in the stretch.
        segment_prompts: (segments,) prompt tokens computed in the stretch.
        context: (requests,) sum over the steps of KV tokens read.
        budget: Token budget of a step.
        unqueued: The times to first token that tell of steps and not of queues.
    """

    seconds: Array
    steps: Array
    overlap: Array
    segment_steps: Array
    segment_decodes: Array
    segment_prompts: Array
    context: Array
    budget: float
    unqueued: UnqueuedWork

    @property
    def fastest_s(self) -> float:
        """The shortest mean step that a judged request saw."""
        return float(np.min(self.seconds / self.steps))

    def log_errors(self, step: StepTime) -> Array:
        """Logarithm of predicted over logged decode time, (requests,)."""
        room = np.maximum(self.budget - self.segment_decodes / np.maximum(self.segment_steps, 1e-9), 1.0)
        with_prompts = np.minimum(self.segment_steps, np.ceil(self.segment_prompts / room))
        share = with_prompts / np.maximum(self.segment_steps, 1e-9)
        decodes = self.segment_decodes * step.beta_s
        plain = np.maximum(step.floor_s * (self.segment_steps - with_prompts), decodes * (1 - share))
        mixed = np.maximum(step.floor_s * with_prompts, decodes * share + self.segment_prompts * step.beta_s)
        predicted_s = step.alpha_s * self.steps + self.overlap @ (plain + mixed) + step.gamma_s * self.context
        return np.asarray(np.log(predicted_s / self.seconds), dtype=np.float64)


def logged_work(log: RequestLog, budget: int) -> LoggedWork:
    """The work that the judged requests of a log met.

    Raises:
        ValueError: If no judged request decodes for long enough.
    """
    first, last = np.array(log.first_token_s), np.array(log.last_token_s)
    prompts, outputs = np.array(log.prompt_tokens, dtype=np.float64), np.array(log.output_tokens, dtype=np.float64)
    judged = np.zeros(len(first), dtype=bool)
    judged[slice(*log.judged) if log.judged else slice(None)] = True
    judged &= (outputs - 1 >= _FEWEST_STEPS) & (last > first)
    if not np.any(judged):
        raise ValueError(f"no judged request of the log decodes for {_FEWEST_STEPS} steps or more")

    edges = np.unique(np.concatenate([first, last]))
    begin, end = edges[:-1], edges[1:]
    width = end - begin
    active = (first[:, None] <= begin) & (last[:, None] >= end)
    gaps = outputs - 1
    speed = np.where(last > first, gaps / np.where(last > first, last - first, 1.0), 0.0)
    decodes = (active * speed[:, None]).sum(0) * width
    number = np.maximum(active.sum(0), 1)
    steps = decodes / number
    at_middle = prompts[:, None] + 1 + speed[:, None] * ((begin + end) / 2 - first[:, None])
    context = (active * at_middle).sum(0) * steps
    # A prompt is computed in the stretch that its first token ends.
    prompt_tokens = np.zeros(len(begin))
    place = np.searchsorted(end, first)
    inside = first > edges[0]
    np.add.at(prompt_tokens, place[inside], prompts[inside])
    context += prompt_tokens
    overlap = active[judged].astype(np.float64)
    return LoggedWork(
        seconds=(last - first)[judged],
        steps=gaps[judged],
        overlap=overlap,
        segment_steps=steps,
        segment_decodes=decodes,
        segment_prompts=prompt_tokens,
        context=overlap @ context,
        budget=float(budget),
        unqueued=_unqueued(log, edges, active, speed, float(budget)),
    )


def _unqueued(log: RequestLog, edges: Array, active: npt.NDArray[np.bool_], speed: Array, budget: float) -> UnqueuedWork:
    arrival, first = np.array(log.arrival_s), np.array(log.first_token_s)
    prompts = np.array(log.prompt_tokens, dtype=np.float64)
    judged = np.zeros(len(first), dtype=bool)
    judged[slice(*log.judged) if log.judged else slice(None)] = True
    place = np.searchsorted(edges, arrival, side="right") - 1
    inside = (place >= 0) & (place < len(edges) - 1)
    place = np.clip(place, 0, len(edges) - 2)
    together = active[:, place]
    decodes = together.sum(0).astype(np.float64)
    step_s = decodes / np.maximum((together * speed[:, None]).sum(0), 1e-9)
    generated = speed[:, None] * (arrival - first[:, None])
    context = (together * (prompts[:, None] + np.maximum(generated, 0.0))).sum(0)
    # A prompt in the step under way at arrival counts for the part of it that is left, which the log does not tell.
    disturbed = ((first[:, None] > arrival) & (first[:, None] < first)).any(0)
    work = ((first[:, None] == first) * prompts[:, None]).sum(0)
    steps = _START_STEPS + np.ceil(work / np.maximum(budget - decodes, 1.0))
    chosen = judged & inside & ~disturbed & (decodes >= 1) & (first > arrival) & (first - arrival <= _QUEUED * steps * step_s)
    return UnqueuedWork((first - arrival)[chosen], steps[chosen], decodes[chosen], context[chosen], work[chosen])
