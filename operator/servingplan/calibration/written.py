"""Memory as it stands in a plan's status, and back: decimals of five significant digits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from servingplan.api.plan_status import AppliedCorrection, CalibrationStatus
from servingplan.calibration.memory import Applied, SetupMemory

_FIRST = SetupMemory()
_LARGEST = 1e6
_LARGEST_FACTOR = 20.0


def to_status(memory: SetupMemory) -> CalibrationStatus:
    """Memory, written down."""
    applied = None
    if memory.applied is not None:
        applied = AppliedCorrection(
            step=_texts(memory.applied.step), ttft=_texts(memory.applied.ttft), margin=_by_key(memory.applied.margin)
        )
    return CalibrationStatus(
        samples=memory.samples,
        log_step=_texts(memory.log_step),
        covariance=_texts(memory.covariance),
        log_bias=_texts(memory.log_bias),
        bias_weight=_texts(memory.bias_weight),
        margin=_by_key(memory.margin),
        drift=_texts(memory.drift),
        drifting=memory.drifting,
        applied=applied,
    )


def from_status(status: CalibrationStatus | None) -> SetupMemory:
    """Memory, read back; what cannot be read counts as nothing learnt."""
    if status is None:
        return _FIRST
    try:
        return _read(status)
    except ValueError:
        return _FIRST


def _read(status: CalibrationStatus) -> SetupMemory:
    alpha, beta, gamma = _numbers(status.log_step, 3)
    up, down = _numbers(status.drift, 2)
    return SetupMemory(
        samples=max(0, status.samples),
        log_step=(alpha, beta, gamma),
        covariance=_covariance(status.covariance),
        log_bias=_numbers(status.log_bias, len(_FIRST.log_bias)),
        bias_weight=_numbers(status.bias_weight, len(_FIRST.bias_weight)),
        margin={key: _number(text) for key, text in status.margin.items()},
        drift=(up, down),
        drifting=status.drifting,
        applied=_applied(status.applied) if status.applied else None,
    )


def _applied(status: AppliedCorrection) -> Applied:
    alpha, beta, gamma = step = _numbers(status.step, 3)
    ttft = _numbers(status.ttft, len(_FIRST.log_bias))
    if not all(1 / _LARGEST_FACTOR < factor < _LARGEST_FACTOR for factor in (*step, *ttft)):
        raise ValueError("a factor is out of range")
    return Applied((alpha, beta, gamma), ttft, {key: _number(text) for key, text in status.margin.items()})


def _covariance(texts: list[str]) -> tuple[float, ...]:
    if not texts:
        return ()
    found = _numbers(texts, 6)
    xx, yx, yy, zx, zy, zz = found
    minors = (xx, xx * yy - yx**2, xx * (yy * zz - zy**2) - yx * (yx * zz - zy * zx) + zx * (yx * zy - yy * zx))
    if min(minors) <= 0:
        raise ValueError("a covariance is not positive")
    return found


def _numbers(texts: Iterable[str], count: int) -> tuple[float, ...]:
    found = tuple(_number(text) for text in texts)
    if len(found) != count:
        raise ValueError(f"{len(found)} numbers in place of {count}")
    return found


def _number(text: str) -> float:
    found = float(text)
    if not math.isfinite(found) or abs(found) > _LARGEST:
        raise ValueError(f"{text} is no number to go on with")
    return found


def _texts(values: Iterable[float]) -> list[str]:
    return [f"{value:.5g}" for value in values]


def _by_key(values: Mapping[str, float]) -> dict[str, str]:
    return {key: f"{values[key]:.5g}" for key in sorted(values)}
