"""The factors on a profile's step, filtered: an iterated extended Kalman filter on their logarithms.

Observations are the mean time to first token and the mean time between tokens of a window. Two figures at one load do not
determine three factors. So before anything is seen the factors are nearly one: a replica is slower or faster as a whole, by a
third or so, and much less in one coefficient alone. What no observation determines moves along with what one does.

Each update minimises the squared distances from what was believed and from what was seen, each over its variance. Of a linear
form that is the Kalman update, and the minimum the normalised innovation squared, whose 97.5 % point is the gate: a window
beyond it teaches nothing (or its time between tokens alone does), but each makes what is believed less sure. A replica that has
really changed is so followed after a few windows, and a burst is not.

Source: the gate and the observations are those of the tuner of llm-d's workload variant autoscaler; its filter has independent
coefficients and no way back from a gate that shuts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from servingplan.calibration.observed import Floats, Form, Seen

GATES = (0.0, 5.024, 7.378)
"""97.5 % points of chi-square, by degrees of freedom."""

_COMMON_SD, _OWN_SD = 0.35, 0.12
_COMMON_WALK, _OWN_WALK = 0.005, 0.003
"""How far factors wander from one cycle to the next."""
_REOPENED, _REOPENED_BY_TTFT = 0.1, 0.02
_SHIFTS = np.linspace(-0.8, 0.8, 17)
_ROUNDS = 4
_FAR = 6.0
_FARTHEST = 1.0
_CAPACITY_SD = 0.1


@dataclass(frozen=True, slots=True)
class Belief:
    """Factors on a step, as believed.

    Attributes:
        mean: (3,) logarithms.
        covariance: (3, 3)
    """

    mean: Floats
    covariance: Floats

    def wandered(self) -> Belief:
        """A cycle later."""
        return Belief(self.mean, self.covariance + _spread(_COMMON_WALK, _OWN_WALK))

    def reopened(self, share: float) -> Belief:
        """Less sure, by a share of the doubt there was before anything was learnt, and no less sure than that."""
        wider = self.covariance + share * _spread(_COMMON_SD, _OWN_SD)
        # Beyond the first doubt there is nothing to doubt: the sum of the variances says how much there is.
        excess = float(np.trace(wider)) / float(np.trace(_spread(_COMMON_SD, _OWN_SD)))
        return Belief(self.mean, wider / max(1.0, excess))


@dataclass(frozen=True, slots=True)
class Update:
    """What a sample made of a belief.

    Attributes:
        used: (2,) whether the time to first token, and the time between tokens, were believed.
    """

    belief: Belief
    used: tuple[bool, bool]


def first_belief() -> Belief:
    """Before anything was seen."""
    return Belief(np.zeros(3), _spread(_COMMON_SD, _OWN_SD))


def updated(before: Belief, form: Form, seen: Seen) -> Update:
    """The belief after a window; wider, and otherwise as before, where the window does not fit it."""
    for trial in (seen, seen.without_ttft()):
        known = np.isfinite(trial.values)
        count = int(known.sum())
        if count == 0:
            continue
        mean, distance = _nearest(before, form, trial)
        if distance <= GATES[count]:
            belief = Belief(mean, _narrowed(before.covariance, form.slopes(mean)[known], trial.variances[known]))
            refused = bool(np.isfinite(seen.values[0])) and not known[0]
            return Update(belief.reopened(_REOPENED_BY_TTFT) if refused else belief, (bool(known[0]), bool(known[1])))
    return Update(before.reopened(_REOPENED), (False, False))


def slowed(before: Belief, form: Form) -> Belief:
    """The belief after a queue was seen to grow at a load believed stable: the sample's rate is no less than the stable one."""
    excess = -math.log(form.load(before.mean))
    if excess <= 0:
        return before
    # The stable rate falls with the common factor alone, so the gain is that of a scalar observation of it.
    ones = np.ones(3)
    across = before.covariance @ ones / 3
    variance = float(ones @ across) / 3 + _CAPACITY_SD**2
    mean = before.mean + across * (excess / variance)
    return Belief(mean, before.covariance - np.outer(across, across) / variance)


def surprise(belief: Belief, form: Form, seen: Seen, log_bias: float) -> Floats:
    """(2,) how far a sample is from what was expected, over its standard deviation; NaN where not measured."""
    slopes = form.slopes(belief.mean)
    variances = np.einsum("ij,jk,ik->i", slopes, belief.covariance, slopes) + seen.variances
    found: Floats = (seen.values - form.at(belief.mean) - np.array([log_bias, 0.0])) / np.sqrt(variances)
    return found


def _nearest(before: Belief, form: Form, seen: Seen) -> tuple[Floats, float]:
    """The factors nearest to what was believed and to what was seen, and their squared distance from both."""
    known = np.isfinite(seen.values)
    precision = np.linalg.inv(before.covariance)
    weights = 1 / seen.variances[known]

    def distance(mean: Floats) -> float:
        apart, missed = mean - before.mean, (seen.values - form.at(mean))[known]
        return float(apart @ precision @ apart + missed**2 @ weights)

    best = before.mean
    if (nearest := distance(best)) > _FAR:
        # Near saturation the form bends so sharply that steps from afar may end anywhere: look along the common factor first.
        best = min((np.clip(before.mean + shift, -_FARTHEST, _FARTHEST) for shift in _SHIFTS), key=distance)
        nearest = distance(best)
    for _ in range(_ROUNDS):
        slopes = form.slopes(best)[known]
        pull = slopes.T @ (weights * (seen.values - form.at(best))[known]) - precision @ (best - before.mean)
        step = np.linalg.solve(precision + slopes.T @ (weights[:, None] * slopes), pull)
        for share in (1.0, 0.5, 0.25, 0.1):
            trial = np.clip(best + share * step, -_FARTHEST, _FARTHEST)
            if (found := distance(trial)) < nearest - 1e-9:
                best, nearest = trial, found
                break
        else:
            break
    return best, nearest


def _narrowed(covariance: Floats, slopes: Floats, variances: Floats) -> Floats:
    gain = covariance @ slopes.T @ np.linalg.inv(slopes @ covariance @ slopes.T + np.diag(variances))
    kept = np.eye(3) - gain @ slopes
    # Joseph's form stays symmetric and positive whatever is rounded.
    found: Floats = kept @ covariance @ kept.T + gain @ np.diag(variances) @ gain.T
    return found


def _spread(common: float, own: float) -> Floats:
    found: Floats = common**2 * np.ones((3, 3)) + own**2 * np.eye(3)
    return found
