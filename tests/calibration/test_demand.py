"""What is planned for, looked at again and again, and remembered in the status."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from servingplan.api.plan_status import DemandStatus
from servingplan.calibration.demand import LEAST_RPS, DemandMemory, Held, follow_demand, from_status, to_status
from servingplan.calibration.readings import Found, Histogram, PoolReading, RateHistory, Readings
from servingplan.latency.mix import TokenMix

MIX = TokenMix(500, 200)


@dataclass(frozen=True, slots=True)
class Declared:
    rate_rps: float
    mix: TokenMix = MIX
    arrival_cv: float = 1.0


SPEC = {"chat": Declared(14.0), "code": Declared(3.0)}
SHARES = {"chat": {"a": 1.0}, "code": {"b": 1.0}}


def steady(rate_rps: float, windows: int = 120) -> RateHistory:
    return RateHistory(30.0, (rate_rps,) * windows)


def readings(**classes: RateHistory) -> Readings:
    return Readings(Found.FOUND, classes=classes)


def looked(memory: DemandMemory, seen: Readings, spec=SPEC) -> tuple[DemandMemory, str]:
    return follow_demand(memory, seen, spec, SHARES, 180.0)


def test_the_first_look_says_what_moved():
    memory, reason = looked(DemandMemory(), readings(chat=steady(21.0), code=steady(3.0)))
    assert reason == "load of class chat 14 -> 21.4 requests/s"
    assert memory.classes["chat"].planned_rps == pytest.approx(21, rel=0.026)
    assert memory.classes["chat"].observed_rps == pytest.approx(21, rel=0.026)
    assert memory.classes["code"].planned_rps == 3.0


def test_the_same_readings_move_nothing():
    seen = readings(chat=steady(21.0), code=steady(2.9))
    memory, _ = looked(DemandMemory(), seen)
    assert looked(memory, seen) == (memory, "")
    shuffled = readings(code=steady(2.9), chat=steady(21.0))
    assert looked(DemandMemory(), shuffled) == looked(DemandMemory(), seen)


@pytest.mark.parametrize("found", [found for found in Found if found is not Found.FOUND])
def test_without_metrics_everything_is_held(found):
    memory = DemandMemory({"chat": Held(20.0, 21.0, 19.0, 1.2, 0.8)}, {"llama": Held(2.0, 2.0)})
    seen = Readings(found, classes={"chat": steady(0.0)}, models={"llama": steady(0.0)})
    assert looked(memory, seen) == (memory, "")


def test_a_class_that_is_absent_or_stale_is_held():
    memory = DemandMemory({"chat": Held(20.0, 21.0, 19.0), "code": Held(5.0, 5.0, 5.0)})
    assert looked(memory, readings()) == (memory, "")
    assert looked(memory, readings(chat=replace(steady(0.0), age_s=300.0), code=RateHistory(30.0, ()))) == (memory, "")


def test_a_class_never_measured_has_no_entry():
    assert looked(DemandMemory(), readings(chat=steady(14.0)))[0].classes.keys() == {"chat"}


def test_a_class_that_left_the_spec_is_forgotten_without_a_word():
    memory = DemandMemory({"old": Held(20.0, 21.0)})
    assert looked(memory, readings()) == (DemandMemory(), "")


def test_a_class_that_nobody_uses_any_more_keeps_a_place():
    used = DemandMemory({"chat": Held(14.0, 14.0, 14.0)})
    memory, reason = looked(used, readings(chat=steady(0.0)))
    assert memory.classes["chat"].planned_rps == pytest.approx(LEAST_RPS, rel=0.026)
    assert reason == "load of class chat 14 -> 0.0101 requests/s"
    nothing = {"chat": Declared(0.0)}
    assert looked(used, readings(chat=steady(0.0)), nothing)[0].classes["chat"].planned_rps == 0


def test_a_class_that_nobody_has_used_yet_is_planned_as_declared():
    assert looked(DemandMemory(), readings(chat=steady(0.0))) == (DemandMemory(), "")


def test_a_short_history_does_not_scale_down():
    memory = DemandMemory({"chat": Held(60.0, 60.0, 55.0)})
    after, reason = looked(memory, readings(chat=steady(10.0, windows=6)))
    assert (after.classes["chat"].planned_rps, reason) == (60.0, "")
    assert after.classes["chat"].routed_rps == 60.0


def test_the_burstiness_of_the_spec_is_not_planned_for_twice():
    rates = tuple((np.random.default_rng(3).negative_binomial(300 / 8, 1 / 9, 120) / 30).tolist())
    seen = readings(chat=RateHistory(30.0, rates))
    plain, _ = looked(DemandMemory(), seen, {"chat": Declared(1.0)})
    bursty, _ = looked(DemandMemory(), seen, {"chat": Declared(1.0, arrival_cv=3.0)})
    assert plain.classes["chat"].planned_rps > 1.1 * bursty.classes["chat"].planned_rps


def test_models_have_entries_while_somebody_names_them():
    def look(memory: DemandMemory, rate_rps: float) -> tuple[DemandMemory, str]:
        return looked(memory, Readings(Found.FOUND, models={"llama": steady(rate_rps)}))

    assert look(DemandMemory(), 0.0) == (DemandMemory(), "")
    memory, reason = look(DemandMemory(), 2.0)
    assert reason == "load of model llama 0 -> 2.05 requests/s"
    assert memory.models["llama"].planned_rps == pytest.approx(2, rel=0.026)
    after, reason = look(memory, 0.0)
    assert (after, reason) == (DemandMemory(), "load of model llama 2.05 -> 0 requests/s")


def test_longer_prompts_are_followed_and_named():
    # 4000 requests of 600 to 700 tokens.
    prompts = Histogram((600.0, 700.0, float("inf")), (0.0, 4000.0, 0.0), 4000 * 650.0)
    seen = replace(readings(chat=steady(14.0)), pools={"a": PoolReading(2, rate_rps=14.0, prompt_tokens=prompts)})
    memory, reason = looked(DemandMemory(), seen)
    assert reason == "prompts of class chat 1.3 times as long"
    assert memory.classes["chat"].prompt_factor == pytest.approx(1.3, rel=0.026)
    assert memory.classes["chat"].output_factor == 1
    assert looked(memory, seen) == (memory, "")


def test_the_status_holds_everything():
    memory, _ = looked(
        DemandMemory({"code": Held(5.0, 1234.5, None, 0.71234, 1.3)}),
        Readings(Found.FOUND, classes={"chat": steady(0.004)}, models={"llama": steady(123456.0)}),
    )
    written = to_status(memory)
    assert from_status(written) == memory
    assert all("e" not in text for entry in written for text in (entry.planned, entry.routed, entry.observed or ""))
    assert [(entry.request_class, entry.model) for entry in written] == [("chat", None), ("code", None), (None, "llama")]


@pytest.mark.parametrize("planned", ["many", "nan", "-1", "inf"])
def test_what_cannot_be_read_counts_as_never_measured(planned):
    entry = DemandStatus.model_validate({"class": "chat", "planned": planned, "routed": "1"})
    assert from_status([entry]) == DemandMemory()
