"""The server's side of one HTTP/2 connection that carries gRPC (RFC 9113), without TLS.

Made for the Unix socket between an Envoy and its picker, where gRPC's own server in Python costs more than the decision: the
client is trusted and well behaved, yet nothing that it sends may raise out of here, and whatever happens every RPC is ended.
What came in one read is answered by one write. A client that does not read its answers is not read either.

Left out, as no gRPC client asks for it: priorities, server push, trailers and metadata of requests, compressed messages.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from servingplan.picker.http2 import wire
from servingplan.picker.http2.frames import Frames
from servingplan.picker.http2.sending import Sending
from servingplan.picker.http2.stream import Call, Status, Stream
from servingplan.picker.http2.wire import NUMBER, Code, Http2Error

WINDOW_BYTES = 16 * 1024 * 1024
"""What a stream may send before it is told that there is room again."""

CONNECTION_WINDOW_BYTES = 4 * WINDOW_BYTES
MOST_STREAMS = 100_000

_SETTINGS = {wire.SET_TABLE_SIZE: 0, wire.SET_MOST_STREAMS: MOST_STREAMS, wire.SET_WINDOW: WINDOW_BYTES}
_DRAIN_PING = b"\0drained"

log = logging.getLogger(__name__)


class Connection(asyncio.Protocol):
    """One connection.

    Args:
        methods: By path, what begins a call.
        message_limit_bytes: Longest message of a client.
        connections: Where it is entered while it lasts.

    Attributes:
        closed: Done when it is.
    """

    closed: asyncio.Future[None]

    def __init__(
        self, methods: Mapping[bytes, Callable[[], Call]], message_limit_bytes: int, connections: set[Connection]
    ) -> None:
        self._methods, self._limit, self._connections = methods, message_limit_bytes, connections
        self._transport: asyncio.Transport | None = None
        self._sending = Sending()
        self._frames, self._blocks = Frames(), wire.Blocks()
        self._closing = self._draining = self._drained = False
        self._streams: dict[int, Stream] = {}
        self._half_closed: list[Stream] = []
        self._last = 0
        self._receive_left = CONNECTION_WINDOW_BYTES

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Says at once what the client may do."""
        self._transport = cast("asyncio.Transport", transport)
        self._connections.add(self)
        self.closed = asyncio.get_running_loop().create_future()
        self._sending.greet(_SETTINGS, CONNECTION_WINDOW_BYTES)
        self._flush()

    def connection_lost(self, _exc: Exception | None) -> None:
        """Ends whatever is under way."""
        self._closing = True
        self._connections.discard(self)
        if not self.closed.done():
            self.closed.set_result(None)
        self._end_all()

    def data_received(self, data: bytes) -> None:
        """Reads what came and answers it."""
        if self._closing:
            return
        try:
            self._read(data)
            self._answer_ends()
        except Http2Error as error:
            self._give_up(error.code, str(error))
        except Exception as error:
            log.error("a connection failed: %s", type(error).__name__)
            self._give_up(Code.INTERNAL_ERROR, "")
        self._flush()

    def pause_writing(self) -> None:
        """The client does not read its answers; it gets no more of them."""
        if self._transport and not self._closing:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """The client reads again."""
        if self._transport and not self._closing:
            self._transport.resume_reading()

    def drain(self) -> None:
        """Asks for no more streams, lets those under way end, and closes."""
        if self._closing or self._draining:
            return
        self._draining = True
        # Only when the client has answered is it known which streams it had begun before it was told.
        self._sending.goaway(wire.MOST_WINDOW_BYTES, Code.NO_ERROR)
        self._sending.ping(0, _DRAIN_PING)
        self._flush()

    def abort(self) -> None:
        """Closes now."""
        self._closing = True
        self._end_all()
        if self._transport:
            self._transport.abort()

    def reply(self, stream: Stream, messages: Sequence[bytes]) -> None:
        """Sends messages, as far as the client has room for them."""
        self._sending.messages(stream, messages)

    def finish(self, stream: Stream, status: Status, message: str) -> None:
        """Ends a stream once all of its messages are sent; its call ends now."""
        if stream.last_words is None:
            stream.last_words = status, message
            stream.close()
            self._pump(stream)

    def _read(self, data: bytes) -> None:
        for kind, flags, number, payload, size in self._frames.read(data):
            if kind == wire.DATA:
                self._data(flags, number, payload, size)
            elif kind == wire.HEADERS:
                self._headers(flags, number, payload)
            elif reader := _READERS.get(kind):
                reader(self, flags, number, payload)
            if self._closing:
                return

    def _data(self, flags: int, number: int, data: bytes, size: int) -> None:
        self._receive_left -= size
        if self._receive_left < 0:
            raise Http2Error(Code.FLOW_CONTROL_ERROR, "more data than the connection has room for")
        if self._receive_left < CONNECTION_WINDOW_BYTES // 2:
            self._sending.window(0, CONNECTION_WINDOW_BYTES - self._receive_left)
            self._receive_left = CONNECTION_WINDOW_BYTES
        stream = self._streams.get(number)
        if stream is None:
            self._expect_known(number)
            return
        stream.receive_left -= size
        if stream.half_closed or stream.receive_left < 0:
            self._reset(stream, Code.STREAM_CLOSED if stream.half_closed else Code.FLOW_CONTROL_ERROR)
            return
        if data and not stream.closed:
            stream.receive(data)
        if flags & wire.END_STREAM:
            self._end_received(stream)
        elif not stream.closed:
            self._make_room(stream)

    def _make_room(self, stream: Stream) -> None:
        """Gives the client back what it has used of a stream's window, if that is much."""
        used = WINDOW_BYTES - stream.receive_left
        if used > WINDOW_BYTES // 2:
            stream.receive_left += used
            self._sending.window(stream.number, used)

    def _end_received(self, stream: Stream) -> None:
        # Envoy resets a stream as soon as it has ended it. When both come in one read there is nothing to answer.
        stream.half_closed = True
        self._half_closed.append(stream)

    def _answer_ends(self) -> None:
        if self._half_closed:
            ended, self._half_closed = self._half_closed, []
            for stream in ended:
                if not stream.closed:
                    stream.receive_end()

    def _headers(self, flags: int, number: int, block: bytes) -> None:
        if not number & 1:
            raise Http2Error(Code.PROTOCOL_ERROR, "no stream of a client")
        # Of a stream that is no more too: later blocks may refer to this one.
        path = self._blocks.path(block)
        stream = self._streams.get(number)
        if stream is not None:
            self._request_trailers(stream, flags)
        elif number > self._last:
            self._begin(number, path, ends=bool(flags & wire.END_STREAM))

    def _request_trailers(self, stream: Stream, flags: int) -> None:
        if stream.half_closed or not flags & wire.END_STREAM:
            self._reset(stream, Code.STREAM_CLOSED if stream.half_closed else Code.PROTOCOL_ERROR)
        else:
            self._end_received(stream)

    def _begin(self, number: int, path: bytes, *, ends: bool) -> None:
        self._last = number
        if len(self._streams) >= MOST_STREAMS or self._drained:
            self._sending.reset(number, Code.REFUSED_STREAM)
            return
        method = self._methods.get(path)
        stream = Stream(number, method() if method else _Unknown(), self, self._limit)
        stream.receive_left, stream.send_left = WINDOW_BYTES, self._sending.stream_window
        self._streams[number] = stream
        if ends:
            self._end_received(stream)
        if method is None:
            self.finish(stream, Status.UNIMPLEMENTED, "unknown method")

    def _reset_received(self, _flags: int, number: int, _payload: bytes) -> None:
        stream = self._streams.pop(number, None)
        if stream is None:
            self._expect_known(number)
            return
        self._sending.forget(number)
        stream.close()

    def _settings(self, flags: int, _number: int, payload: bytes) -> None:
        if flags & wire.ACK:
            if payload:
                raise Http2Error(Code.FRAME_SIZE_ERROR, "settings with their acknowledgement")
            self._blocks.agree()
            return
        self._sending.apply(payload, list(self._streams.values()))
        self._sending.agree()
        self._pump_all()

    def _ping(self, flags: int, _number: int, payload: bytes) -> None:
        if not flags & wire.ACK:
            self._sending.ping(wire.ACK, payload)
        elif payload == _DRAIN_PING and self._draining:
            self._drained = True
            self._sending.goaway(self._last, Code.NO_ERROR)

    def _window_update(self, _flags: int, number: int, payload: bytes) -> None:
        more = NUMBER.unpack(payload)[0] & wire.MOST_WINDOW_BYTES
        if not number:
            self._sending.widen(more)
            self._pump_all()
            return
        stream = self._streams.get(number)
        if stream is None:
            self._expect_known(number)
            return
        stream.send_left += more
        if not more or stream.send_left > wire.MOST_WINDOW_BYTES:
            self._reset(stream, Code.FLOW_CONTROL_ERROR if more else Code.PROTOCOL_ERROR)
        else:
            self._pump(stream)

    def _pump(self, stream: Stream) -> None:
        if self._sending.pump(stream):
            self._streams.pop(stream.number, None)

    def _pump_all(self) -> None:
        for stream in self._sending.pump_all():
            self._streams.pop(stream.number, None)

    def _reset(self, stream: Stream, code: Code) -> None:
        self._sending.reset(stream.number, code)
        self._streams.pop(stream.number, None)
        stream.close()

    def _expect_known(self, number: int) -> None:
        """A frame for a stream that has ended may have been under way; one that never began is an error."""
        if number > self._last or not number & 1:
            raise Http2Error(Code.PROTOCOL_ERROR, "no such stream")

    def _flush(self) -> None:
        """Hands what was sent to the socket."""
        out = self._sending.out
        if out:
            if self._transport and not self._closing:
                self._transport.write(b"".join(out))
            out.clear()
        if self._drained and not self._streams and not self._closing:
            self._close()

    def _give_up(self, code: Code, message: str) -> None:
        self._sending.goaway(self._last, code, message)
        self._flush()
        self._close()
        log.warning("a connection was given up: %s %s", code.name, message)

    def _close(self) -> None:
        self._closing = True
        self._end_all()
        if self._transport:
            self._transport.close()

    def _end_all(self) -> None:
        streams = list(self._streams.values())
        self._streams.clear()
        self._half_closed.clear()
        for stream in streams:
            stream.close()


class _Unknown:
    """A call of a method that there is not."""

    def take(self, _message: bytes) -> Sequence[bytes]:
        return []

    def end(self) -> None:
        pass


# Priorities are another server's matter, a client that goes away closes by itself, and other kinds are passed over.
_READERS: dict[int, Callable[[Connection, int, int, bytes], None]] = {
    wire.RST_STREAM: Connection._reset_received,
    wire.SETTINGS: Connection._settings,
    wire.PING: Connection._ping,
    wire.WINDOW_UPDATE: Connection._window_update,
}
