import pytest

from servingplan.profiling.exchange import Sample
from servingplan.profiling.levels import Lengths, Level
from servingplan.profiling.limits import Gauges
from servingplan.profiling.loops import Course
from servingplan.profiling.measured import Measured, measured, saturation

PAIR = Lengths(100, 40)


def level(clients: int, throughput_rps: float, ttft_s: float = 0.1, gauges: Gauges | None = None) -> Measured:
    samples = [Sample(float(k), k + ttft_s, k + clients / throughput_rps, 100, 40) for k in range(20)]
    course = Course(samples=samples, counted_s=20 / throughput_rps, sent=20, steady=True)
    found = measured(Level(PAIR, clients=clients), course, gauges or Gauges())
    assert found is not None
    return found


def test_a_level_is_summarised() -> None:
    found = level(4, 2.0)
    assert found.ttft.mean == pytest.approx(0.1)
    assert found.e2e.mean == pytest.approx(2.0)
    assert found.tpot.mean == pytest.approx(1.9 / 39)
    assert (found.requests, found.throughput_rps, found.usable) == (20, pytest.approx(2.0), True)


def test_too_few_requests_say_nothing() -> None:
    samples = [Sample(0.0, 0.1, 1.0, 100, 40)] * 5
    assert measured(Level(PAIR, clients=32), Course(samples=samples, counted_s=1.0)) is None
    assert measured(Level(PAIR, clients=1), Course()) is None


@pytest.mark.parametrize(
    ("ladder", "part"),
    [
        ([level(1, 1.0), level(2, 1.9), level(4, 3.5)], None),
        ([level(1, 1.0), level(2, 1.9), level(4, 1.95)], "throughput is 1.95 requests/s"),
        ([level(1, 1.0), level(4, 1.15)], "15 % against 1 clients"),
        ([level(1, 1.0), level(2, 1.9, gauges=Gauges(2, 6, 0.1))], "wait for a slot"),
        ([level(1, 1.0), level(8, 1.9, ttft_s=3.0)], "30 times"),
        ([], None),
    ],
)
def test_saturation_is_said_in_words(ladder: list[Measured], part: str | None) -> None:
    reason = saturation(ladder)
    assert (reason is None) == (part is None)
    assert part is None or part in str(reason)


def test_an_open_loop_whose_requests_pile_up_is_saturated_and_not_fitted() -> None:
    samples = [Sample(float(k), k + 0.1, k + 1.0, 100, 40) for k in range(20)]
    found = measured(Level(PAIR, rate_rps=9.0), Course(samples=samples, counted_s=5.0, overloaded=True))
    assert found is not None
    assert not found.usable
    assert "pile up" in str(saturation([found]))


def test_a_client_short_of_cpu_is_noticed() -> None:
    samples = [Sample(float(k), k + 0.1, k + 1.0, 100, 40) for k in range(20)]
    busy = measured(Level(PAIR, clients=1), Course(samples=samples, counted_s=5.0, cpu=0.95))
    late = measured(Level(PAIR, clients=1), Course(samples=samples, counted_s=5.0, lag_s=[0.02] * 9))
    spared = measured(Level(PAIR, clients=1), Course(samples=samples, counted_s=5.0, lag_s=[0.0001] * 9, cpu=0.2))
    assert [found and found.usable for found in (busy, late, spared)] == [False, False, True]
