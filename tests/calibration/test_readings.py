"""Percentiles and shares of a histogram, with the edges between which they lie."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servingplan.calibration.readings import Estimate, Histogram

LATENCY = Histogram(edges=(0.1, 0.5, 1.0, math.inf), counts=(50.0, 40.0, 10.0, 0.0), total=20.0)
SLOW = Histogram(edges=(0.1, 1.0, math.inf), counts=(0.0, 5.0, 5.0), total=100.0)
NONE = Histogram(edges=(0.1, math.inf), counts=(0.0, 0.0), total=0.0)


@pytest.mark.parametrize(
    ("of", "percentile", "wanted"),
    [
        (LATENCY, 25, Estimate(0.05, 0.0, 0.1)),
        (LATENCY, 50, Estimate(0.1, 0.0, 0.1)),
        (LATENCY, 95, Estimate(0.75, 0.5, 1.0)),
        (LATENCY, 0, Estimate(0.0, 0.0, 0.1)),
        (LATENCY, 100, Estimate(1.0, 0.5, 1.0)),
        (SLOW, 0, Estimate(0.1, 0.1, 1.0)),
        (SLOW, 95, Estimate(1.0, 1.0, math.inf)),
        (NONE, 50, None),
    ],
)
def test_a_percentile_is_interpolated_in_its_bucket(of, percentile, wanted):
    assert of.quantile(percentile) == wanted


@pytest.mark.parametrize("percentile", [-1, 100.1, math.nan])
def test_a_percentile_beyond_its_range_is_refused(percentile):
    with pytest.raises(ValueError, match="between 0 and 100"):
        LATENCY.quantile(percentile)


@pytest.mark.parametrize(
    ("of", "bound", "wanted"),
    [
        (LATENCY, 0.3, Estimate(0.7, 0.5, 0.9)),
        (LATENCY, 0.5, Estimate(0.9, 0.9, 0.9)),
        (LATENCY, 0.0, Estimate(0.0, 0.0, 0.0)),
        (LATENCY, -1.0, Estimate(0.0, 0.0, 0.0)),
        (LATENCY, 7.0, Estimate(1.0, 1.0, 1.0)),
        (LATENCY, math.inf, Estimate(1.0, 1.0, 1.0)),
        (SLOW, 2.0, Estimate(0.5, 0.5, 1.0)),
        (NONE, 1.0, None),
    ],
)
def test_a_share_is_interpolated_in_the_bucket_around_the_bound(of, bound, wanted):
    assert of.share_within(bound) == wanted


def test_the_mean_is_exact():
    assert (LATENCY.mean, NONE.mean) == (0.2, None)


counts = st.lists(st.floats(0.0, 1e6), min_size=2, max_size=12).filter(lambda each: sum(each) > 1e-3)


@given(counts, st.floats(0.0, 100.0))
def test_a_percentile_lies_in_a_bucket_that_has_it_and_its_share_is_the_percentile(each, percentile):
    edges = (*(0.1 * 2**place for place in range(len(each) - 1)), math.inf)
    histogram = Histogram(edges, tuple(each), 1.0)
    found = histogram.quantile(percentile)
    assert found.low <= found.value <= found.high
    share = histogram.share_within(found.value)
    assert share.low - 1e-9 <= share.value <= share.high + 1e-9
    if found.high < math.inf:
        assert (
            share.value == pytest.approx(percentile / 100, abs=1e-6)
            or histogram.share_within(found.low).high >= percentile / 100
        )
