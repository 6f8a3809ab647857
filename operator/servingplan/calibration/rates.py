"""From arrivals of short windows to the rates that replicas and weights are planned for.

A queue does not feel the mean of an hour: it feels the worst minutes of it. Replayed at 70 % of capacity, real arrivals of
constant mean give a p95 time to first token ten times that of Poisson arrivals, because their rate drifts. So a plan is made
for a high quantile of short windows, for what arrives now, and for where the trend leads until a replica is warm, whichever is
most. What the latency model has in it already, the randomness of arrivals at a constant rate, is taken out first.

- *Noise* is the spread of windows about the five minutes around them, read off by the median, which neither a step nor an odd
  window moves. It is never less than chance alone gives.
- The *level* is the mean of all windows, unless those of the dwell are off by more than noise explains, and that again unless
  the last five minutes are, or the last minute is. In between it changes over smoothly, so that a figure at the edge of doubt
  does not flicker.
- The *trend* is Holt's (Holt 1957), damped as by Gardner and McKenzie (1985). A window that is out of reach counts as far as
  noise reaches; a second one on the same side is a step, and a step is no trend: the level jumps and the slope stays. It is
  believed as far as the last five minutes also differ from the five before.

It does not know the time of day or week: what has not begun to show comes as a surprise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from servingplan.calibration.readings import RateHistory

DWELL_S = 900.0
HIGHEST_DISPERSION = 3.0

_QUANTILE = 0.98
_AROUND_S, _RECENT_S, _AHEAD_S = 300.0, 60.0, 60.0
_HOLT_LEVEL_S, _HOLT_SLOPE_S, _DAMPING_S = 90.0, 150.0, 900.0
_LEVEL_DOUBTED, _SLOPE_DOUBTED, _DRIFT_DOUBTED = 2.5, 2.5, 1.5
"""Standard deviations up to which noise explains a change of the level, a slope, and the change that bears a slope out."""
_REACH, _ALLOWED = 3.0, 3.0
"""Standard deviations that one window may be off, and that the variance of windows may be, by chance."""
_SURGE = 2.0
_LEAST_CV = 0.1
_GRID = math.log(1.025)
_NOTHING_RPS = 1e-6
_MEDIAN_DEVIATION = 0.6745  # median size of a normal deviate

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is to be expected of some arrivals.

    Attributes:
        level_rps: Requests per second now.
        trend_rps_per_s: Slope, 0 where noise explains it.
        dispersion: High quantile of short windows over their own level, without the noise of Poisson arrivals; at least 1.
        needed_rps: What replicas are needed for, until the horizon.
        routed_rps: What weights are made for, a minute ahead.
    """

    level_rps: float
    trend_rps_per_s: float
    dispersion: float
    needed_rps: float
    routed_rps: float


def forecast(
    history: RateHistory, declared_rps: float, horizon_s: float, *, dwell_s: float = DWELL_S, arrival_cv: float = 1.0
) -> Forecast:
    """What is to be expected of arrivals.

    Args:
        history: Short windows, up to an hour of them.
        declared_rps: Stands for the windows of the dwell that nothing is known of, so that a plan is not scaled down before its
            first requests arrive.
        horizon_s: Seconds until a replica that is asked for now is warm.
        dwell_s: Replicas are needed for what came within this time.
        arrival_cv: Coefficient of variation of the times between arrivals that the latency model reckons with.
    """
    measured = np.array(history.rates_rps, dtype=np.float64)
    if not len(measured):
        return Forecast(declared_rps, 0.0, 1.0, declared_rps, declared_rps)
    # The deviation of a rate next to the least float is 0.
    measured[measured <= _NOTHING_RPS] = 0.0
    declared_rps = declared_rps if declared_rps > _NOTHING_RPS else 0.0
    windows = max(2, round(dwell_s / history.window_s))
    filled = np.concatenate([np.full(max(0, windows - len(measured)), declared_rps), measured])
    noise = _noise(measured, arrival_cv, history.window_s)
    slope = _slope(filled[-2 * windows :], noise)
    level = _level(_brought_forward(measured, slope, history.window_s), noise, (dwell_s, _AROUND_S, _RECENT_S))
    spread = _dispersion(measured, noise)
    now, lately = level * spread, _remembered(filled, windows, noise)
    return Forecast(
        level_rps=level,
        trend_rps_per_s=slope,
        dispersion=spread,
        needed_rps=max(now, lately, _ahead(level, slope, horizon_s) * spread),
        # Weights for the present lull alone would send the next burst where there is no room for it.
        routed_rps=max(lately, _ahead(level, max(0.0, slope), _AHEAD_S) * spread),
    )


