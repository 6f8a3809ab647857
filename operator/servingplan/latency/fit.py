"""Step-time coefficients from measurements of one replica.

Least squares on the logarithms of TTFT and TPOT, so that a level at 10 ms and one at 10 s count alike. Errors are divided
by their own scatter, found by fitting twice more, because times per token repeat within a percent or two where times to
first token repeat within ten. The loss is soft l1: a few measured points are always spoilt. Parameters are searched as
logarithms from several starts (a gamma that the data do not show runs to zero from some of them), held loosely where
the clients of benchmarks have been seen to be (`servingplan.latency.fit_problem`).

Closed loops are predicted by `servingplan.latency.closedloop`, open ones by `servingplan.latency.capacity`, which is what
plans are made with, and request logs by the running set read off the log itself (`servingplan.latency.fit_log`).

Standard errors come from the Jacobian at the optimum. A coefficient whose relative standard error is above one half is
called not identified: its value fits these data, and says little about others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import OptimizeResult, least_squares

from servingplan.latency.closedloop import Array, Client, Extra, Limits
from servingplan.latency.fit_measurements import ClosedLoop, Measurement, OpenLoop, RequestLog, check
from servingplan.latency.fit_problem import PARAMETERS, Errors, FitProblem, Prior, Scales, problem_of
from servingplan.latency.profile import StepTime

__all__ = ["ClosedLoop", "Fit", "Measurement", "OpenLoop", "Prior", "RequestLog", "Residual", "fit"]

_IDENTIFIED = 0.5
_STARTS = ((1.0, 1.0, 1.0), (0.6, 3.0, 0.1), (1.2, 0.5, 4.0))
_ROUNDS = 2
_FINEST, _COARSEST = Scales(0.03, 0.005), Scales(0.3, 0.1)
_OUTLIER = 1.5


@dataclass(frozen=True, slots=True)
class Residual:
    """Predicted over measured less one, of a measurement; of a request log the mean absolute error over its requests.

    Attributes:
        ttft: None where the measurement says nothing of it.
    """

    ttft: float | None
    tpot: float


@dataclass(frozen=True, slots=True)
class Fit:
    """What a fit found.

    Attributes:
        step: The coefficients.
        standard_error: Of each of them, in the same units.
        overhead_s: Constant part of the measured time to first token that is not the engine's.
        first_wave: Share of the measured requests that were sent together at the start.
        start_steps: Steps a request waited before its own, in closed loops.
        bunching: How often a prompt met others, against chance, in closed loops.
        extra: Further costs of the step; none unless asked for.
        residuals: One a measurement, in the order given.
        identified: Which of alpha, beta, gamma, floor the data determine.
    """

    step: StepTime
    standard_error: StepTime
    overhead_s: float
    first_wave: float
    start_steps: float
    bunching: float
    extra: Extra
    residuals: tuple[Residual, ...]
    identified: frozenset[str]

    @property
    def client(self) -> Client:
        """What the measuring side added, to predict a loop like the measured ones."""
        return Client(self.overhead_s, self.first_wave, self.start_steps, self.bunching)


def fit(
    measurements: Sequence[Measurement],
    *,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    kv_tokens: int | None = None,
    first_wave: bool | float = True,
    floor: bool = False,
    extra: bool = False,
    prior: Prior | None = None,
) -> Fit:
    """Find the step-time coefficients that explain measurements of one replica best.

    Args:
        measurements: Closed loops, open loops and request logs, in any combination.
        max_num_seqs: Requests the engine runs at once.
        max_num_batched_tokens: Token budget of its steps.
        kv_tokens: Tokens that fit in its KV cache; None where it does not bind.
        first_wave: True to fit the share of requests sent together at the start, or that share (0: they were left out).
        extra: Whether to fit the further costs of `servingplan.latency.closedloop.Extra` as well, which sparse models and
            other engines than vLLM take.
        floor: Whether to fit the weight-read floor as well; it takes points at many and at few tokens a step.
        prior: What is believed already; with it, few measurements do.

    Raises:
        ValueError: Where the measurements cannot tell the coefficients, with one sentence saying why.
    """
    check(measurements, enough=prior is not None)
    problem = problem_of(measurements, Limits(max_num_seqs, max_num_batched_tokens, kv_tokens), first_wave, floor, extra, prior)
    scales = Scales()
    starts = [problem.center] if prior else [_moved(problem, scale) for scale in _STARTS]
    found = min((_search(problem, start, scales) for start in starts), key=lambda result: float(result.cost))
    for _ in range(_ROUNDS):
        scales = _scales(problem.errors(found.x))
        found = _search(problem, found.x, scales)
    return _answer(problem, len(measurements), found)


def _moved(problem: FitProblem, scale: tuple[float, ...]) -> Array:
    start = problem.center.copy()
    start[: len(scale)] += np.log(scale)
    return np.clip(start, problem.lower, problem.upper)


def _search(problem: FitProblem, start: Array, scales: Scales) -> OptimizeResult:
    free = problem.free()
    lower, upper = problem.lower[free], problem.upper[free]

    def whole(x: Array) -> Array:
        full = problem.center.copy()
        full[free] = x
        return full

    found = least_squares(
        lambda x: problem.residuals(whole(x), scales),
        np.clip(start[free], lower + 1e-6, upper - 1e-6),
        bounds=(lower, upper),
        loss="soft_l1",
        f_scale=_OUTLIER,
        max_nfev=60,
        xtol=1e-6,
        ftol=1e-6,
        diff_step=1e-4,
    )
    found.x = whole(found.x)
    return found


def _scales(errors: Errors) -> Scales:
    """Scatter of the errors, robustly; few errors say little of it, hence the bounds."""

    def scatter(values: Array, finest: float, coarsest: float) -> float:
        return float(np.clip(1.4826 * np.median(np.abs(values)), finest, coarsest)) if len(values) else coarsest

    return Scales(
        scatter(errors.of_ttft(), _FINEST.ttft, _COARSEST.ttft), scatter(errors.of_tpot(), _FINEST.tpot, _COARSEST.tpot)
    )


def _answer(problem: FitProblem, count: int, found: OptimizeResult) -> Fit:
    step, client, extra = problem.unpack(found.x)
    relative = np.sqrt(np.maximum(0.0, np.diag(np.linalg.pinv(found.jac.T @ found.jac))))
    error = dict.fromkeys(PARAMETERS, 0.0) | {
        PARAMETERS[place]: value for place, value in zip(problem.free(), relative, strict=True)
    }
    names = PARAMETERS[:4] if problem.floor else PARAMETERS[:3]
    return Fit(
        step=step,
        standard_error=StepTime(
            alpha_s=float(step.alpha_s * error["alpha"]),
            beta_s=float(step.beta_s * error["beta"]),
            gamma_s=float(step.gamma_s * error["gamma"]),
            floor_s=float(step.floor_s * error["floor"]),
        ),
        overhead_s=client.overhead_s,
        first_wave=client.first_wave,
        start_steps=client.start_steps,
        bunching=client.bunching,
        extra=extra,
        residuals=_residuals(problem, count, problem.errors(found.x)),
        identified=frozenset(name for name in names if error[name] < _IDENTIFIED),
    )


def _residuals(problem: FitProblem, count: int, errors: Errors) -> tuple[Residual, ...]:
    residuals = [Residual(None, 0.0)] * count
    places = [*problem.closed_places, *(place for place, _ in problem.opens)]
    for place, pair in zip(places, np.expm1(np.concatenate([errors.closed, errors.opened])), strict=True):
        residuals[place] = Residual(float(pair[0]), float(pair[1]))
    for (place, _), row in zip(problem.logs, errors.logs, strict=True):
        residuals[place] = Residual(None, float(np.mean(np.abs(np.expm1(row)))))
    return tuple(residuals)
