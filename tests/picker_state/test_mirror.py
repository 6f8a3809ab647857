"""A collection is followed through everything that a watch can go through, on a server that speaks as the API server does."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from servingplan.picker import watch
from servingplan.picker.watch import Collection, Mirror, Server, SourceError, backoff_s

from .conftest import run, until


class Api:
    """One collection of an API server, whose watches a test ends as it likes.

    Attributes:
        lists: How often it was listed.
        watches: Versions from which it was watched.
        status: What it answers with; 200 while it is healthy.
        selectors: What was asked for.
        tokens: Who asked.
    """

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.lists, self.watches = 0, list[str]()
        self.status = 200
        self.selectors: set[str] = set()
        self.tokens: list[str] = []
        self.url = ""
        self._version = 100
        self._watchers: list[asyncio.Queue[bytes | None]] = []

    def put(self, name: str, kind: str = "MODIFIED", *, tell: bool = True) -> None:
        self._version += 1
        stored = {"metadata": {"name": name, "resourceVersion": str(self._version)}}
        if kind == "DELETED":
            self.objects.pop(name, None)
        else:
            self.objects[name] = stored
        if tell:
            self.send({"type": kind, "object": stored})

    def bookmark(self, version: int) -> None:
        self.send({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(version)}}})

    def send(self, *events: dict[str, Any]) -> None:
        self.send_bytes("".join(json.dumps(event) + "\n" for event in events).encode())

    def send_bytes(self, data: bytes | None) -> None:
        for queue in self._watchers:
            queue.put_nowait(data)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.tokens.append(request.headers.get("Authorization", ""))
        self.selectors.add(request.query.get("labelSelector", ""))
        if self.status != 200:
            return web.json_response({"kind": "Status", "message": "not now", "code": self.status}, status=self.status)
        if "watch" not in request.query:
            self.lists += 1
            body = {"metadata": {"resourceVersion": str(self._version)}, "items": list(self.objects.values())}
            return web.json_response(body)
        self.watches.append(request.query["resourceVersion"])
        return await self._stream(request)

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._watchers.append(queue)
        try:
            while (data := await queue.get()) is not None:
                await response.write(data)
        finally:
            self._watchers.remove(queue)
        return response

    @property
    def watched(self) -> bool:
        return bool(self._watchers)


@contextlib.asynccontextmanager
async def api_server(port: int = 0, api: Api | None = None) -> AsyncIterator[Api]:
    api = api or Api()
    app = web.Application()
    app.router.add_get("/apis/discovery.k8s.io/v1/namespaces/ns/endpointslices", api.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    api.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield api
    finally:
        await runner.cleanup()


class Followed:
    """A mirror with what it has told."""

    def __init__(self, url: str, token_file: Path | None = None) -> None:
        self.seen: list[set[str]] = []
        collection = Collection.endpoint_slices("ns", "plan", "p")
        self.mirror = Mirror(Server(url, token_file, None), collection, lambda objects: self.seen.append(set(objects)))
        self.task = asyncio.create_task(self.mirror.run())

    async def sees(self, *names: str) -> None:
        await until(lambda: self.seen and self.seen[-1] == set(names), f"{names} are seen, last {self.seen[-1:]}")


@contextlib.asynccontextmanager
async def followed(url: str, token_file: Path | None = None) -> AsyncIterator[Followed]:
    found = Followed(url, token_file)
    try:
        yield found
    finally:
        found.task.cancel()
        await asyncio.gather(found.task, return_exceptions=True)


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_BACKOFF_S", (0.01, 0.05))


def test_a_collection_is_listed_once_and_then_watched() -> None:
    async def scenario() -> None:
        async with api_server() as api:
            api.put("a")
            async with followed(api.url) as found:
                await found.sees("a")
                await until(lambda: api.watched)
                api.put("b", "ADDED")
                await found.sees("a", "b")
                api.put("a", "DELETED")
                await found.sees("b")
                assert api.lists == 1
                assert api.selectors == {"plan=p"}
                age_s = found.mirror.age_s()
                assert age_s is not None
                assert age_s < 20

    run(scenario())


def test_a_watch_that_ends_goes_on_where_it_was() -> None:
    async def scenario() -> None:
        async with api_server() as api, followed(api.url) as found:
            await until(lambda: api.watched)
            api.put("a", "ADDED")
            await found.sees("a")
            api.bookmark(150)
            api.send_bytes(None)
            await until(lambda: len(api.watches) == 2 and api.watched)
            api.put("b", "ADDED")
            await found.sees("a", "b")
            assert (api.lists, api.watches) == (1, ["100", "150"])

    run(scenario())


def test_a_version_that_is_gone_is_cured_by_a_list() -> None:
    async def scenario() -> None:
        async with api_server() as api, followed(api.url) as found:
            await until(lambda: api.watched)
            api.put("missed", tell=False)
            api.send({"type": "ERROR", "object": {"code": 410, "message": "too old resource version"}})
            await found.sees("missed")
            assert api.lists == 2
            api.put("b", tell=False)
            api.status = 410
            api.send_bytes(None)
            await until(lambda: len(api.tokens) > 6, "it asks on")
            api.status = 200
            await found.sees("missed", "b")

    run(scenario())


@pytest.mark.parametrize("poison", [b"{not json}\n", b'{"type": "ADDED"}\n', b'{"type": "ADDED", "object": {}}\n', b"null\n"])
def test_what_came_before_an_event_that_cannot_be_read_has_happened(poison: bytes) -> None:
    async def scenario() -> None:
        async with api_server() as api, followed(api.url) as found:
            await until(lambda: api.watched)
            event = {"type": "ADDED", "object": {"metadata": {"name": "told", "resourceVersion": "7"}}}
            api.send_bytes(json.dumps(event).encode() + b"\n" + poison)
            await until(lambda: {"told"} in found.seen)
            await until(lambda: api.lists == 2)
            await found.sees()

    run(scenario())


def test_an_event_longer_than_a_line_may_be_elsewhere() -> None:
    async def scenario() -> None:
        async with api_server() as api, followed(api.url) as found:
            await until(lambda: api.watched)
            big = {"metadata": {"name": "big", "resourceVersion": "7"}, "data": "x" * 900_000}
            api.send({"type": "ADDED", "object": big})
            await found.sees("big")

    run(scenario())


def test_while_the_api_server_is_away_the_last_state_stands(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with contextlib.AsyncExitStack() as stack:
            api = Api()
            api.put("a")
            async with api_server(api=api):
                found = await stack.enter_async_context(followed(api.url))
                await found.sees("a")
                await until(lambda: api.watched)
                port = int(api.url.rpartition(":")[2])
            await until(lambda: found.mirror._failures >= 3, "it tries again")
            assert found.seen[-1] == {"a"}
            api.put("b", tell=False)
            async with api_server(port, api):
                await until(lambda: api.watched)
                api.put("c", "ADDED")
                await until(lambda: "c" in found.seen[-1])
                assert len([each for each in caplog.records if "the last state stands" in each.message]) == 1

    run(scenario())


@pytest.mark.parametrize("status", [401, 403, 404, 500, 503, 302])
def test_a_refusal_is_tried_again(status: int) -> None:
    async def scenario() -> None:
        async with api_server() as api:
            api.put("a")
            api.status = status
            async with followed(api.url) as found:
                await until(lambda: len(api.tokens) >= 2)
                assert not found.seen
                assert found.mirror.age_s() is None
                api.status = 200
                await found.sees("a")

    run(scenario())


def test_a_token_that_was_exchanged_is_read_anew(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")

    async def scenario() -> None:
        async with api_server() as api, followed(api.url, token) as found:
            await until(lambda: api.watched)
            token.write_text("second\n")
            api.send_bytes(None)
            await until(lambda: len(api.tokens) == 3)
            assert api.tokens == ["Bearer first", "Bearer first", "Bearer second"]
            token.unlink()
            api.send_bytes(None)
            await until(lambda: found.mirror._failures >= 2)
            token.write_text("third\n")
            await until(lambda: api.tokens[-1] == "Bearer third")

    run(scenario())


def test_waits_grow_to_a_limit_and_are_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_BACKOFF_S", (0.2, 10.0))
    assert [backoff_s(failures, 0.5) for failures in range(8)] == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0])
    assert backoff_s(10_000, 0.0) == 5.0
    assert backoff_s(10_000, 0.999) < 15.0


def test_a_process_in_no_pod_has_no_api_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(SourceError, match="KUBERNETES_SERVICE_HOST is not set"):
        Server.of_pod(tmp_path)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "6443")
    with pytest.raises(SourceError, match="token is missing"):
        Server.of_pod(tmp_path)
    (tmp_path / "token").write_text("t")
    assert Server.of_pod(tmp_path).url == "https://[fd00::1]:6443"
