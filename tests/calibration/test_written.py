"""Memory in a plan's status and back."""

from __future__ import annotations

import pytest

from servingplan.api.plan_status import CalibrationStatus
from servingplan.calibration.memory import Applied, SetupMemory
from servingplan.calibration.written import from_status, to_status

MEMORY = SetupMemory(
    samples=7,
    log_step=(0.123456789, -0.2, 0.0),
    covariance=(0.04, 0.03, 0.05, 0.02, 0.02, 0.06),
    log_bias=(0.0, 0.0123456, -0.1, 0.0),
    bias_weight=(0.0, 3.3333333, 1.0, 0.0),
    margin={"ttft.p95": 0.1475, "e2e.mean": -0.02},
    drift=(0.0, 1.5),
    drifting=True,
    applied=Applied((1.1275, 0.81873, 1.0), (1.0, 1.0202, 0.9, 1.0), {"ttft.p95": 0.15}),
)


def test_memory_comes_back_to_five_digits():
    found = from_status(to_status(MEMORY))
    assert found.log_step == pytest.approx(MEMORY.log_step, rel=1e-4)
    assert found.covariance == MEMORY.covariance
    assert found.applied == MEMORY.applied
    assert (found.samples, found.margin, found.drift, found.drifting) == (7, MEMORY.margin, MEMORY.drift, True)


def test_what_was_read_back_is_written_alike():
    written = to_status(MEMORY)
    assert to_status(from_status(written)) == written


def test_nothing_learnt_comes_back_as_that():
    assert from_status(None) == SetupMemory()
    assert from_status(to_status(SetupMemory())) == SetupMemory()


@pytest.mark.parametrize(
    "damage",
    [
        {"log_step": ["0.1", "0.2"]},
        {"log_step": ["0.1", "soon", "0"]},
        {"log_step": ["nan", "0", "0"]},
        {"covariance": ["1", "2", "1", "0", "0", "1"]},
        {"covariance": ["1"]},
        {"log_bias": ["0"]},
        {"margin": {"ttft.p95": "inf"}},
        {"drift": []},
        {"applied": {"step": ["0", "1", "1"], "ttft": ["1", "1", "1", "1"]}},
        {"applied": {"step": ["1", "1", "1"], "ttft": ["1"]}},
    ],
    ids=str,
)
def test_what_cannot_be_read_counts_as_nothing_learnt(damage):
    sound = to_status(MEMORY).model_dump(by_alias=False)
    assert from_status(CalibrationStatus(**(sound | damage))) == SetupMemory()
