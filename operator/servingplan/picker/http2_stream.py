"""One RPC on an HTTP/2 stream: its messages in order, each answered before the next is looked at.

Most messages are answered at once, in the turn of the event loop in which they came. Only one whose answer really has to wait
gets a task; what comes behind it waits in line.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine, Generator, Sequence
from enum import IntEnum
from types import coroutine
from typing import Any, Protocol

from servingplan.picker.http2_wire import PREFIX

_PREFIX_BYTES = PREFIX.size

log = logging.getLogger(__name__)


class Status(IntEnum):
    """Statuses of gRPC."""

    OK = 0
    UNKNOWN = 2
    NOT_FOUND = 5
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13


class RpcError(Exception):
    """Ends an RPC with a status.

    Args:
        status: Of gRPC.
        message: For the client, in ASCII without per cent signs.
    """

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class Call(Protocol):
    """What serves one RPC, on whichever server."""

    async def take(self, message: bytes) -> Sequence[bytes]:
        """The replies to one message; raises ``RpcError`` to end the RPC."""

    def end(self) -> None:
        """The RPC is over, however it ended. Called once."""


class Carrier(Protocol):
    """The connection that a stream is on."""

    def reply(self, stream: Stream, messages: Sequence[bytes]) -> None:
        """Sends messages."""

    def finish(self, stream: Stream, status: Status, message: str) -> None:
        """Ends the stream with a status once all of its messages are sent."""

    def make_room(self, stream: Stream) -> None:
        """Lets the client send more, of which it has sent what fits."""

    def flush(self) -> None:
        """Hands what was sent to the socket."""


class Stream:
    """The state of one RPC.

    Args:
        number: Of the HTTP/2 stream.
        call: What serves it.
        carrier: The connection.
        message_limit_bytes: Longest message.

    Attributes:
        receive_left, send_left: Bytes that either side may still send.
        begun: Whether the answer's headers are sent.
        outgoing: Framed messages that the client's window had no room for.
        last_words: Status and message to end with when those are sent.
        half_closed: Whether the client has ended its side.
    """

    __slots__ = (
        "_call",
        "_carrier",
        "_limit",
        "_line",
        "_partial",
        "_waiting",
        "begun",
        "closed",
        "half_closed",
        "last_words",
        "number",
        "outgoing",
        "receive_left",
        "send_left",
    )

    def __init__(self, number: int, call: Call, carrier: Carrier, message_limit_bytes: int) -> None:
        self.number, self._call, self._carrier, self._limit = number, call, carrier, message_limit_bytes
        self.receive_left = self.send_left = 0
        self.begun = self.half_closed = self.closed = False
        self.outgoing = bytearray()
        self.last_words: tuple[Status, str] | None = None
        self._partial = bytearray()
        self._line: deque[bytes] = deque()
        self._waiting: asyncio.Task[Sequence[bytes]] | None = None

    @property
    def is_behind(self) -> bool:
        """Whether messages wait for their turn."""
        return bool(self._line)

    def receive(self, data: bytes) -> None:
        """Takes the next bytes of the client's messages."""
        partial = self._partial
        if not partial and len(data) >= _PREFIX_BYTES:
            compressed, size = PREFIX.unpack_from(data)
            if not compressed and _PREFIX_BYTES + size == len(data) and size <= self._limit:
                self._message(data[_PREFIX_BYTES:])
                return
        partial += data
        while len(partial) >= _PREFIX_BYTES and not self.closed:
            compressed, size = PREFIX.unpack_from(partial)
            if compressed:
                self._fail(RpcError(Status.UNIMPLEMENTED, "compressed messages are not read"))
                return
            if size > self._limit:
                self._fail(RpcError(Status.RESOURCE_EXHAUSTED, f"a message is longer than {self._limit} bytes"))
                return
            end = _PREFIX_BYTES + size
            if len(partial) < end:
                return
            message = bytes(memoryview(partial)[_PREFIX_BYTES:end])
            del partial[:end]
            self._message(message)

    def receive_end(self) -> None:
        """The client will send no more."""
        self.half_closed = True
        if self._partial:
            self._fail(RpcError(Status.INTERNAL, "the last message is not whole"))
        elif self._waiting is None:
            self._carrier.finish(self, Status.OK, "")

    def close(self) -> None:
        """Ends the RPC. Nothing is sent any more."""
        if self.closed:
            return
        self.closed = True
        self._line.clear()
        self._partial.clear()
        if self._waiting is None:
            self._end_call()
        else:
            # Its end is the call's: what it may have reserved meanwhile is released.
            self._waiting.cancel()

    def _message(self, message: bytes) -> None:
        if self._waiting is not None:
            self._line.append(message)
            return
        work = self._call.take(message)
        try:
            awaited = work.send(None)
        except StopIteration as done:
            self._carrier.reply(self, done.value)
        except Exception as error:
            self._fail(error)
        else:
            self._waiting = asyncio.get_running_loop().create_task(_rest(work, awaited))
            self._waiting.add_done_callback(self._answered)

    def _answered(self, task: asyncio.Task[Sequence[bytes]]) -> None:
        self._waiting = None
        failed = asyncio.CancelledError() if task.cancelled() else task.exception()
        if self.closed:
            self._end_call()
            return
        if failed is not None:
            self._fail(failed)
        else:
            self._carrier.reply(self, task.result())
        while self._line and self._waiting is None:
            self._message(self._line.popleft())
        if not self.closed and self._waiting is None:
            if self.half_closed:
                self._carrier.finish(self, Status.OK, "")
            else:
                self._carrier.make_room(self)
        self._carrier.flush()

    def _fail(self, error: BaseException) -> None:
        if self.closed:
            return
        if isinstance(error, RpcError):
            self._carrier.finish(self, error.status, error.message)
            return
        log.error("a message could not be answered: %s", type(error).__name__)
        self._carrier.finish(self, Status.UNKNOWN, "the picker failed")

    def _end_call(self) -> None:
        try:
            self._call.end()
        except Exception as error:
            # The other streams are to end all the same.
            log.error("a stream's end failed: %s", type(error).__name__)


async def _rest(work: Coroutine[Any, Any, Sequence[bytes]], awaited: Any) -> Sequence[bytes]:
    return await _go_on(work, awaited)


@coroutine
def _go_on(work: Coroutine[Any, Any, Sequence[bytes]], awaited: Any) -> Generator[Any, Any, Sequence[bytes]]:
    """The rest of a coroutine that has run until it awaited something."""
    try:
        yield awaited
    except asyncio.CancelledError:
        work.close()
        raise
    except Exception:  # noqa: S110 - the coroutine is told of it where it goes on
        pass
    return (yield from work.__await__())
