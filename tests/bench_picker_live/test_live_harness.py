"""The parts of the live harness that a figure depends on: what they count must be what happened."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from live import compare, figures, generator, layout, overhead, plot, stack, traffic
from live.pages import Page
from live.pod import PodSpec, read_request
from live.process import Child
from live.streams import scene
from live.traffic import End, Plan
from live.wire import END_OF_CHUNKS, Reader, chunk, header
from servingplan.api.routing_table import RoutingTable

COUNTED = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nX-Pod:  a-1\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"one") + chunk(b"two" * 9) + END_OF_CHUNKS
EMPTY = b"HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n"


@given(st.lists(st.integers(1, 40), max_size=30))
def test_messages_are_the_same_however_the_bytes_come(cuts):
    seen: list[list[bytes]] = []

    def begin(head: bytes) -> None:
        seen.append([head, b""])

    def take(piece: bytes) -> None:
        seen[-1][1] += piece

    reader = Reader(begin, take, lambda: seen[-1].append(b"end"))
    stream = COUNTED + CHUNKED + EMPTY + COUNTED
    for cut in cuts:
        reader.feed(stream[:cut])
        stream = stream[cut:]
    reader.feed(stream)
    assert [body for _, body, _ in seen] == [b"hello", b"one" + b"two" * 9, b"", b"hello"]
    assert header(seen[0][0], b"x-pod") == b"a-1"
    assert header(seen[1][0], b"x-pod") is None


def test_a_page_is_of_full_size_and_tells_the_load():
    text = Page("m7b").text(7, 3, 0.25)
    assert len(text) > 37_000
    lines = text.decode().splitlines()
    told = {line.split("{")[0]: line.rsplit(" ", 1)[1] for line in lines if line.startswith("vllm:") and "created" not in line}
    assert told["vllm:num_requests_running"] == "7.0"
    assert told["vllm:num_requests_waiting"] == "3.0"
    assert told["vllm:kv_cache_usage_perc"] == "0.25"


def test_arrivals_follow_the_pieces_and_bodies_are_all_different():
    plan = Plan(((50.0, 20.0), (10.0, 0.0), (50.0, 80.0)), body_bytes=700, output_tokens=50, output_cv=0.8, seed=4)
    times_s = traffic.moments_s(plan)
    assert np.all(np.diff(times_s) > 0)
    assert not np.any((times_s > 50) & (times_s < 60))
    assert np.sum(times_s < 50) == pytest.approx(1000, abs=120)
    assert np.sum(times_s > 60) == pytest.approx(4000, abs=240)
    bodies = traffic.Bodies(plan)
    made = [bodies.next() for _ in range(200)]
    assert len({request for request, _ in made}) == 200
    assert {len(request.split(b"\r\n\r\n", 1)[1]) for request, _ in made} == {700}
    request, max_tokens = made[0]
    asked = read_request(request.split(b"\r\n\r\n", 1)[1])
    assert (asked.stream, asked.max_tokens, asked.prompt_tokens) == (True, max_tokens, 175)


def test_ratios_are_of_what_was_measured_and_their_interval_narrows():
    random = np.random.default_rng(1)
    slow = [random.exponential(2.0, 2000) for _ in range(4)]
    fast = [random.exponential(1.0, 2000) for _ in range(4)]
    found = figures.ratio(slow, fast, lambda values: float(np.mean(values)))
    assert found.low < 2.0 < found.high
    assert found.high - found.low < 0.5
    same = figures.ratio(slow, slow, lambda values: float(np.mean(values)))
    assert same.middle == 1.0


@pytest.mark.parametrize("pods", [13, 50])
def test_the_layout_has_as_many_pods_as_it_says_and_every_one_is_in_the_table(pods):
    specs = layout.fleet(pods, engines=True)
    assert len({(spec.address, spec.port) for spec in specs}) == pods
    for arm in (stack.Arm(stack.WEIGHTS), stack.Arm(stack.OURS)):
        table = arm.table()
        assert RoutingTable.model_validate_json(table.model_dump_json(by_alias=True)) == table
        assert (table.picker is None) == (arm.name == stack.WEIGHTS)
    for spec in specs:
        pool = next(pool for model in table.models if model.name == spec.model for pool in model.pools)
        assert spec.address in layout.records(specs)[pool.address]
        assert f"{spec.address}:{spec.port}" in layout.endpoints(specs)
        assert spec.engine is not None
        assert spec.engine.beta_s == pool.engine.beta_s


@pytest.fixture
def pods(tmp_path) -> Iterator[stack.Pods]:
    with stack.pods(tmp_path, 13, engines=True) as fleet:
        yield fleet


@pytest.fixture
def load(tmp_path) -> Iterator[Child]:
    child = Child([sys.executable, Path(generator.__file__)], tmp_path / "load.log", talks=True)
    child.hear()
    yield child
    child.stop()


def _send(load: Child, pod: PodSpec, path: Path, **fields) -> np.ndarray:
    plan = Plan(((0.5, 60.0),), ((pod.address, pod.port),), str(path), body_bytes=600, **fields)
    load.ask({name: getattr(plan, name) for name in plan.__dataclass_fields__})
    return np.load(path)


def test_outcomes_are_told_apart(pods, load, tmp_path):
    healthy, killed, hung = pods.specs[:3]
    rows = _send(load, healthy, tmp_path / "a.npy", output_tokens=5)
    assert len(rows) > 10
    assert set(rows["end"]) == {End.WHOLE}
    assert set(rows["pod"]) == {healthy.name.encode()}
    assert np.all(rows["sent_s"] <= rows["headers_s"])
    assert np.all(rows["headers_s"] <= rows["first_s"])
    assert np.all(rows["first_s"] <= rows["end_s"])
    assert pods.order("look")[healthy.name]["requests"] == len(rows)

    pods.order("kill", [killed.name])
    assert set(_send(load, killed, tmp_path / "b.npy")["end"]) == {End.BEFORE}
    pods.order("revive", [killed.name])
    assert set(_send(load, killed, tmp_path / "c.npy", output_tokens=2)["end"]) == {End.WHOLE}

    pods.order("hang", [hung.name])
    rows = _send(load, hung, tmp_path / "d.npy", patience_s=0.5)
    assert set(rows["end"]) == {End.LATE}
    assert np.all(np.isnan(rows["headers_s"]))

    gone = _send(load, healthy, tmp_path / "e.npy", output_tokens=500, abort_share=1.0, abort_after_s=0.05)
    assert set(gone["end"]) == {End.ABORTED}


def test_an_engine_takes_its_time_and_a_stream_begins_before_its_first_token(pods, load, tmp_path):
    slow = next(spec for spec in pods.specs if spec.model == "m72b")
    rows = _send(load, slow, tmp_path / "a.npy", output_tokens=10)
    least_s = slow.engine.alpha_s
    assert np.all(rows["first_s"] - rows["sent_s"] >= least_s)
    assert np.all(rows["end_s"] - rows["first_s"] >= 9 * least_s * 0.9)
    assert np.median(rows["headers_s"] - rows["sent_s"]) < least_s


def test_the_pictures_are_drawn(tmp_path):
    random = np.random.default_rng(0)
    rows = np.zeros(400, dtype=traffic.ROW)
    rows["sent_s"] = rows["planned_s"] = np.sort(random.uniform(0, 40, 400))
    rows["first_s"] = rows["headers_s"] = rows["sent_s"] + random.exponential(0.1, 400)
    rows["end_s"], rows["status"], rows["pod"] = rows["first_s"] + 1, 200, b"m7b-1"
    rows["end"][-3:] = End.CUT
    course = compare.Course(stack.OURS, rows, ((20.0, 10.0), (20.0, 20.0)), 30.0, "m7b-1")
    plot.courses(tmp_path / "ttft.png", [course, course])
    result = overhead.Result()
    for rate in (50.0, 200.0):
        for arm in (stack.WEIGHTS, stack.OURS):
            cell = overhead.Cell(arm, 13, rate, [random.exponential(2, 99)], [float("nan")], [300.0], [1.0], [0.1], sent=99)
            result.cells[arm, 13, rate] = cell
    plot.overheads(tmp_path / "overhead.png", result)
    assert "13     50  weights" in overhead.table(result)
    assert (tmp_path / "ttft.png").stat().st_size > 20_000
    assert (tmp_path / "overhead.png").stat().st_size > 20_000


@pytest.mark.parametrize("name", [stack.RANDOM, stack.OURS])
def test_a_router_asks_the_picker_and_says_when_it_could_not(name, tmp_path):
    plan = Plan(((1.0, 40.0),), stream=False)
    with scene(tmp_path, stack.Arm(name)) as (fleet, router, sender):
        before = router.usage()
        rows, _ = sender.send([router], plan)
        after = router.usage()
        assert set(rows["end"]) == {End.WHOLE}
        assert router.unasked() == 0
        assert after["picker"].cpu_s > before["picker"].cpu_s
        assert sum(look["requests"] for look in fleet.order("look").values()) == len(rows)
        router.signal_picker(signal.SIGKILL)
        rows, _ = sender.send([router], plan)
        assert set(rows["end"]) == {End.WHOLE}
        assert router.unasked() == len(rows)
