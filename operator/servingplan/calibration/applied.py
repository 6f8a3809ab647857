"""The part of what was learnt that plans are made with: it moves only when it is off by enough, and then to a round value.

So equal worlds have equal problems and equal plans, and latency curves are shared from cycle to cycle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from servingplan.calibration import bias
from servingplan.calibration.memory import Applied, SetupMemory

GRID = 0.02
"""Of logarithms of factors, and of their ratios."""

_OFF = 0.03
_MARGIN_GRID, _MARGIN_OFF = 0.01, 0.02
_BASE_MARGIN = 0.08
"""The declared margin at a light load, which drift doubles too."""
_LARGEST_MARGIN = 0.5


def following(memory: SetupMemory) -> Applied:
    """What plans are made with after a cycle."""
    before = memory.applied or Applied()
    step = before.step
    if _apart(memory.log_step, step):
        alpha, beta, gamma = (_decimal(math.exp(each)) for each in rounded_log(memory.log_step, GRID))
        step = (alpha, beta, gamma)
    ttft, biases = before.ttft, bias.believed(memory.log_bias, memory.bias_weight)
    if _apart(biases, ttft):
        ttft = tuple(_decimal(math.exp(each)) for each in rounded_log(biases, GRID))
    return Applied(step, ttft, {key: _margin(memory, before, key) for key in sorted(memory.margin)})


def rounded_log(values: Sequence[float], grid: float) -> list[float]:
    """Logarithms on a grid."""
    return [grid * round(value / grid) for value in values]


def _apart(logs: Sequence[float], factors: Sequence[float]) -> bool:
    return any(abs(log - math.log(factor)) > _OFF for log, factor in zip(logs, factors, strict=True))


def _margin(memory: SetupMemory, before: Applied, key: str) -> float:
    wanted = memory.margin[key]
    if memory.drifting:
        wanted = min(_LARGEST_MARGIN, max(wanted, 2 * wanted + _BASE_MARGIN))
    held = before.margin.get(key, 0.0)
    return held if abs(wanted - held) <= _MARGIN_OFF else round(_MARGIN_GRID * round(wanted / _MARGIN_GRID), 4)


def _decimal(factor: float) -> float:
    """A factor as it reads after it was written down."""
    return float(f"{factor:.5g}")
