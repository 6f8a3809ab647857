"""Listens on a Unix socket for the Envoys of this machine, and serves gRPC over HTTP/2 to them."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from servingplan.picker.http2.connection import Connection
from servingplan.picker.http2.stream import Call

_BACKLOG = 1024


class SocketServer:
    """gRPC on a Unix socket.

    Args:
        path: Of the socket. One that is left from a process that has gone is taken over.
        methods: By path, what begins a call.
        message_limit_bytes: Longest message of a client.
    """

    port = 0

    def __init__(self, path: Path, methods: Mapping[str, Callable[[], Call]], message_limit_bytes: int) -> None:
        self._path = path
        self._methods = {name.encode(): begin for name, begin in methods.items()}
        self._limit = message_limit_bytes
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._inode = 0

    async def start(self) -> None:
        """Listens.

        Raises:
            OSError: The path cannot be used.
        """
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_unix_server(self._connection, path=str(self._path), backlog=_BACKLOG)
        except OSError as error:
            message = f"cannot listen on unix:{self._path}: {error}"
            raise OSError(message) from error
        # Envoy runs as another user; who may reach the folder is decided where the folder is mounted.
        self._path.chmod(stat.S_IRUSR | stat.S_IWUSR | stat.S_IRGRP | stat.S_IWGRP | stat.S_IROTH | stat.S_IWOTH)
        self._inode = self._path.stat().st_ino

    async def stop(self, grace_s: float) -> None:
        """Takes no more streams, gives those under way ``grace_s`` to end, and closes."""
        if self._server is None:
            return
        self._server.close()
        for connection in list(self._connections):
            connection.drain()
        if self._connections:
            await asyncio.wait([connection.closed for connection in self._connections], timeout=grace_s)
        for connection in list(self._connections):
            connection.abort()
        with suppress(OSError):
            # Another picker may have taken the path over.
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()

    def _connection(self) -> Connection:
        return Connection(self._methods, self._limit, self._connections)