def follow(held_rps: float, needed_rps: float, *, up: float = 0.10, down: float = 0.20) -> float:
    """What is planned for: what is held while it is near enough to what is needed, else that, rounded.

    Args:
        held_rps: What was planned for until now.
        needed_rps: What is needed.
        up: Fraction of what is held by which the need may exceed it.
        down: Fraction by which the need may fall short.

    Returns:
        Requests per second; one that moved is rounded up to a grid of 2.5 %, with five significant digits, as it is written.
    """
    if held_rps * (1 - down) <= needed_rps <= held_rps * (1 + up):
        return held_rps
    return on_grid(needed_rps * math.exp(_GRID / 2))


def on_grid(value: float) -> float:
    """A value on a grid of 2.5 %, with five significant digits; 0 for none."""
    return float(f"{math.exp(_GRID * round(math.log(value) / _GRID)):.5g}") if value > 0 else 0.0


@dataclass(frozen=True, slots=True)
class _Noise:
    """Spread of windows about their own level.

    Attributes:
        relative: Standard deviation over the level that is not chance, of a window that shares nothing with its neighbours.
        chance: Variance of a window over its mean that chance alone gives, in requests per second.
    """

    window_s: float
    relative: float
    chance: float

    def deviation(self, rate_rps: float, windows: int = 1) -> float:
        """Standard deviation of the mean of some windows, in requests per second."""
        return math.sqrt(((self.relative * rate_rps) ** 2 + self.chance * rate_rps) / windows)


def _noise(rates: Floats, arrival_cv: float, window_s: float) -> _Noise:
    around, middle = _around(rates, window_s)
    chance = max(_LEAST_CV, arrival_cv) ** 2 / window_s
    present = around > _NOTHING_RPS
    if present.sum() < 3:
        return _Noise(window_s, 0.0, chance)
    residuals = middle[present] / around[present] - 1
    # The mean of two shows noise that lasts longer than a window.
    pairs = (residuals[1:] + residuals[:-1]) / 2
    half = max(float(np.median(np.abs(residuals))), float(np.median(np.abs(pairs))) * 2**0.5)
    explained = float((chance / around[present]).mean())
    beyond = (half / _MEDIAN_DEVIATION) ** 2 - explained
    return _Noise(window_s, max(0.0, beyond) ** 0.5, chance)


