"""Pods are asked over real sockets: what is told of them, how often they are asked, and what happens when they fail."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from servingplan.picker.scrape import Connection, Pace, PageError, Scraper
from servingplan.routing.fleet import Scrape

from .conftest import REAL_PAGE, Pod, metrics_page, run, serving, until

FAST = Pace(interval_s=0.01, idle_interval_s=0.01, timeout_s=0.2)


class Told:
    """Who the scraper tells, in the place of the decision."""

    def __init__(self) -> None:
        self.scrapes: defaultdict[str, list[Scrape]] = defaultdict(list)
        self.silences: defaultdict[str, int] = defaultdict(int)
        self.refusals: defaultdict[str, int] = defaultdict(int)

    def observe(self, address: str, scrape: Scrape, now_s: float) -> None:
        assert scrape.taken_s <= now_s <= time.monotonic()
        self.scrapes[address].append(scrape)

    def silent(self, address: str, now_s: float) -> None:
        assert now_s <= time.monotonic()
        self.silences[address] += 1

    def gone(self, address: str, now_s: float) -> None:
        assert now_s <= time.monotonic()
        self.refusals[address] += 1


@contextlib.asynccontextmanager
async def following(*addresses: str, pace: Pace = FAST) -> AsyncIterator[tuple[Scraper, Told]]:
    told = Told()
    scraper = Scraper(told, pace)
    scraper.follow(addresses)
    try:
        yield scraper, told
    finally:
        await scraper.close()


def test_what_a_pod_says_is_told_with_the_time_at_which_it_said_so() -> None:
    async def scenario() -> None:
        async with serving(Pod(page=metrics_page(3, 2))) as (address,), following(address) as (scraper, told):
            before_s = time.monotonic()
            await until(lambda: len(told.scrapes[address]) >= 3)
            found = told.scrapes[address][-1]
            assert (found.running, found.waiting, found.kv_usage, found.prefix_hit_share) == (3, 2, 0.5, None)
            assert before_s < found.taken_s
            assert 0 <= scraper.age_s(address) == scraper.oldest_s() or scraper.age_s(address) < 1
            assert not told.silences

    run(scenario())


@pytest.mark.skipif(not REAL_PAGE.exists(), reason="needs the page of a real server")
@pytest.mark.parametrize("chunked", [False, True])
def test_the_whole_page_of_a_real_server(*, chunked: bool) -> None:
    async def scenario() -> None:
        async with serving(Pod(page=REAL_PAGE.read_text(), chunked=chunked)) as (address,):
            connection = Connection(address)
            assert (await connection.page()).prefix_queries == 168
            assert (await connection.page()).prefix_queries == 168
            connection.close()

    run(scenario())


@pytest.mark.parametrize(("chunked", "closes", "connections"), [(False, False, 1), (True, False, 1), (False, True, 3)])
def test_one_connection_is_kept_unless_the_pod_closes_it(*, chunked: bool, closes: bool, connections: int) -> None:
    async def scenario() -> None:
        pod = Pod(chunked=chunked, closes=closes)
        async with serving(pod) as (address,):
            connection = Connection(address)
            for _ in range(3):
                await connection.page()
            connection.close()
            assert (len(pod.asked), len(pod.connections) if not closes else connections) == (3, connections)

    run(scenario())


def test_the_question_names_what_is_wanted_and_a_pod_that_then_finds_nothing_is_asked_for_all() -> None:
    async def scenario() -> None:
        plain, narrow = Pod(), Pod(narrows=True)
        async with serving(plain, narrow) as addresses:
            for address in addresses:
                connection = Connection(address)
                await connection.page()
                await connection.page()
                connection.close()
            assert ["name[]=vllm:num_requests_running" in query for query in plain.asked] == [True, True]
            assert [bool(query) for query in narrow.asked] == [True, False, False]

    run(scenario())


def test_a_pod_that_hangs_is_silent_and_is_asked_once_at_a_time() -> None:
    async def scenario() -> None:
        pod, other = Pod(hangs=True), Pod()
        async with (
            serving(pod, other) as (address, healthy),
            following(address, healthy, pace=Pace(0.01, 0.01, 0.05)) as (scraper, told),
        ):
            await until(lambda: told.silences[address] >= 3)
            assert len(told.scrapes[healthy]) > told.silences[address], "another pod is asked on"
            assert pod.at_once == 1
            assert math.isinf(scraper.age_s(address))
            assert math.isinf(scraper.oldest_s())
            assert scraper.failed == told.silences[address]
            pod.hangs = False
            await until(lambda: told.scrapes[address])
            assert not math.isinf(scraper.oldest_s())

    run(scenario())


@pytest.mark.parametrize("pod", [Pod(status=500), Pod(page="<html>"), Pod(page=""), Pod(page=metrics_page(math.nan))])
def test_an_answer_that_tells_nothing_is_silence(pod: Pod) -> None:
    async def scenario() -> None:
        async with serving(pod) as (address,), following(address) as (_, told):
            await until(lambda: told.silences[address] >= 2)
            assert not told.scrapes[address]

    run(scenario())


def test_a_pod_that_refuses_connections_is_gone_until_it_is_back() -> None:
    async def scenario() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
        address = f"127.0.0.1:{port}"
        async with following(address) as (_, told):
            await until(lambda: told.refusals[address] >= 2)
            async with serving(Pod(), ports=(port,)):
                await until(lambda: told.scrapes[address])
            seen = told.refusals[address]
            await until(lambda: told.refusals[address] > seen)

    run(scenario())


def test_a_pod_that_comes_back_between_two_questions_was_never_silent() -> None:
    async def scenario() -> None:
        connection = None
        port = 0
        for _ in range(2):
            async with serving(Pod(), ports=(port,)) as (address,):
                connection = connection or Connection(address)
                port = int(address.rpartition(":")[2])
                assert (await connection.page()).running == 0
        assert connection is not None
        connection.close()

    run(scenario())


def test_who_is_no_longer_followed_is_asked_no_more_and_forgotten() -> None:
    async def scenario() -> None:
        pods = [Pod(), Pod()]
        async with serving(*pods) as (stays, goes), following(stays, goes) as (scraper, told):
            await until(lambda: told.scrapes[stays] and told.scrapes[goes])
            scraper.follow([stays])
            asked, seen = len(pods[1].asked), len(told.scrapes[stays])
            await until(lambda: len(told.scrapes[stays]) > seen + 5)
            assert len(pods[1].asked) <= asked + 1, "at most the question that was under way"
            assert math.isinf(scraper.age_s(goes))
            assert not math.isinf(scraper.oldest_s())
            scraper.follow([stays, goes])
            await until(lambda: len(pods[1].asked) > asked + 1)

    run(scenario())


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def scraping() -> list[str]:
    return [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("scrape ")]


def test_thousands_of_pods_that_come_and_go_leave_nothing_behind() -> None:
    async def scenario() -> None:
        async with serving(Pod()) as (address,), following(address) as (scraper, told):
            await until(lambda: told.scrapes[address])
            files = open_files()
            for wave in range(50):
                scraper.follow([address, *(f"127.0.0.1:{1 + wave * 40 + each}" for each in range(40))])
                await asyncio.sleep(0)
            scraper.follow([address])
            await until(
                lambda: (
                    [task.get_name() for task in asyncio.all_tasks() if "scrape" in task.get_name()] == [f"scrape {address}"]
                )
            )
            await until(lambda: open_files() <= files)
            seen = len(told.scrapes[address])
            await until(lambda: len(told.scrapes[address]) > seen)

    run(scenario())


def test_a_pod_with_nothing_to_do_is_asked_less_often() -> None:
    async def scenario() -> None:
        idle, busy = Pod(), Pod(page=metrics_page(1))
        async with serving(idle, busy) as (_, at_work), following(idle.address, at_work, pace=Pace(0.01, 1.0)) as (_, told):
            await until(lambda: len(told.scrapes[at_work]) > 60)
            assert len(told.scrapes[idle.address]) < 20
            idle.page = metrics_page(1)
            seen = len(told.scrapes[idle.address])
            await until(lambda: len(told.scrapes[idle.address]) > seen + 20, "it is asked as often as the other again")

    run(scenario())


Reply = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def ask(reply: bytes) -> None:
    """One question to a server that answers with these bytes and closes."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        connection = Connection(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
        try:
            await connection.page()
        finally:
            connection.close()


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (b"", EOFError),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nvllm:", EOFError),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nvllm:\r\n", EOFError),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nfive\r\nvllm:\r\n0\r\n\r\n", PageError),
        (b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n", PageError),
        (b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", PageError),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n", PageError),
        (b"HTTP/1.1 200 OK\r\n\r\n" + metrics_page().encode(), PageError),
        (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 100_000, PageError),
        (b"SSH-2.0-OpenSSH_9\r\n\r\n", PageError),
    ],
)
def test_bytes_that_are_no_answer(reply: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        run(ask(reply))


def test_a_page_without_end_is_not_kept() -> None:
    with pytest.raises(PageError, match="too long"):
        run(ask(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + (b"100000\r\n" + b"x" * 0x100000 + b"\r\n") * 6))


@pytest.mark.parametrize("wrong", [(0.0, 1.0, 1.0), (1.0, 0.5, 1.0), (1.0, 1.0, 0.0)])
def test_a_pace_that_is_none(wrong: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="positive"):
        Pace(*wrong)
