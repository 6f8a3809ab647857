"""One of several operators leads, and only the leader writes: on a real API server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiohttp import web
from kubernetes.aio import client, config

from servingplan.controller.kube import Kube, KubeError, NotLeader
from servingplan.controller.lease import Elector, Leadership, Timing, candidate
from testbed.cluster import Cluster

LEADER = Path(__file__).with_name("_leader.py")
LEASE = "operator"
SHORT = Timing(duration_s=4, deadline_s=2.4, retry_s=0.3)
LONG = Timing(duration_s=600, deadline_s=400, retry_s=0.1)
"""Whoever waits for such a Lease to run out waits longer than any test."""
LIMIT_S = 30.0


@pytest.fixture
def kubeconfig(bed: Cluster) -> Path:
    return bed.kubeconfig


async def connect(kubeconfig: Path, server: str | None = None) -> Kube:
    configuration = client.Configuration()
    await config.load_kube_config(config_file=str(kubeconfig), client_configuration=configuration)
    if server:
        configuration.host = server
    return Kube(client.ApiClient(configuration))


class Candidate:
    """One elector and what it says."""

    def __init__(self, kube: Kube, namespace: str, name: str, timing: Timing) -> None:
        self.name = candidate(name)
        self.leadership = Leadership(timing)
        self.looks = 0
        self.kube = kube.guarded(self.leadership.guard)
        self.task = asyncio.create_task(Elector(kube, namespace, LEASE, self.name, self.leadership, self._look).run())

    def _look(self) -> None:
        self.looks += 1

    async def acquired(self) -> None:
        await asyncio.wait_for(self.leadership.acquired(), LIMIT_S)

    async def stood_by(self, looks: int = 2) -> None:
        await until(lambda: self.looks >= looks)

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def until(condition: Callable[[], Awaitable[bool] | bool]) -> None:
    """Looks until something is so that tells nobody."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            found = condition()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def candidates(kubeconfig: Path, namespace: str, *names: str, timing: Timing) -> AsyncIterator[list[Candidate]]:
    async with contextlib.AsyncExitStack() as stack:
        found = []
        for name in names:
            kube = await connect(kubeconfig)
            stack.push_async_callback(kube.close)
            found.append(Candidate(kube, namespace, name, timing))
            stack.push_async_callback(found[-1].stop)
        yield found


@contextlib.contextmanager
def subprocess_leader(kubeconfig: Path, namespace: str, duration_s: int) -> Iterator[subprocess.Popen[str]]:
    """The process of ``_leader.py``, once it leads and has written."""
    argv = [sys.executable, str(LEADER), namespace, LEASE, str(duration_s)]
    environment = os.environ | {"KUBECONFIG": str(kubeconfig)}
    with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert [process.stdout.readline().strip() for _ in range(2)] == ["leads", "wrote"]
            yield process
        finally:
            process.kill()


def config_map(namespace: str, writer: str) -> dict[str, Any]:
    meta = {"name": LEASE, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"writer": writer}}


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


def test_of_many_that_start_together_one_leads_and_its_record_is_what_client_go_writes(
    kubeconfig: Path, namespace: str
) -> None:
    async def scenario() -> None:
        async with candidates(kubeconfig, namespace, *"abcde", timing=LONG) as found:
            await until(lambda: sum(each.leadership.is_leader() for each in found) == 1)
            for each in found:
                if not each.leadership.is_leader():
                    await each.stood_by()
            (leader,) = [each for each in found if each.leadership.is_leader()]
            lease = await leader.kube.get("Lease", namespace, LEASE)
            assert lease is not None
            spec = lease["spec"]
            assert spec["holderIdentity"] == leader.name
            assert (spec["leaseDurationSeconds"], spec.get("leaseTransitions", 0)) == (600, 0)
            assert spec["acquireTime"] <= spec["renewTime"]

    run(scenario())


