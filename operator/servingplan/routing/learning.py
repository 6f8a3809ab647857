"""How much slower an endpoint is than its engine's figures, learnt from what it does.

Three logarithms each move by a fixed part of what was missed. The ratio of the predicted to the measured number of tokens
emitted tells of the step time; that of the measured to the predicted time to first token tells of the prefill or of the wait
for a slot, whichever is the larger part of the prediction. One observation moves a logarithm little, all of them together no
further than a bound, and what was learnt is forgotten with a half-life: a replica that was slow while a neighbour was noisy is
tried again.

A first byte that comes sooner than a step can take is that of response headers, sent before the first token: nothing is
learnt from it.
"""

from __future__ import annotations

import math

import numpy as np

from servingplan.routing.fleet import Rows, carried
from servingplan.routing.rule import Factors

_GAIN = 0.05
_LARGEST_MISS = 1.0
"""In logarithms: an outlier counts as a factor of e."""
_BOUND = math.log(2.0)
_HALF_LIFE_S = 300.0
_LEAST_TOKENS = 16.0
"""Answers that are shorter say nothing of the time between tokens."""


class Learnt:
    """Logarithms of the factors of all endpoints, (endpoints,) each, with the time they were last believed at."""

    def __init__(self) -> None:
        self._prefill, self._wait, self._step, self._at_s = (np.zeros(0) for _ in range(4))
        self._none_yet: Factors | None = None

    def rebuild(self, source: Rows) -> None:
        """Follows a change of the fleet, as ``Ledger.rebuild``."""
        self._prefill = carried(self._prefill, source)
        self._wait = carried(self._wait, source)
        self._step = carried(self._step, source)
        self._at_s = carried(self._at_s, source)
        ones = np.ones(len(source))
        self._none_yet = None if self._at_s.any() else Factors(ones, ones, ones)

    def factors(self, now_s: float) -> Factors:
        """The factors now."""
        if self._none_yet is not None:
            return self._none_yet
        kept = np.exp2(np.minimum(self._at_s - now_s, 0.0) / _HALF_LIFE_S)
        return Factors(np.exp(self._step * kept), np.exp(self._prefill * kept), np.exp(self._wait * kept))

    def first_token(self, row: int, prefill_s: float, wait_s: float, measured_s: float, now_s: float) -> None:
        """A time to first token, and its parts as they were predicted without the factors on them."""
        if not prefill_s > 0 or not measured_s > 0:
            return
        self._forget(row, now_s)
        prefill, wait = float(self._prefill[row]), float(self._wait[row])
        if wait_s > prefill_s:
            self._wait[row] = _moved(wait, _log_ratio(measured_s - prefill_s * math.exp(prefill), wait_s))
        else:
            self._prefill[row] = _moved(prefill, _log_ratio(measured_s - wait_s * math.exp(wait), prefill_s))

    def tokens(self, row: int, predicted: float, measured: float, now_s: float) -> None:
        """Tokens that an answer had, and those that it would have had by the clock, which has the factor in it."""
        if predicted >= _LEAST_TOKENS and measured >= _LEAST_TOKENS:
            self._forget(row, now_s)
            self._step[row] = _moved(self._step[row], self._step[row] + math.log(predicted / measured))

    def _forget(self, row: int, now_s: float) -> None:
        self._none_yet = None
        kept: float = math.exp2(min(0.0, self._at_s[row] - now_s) / _HALF_LIFE_S)
        self._prefill[row] *= kept
        self._wait[row] *= kept
        self._step[row] *= kept
        self._at_s[row] = max(self._at_s[row], now_s)


def _log_ratio(measured: float, predicted: float) -> float:
    return math.log(max(measured / predicted, 1e-3))


def _moved(log_factor: float, target: float) -> float:
    miss = max(-_LARGEST_MISS, min(_LARGEST_MISS, target - log_factor))
    return max(-_BOUND, min(_BOUND, log_factor + _GAIN * miss))
