"""What a setup's live latency teaches about its profile, cycle by cycle, and the profile that plans are made with.

A sample moves, in this order: the factors on the step (``parameters``), what they leave of the time to first token at its load
(``bias``), the margins of its bounds (``conformal``, against what was believed before it came) and the test for change
(``drift``). Plans follow all this only when it is off by enough (``applied``).

A queue that grows, that is left from a minute ago or that is one of bursts is not the stationary queue of the form, and teaches
nothing about it. But where it grew at a load believed stable, and requests came evenly, the rate was the stable one. A replica
that is believed to be full teaches by its time between tokens alone, unless it answers sooner than a full one would.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from servingplan.calibration import bias, conformal
from servingplan.calibration.applied import GRID, following, rounded_log
from servingplan.calibration.drift import Drift
from servingplan.calibration.memory import SetupMemory
from servingplan.calibration.observed import LEAST_REQUESTS, Form, Sample, Seen, seen, snapped, stepped
from servingplan.calibration.parameters import Belief, Update, first_belief, slowed, surprise, updated
from servingplan.latency.capacity import stable_rate_rps
from servingplan.latency.profile import Correction, EngineProfile

__all__ = ["Sample", "corrected", "faded", "learn"]

_STATIONARY = 0.95
"""Load up to which a window may be taken for a stationary queue."""
_STABLE = 0.7
"""Load below which a queue does not grow by chance."""
_EVEN = 1.3
"""Rate of the busiest parts of a window over that of the whole, up to which its arrivals are even."""
_BURSTS = 2.2
"""The same, from which on they are bursts, whatever the load."""
_SETTLING_IN = 3
"""Samples before which a surprise says more of the profile than of a change, and a margin more of neither."""
_DOUBT_AFTER_ALARM, _FORGOTTEN_AFTER_ALARM = 0.3, 0.7
_LOWER = np.tril_indices(3)
_FADING = 0.9
"""What is left, a cycle later, of what was learnt of a setup that is sent nothing."""


def learn(prior: EngineProfile, memory: SetupMemory, sample: Sample) -> SetupMemory:
    """The memory after a sample; as it was where the sample has too few requests to say anything.

    Args:
        prior: The profile as declared.
        memory: Before.
        sample: One cycle; of warm replicas alone.
    """
    if sample.requests < LEAST_REQUESTS or sample.rate_rps <= 0 or not sample.ttft.mean:
        return memory
    if not all(map(math.isfinite, (sample.busiest, sample.offered_rps, sample.ttft.mean))):
        return memory
    if stable_rate_rps(replace(prior, correction=None), sample.mix) <= 0:
        return memory
    form, before = Form(prior, sample), _belief(memory).wandered()
    looked = seen(sample, stepped(prior, snapped(memory.log_step)))
    steady = _steady(form, before)
    stationary = steady and _stationary(form, before, looked)
    update = _update(before, form, looked, steady, stationary)
    drift = Drift(*memory.drift, drifting=memory.drifting)
    log_bias, weight, margins = memory.log_bias, memory.bias_weight, memory.margin
    belief = update.belief
    if stationary and memory.samples >= _SETTLING_IN:
        margins = conformal.learnt(margins, _believed(prior, memory), sample, memory.samples)
        at_load = bias.at(bias.believed(log_bias, weight), form.load(before.mean))
        drift = drift.after(_together(surprise(before, form, looked, at_load)))
    if update.used[0]:
        load, left = form.load(belief.mean), float(looked.values[0] - form.at(belief.mean)[0])
        log_bias, weight = bias.learnt(log_bias, weight, load, left, float(looked.variances[0]))
    if drift.drifting and not memory.drifting:
        belief = belief.reopened(_DOUBT_AFTER_ALARM)
        weight = bias.forgotten(weight, _FORGOTTEN_AFTER_ALARM)
    alpha, beta, gamma = belief.mean.tolist()
    found = SetupMemory(
        samples=memory.samples + 1,
        log_step=(alpha, beta, gamma),
        covariance=tuple(belief.covariance[_LOWER].tolist()),
        log_bias=log_bias,
        bias_weight=weight,
        margin=margins,
        drift=(drift.up, drift.down),
        drifting=drift.drifting,
        applied=memory.applied,
    )
    return replace(found, applied=following(found))


def faded(memory: SetupMemory) -> SetupMemory:
    """The memory of a setup that is sent nothing while others are, a cycle later.

    What was learnt may be why it is sent nothing, and then nothing would ever tell whether that still holds, or ever did.
    """
    alpha, beta, gamma = (_FADING * each for each in memory.log_step)
    found = replace(
        memory,
        log_step=(alpha, beta, gamma),
        covariance=tuple(_belief(memory).wandered().covariance[_LOWER].tolist()),
        log_bias=tuple(_FADING * each for each in memory.log_bias),
        margin={key: _FADING * each for key, each in memory.margin.items()},
        drift=(0.0, 0.0),
        drifting=False,
    )
    return replace(found, applied=following(found))


def corrected(prior: EngineProfile, memory: SetupMemory | None, family: Sequence[SetupMemory] = ()) -> EngineProfile:
    """The profile that plans are made with.

    Args:
        prior: The profile as declared.
        memory: What was learnt of this setup; None or empty where nothing was.
        family: What was learnt of the model's other setups: a model that is slower than declared in one is likely so in
            another, by half of it where one was seen, by more where several were.
    """
    if memory is not None and memory.applied is not None:
        applied = memory.applied
        found = Correction(applied.step, applied.ttft, tuple(sorted(applied.margin.items())))
        return replace(prior, correction=None if found == Correction() else found)
    known = [other.applied.step for other in family if other.applied is not None]
    if not known:
        return replace(prior, correction=None)
    mean = np.log(np.array(sorted(known))).mean(axis=0) * len(known) / (len(known) + 1)
    alpha, beta, gamma = (math.exp(each) for each in rounded_log(mean.tolist(), GRID))
    found = Correction((alpha, beta, gamma))
    return replace(prior, correction=None if found == Correction() else found)


def _belief(memory: SetupMemory) -> Belief:
    if len(memory.covariance) != len(_LOWER[0]):
        return first_belief()
    lower = np.zeros((3, 3))
    lower[_LOWER] = memory.covariance
    return Belief(np.array(memory.log_step), lower + np.tril(lower, -1).T)


def _stationary(form: Form, before: Belief, looked: Seen) -> bool:
    """Whether a window may be of a stationary queue: below the stable rate, or no later than one would be there.

    A replica that is faster than believed looks overloaded and answers in time. How fast it is the time between tokens says
    first, since that holds in any queue.
    """
    paced = updated(before, form, looked.without_ttft()).belief if math.isfinite(looked.values[1]) else before
    if (load := form.load(paced.mean)) <= _STATIONARY:
        return True
    as_full = paced.mean + math.log(_STATIONARY / load)
    return bool(looked.values[0] < form.at(as_full)[0])


def _steady(form: Form, before: Belief) -> bool:
    """Whether a window was alike throughout: no queue from before it, none left by it, no burst beyond the stable rate."""
    sample = form.sample
    if sample.growing or sample.draining or sample.busiest > _BURSTS:
        return False
    return sample.busiest <= _EVEN or form.load(before.mean) * sample.busiest <= _STATIONARY


def _update(before: Belief, form: Form, looked: Seen, steady: bool, stationary: bool) -> Update:
    if steady:
        return updated(before, form, looked if stationary else looked.without_ttft())
    if form.sample.growing and form.sample.busiest <= _EVEN and form.load(before.mean) < _STABLE:
        return Update(slowed(before, form), (False, False))
    return Update(before, (False, False))


def _believed(prior: EngineProfile, memory: SetupMemory) -> EngineProfile:
    """The profile with all that is believed, not only what plans follow."""
    alpha, beta, gamma = np.exp(snapped(memory.log_step)).tolist()
    ttft = bias.factors(bias.believed(memory.log_bias, memory.bias_weight))
    return replace(prior, correction=Correction((alpha, beta, gamma), ttft, tuple(sorted(memory.margin.items()))))


def _together(surprises: np.ndarray) -> float:
    known = surprises[np.isfinite(surprises)]
    return float(known.sum() / math.sqrt(len(known))) if len(known) else 0.0