def test_who_stands_by_may_not_write_and_who_leads_may(kubeconfig: Path, namespace: str) -> None:
    async def scenario() -> None:
        async with candidates(kubeconfig, namespace, "first", timing=LONG) as (first,):
            await first.acquired()
            async with candidates(kubeconfig, namespace, "second", timing=LONG) as (second,):
                await second.stood_by()
                for write in (
                    second.kube.apply(config_map(namespace, "second")),
                    second.kube.create("ConfigMap", namespace, config_map(namespace, "second")),
                    second.kube.annotate("ConfigMap", namespace, LEASE, {"a": "b"}),
                    second.kube.replace(config_map(namespace, "second")),
                    second.kube.delete("ConfigMap", namespace, LEASE, "uid"),
                ):
                    with pytest.raises(NotLeader, match="stands by"):
                        await write
                assert await second.kube.get("ConfigMap", namespace, LEASE) is None
                stored = await first.kube.apply(config_map(namespace, "first"))
                assert stored["data"] == {"writer": "first"}

    run(scenario())


def test_a_leader_that_stops_gives_the_lease_back_and_the_next_need_not_wait(kubeconfig: Path, namespace: str) -> None:
    async def scenario() -> None:
        async with candidates(kubeconfig, namespace, "first", timing=LONG) as (first,):
            await first.acquired()
            async with candidates(kubeconfig, namespace, "second", timing=LONG) as (second,):
                await second.stood_by()
                assert not second.leadership.is_leader()
                await first.stop()
                assert first.leadership.lost.is_set()
                await second.acquired()
                lease = await second.kube.get("Lease", namespace, LEASE)
                assert lease is not None
                assert lease["spec"]["holderIdentity"] == second.name
                assert lease["spec"]["leaseTransitions"] == 1

    run(scenario())


def test_a_lease_is_taken_from_a_leader_that_was_killed(kubeconfig: Path, namespace: str) -> None:
    async def scenario() -> None:
        with subprocess_leader(kubeconfig, namespace, SHORT.duration_s) as process:
            async with candidates(kubeconfig, namespace, "second", timing=SHORT) as (second,):
                await second.stood_by(looks=16)
                assert not second.leadership.is_leader(), "a leader that renews keeps the Lease"
                process.kill()
                await second.acquired()

    run(scenario())


def test_a_leader_that_was_frozen_does_not_write_when_it_wakes(kubeconfig: Path, namespace: str) -> None:
    async def scenario() -> None:
        with subprocess_leader(kubeconfig, namespace, SHORT.duration_s) as process:
            async with candidates(kubeconfig, namespace, "second", timing=SHORT) as (second,):
                await second.stood_by()
                process.send_signal(signal.SIGSTOP)
                await second.acquired()
                await second.kube.apply(config_map(namespace, "second"))
                process.send_signal(signal.SIGCONT)
                said, _ = await asyncio.to_thread(process.communicate, timeout=LIMIT_S)
                assert said.split() == ["refused", "lost"]
                assert process.returncode == 0
                stored = await second.kube.get("ConfigMap", namespace, LEASE)
                assert stored is not None
                assert stored["data"] == {"writer": "second"}
                assert second.leadership.is_leader()

    run(scenario())


