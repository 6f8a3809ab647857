"""What like replicas tell of one that is measured little: the same model on more or fewer accelerators.

Each positive parameter follows a power of the number of accelerators. Its exponent is found by least squares on logarithms,
held towards what tensor parallelism typically gives, and a replica's own measurements weigh by their number. What the client
adds does not depend on the accelerators, so its logarithms are averaged.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from servingplan.latency.closedloop import Array, Client, Extra
from servingplan.latency.fit import Fit, Prior
from servingplan.latency.profile import StepTime

_EXPONENT = -0.6
_EXPONENT_SPREAD = 0.3
_SCATTER = 0.3
_NEGLIGIBLE = 1e-12


def pooled_prior(fits: Sequence[tuple[int, Fit]], accelerators: int, *, spread: float, client_spread: float) -> Prior:
    """What fits of like replicas lead one to expect of a replica.

    Args:
        fits: Accelerators and fit of each of the like replicas; at least one.
        accelerators: Of the replica in question.
        spread: Relative standard deviation of the engine's parameters about the pool.
        client_spread: The same of the client's.
    """
    sizes = np.log([size for size, _ in fits])
    weights = np.array([len(fit.residuals) for _, fit in fits], dtype=np.float64)

    def scaled(values: Sequence[float]) -> float:
        return float(np.exp(_line(sizes, np.log(np.maximum(values, _NEGLIGIBLE)), weights, float(np.log(accelerators)))))

    def mean(values: Sequence[float]) -> float:
        return float(np.exp(np.average(np.log(np.maximum(values, _NEGLIGIBLE)), weights=weights)))

    every = [fit for _, fit in fits]
    return Prior(
        step=StepTime(
            alpha_s=scaled([fit.step.alpha_s for fit in every]),
            beta_s=scaled([fit.step.beta_s for fit in every]),
            gamma_s=scaled([fit.step.gamma_s for fit in every]),
            floor_s=scaled([fit.step.floor_s for fit in every]),
        ),
        client=Client(
            overhead_s=mean([fit.overhead_s for fit in every]),
            first_wave=mean([fit.first_wave for fit in every]),
            start_steps=mean([fit.start_steps for fit in every]),
            bunching=mean([fit.bunching for fit in every]),
        ),
        extra=Extra(
            prompt_s=mean([fit.extra.prompt_s for fit in every]),
            ramp_s=scaled([fit.extra.ramp_s for fit in every]),
            ramp_tokens=mean([fit.extra.ramp_tokens for fit in every]),
            idle_slots=mean([fit.extra.idle_slots for fit in every]),
        ),
        spread=spread,
        client_spread=client_spread,
    )


def _line(sizes: Array, values: Array, weights: Array, at: float) -> float:
    """Weighted regression on a line whose slope is held near the typical one, read at a place."""
    center = float(np.average(sizes, weights=weights))
    level = float(np.average(values, weights=weights))
    ridge = (_SCATTER / _EXPONENT_SPREAD) ** 2 * float(np.mean(weights))
    apart = sizes - center
    slope = (float(weights @ (apart * (values - level))) + ridge * _EXPONENT) / (float(weights @ apart**2) + ridge)
    return level + slope * (at - center)
