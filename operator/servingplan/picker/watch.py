"""Where the routing table and the endpoints come from: the API server, or files for a picker that has no rights there.

A ``Mirror`` keeps one collection as the API server has it. It lists once and then watches from that version on; a version that
the server no longer has (410) is cured by another list. Every watch ends by itself within a minute, because a connection whose
other end has vanished looks just like one on which nothing happens. While the API server is away the last state stands, and
whoever asks is told how old it is.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp

from servingplan.picker.table import join

log = logging.getLogger(__name__)

Objects = Mapping[str, Mapping[str, Any]]
"""Objects of one collection by name."""

ACCOUNT_FOLDER = Path("/var/run/secrets/kubernetes.io/serviceaccount")

_GONE = 410
_WATCH_S = 60
_CONNECT_S = 5.0
_LIST_S = 30.0
_MARGIN_S = 10.0
_EVENT_LIMIT_BYTES = 8 * 1024 * 1024
_BACKOFF_S = (0.2, 10.0)


class SourceError(Exception):
    """The API server or a file cannot be used; the text is one sentence.

    Attributes:
        status: HTTP status; 0 where there was no answer.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Server:
    """An API server and what it is asked with.

    Attributes:
        token_file: File with a bearer token, read before every request because kubelet replaces it.
        ca_file: PEM file with the authority that signed the server's certificate.
    """

    url: str
    token_file: Path | None
    ca_file: Path | None

    @classmethod
    def of_pod(cls, folder: Path = ACCOUNT_FOLDER) -> Server:
        """The API server as a pod reaches it with its ServiceAccount.

        Raises:
            SourceError: This process is in no pod, or the pod has no token.
        """
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        if not host:
            raise SourceError("KUBERNETES_SERVICE_HOST is not set, so there is no API server to watch.")
        if not (folder / "token").is_file():
            message = f"{folder / 'token'} is missing: the pod needs the token of a ServiceAccount."
            raise SourceError(message)
        return cls(f"https://{f'[{host}]' if ':' in host else host}:{port}", folder / "token", folder / "ca.crt")

    def session(self) -> aiohttp.ClientSession:
        """A session in which this server is trusted; to be closed."""
        context = ssl.create_default_context(cafile=str(self.ca_file)) if self.ca_file else True
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context), cookie_jar=aiohttp.DummyCookieJar())

    def headers(self) -> dict[str, str]:
        """What identifies this process now."""
        if self.token_file is None:
            return {}
        try:
            return {"Authorization": f"Bearer {self.token_file.read_text(encoding='utf-8').strip()}"}
        except OSError as error:
            message = f"{self.token_file} cannot be read: {error.strerror}."
            raise SourceError(message) from None


@dataclass(frozen=True, slots=True)
class Collection:
    """Objects of one kind and namespace.

    Attributes:
        path: Below the server's URL.
        selector: ``labelSelector`` or ``fieldSelector`` with its value.
    """

    path: str
    selector: tuple[str, str]

    @classmethod
    def config_map(cls, namespace: str, name: str) -> Collection:
        """One ConfigMap: with a name as its selector even a Role that names it allows the watch."""
        return cls(f"/api/v1/namespaces/{quote(namespace)}/configmaps", ("fieldSelector", f"metadata.name={name}"))

    @classmethod
    def endpoint_slices(cls, namespace: str, label: str, value: str) -> Collection:
        """EndpointSlices of the Services that carry a label: a slice takes over the labels of its Service."""
        path = f"/apis/discovery.k8s.io/v1/namespaces/{quote(namespace)}/endpointslices"
        return cls(path, ("labelSelector", f"{label}={value}"))


