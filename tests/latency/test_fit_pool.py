"""What like replicas tell of one another."""

import dataclasses

import pytest

from servingplan.latency.closedloop import NO_EXTRA
from servingplan.latency.fit import Fit, Residual
from servingplan.latency.fit_pool import pooled_prior
from servingplan.latency.profile import StepTime

ONE = Fit(
    step=StepTime(16e-3, 80e-6, 80e-9),
    standard_error=StepTime(0.0, 0.0, 0.0),
    overhead_s=0.02,
    first_wave=0.1,
    start_steps=1.0,
    bunching=1.0,
    extra=NO_EXTRA,
    residuals=(Residual(0.0, 0.0),) * 10,
    identified=frozenset(),
)
FOUR = dataclasses.replace(ONE, step=StepTime(8e-3, 20e-6, 20e-9), overhead_s=0.08)


def test_engine_parameters_follow_a_power_of_the_accelerators() -> None:
    prior = pooled_prior([(1, ONE), (4, FOUR)], 2, spread=0.3, client_spread=0.2)
    assert prior.step.beta_s == pytest.approx(40e-6, rel=1e-6)
    assert prior.step.alpha_s == pytest.approx((16e-3 * 8e-3) ** 0.5, rel=1e-6)
    assert prior.client.overhead_s == pytest.approx(0.04, rel=1e-6)
    assert (prior.spread, prior.client_spread) == (0.3, 0.2)


def test_one_like_replica_is_scaled_as_is_typical() -> None:
    prior = pooled_prior([(1, ONE)], 2, spread=0.3, client_spread=0.2)
    assert prior.step.beta_s == pytest.approx(80e-6 * 2**-0.6, rel=1e-6)
    assert prior.client.first_wave == pytest.approx(0.1)


def test_more_points_weigh_more() -> None:
    many = dataclasses.replace(FOUR, residuals=FOUR.residuals * 9)
    few, much = (pooled_prior([(2, ONE), (2, other)], 2, spread=0.3, client_spread=0.2) for other in (FOUR, many))
    assert much.step.beta_s < few.step.beta_s
