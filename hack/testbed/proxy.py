"""A proxy in front of a server of the bed that can be told, at any moment, to misbehave as real servers do.

It stands between one client and its server, so that what is broken for that client is whole for everybody else: the operator
loses its API server while the node agent keeps its own. It speaks HTTP or HTTPS, passes streams on piece by piece, and runs in
a thread of its own, in the network where it is started.
"""

import asyncio
import json
import re
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import aiohttp
from aiohttp import web
from yarl import URL

from testbed.netns import GATEWAY

Series = list[dict[str, Any]]
"""What Prometheus answers: ``metric`` with ``value``, or with ``values``."""

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "host", "content-encoding"}
_LARGEST_BODY_BYTES = 16 * 2**20
_SWITCH_TIMEOUT_S = 5.0
_OK = 200
_EXPIRED = (
    b'{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure",'
    b'"message":"too old resource version","reason":"Expired","code":410}}\n'
)


@dataclass(frozen=True, slots=True)
class Fault:
    """How a proxy treats the requests that it concerns; others pass.

    Attributes:
        action: ``refuse`` closes the port and cuts every connection; ``reset`` accepts and cuts, ``hang`` accepts and never
            answers, streams under way included; ``answer`` answers in the server's place; ``expire`` ends watches as an API
            server does whose history is too short; ``change`` alters what Prometheus answers.
        status: Status of ``answer``.
        body: Body of ``answer``; its type is JSON where it can be read as that.
        methods: HTTP methods that it concerns; empty for all.
        path: Regular expression that is searched for in the path and query.
        change: For ``change``: the answered series in another form.
    """

    action: Literal["refuse", "reset", "hang", "answer", "expire", "change"]
    status: int = 500
    body: bytes = b""
    methods: frozenset[str] = frozenset()
    path: str = ""
    change: Callable[[Series], Series] = field(default=lambda series: series)

    def concerns(self, request: web.Request) -> bool:
        """Whether it is for this request."""
        return (not self.methods or request.method in self.methods) and bool(re.search(self.path, request.raw_path))


