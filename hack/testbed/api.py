"""A small asynchronous Kubernetes client for the bed's own parts: plain objects, plain paths."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import aiohttp

from testbed.pki import KeyPair

Object = dict[str, Any]
_NOT_FOUND = 404
_CONFLICT = 409
_GONE = 410
_RETRY_S = 0.5
_WATCH_S = 300


class ApiError(Exception):
    """The API server refused a request.

    Attributes:
        code: HTTP status.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code

    @property
    def is_gone(self) -> bool:
        """Whether the object does not exist, or not in the version named."""
        return self.code in {_NOT_FOUND, _CONFLICT}


class Event(NamedTuple):
    """One step of `Api.follow`: `synced` carries every object there is in `items`, the others one in `item`."""

    type: Literal["synced", "changed", "deleted"]
    item: Object = {}  # noqa: RUF012 - a field of a tuple, and nothing writes to it
    items: tuple[Object, ...] = ()


class Api:
    """A client of one API server; an asynchronous context manager.

    Args:
        server: Base URL.
        authority: PEM certificate that signed the server's.
        pair: Client certificate; its files are written to `directory` for the TLS library to read.
        directory: A private folder.
    """

    def __init__(self, server: str, authority: bytes, pair: KeyPair, directory: Path) -> None:
        self._server = server
        self._tls = ssl.create_default_context(cadata=authority.decode())
        directory.mkdir(parents=True, exist_ok=True)
        bundle = directory / "client.pem"
        bundle.touch(mode=0o600)
        bundle.write_bytes(pair.key + pair.certificate)
        self._tls.load_cert_chain(bundle)
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(ssl=self._tls, limit=0)
        self._session = aiohttp.ClientSession(self._server, connector=connector)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def _call(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> Object:
        data = None if body is None else json.dumps(body)
        async with self._session.request(method, path, data=data, headers={"Content-Type": content_type}) as answer:
            if not answer.ok:
                raise ApiError(answer.status, await answer.text())
            result: Object = await answer.json()
            return result

    async def get(self, path: str) -> Object:
        """The object or list at `path`; ApiError when refused."""
        return await self._call("GET", path)

    async def get_text(self, path: str) -> str:
        """The body at `path`, whatever its status."""
        async with self._session.get(path) as answer:
            return await answer.text()

    async def create(self, path: str, body: Object) -> Object:
        """Create `body` in the collection `path`."""
        return await self._call("POST", path, body)

    async def merge(self, path: str, body: Object) -> Object:
        """Strategic merge patch of the object at `path`."""
        return await self._call("PATCH", path, body, "application/strategic-merge-patch+json")

    async def apply(self, path: str, body: Object) -> Object:
        """Server-side apply of `body` at `path` as the field manager `testbed`."""
        return await self._call("PATCH", f"{path}?fieldManager=testbed&force=true", body, "application/apply-patch+yaml")

    async def delete(self, path: str, body: Object | None = None) -> Object:
        """Delete the object at `path`, with `body` as DeleteOptions."""
        return await self._call("DELETE", path, body)

    async def follow(self, path: str, query: str = "") -> AsyncIterator[Event]:
        """List and watch the collection `path` for ever, listing anew after every loss of the watch.

        Yields:
            `synced` after each list, then `changed` and `deleted` as they happen.
        """
        while True:
            try:
                listing = await self._call("GET", f"{path}?{query}")
                yield Event("synced", items=tuple(listing["items"]))
                async for event in self._watch(path, query, listing["metadata"]["resourceVersion"]):
                    yield event
            except (aiohttp.ClientError, TimeoutError, ApiError, OSError, json.JSONDecodeError):
                await asyncio.sleep(_RETRY_S)

    async def _watch(self, path: str, query: str, version: str) -> AsyncIterator[Event]:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=None)
        url = f"{path}?watch=1&allowWatchBookmarks=true&timeoutSeconds={_WATCH_S}&resourceVersion={version}&{query}"
        async with self._session.get(url, timeout=timeout, read_bufsize=2**22) as answer:
            if not answer.ok:
                raise ApiError(answer.status, await answer.text())
            async for line in answer.content:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise ApiError(event["object"].get("code", _GONE), event["object"].get("message", ""))
                if event["type"] != "BOOKMARK":
                    yield Event("deleted" if event["type"] == "DELETED" else "changed", item=event["object"])