def _around(rates: Floats, window_s: float) -> tuple[Floats, Floats]:
    """Means of the five minutes around windows, and those windows: (n,) each."""
    span = min(len(rates), 2 * round(_AROUND_S / window_s / 2) + 1)
    around = np.convolve(rates, np.full(span, 1 / span), mode="valid")
    return around, rates[span // 2 : span // 2 + len(around)]


def _belief(excess: float, doubted: float) -> float:
    """How far to believe in a deviation of so many standard deviations: not at all, until two more than are doubted wholly."""
    return min(1.0, max(0.0, (abs(excess) - doubted) / 2))


def _brought_forward(rates: Floats, slope: float, window_s: float) -> Floats:
    """Rates as they would be now, had they grown by the slope since; no further back than the slope says anything of."""
    if not slope:
        return rates
    ages_s = window_s * (np.arange(len(rates), 0, -1) - 0.5)
    forward: Floats = np.maximum(0.0, rates + slope * np.minimum(ages_s, _AROUND_S))
    return forward


def _level(rates: Floats, noise: _Noise, spans_s: tuple[float, ...]) -> float:
    """Mean of all windows, or of the latest ones of a shorter span where noise does not explain that it is another."""
    level = _mean(rates)
    for span_s in spans_s:
        count = max(1, round(span_s / noise.window_s))
        if count >= len(rates):
            continue
        mean = _mean(rates[-count:]) if span_s > _RECENT_S else _present(rates, count, level)
        # Between the two rates, so that the few requests of a quiet class are not taken for a wave of them.
        typical = (mean**0.5 + level**0.5) ** 2 / 4
        if typical > 0:
            level += _belief((mean - level) / noise.deviation(typical, count), _LEVEL_DOUBTED) * (mean - level)
    return level


def _mean(rates: Floats) -> float:
    """Mean, with the highest counted as the second highest: it may be odd."""
    if len(rates) < 3:
        return float(rates.mean())
    second, highest = np.partition(rates, -2)[-2:]
    return float(rates.sum() - highest + second) / len(rates)


def _present(rates: Floats, count: int, level: float) -> float:
    """Mean of the last windows. A burst of one may double the load, and no more, until a second window bears it out."""
    last = min(float(rates[-1]), _SURGE * max(level, float(rates[-2])))
    return (float(rates[-count:-1].sum()) + last) / count


def _slope(rates: Floats, noise: _Noise) -> float:
    """Holt's slope in requests per second per second, as far as it is believed."""
    gain, slope_gain = 1 - math.exp(-noise.window_s / _HOLT_LEVEL_S), 1 - math.exp(-noise.window_s / _HOLT_SLOPE_S)
    both = gain * slope_gain
    level, slope, beyond, before = float(rates[0]), 0.0, 0.0, float(rates[0])
    deviation = 0.0
    for rate in rates[1:].tolist():
        expected = max(0.0, level + slope)
        deviation = noise.deviation(max(expected, 1 / noise.window_s))
        miss = rate - expected
        side = math.copysign(1.0, miss) if abs(miss) > _REACH * deviation else 0.0
        if side and side == beyond:
            level, beyond = (rate + before) / 2, 0.0
        else:
            miss = side * _REACH * deviation if side else miss
            level, slope, beyond = expected + gain * miss, slope + both * miss, side
        before = rate
    # Deviation of the slope where the rate is constant, of the filter with these two gains.
    explained = deviation * both * (2 / (gain * (4 - 2 * gain - both))) ** 0.5
    if explained <= 0:
        return 0.0
    drift = math.copysign(1.0, slope) * _drift(rates, noise)
    belief = min(_belief(slope / explained, _SLOPE_DOUBTED), _belief(max(0.0, drift), _DRIFT_DOUBTED))
    return belief * slope / noise.window_s


def _drift(rates: Floats, noise: _Noise) -> float:
    """How much more came in the last five minutes than in the five before, in standard deviations."""
    count = round(_AROUND_S / noise.window_s)
    if len(rates) < 2 * count:
        return 0.0
    latest, before = float(rates[-count:].mean()), float(rates[-2 * count : -count].mean())
    typical = (latest**0.5 + before**0.5) ** 2 / 4
    return (latest - before) / (noise.deviation(typical, count) * 2**0.5) if typical > 0 else 0.0


def _ahead(level: float, slope: float, seconds: float) -> float:
    """The damped trend at a horizon; not below nothing, nor above what one surge would make of the level."""
    reached = level + slope * _DAMPING_S * (1 - math.exp(-seconds / _DAMPING_S))
    return min(max(0.0, reached), _SURGE * level)


def _excess(values: Floats, explained: float) -> float:
    """Ratio of the standard deviation beyond what chance explains to all of it.

    The variance of few windows exceeds the true one by chance too, by as much as is allowed for; the highest may be odd.
    """
    ordered = np.sort(values)
    ordered[-1] = ordered[-2]
    variance = float(ordered.var())
    allowed = explained * (1 + _ALLOWED * (2 / len(ordered)) ** 0.5)
    return max(0.0, 1 - allowed / variance) ** 0.5 if variance > 0 else 0.0


def _remembered(rates: Floats, windows: int, noise: _Noise) -> float:
    """High quantile of the windows of the dwell, without the noise of chance."""
    latest = rates[-windows:]
    mean = _mean(latest)
    beyond = max(0.0, float(np.quantile(latest, _QUANTILE)) - mean) * _excess(latest, noise.chance * mean)
    return _level(rates, noise, (windows * noise.window_s,)) + beyond


def _dispersion(rates: Floats, noise: _Noise) -> float:
    """High quantile of the windows over the mean of the five minutes around each, without the noise of chance."""
    around, middle = _around(rates, noise.window_s)
    present = around > _NOTHING_RPS
    if present.sum() < 2:
        return 1.0
    ratios = middle[present] / around[present]
    explained = float((noise.chance / around[present]).mean())
    beyond = (float(np.quantile(ratios, _QUANTILE)) - 1) * _excess(ratios, explained)
    return min(HIGHEST_DISPERSION, 1 + max(0.0, beyond))