class Wire:
    """A way to the API server that can be cut."""

    def __init__(self, server: str) -> None:
        address = urlsplit(server)
        self._server = (address.hostname, address.port)
        self._writers: list[asyncio.StreamWriter] = []
        self._listener: asyncio.Server | None = None

    async def lay(self) -> str:
        self._listener = await asyncio.start_server(self._join, "127.0.0.1", 0)
        return f"https://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        """Ends every connection and takes no further one."""
        assert self._listener is not None
        self._listener.close()
        for writer in self._writers:
            writer.transport.abort()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(*self._server)
        self._writers += [writer, far_writer]
        await asyncio.gather(self._pass(reader, far_writer), self._pass(far_reader, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
            writer.close()


def test_a_leader_that_loses_the_api_server_stops_before_another_leads(kubeconfig: Path, namespace: str) -> None:
    async def scenario() -> None:
        direct = await connect(kubeconfig)
        wire = Wire(direct.api.configuration.host)
        through = await connect(kubeconfig, await wire.lay())
        first = Candidate(through, namespace, "first", SHORT)
        await first.acquired()
        second = Candidate(direct, namespace, "second", SHORT)
        await second.stood_by()
        wire.cut()
        await second.acquired()
        assert not first.leadership.is_leader()
        with pytest.raises(NotLeader, match="another operator may lead"):
            await first.kube.apply(config_map(namespace, "first"))
        await asyncio.wait_for(first.task, LIMIT_S)
        assert first.leadership.lost.is_set()
        await second.stop()
        await through.close()
        await direct.close()

    run(scenario())


def test_a_leader_goes_on_through_an_outage_that_is_shorter_than_its_deadline(kubeconfig: Path, namespace: str) -> None:
    async def scenario() -> None:
        direct = await connect(kubeconfig)
        wire = Wire(direct.api.configuration.host)
        patient = Timing(duration_s=60, deadline_s=40, retry_s=0.1)
        first = Candidate(await connect(kubeconfig, await wire.lay()), namespace, "first", patient)
        await first.acquired()
        before = await direct.get("Lease", namespace, LEASE)
        wire.cut()
        first.kube.api.configuration.host = direct.api.configuration.host  # the API server is back, at its own address

        async def renewed() -> bool:
            return await direct.get("Lease", namespace, LEASE) != before

        await until(renewed)
        assert first.leadership.is_leader()
        await first.stop()
        await first.kube.close()
        await direct.close()

    run(scenario())


def test_a_leader_whose_lease_was_deleted_leads_no_more(kubeconfig: Path, namespace: str, bed: Cluster) -> None:
    async def scenario() -> None:
        async with candidates(kubeconfig, namespace, "first", timing=LONG) as (first,):
            await first.acquired()
            await asyncio.to_thread(bed.kubectl, "delete", "lease", LEASE, "-n", namespace)
            await asyncio.wait_for(first.task, LIMIT_S)
            assert first.leadership.lost.is_set()

    run(scenario())


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_a_write_has_to_end_before_another_may_lead() -> None:
    clock = Clock()
    leadership = Leadership(Timing(12, 8.0, 2.0), clock=clock)
    with pytest.raises(NotLeader, match="stands by"):
        leadership.guard()
    leadership.renewed(since=998.0)
    assert leadership.is_leader()
    assert leadership.guard() == 10.0
    clock.now_s = 1005.9
    assert leadership.guard() == pytest.approx(4.1)
    clock.now_s = 1006.0
    assert not leadership.is_leader()
    with pytest.raises(NotLeader, match="not renewed in time"):
        leadership.guard()
    leadership.renewed(since=1006.0)
    assert leadership.is_leader(), "late, and still nobody else's"
    leadership.ended()
    with pytest.raises(NotLeader, match="lost"):
        leadership.guard()


@pytest.mark.parametrize("timing", [(12, 12.0, 2.0), (12, 8.0, 8.0), (12, 8.0, 0.0)])
def test_times_that_leave_no_room_are_refused(timing: tuple[int, float, float]) -> None:
    with pytest.raises(ValueError, match="each less than the next"):
        Timing(*timing)


@contextlib.asynccontextmanager
async def slow_server(answers_after: asyncio.Event) -> AsyncIterator[tuple[Kube, list[tuple[str, dict[str, str]]]]]:
    """An API server that takes its time, and what it was asked."""
    asked = []

    async def slow(request: web.Request) -> web.Response:
        asked.append((request.method, dict(request.query)))
        await answers_after.wait()
        return web.json_response({})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", slow)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    kube = Kube(client.ApiClient(client.Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}")))
    try:
        yield kube, asked
    finally:
        await kube.close()
        await runner.cleanup()


def test_a_write_waits_no_longer_than_it_may_and_tells_the_server() -> None:
    async def scenario() -> None:
        async with slow_server(answers_after=asyncio.Event()) as (kube, asked):
            with pytest.raises(KubeError, match="TimeoutError") as refusal:
                await kube.guarded(lambda: 0.2).apply(config_map("default", "late"))
            assert refusal.value.status == 0
            assert asked == [("PATCH", {"fieldManager": "servingplan", "force": "true", "timeout": "0.200s"})]

    run(scenario())


def test_a_write_that_is_under_way_when_the_loop_ends_is_waited_for() -> None:
    async def scenario() -> None:
        answered = asyncio.Event()
        async with slow_server(answered) as (kube, asked):
            writing = asyncio.create_task(kube.guarded(lambda: LIMIT_S).apply(config_map("default", "last")))
            await until(lambda: bool(asked))
            writing.cancel()
            await asyncio.wait([writing], timeout=0.2)
            assert not writing.done(), "the Lease would be given back with a write under way"
            answered.set()
            await asyncio.wait_for(asyncio.wait([writing]), LIMIT_S)
            assert writing.cancelled()

    run(scenario())
