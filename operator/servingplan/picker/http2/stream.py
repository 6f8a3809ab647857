"""One RPC on an HTTP/2 stream: its messages in order, each answered in the turn of the event loop in which it came."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Protocol, TypeVar

from google.protobuf.message import DecodeError

from servingplan.picker.http2.wire import PREFIX

_PREFIX_BYTES = PREFIX.size

Message = TypeVar("Message")

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


def read_message(read: Callable[[bytes], Message], message: bytes) -> Message:
    """A client's message, as a protobuf's ``FromString`` reads it.

    Raises:
        RpcError: It is none.
    """
    try:
        return read(message)
    except DecodeError as error:
        raise RpcError(Status.INTERNAL, "a message cannot be read") from error


class Call(Protocol):
    """What serves one RPC, on whichever server."""

    def take(self, message: bytes) -> Sequence[bytes]:
        """The replies to one message; raises ``RpcError`` to end the RPC."""

    def end(self) -> None:
        """The RPC is over, however it ended. Called once."""


class Carrier(Protocol):
    """The connection that a stream is on."""

    def reply(self, stream: Stream, messages: Sequence[bytes]) -> None:
        """Sends messages."""

    def finish(self, stream: Stream, status: Status, message: str) -> None:
        """Ends the stream with a status once all of its messages are sent."""


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
        "_partial",
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
        else:
            self._carrier.finish(self, Status.OK, "")

    def close(self) -> None:
        """Ends the RPC. Nothing is sent any more."""
        if self.closed:
            return
        self.closed = True
        self._partial.clear()
        self._end_call()

    def _message(self, message: bytes) -> None:
        try:
            replies = self._call.take(message)
        except RpcError as error:
            self._fail(error)
        except Exception as error:
            log.error("a message could not be answered: %s", type(error).__name__)
            self._fail(RpcError(Status.UNKNOWN, "the picker failed"))
        else:
            self._carrier.reply(self, replies)

    def _fail(self, error: RpcError) -> None:
        self._carrier.finish(self, error.status, error.message)

    def _end_call(self) -> None:
        try:
            self._call.end()
        except Exception as error:
            # The other streams are to end all the same.
            log.error("a stream's end failed: %s", type(error).__name__)
