import math
import random

import pytest

from servingplan.profiling.steady import percentile, settled, summary


def test_the_interval_holds_the_mean_of_independent_values_in_nineteen_of_twenty_cases() -> None:
    source = random.Random(1)
    held = 0
    for _ in range(400):
        found = summary([source.gauss(5.0, 1.0) for _ in range(12)])
        held += abs(found.mean - 5.0) <= found.half_width
    assert 0.92 <= held / 400 <= 0.98


def test_values_that_depend_on_their_neighbours_get_a_wider_interval_than_independent_ones() -> None:
    source = random.Random(2)
    drawn = [source.gauss(0.0, 1.0) for _ in range(400)]
    dependent, value = [], 0.0
    for step in drawn:
        value = 0.95 * value + step
        dependent.append(10 + value)
    naive = 1.96 * (sum((x - sum(dependent) / 400) ** 2 for x in dependent) / 399) ** 0.5 / 20
    assert summary(dependent).half_width > 2 * naive


def test_one_value_promises_nothing_and_none_are_refused() -> None:
    assert summary([3.0]).half_width == math.inf
    with pytest.raises(ValueError, match="no values"):
        summary([])


def test_percentiles_lie_between_values() -> None:
    assert [percentile([0.0, 10.0, 20.0], percent) for percent in (0, 25, 50, 100)] == [0.0, 5.0, 10.0, 20.0]


@pytest.mark.parametrize(
    ("values", "steady"),
    [
        ([1.0, 1.01] * 10, True),
        ([1.0 + 0.05 * k for k in range(20)], False),
        ([3.0] * 5 + [1.0] * 15, False),
        ([1.0, 1.0, 1.0], False),
    ],
    ids=["flat", "rising", "slow start", "too few"],
)
def test_a_drift_is_told_from_a_steady_series(values: list[float], steady: bool) -> None:
    assert settled(values, 0.05) is steady


def test_noise_is_no_drift() -> None:
    source = random.Random(3)
    settled_ones = sum(settled([source.gauss(1.0, 0.2) for _ in range(20)], 0.05) for _ in range(200))
    assert settled_ones > 150
