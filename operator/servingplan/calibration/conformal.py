"""The margin that a bound needs beyond the declared one: adaptive conformal inference (Gibbs and Candes 2021).

A window breaks a bound's prediction if more than the agreed share of its requests took longer than predicted, margin
included; of a mean, if the mean did. After a window that does, the margin rises, after any other it falls by a ninety-ninth
of that: whatever the distribution, in the long run one window in a hundred breaks it.

Left out: percentiles of the end-to-end time, which hang on the lengths of outputs more than on any wait. Their form is that of
outputs of average length, so no margin on it makes it one of percentiles.
"""

from __future__ import annotations

from servingplan.calibration.observed import Sample, gap_s
from servingplan.latency.capacity import latency, margin, stable_rate_rps
from servingplan.latency.correction import bound_key
from servingplan.latency.profile import Bound, EngineProfile

_PACE, _FIRST_PACE = 0.05, 0.5
"""How far a margin moves by a window in the long run; and the same over the number of windows, while that is more."""
_BROKEN_WINDOWS = 0.01
_LEAST, _MOST = -0.1, 0.4


def learnt(margins: dict[str, float], profile: EngineProfile, sample: Sample, samples: int) -> dict[str, float]:
    """Further margins by bound, after a window.

    Args:
        margins: Before it.
        profile: As was believed before the window, margins included.
        sample: The window.
        samples: Windows that were learnt from before it.
    """
    pace = max(_PACE, _FIRST_PACE / (1 + samples))
    found = dict(margins)
    for metric, bound in sample.bounds:
        key = bound_key(metric, bound.percentile)
        if (broken := _broken(profile, sample, metric, bound)) is not None:
            moved = margins.get(key, 0.0) + pace * (float(broken) - _BROKEN_WINDOWS)
            found[key] = min(_MOST, max(_LEAST, moved))
    return found


def _broken(profile: EngineProfile, sample: Sample, metric: str, bound: Bound) -> bool | None:
    """Whether a window breaks the prediction for a bound; None where it says nothing of it."""
    predicted = latency(profile, sample.mix, sample.offered_rps, arrival_cv=sample.arrival_cv)
    load = sample.offered_rps / stable_rate_rps(profile, sample.mix)
    kept = 1 - margin(profile, sample.mix, load, sample.arrival_cv, bound_key(metric, bound.percentile))
    if metric == "ttft" and bound.percentile is not None:
        within = sample.ttft.share_within(predicted.ttft_s(bound.percentile) / kept)
        return None if within is None else within.value < bound.percentile / 100
    if metric == "ttft":
        mean_s, expected_s = sample.ttft.mean, predicted.ttft_mean_s
    elif metric == "interToken":
        mean_s = sample.inter_token.mean if sample.inter_token else None
        expected_s = gap_s(predicted, sample.mix)
    else:
        mean_s = sample.e2e.mean if sample.e2e and bound.percentile is None else None
        expected_s = predicted.e2e_mean_s
    return None if mean_s is None else mean_s > expected_s / kept