class Proxy:
    """Passes requests to a server until told otherwise; a context manager.

    Args:
        upstream: Base URL of the server.
        serving: Certificate and key files to be HTTPS with; plain HTTP without.
        authority: File of the certificate that signed the server's, for an HTTPS server.
        host: Address to listen on.

    Attributes:
        port: Where it listens, once entered.
        requests: How many it has seen.
    """

    def __init__(
        self, upstream: str, *, serving: tuple[Path, Path] | None = None, authority: Path | None = None, host: str = GATEWAY
    ) -> None:
        self._upstream = upstream.rstrip("/")
        self._host = host
        self.port = 0
        self.requests = 0
        self._fault: Fault | None = None
        self._serving = serving
        self._authority = authority
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._changed = asyncio.Event()
        self._runner: web.AppRunner
        self._site: web.TCPSite | None = None
        self._session: aiohttp.ClientSession

    @property
    def url(self) -> str:
        """Base URL for its client."""
        return f"{'https' if self._serving else 'http'}://{self._host}:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def forward(self, upstream: str) -> None:
        """Pass requests to another server from now on; those under way end where they began."""
        self._upstream = upstream.rstrip("/")

    def set(self, fault: Fault | None) -> None:
        """Misbehave in this way from now on, or no longer; returns once it is so."""
        self._run(self._switch(fault))

    @contextmanager
    def broken(self, fault: Fault) -> Iterator[None]:
        """Misbehave for as long as it is entered."""
        self.set(fault)
        try:
            yield
        finally:
            self.set(None)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(_SWITCH_TIMEOUT_S)

    async def _start(self) -> None:
        trust: ssl.SSLContext | bool = ssl.create_default_context(cafile=str(self._authority)) if self._authority else True
        connector = aiohttp.TCPConnector(ssl=trust, limit=0)
        timeout = aiohttp.ClientTimeout(total=None)
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False)
        app = web.Application(client_max_size=_LARGEST_BODY_BYTES)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        with socket.create_server((self._host, 0)) as probe:
            self.port = int(probe.getsockname()[1])
        await self._listen()

    async def _listen(self) -> None:
        tls = None
        if self._serving is not None:
            tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            tls.load_cert_chain(*self._serving)
        self._site = web.TCPSite(self._runner, self._host, self.port, ssl_context=tls, reuse_address=True)
        await self._site.start()

    async def _end(self) -> None:
        self._cut()
        await self._runner.cleanup()
        await self._session.close()

    async def _switch(self, fault: Fault | None) -> None:
        self._fault = fault
        self._changed.set()
        self._changed = asyncio.Event()
        refuses = fault is not None and fault.action == "refuse"
        if refuses and self._site is not None:
            await self._site.stop()
            self._site = None
        elif not refuses and self._site is None:
            await self._listen()
        if fault is not None and fault.action in {"refuse", "reset"}:
            self._cut()

    def _cut(self) -> None:
        for connection in self._runner.server.connections if self._runner.server else ():
            if connection.transport is not None:
                connection.transport.abort()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        fault = self._fault
        if fault is None or not fault.concerns(request):
            return await self._pass(request)
        if fault.action == "answer":
            return _answer(fault)
        if fault.action == "change":
            return await self._altered(request, fault)
        if fault.action == "expire" and "watch=" not in request.query_string:
            return await self._pass(request)
        if fault.action == "hang":
            await self._changed.wait()
        return self._abort(request)

    def _abort(self, request: web.Request) -> web.StreamResponse:
        if request.transport is not None:
            request.transport.abort()
        raise web.HTTPServiceUnavailable  # nobody is there to read it any more

    def _ask(self, request: web.Request, body: bytes, url: URL, **headers: str) -> Any:
        kept = {key: value for key, value in request.headers.items() if key.lower() not in _HOP_BY_HOP}
        return self._session.request(request.method, url, headers=kept | headers, data=body or None, allow_redirects=False)

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        url = URL(self._upstream + request.raw_path, encoded=True)
        try:
            async with self._ask(request, await request.read(), url) as answer:
                return await self._relay(request, answer)
        except (aiohttp.ClientError, OSError):
            return self._abort(request)

    async def _relay(self, request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        headers = {key: value for key, value in answer.headers.items() if key.lower() not in _HOP_BY_HOP}
        if encoding := answer.headers.get("Content-Encoding"):
            headers["Content-Encoding"] = encoding
        response = web.StreamResponse(status=answer.status, headers=headers)
        await response.prepare(request)
        pieces = aiter(answer.content.iter_any())
        reading = asyncio.ensure_future(_next(pieces))
        try:
            while not await self._ended_by_fault(request, response, reading):
                if not (piece := await reading):
                    break
                await response.write(piece)
                reading = asyncio.ensure_future(_next(pieces))
        finally:
            reading.cancel()
        await response.write_eof()
        return response

    async def _ended_by_fault(self, request: web.Request, response: web.StreamResponse, reading: asyncio.Future[bytes]) -> bool:
        """Wait for the next piece of a stream, or for a fault to end it; whether one did."""
        while True:
            action = self._fault.action if self._fault is not None and self._fault.concerns(request) else "pass"
            if action == "expire" and "watch=" in request.query_string:
                await response.write(_EXPIRED)
                return True
            changed = asyncio.ensure_future(self._changed.wait())
            awaited: set[asyncio.Future[Any]] = {changed} if action == "hang" else {changed, reading}
            try:
                await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
            finally:
                changed.cancel()
            if reading.done() and action != "hang":
                return False

    async def _altered(self, request: web.Request, fault: Fault) -> web.StreamResponse:
        url = URL(self._upstream + request.raw_path, encoded=True)
        async with self._ask(request, await request.read(), url, **{"Accept-Encoding": "identity"}) as answer:
            text = await answer.read()
        if answer.status == _OK and "/api/v1/query" in request.path:
            found = json.loads(text)
            found["data"]["result"] = fault.change(found["data"]["result"])
            text = json.dumps(found).encode()
        return web.Response(status=answer.status, body=text, content_type="application/json")


async def _next(pieces: AsyncIterator[bytes]) -> bytes:
    return await anext(pieces, b"")


def _answer(fault: Fault) -> web.Response:
    try:
        json.loads(fault.body)
    except ValueError:
        return web.Response(status=fault.status, body=fault.body, content_type="text/html")
    return web.Response(status=fault.status, body=fault.body, content_type="application/json")