@dataclass(slots=True)
class Mirror:
    """A copy of a collection that follows its original.

    Args:
        changed: Called with all objects after every list and after events. The mapping must not be kept: it changes.
        clock: Seconds that only grow.
    """

    server: Server
    collection: Collection
    changed: Callable[[Objects], None]
    clock: Callable[[], float] = time.monotonic
    _objects: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    _version: str | None = None
    _heard_s: float | None = None
    _failures: int = 0

    def age_s(self) -> float | None:
        """Seconds since the server was last heard of; None if it never was. A healthy watch speaks once a minute."""
        return None if self._heard_s is None else max(0.0, self.clock() - self._heard_s)

    async def run(self) -> None:
        """Follows until cancelled."""
        async with self.server.session() as session:
            while True:
                try:
                    if self._version is None:
                        await self._list(session)
                    await self._watch(session)
                except SourceError as error:
                    await self._failed(error)

    async def _list(self, session: aiohttp.ClientSession) -> None:
        try:
            async with self._get(session, {}, aiohttp.ClientTimeout(total=_LIST_S, sock_connect=_CONNECT_S)) as response:
                body = await response.json()
                items, version = body.get("items") or [], body["metadata"]["resourceVersion"]
                self._objects = {item["metadata"]["name"]: item for item in items}
        except _BROKEN as error:
            raise self._broken(error) from None
        self._version = version
        self._heard()
        self.changed(self._objects)

    async def _watch(self, session: aiohttp.ClientSession) -> None:
        """Follows from the version that is known until the server ends the watch."""
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version or "",
            "timeoutSeconds": str(_WATCH_S),
        }
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_WATCH_S + _MARGIN_S)
        try:
            async with self._get(session, query, timeout) as response:
                self._heard()
                async for lines in _lines(response.content):
                    self._heard()
                    self._take_all(lines)
                self._heard()
        except _BROKEN as error:
            if isinstance(error, _UNREADABLE):
                self._version = None
            raise self._broken(error) from None
        except SourceError as error:
            if error.status == _GONE:
                self._version = None
            raise

    def _take_all(self, lines: list[bytes]) -> None:
        news = False
        try:
            for line in lines:
                news = self._take(json.loads(line)) or news
        finally:
            # What came before an event that ends the watch has happened all the same.
            if news:
                self.changed(self._objects)

    def _take(self, event: Mapping[str, Any]) -> bool:
        """Applies one event; says whether an object changed."""
        kind, obj = event["type"], event["object"]
        if kind == "ERROR":
            raise SourceError(str(obj.get("message", "the watch failed")), int(obj.get("code") or 0))
        self._version = obj["metadata"]["resourceVersion"]
        if kind == "BOOKMARK":
            return False
        if kind == "DELETED":
            self._objects.pop(obj["metadata"]["name"], None)
        else:
            self._objects[obj["metadata"]["name"]] = obj
        return True

    def _get(self, session: aiohttp.ClientSession, query: Mapping[str, str], timeout: aiohttp.ClientTimeout) -> _Asked:
        key, value = self.collection.selector
        url = self.server.url + self.collection.path
        return _Asked(session, url, {key: value} | dict(query), self.server.headers(), timeout)

    def _heard(self) -> None:
        self._heard_s = self.clock()
        if self._failures:
            log.info("%s: followed again", self.collection.path)
        self._failures = 0

    def _broken(self, error: Exception) -> SourceError:
        return SourceError(f"{self.collection.path}: {type(error).__name__} {error}".strip())

    async def _failed(self, error: SourceError) -> None:
        """Says so when it begins, and waits longer from one time to the next."""
        if error.status == _GONE:
            # Nothing is wrong; but a server that says so again at once must not be asked without end.
            await asyncio.sleep(_BACKOFF_S[0] * random.random())
            return
        if not self._failures:
            log.warning("%s cannot be followed, the last state stands: %s", self.collection.path, error)
        await asyncio.sleep(backoff_s(self._failures, random.random()))
        self._failures += 1


_UNREADABLE = (ValueError, KeyError, TypeError, AttributeError)
_BROKEN = (aiohttp.ClientError, OSError, TimeoutError, *_UNREADABLE)


def backoff_s(failures: int, draw: float) -> float:
    """Seconds to wait after so many failures in a row; ``draw`` in [0, 1) keeps many clients from coming back together."""
    first_s, last_s = _BACKOFF_S
    return min(last_s, first_s * 2.0 ** min(failures, 16)) * (0.5 + draw)


class _Asked:
    """One GET request; an answer other than 200 is an error."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        timeout: aiohttp.ClientTimeout,
    ) -> None:
        self._context = session.get(url, params=query, headers=headers, timeout=timeout, allow_redirects=False)

    async def __aenter__(self) -> aiohttp.ClientResponse:
        response = await self._context.__aenter__()
        if response.status != 200:
            said = (await response.content.read(2000)).decode(errors="replace")
            response.close()
            raise SourceError(_message(response.status, said), response.status)
        return response

    async def __aexit__(self, *error: Any) -> None:
        await self._context.__aexit__(*error)


def _message(status: int, said: str) -> str:
    try:
        return f"{status} {json.loads(said)['message']}"
    except (ValueError, KeyError, TypeError):
        return f"{status} {said[:200]}".strip()


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[list[bytes]]:
    """Whole lines, all that have come at a time; the routing table is longer than the stream's own limit for a line."""
    rest = b""
    async for chunk in content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > _EVENT_LIMIT_BYTES:
            raise SourceError("an event of the watch is longer than 8 MiB")
        if found := [line for line in lines if line.strip()]:
            yield found


async def follow_file(path: Path, changed: Callable[[str], None], interval_s: float = 1.0) -> None:
    """Calls ``changed`` with the text of a file whenever it is another one, until cancelled.

    A file that is missing or cannot be read changes nothing: kubelet replaces a mounted folder in more than one step.
    """
    seen: str | None = None
    complaint = ""
    while True:
        try:
            text = await asyncio.to_thread(path.read_text, encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            if str(error) != complaint:
                complaint = str(error)
                log.warning("the last state stands: %s", complaint)
        else:
            complaint = ""
            if text != seen:
                seen = text
                changed(text)
        await asyncio.sleep(interval_s)


async def resolve(names: Mapping[str, tuple[str, int]], known: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """The endpoints behind DNS names.

    Args:
        names: DNS name and port by pool.
        known: What was found before, which stands where the name server does not answer.

    Returns:
        Addresses as ``ip:port``, sorted, by pool.
    """
    loop = asyncio.get_running_loop()

    async def one(pool: str, host: str, port: int) -> list[str]:
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            gone = error.errno in {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}
            return [] if gone else list(known.get(pool, []))
        families = {family for family, *_ in found}
        family = socket.AF_INET if socket.AF_INET in families else socket.AF_INET6
        return sorted({join(str(at[0]), int(at[1])) for kind, *_, at in found if kind == family})

    pools = sorted(names)
    return dict(zip(pools, await asyncio.gather(*(one(pool, *names[pool]) for pool in pools)), strict=True))
