"""The receiving side of a connection: frames out of bytes that come in any pieces.

Frames come out whole, without padding, and header blocks in one piece. What breaks the protocol whoever it concerns is found
here; what is wrong with a stream is for others to say.
"""

from __future__ import annotations

from collections.abc import Iterator

from servingplan.picker.http2 import wire
from servingplan.picker.http2.wire import HEAD, HEAD_BYTES, Code, Http2Error

_PRIORITY_BYTES = 5
_SIZES = {wire.RST_STREAM: 4, wire.PING: 8, wire.WINDOW_UPDATE: 4}
_OF_STREAMS = frozenset({wire.DATA, wire.HEADERS, wire.RST_STREAM, wire.CONTINUATION})
_OF_CONNECTION = frozenset({wire.SETTINGS, wire.PING, wire.GOAWAY})

Frame = tuple[int, int, int, bytes, int]
"""Kind, flags, stream, payload, and the payload's length with its padding."""


class Frames:
    """What has come of a client's frames."""

    def __init__(self) -> None:
        self._rest = b""
        self._greeted = self._introduced = False
        # Stream, flags and payload so far of a header block that comes in parts.
        self._block: tuple[int, int, bytes] | None = None

    def read(self, data: bytes) -> Iterator[Frame]:
        """The frames that are whole with these bytes.

        Raises:
            Http2Error: The client broke the protocol.
        """
        if self._rest:
            data = self._rest + data
        at = 0 if self._greeted else self._greeting(data)
        end = len(data) if self._greeted else 0
        while end - at >= HEAD_BYTES:
            high, low, kind, flags, number = HEAD.unpack_from(data, at)
            size = high << 16 | low
            if size > wire.FRAME_BYTES:
                raise Http2Error(Code.FRAME_SIZE_ERROR, "frame too long")
            after = at + HEAD_BYTES + size
            if after > end:
                break
            if kind == wire.DATA and not flags & wire.PADDED and self._introduced and self._block is None:
                yield kind, flags, number & wire.MOST_NUMBER, data[at + HEAD_BYTES : after], size
            else:
                frame = self._frame(kind, flags, number & wire.MOST_NUMBER, data[at + HEAD_BYTES : after])
                if frame is not None:
                    yield frame
            at = after
        self._rest = data[at:]

    def _greeting(self, data: bytes) -> int:
        """How many bytes the client's greeting takes up; 0 while it is not whole."""
        greeting = data[: len(wire.PREFACE)]
        if not wire.PREFACE.startswith(greeting):
            raise Http2Error(Code.PROTOCOL_ERROR, "no HTTP/2")
        self._greeted = len(greeting) == len(wire.PREFACE)
        return len(greeting) if self._greeted else 0

    def _frame(self, kind: int, flags: int, number: int, payload: bytes) -> Frame | None:
        """The frame as it is passed on; None for one that is kept, or passed over."""
        if self._block is not None and (kind != wire.CONTINUATION or number != self._block[0]):
            raise Http2Error(Code.PROTOCOL_ERROR, "a header block was broken off")
        if not self._introduced:
            if kind != wire.SETTINGS or flags & wire.ACK:
                raise Http2Error(Code.PROTOCOL_ERROR, "settings come first")
            self._introduced = True
        if len(payload) != _SIZES.get(kind, len(payload)):
            raise Http2Error(Code.FRAME_SIZE_ERROR, f"frame of kind {kind} of a wrong length")
        if (kind in _OF_STREAMS and not number) or (kind in _OF_CONNECTION and number):
            raise Http2Error(Code.PROTOCOL_ERROR, f"frame of kind {kind} on stream {number}")
        if kind == wire.HEADERS:
            return self._headers(flags, number, payload)
        if kind == wire.CONTINUATION:
            return self._continuation(flags, payload)
        if kind == wire.PUSH_PROMISE:
            raise Http2Error(Code.PROTOCOL_ERROR, "a client cannot push")
        size = len(payload)
        return kind, flags, number, _unpadded(flags, payload) if kind == wire.DATA else payload, size

    def _headers(self, flags: int, number: int, payload: bytes) -> Frame | None:
        size = len(payload)
        payload = _unpadded(flags, payload)
        if flags & wire.HAS_PRIORITY:
            if len(payload) < _PRIORITY_BYTES:
                raise Http2Error(Code.FRAME_SIZE_ERROR, "headers without their priority")
            payload = payload[_PRIORITY_BYTES:]
        if flags & wire.END_HEADERS:
            return wire.HEADERS, flags, number, payload, size
        self._block = number, flags, payload
        return None

    def _continuation(self, flags: int, payload: bytes) -> Frame | None:
        if self._block is None:
            raise Http2Error(Code.PROTOCOL_ERROR, "a header block goes on that has not begun")
        number, first_flags, begun = self._block
        block = begun + payload
        ends = flags & wire.END_HEADERS
        if len(block) > wire.MOST_BLOCK_BYTES or not (payload or ends):
            raise Http2Error(Code.ENHANCE_YOUR_CALM, "a header block without end")
        self._block = None if ends else (number, first_flags, block)
        return (wire.HEADERS, first_flags, number, block, len(block)) if ends else None


def _unpadded(flags: int, payload: bytes) -> bytes:
    if not flags & wire.PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise Http2Error(Code.PROTOCOL_ERROR, "padding longer than the frame")
    return payload[1 : len(payload) - payload[0]]
