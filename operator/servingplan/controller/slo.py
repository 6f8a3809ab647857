"""Whether measured latency keeps a bound."""

from __future__ import annotations

from servingplan.calibration.readings import Histogram
from servingplan.latency.profile import Bound


def missed(ttft: Histogram, bound: Bound, factor: float = 1.0) -> str:
    """By how much requests miss a bound on the time to first token, in words; empty where they keep it.

    Args:
        ttft: What was measured, in seconds.
        bound: On a percentile, or on the mean.
        factor: How many times as many requests may be late as a percentile allows.
    """
    if bound.percentile is None:
        mean = ttft.mean
        return f"mean TTFT {mean:.2f} s, bound {bound.seconds:g} s" if mean and mean > bound.seconds else ""
    within = ttft.share_within(bound.seconds)
    if within is None or 1 - within.value <= factor * (1 - bound.percentile / 100):
        return ""
    return f"TTFT within {bound.seconds:g} s for {within.value:.1%} of the requests, {bound.percentile:g} % are promised"
