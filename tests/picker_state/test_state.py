"""The decision is fed from files, over real sockets, and serves on whatever is lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from servingplan.picker import state as states
from servingplan.picker.scrape import Pace
from servingplan.picker.state import Options, State
from servingplan.picker.watch import SourceError, follow_file
from servingplan.routing.ask import Ask, Outcome
from servingplan.routing.brain import Brain

from .conftest import Pod, metrics_page, run, serving, table_json, until

PACE = Pace(interval_s=0.02, idle_interval_s=0.02, timeout_s=0.2)
ASK = Ask("chat", 100.0, quality={"s": 0.5, "l": 0.9}, output_tokens={"s": 100.0, "l": 100.0})


class Files:
    """A table and endpoints in files, as a folder of a ConfigMap that is mounted would show them."""

    def __init__(self, folder: Path) -> None:
        self.table, self.endpoints = folder / "table.json", folder / "endpoints.json"

    def write(self, table: str | None = None, endpoints: Any = None) -> None:
        for path, text in ((self.table, table), (self.endpoints, endpoints and json.dumps(endpoints))):
            if text is not None:
                fresh = path.with_suffix(".fresh")
                fresh.write_text(text)
                fresh.replace(path)

    def options(self, **others: Any) -> Options:
        return Options("ns", "plan", table_file=self.table, endpoints_file=self.endpoints, pace=PACE, **others)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_UPKEEP_S", "_SHARES_S", "_RESOLVE_S", "_PREDICTOR_S", "_RESTART_S"):
        monkeypatch.setattr(states, name, 0.02)
    monkeypatch.setattr(follow_file, "__defaults__", (0.01,))


@contextlib.asynccontextmanager
async def started(options: Options) -> AsyncIterator[State]:
    state = State(options)
    await state.start()
    try:
        yield state
    finally:
        await state.stop()


def value(state: State, name: str, *labels: str) -> float:
    found = {tuple(text for _, text in pairs): number for pairs, number in state.numbers().get(name, {}).items()}
    return found.get(labels, 0.0)


def test_the_decision_knows_the_pods_and_what_they_say(files: Files) -> None:
    async def scenario() -> None:
        busy, idle = Pod(page=metrics_page(60, 40)), Pod()
        async with serving(busy, idle) as (at_work, free), started(files.options()) as state:
            assert (state.ready(), state.table) == (False, None)
            files.write(table_json(), {"small": [at_work, free]})
            await until(lambda: state.ready() and state.age_s() < 20)
            assert state.table is not None
            choice = state.brain.choose(ASK, state._clock(), 0.5)
            assert choice.candidates == (free, at_work)
            assert value(state, "endpoints", "small", "serving") == 2
            assert value(state, "in_flight", "small") == 1
            assert value(state, "table_generation") == 1
            assert value(state, "scrapes", "answered") >= 2
            assert 0 <= value(state, "scrape_age_seconds", "small") < 20
            assert value(state, "capacity_price", "small") == pytest.approx(0.03)

    run(scenario())


def test_a_spoilt_table_is_refused_once_and_the_last_one_stands(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        files.write(table_json(), {"small": ["127.0.0.1:1"]})
        async with started(files.options()) as state:
            await until(state.ready)
            for spoilt in ("{", table_json(plan="other"), "{ "):
                before = value(state, "table_refusals")
                files.write(spoilt)
                await until(lambda before=before: value(state, "table_refusals") > before)
            assert state.ready()
            assert state.table is not None
            assert value(state, "table_refused") == 1
            files.write(table_json(generation=2))
            await until(lambda: value(state, "table_generation") == 2)
            assert value(state, "table_refused") == 0

    caplog.set_level(logging.INFO)
    run(scenario())
    refused = [each.message for each in caplog.records if each.levelno == logging.ERROR]
    assert [("is of ns/other" in each, "The last one stands." in each) for each in refused] == [
        (False, True),
        (True, True),
        (False, True),
    ]


def test_endpoints_that_leave_are_picked_no_more_and_keep_no_memory(files: Files) -> None:
    async def scenario() -> None:
        async with serving(Pod(), Pod()) as (stays, goes), started(files.options()) as state:
            files.write(table_json(), {"small": [stays, goes]})
            await until(lambda: state.ready() and state.age_s() < 20)
            files.write(endpoints={"small": [stays]})
            await until(lambda: value(state, "endpoints", "small", "serving") == 1)
            assert state.brain.choose(ASK, state._clock(), 0.5).candidates == (stays,)
            assert list(state.brain.in_flight()) == [stays]
            files.write(endpoints={"small": "nonsense"})
            files.write(endpoints={"large": []})
            await until(lambda: not state.ready())
            assert state.table is not None, "that all are gone is known"
            assert state.brain.choose(ASK, state._clock(), 0.5).status == 503

    run(scenario())


@pytest.mark.parametrize("nonsense", ["[]", "{", '{"small": ["localhost:1"]}', '{"small": 5}', '{"small": [5]}'])
def test_a_list_of_endpoints_that_is_none_changes_nothing(
    files: Files, nonsense: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        files.write(table_json(), {"small": ["127.0.0.1:1"]})
        async with started(files.options()) as state:
            await until(state.ready)
            files.endpoints.write_text(nonsense)
            await until(lambda: "the last one stands" in caplog.text)
            assert state.ready()

    run(scenario())


def test_other_weights_take_effect_and_what_is_in_flight_stays(files: Files) -> None:
    async def scenario() -> None:
        pod = Pod()
        async with serving(pod) as (address,), started(files.options()) as state:

            def status() -> int:
                return state.brain.choose(ASK, state._clock(), 0.5).status

            files.write(table_json(), {"small": [address]})
            await until(lambda: state.ready() and state.age_s() < 20)
            first = state.brain.choose(ASK, state._clock(), 0.5)
            assert first.ticket is not None
            pod.page = metrics_page(64, 500)
            await until(lambda: status() == 429)
            before = value(state, "in_flight", "small")
            files.write(table_json(picker={"perDollar": 1.0, "perSecond": 0.1, "shed": False}))
            await until(lambda: status() == 200)
            assert value(state, "in_flight", "small") == before + 1
            state.brain.finished(first.ticket, state._clock(), Outcome.COMPLETED)
            assert value(state, "in_flight", "small") == before

    run(scenario())


def test_a_plan_that_routes_by_its_weights_is_left_alone(files: Files) -> None:
    async def scenario() -> None:
        files.write(table_json(), {"small": ["127.0.0.1:1"]})
        async with started(files.options()) as state:
            await until(state.ready)
            files.write(table_json(picker=None))
            await until(lambda: not state.ready())
            assert state.table is None
            files.write(table_json())
            await until(state.ready)

    run(scenario())


def test_without_a_list_of_endpoints_the_names_of_the_pools_are_resolved(files: Files) -> None:
    async def scenario() -> None:
        pod = Pod()
        async with serving(pod) as (address,):
            table = json.loads(table_json())
            port = int(address.rpartition(":")[2])
            table["models"][0]["pools"][0] |= {"address": "localhost", "port": port}
            table["models"][1]["pools"][0] |= {"address": "no-such-host.invalid."}
            files.write(json.dumps(table))
            async with started(Options("ns", "plan", table_file=files.table, pace=PACE)) as state:
                await until(lambda: state.ready() and state.age_s() < 20)
                assert state.brain.choose(ASK, state._clock(), 0.5).candidates == (address,)

    run(scenario())


def test_realised_shares_are_metered_beside_the_plan(files: Files) -> None:
    async def scenario() -> None:
        files.write(table_json(), {"small": ["127.0.0.1:1"]})
        async with started(files.options()) as state:
            await until(state.ready)

            def metered() -> bool:
                choice = state.brain.choose(ASK, state._clock(), 0.5)
                if choice.ticket is not None:
                    state.brain.finished(choice.ticket, state._clock(), Outcome.COMPLETED)
                return value(state, "realised_share", "chat", "small") == 1.0

            await until(metered)
            assert value(state, "planned_share", "chat", "large") == 0.75
            assert value(state, "plan_distance", "chat") == 0.75

    run(scenario())


def test_a_request_whose_end_nobody_tells_is_released(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        files.write(table_json(timeoutS=1), {"small": ["127.0.0.1:1"]})
        async with started(files.options()) as state:
            await until(state.ready)
            assert state.brain.choose(ASK, state._clock(), 0.5).ticket is not None
            assert value(state, "in_flight", "small") == 1
            await until(lambda: value(state, "in_flight", "small") == 0)
            assert "released 1 requests" in caplog.text

    run(scenario())


def test_a_predictor_that_cannot_be_loaded_leaves_the_means(
    files: Files, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        foreign = tmp_path / "predictor.npz"
        foreign.write_bytes(b"not a predictor")
        files.write(table_json(), {"small": ["127.0.0.1:1"]})
        async with started(files.options(predictor_file=foreign)) as state:
            await until(lambda: "the class's means are taken" in caplog.text)
            await until(state.ready)
            assert state.predict is None
            assert value(state, "predictor_loaded") == 0
            foreign.unlink()
            await until(lambda: "No such file" in caplog.text)

    run(scenario())


def test_a_part_that_fails_begins_anew(files: Files, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        files.write(table_json(), {"small": ["127.0.0.1:1"]})
        failures: list[int] = []
        configure = Brain.configure

        def fails_once(brain: Brain, *arguments: Any) -> None:
            if not failures:
                failures.append(1)
                raise RuntimeError("boom")
            configure(brain, *arguments)

        monkeypatch.setattr(Brain, "configure", fails_once)
        async with started(files.options()) as state:
            await until(lambda: failures and state.ready())
            assert "begins anew" in caplog.text

    run(scenario())


def test_without_files_a_picker_needs_its_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(SourceError, match="no API server to watch"):
        run(State(Options("ns", "plan")).start())


def test_what_was_started_ends(files: Files) -> None:
    async def scenario() -> None:
        files.write(table_json(), {"small": ["127.0.0.1:1"]})
        async with started(files.options()) as state:
            await until(state.ready)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(scenario())
