"""The sending side of a connection: gRPC messages as the client's windows let them through, and frames that ask for no room."""

from __future__ import annotations

from collections.abc import Sequence

from servingplan.picker.http2 import wire
from servingplan.picker.http2.stream import Status, Stream
from servingplan.picker.http2.wire import MESSAGE, NUMBER, PAIR, PREFIX, Code, Http2Error

_PREFIX_BYTES = PREFIX.size


class Sending:
    """What is to be sent, and what may be.

    Attributes:
        out: Frames for the next write.
        left: Bytes that the connection's window has room for.
        stream_window: Room that a new stream has.
        frame_bytes: Longest frame's payload that the client takes.
    """

    def __init__(self) -> None:
        self.out: list[bytes] = []
        self.left = self.stream_window = wire.DEFAULT_WINDOW_BYTES
        self.frame_bytes = wire.FRAME_BYTES
        self._blocked: dict[int, Stream] = {}

    def greet(self, settings: dict[int, int], window: int) -> None:
        """Tells the client what it may do."""
        self.out.append(wire.settings(settings))
        self.window(0, window - wire.DEFAULT_WINDOW_BYTES)

    def window(self, number: int, more: int) -> None:
        """Gives the client room on a stream, or on the connection with number 0."""
        self.out.append(wire.frame(wire.WINDOW_UPDATE, 0, number, NUMBER.pack(more)))

    def reset(self, number: int, code: Code) -> None:
        """Gives a stream up."""
        self._blocked.pop(number, None)
        self.out.append(wire.frame(wire.RST_STREAM, 0, number, NUMBER.pack(code)))

    def goaway(self, last: int, code: Code, message: str = "") -> None:
        """Says which streams were still looked at, and why no other will be."""
        self.out.append(wire.frame(wire.GOAWAY, 0, 0, PAIR.pack(last, code) + message.encode()))

    def ping(self, flags: int, payload: bytes) -> None:
        """Asks for an answer, or gives one."""
        self.out.append(wire.frame(wire.PING, flags, 0, payload))

    def agree(self) -> None:
        """Acknowledges the client's settings."""
        self.out.append(wire.frame(wire.SETTINGS, wire.ACK, 0))

    def messages(self, stream: Stream, payloads: Sequence[bytes]) -> None:
        """Sends messages of gRPC; what finds no room waits in its stream."""
        out = self.out
        for payload in payloads:
            if not stream.begun:
                stream.begun = True
                out.append(wire.frame(wire.HEADERS, wire.END_HEADERS, stream.number, wire.RESPONSE))
            size = len(payload) + _PREFIX_BYTES
            if size > self.frame_bytes or size > self.left or size > stream.send_left:
                stream.outgoing += PREFIX.pack(0, len(payload))
                stream.outgoing += payload
                self.pump(stream)
                continue
            self.left -= size
            stream.send_left -= size
            out.append(MESSAGE.pack(size >> 16, size & 0xFFFF, wire.DATA, 0, stream.number, 0, len(payload)))
            out.append(payload)

    def pump(self, stream: Stream) -> bool:
        """Sends what waits in a stream, and its end after it, as far as there is room; returns whether its end was sent."""
        outgoing = stream.outgoing
        while outgoing:
            size = min(len(outgoing), self.frame_bytes, self.left, stream.send_left)
            if size <= 0:
                self._blocked[stream.number] = stream
                return False
            self.left -= size
            stream.send_left -= size
            self.out.append(wire.frame(wire.DATA, 0, stream.number, bytes(outgoing[:size])))
            del outgoing[:size]
        self._blocked.pop(stream.number, None)
        if stream.last_words is None:
            return False
        self._end(stream, *stream.last_words)
        return True

    def pump_all(self) -> list[Stream]:
        """Does that for all streams that wait for room; returns those whose end was sent."""
        return [stream for stream in list(self._blocked.values()) if self.pump(stream)]

    def forget(self, number: int) -> None:
        """A stream is no more."""
        self._blocked.pop(number, None)

    def widen(self, more: int) -> None:
        """The client has more room on the connection.

        Raises:
            Http2Error: That is none, or more than there can be.
        """
        self.left += more
        if not more:
            raise Http2Error(Code.PROTOCOL_ERROR, "window update of nothing")
        if self.left > wire.MOST_WINDOW_BYTES:
            raise Http2Error(Code.FLOW_CONTROL_ERROR, "window too large")

    def apply(self, settings: bytes, streams: Sequence[Stream]) -> None:
        """Takes the client's settings over.

        Args:
            settings: Payload of the frame.
            streams: Those that are open.

        Raises:
            Http2Error: They are not to be had.
        """
        if len(settings) % wire.SETTING.size:
            raise Http2Error(Code.FRAME_SIZE_ERROR, "settings of a wrong length")
        for name, value in wire.SETTING.iter_unpack(settings):
            if name == wire.SET_WINDOW:
                self._resize(value, streams)
            elif name == wire.SET_FRAME_BYTES:
                if not wire.FRAME_BYTES <= value <= wire.MOST_FRAME_BYTES:
                    raise Http2Error(Code.PROTOCOL_ERROR, "frame size out of bounds")
                self.frame_bytes = value

    def _resize(self, size: int, streams: Sequence[Stream]) -> None:
        # What a stream has used of its window stays used, so that its room may become negative.
        more, self.stream_window = size - self.stream_window, size
        for stream in streams:
            stream.send_left += more
        if size > wire.MOST_WINDOW_BYTES or any(stream.send_left > wire.MOST_WINDOW_BYTES for stream in streams):
            raise Http2Error(Code.FLOW_CONTROL_ERROR, "window too large")

    def _end(self, stream: Stream, status: Status, message: str) -> None:
        block = wire.trailers(status, message) if status else wire.OK_TRAILERS
        if not stream.begun:
            block = wire.RESPONSE + block
        self.out.append(wire.frame(wire.HEADERS, wire.END_HEADERS | wire.END_STREAM, stream.number, block))
        if not stream.half_closed:
            # The client need not send the rest of what is not read any more.
            self.reset(stream.number, Code.NO_ERROR)
