"""One HTTP/2 connection, byte for byte: what comes in any pieces, what is against the rules, and that every call is ended."""

from __future__ import annotations

import asyncio
import itertools
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hpack import Decoder, Encoder, NeverIndexedHeaderTuple
from hypothesis import given, settings
from hypothesis import strategies as st

from servingplan.picker.http2.connection import CONNECTION_WINDOW_BYTES, WINDOW_BYTES, Connection
from servingplan.picker.http2.stream import RpcError, Status

DATA, HEADERS, PRIORITY, RESET, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITISED = 0x1, 0x1, 0x4, 0x8, 0x20
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
LIMIT_BYTES = 50_000


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def message(text: bytes, *, compressed: bool = False, size: int | None = None) -> bytes:
    return struct.pack(">BL", compressed, len(text) if size is None else size) + text


def block(path: str = "/echo", **more: str) -> bytes:
    """A header block that stands for itself."""
    headers = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "x", "te": "trailers", **more}
    return Encoder().encode([NeverIndexedHeaderTuple(name, value) for name, value in headers.items()])


def opened(stream: int, flags: int = 0, path: str = "/echo") -> bytes:
    return frame(HEADERS, END_HEADERS | flags, stream, block(path))


def sent(stream: int, text: bytes, flags: int = 0) -> bytes:
    return frame(DATA, flags, stream, message(text))


GREETING = PREFACE + frame(SETTINGS, 0, 0)
OPEN = GREETING + frame(SETTINGS, ACK, 0) + frame(HEADERS, END_HEADERS, 1, b"\x20" + block())


class Wire(asyncio.Transport):
    """The other end of the connection, which keeps what it was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.writes = 0
        self.is_closed = False
        self.is_read = True

    def write(self, data: Any) -> None:
        assert not self.is_closed, "written to after the end"
        self.written += data
        self.writes += 1

    def close(self) -> None:
        self.is_closed = True

    abort = close

    def pause_reading(self) -> None:
        self.is_read = False

    def resume_reading(self) -> None:
        self.is_read = True


@dataclass
class Calls:
    """Calls that answer every message with itself, twice if it begins with ``2`` and not at all with ``0``.

    ``fail`` and ``refuse`` raise.
    """

    begun: int = 0
    ended: int = 0
    taken: list[bytes] = field(default_factory=list)

    def begin(self) -> Any:
        self.begun += 1
        return _Echo(self)


class _Echo:
    def __init__(self, calls: Calls) -> None:
        self._calls, self._is_over = calls, False

    def take(self, message: bytes) -> list[bytes]:
        self._calls.taken.append(message)
        assert not self._is_over
        if message.startswith(b"fail"):
            raise ValueError("secret-prompt")
        if message.startswith(b"refuse"):
            raise RpcError(Status.NOT_FOUND, "nothing here")
        return [message] * {b"2": 2, b"0": 0}.get(message[:1], 1)

    def end(self) -> None:
        assert not self._is_over, "ended twice"
        self._is_over = True
        self._calls.ended += 1


class Peer:
    """A connection, its client's end of the wire, and its calls."""

    def __init__(self, limit_bytes: int = LIMIT_BYTES, **methods: Any) -> None:
        self.calls, self.wire, self.connections = Calls(), Wire(), set()
        named = {f"/{name}".encode(): method for name, method in methods.items()}
        self.connection = Connection({b"/echo": self.calls.begin, **named}, limit_bytes, self.connections)
        self.connection.connection_made(self.wire)

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            if not self.wire.is_closed:
                self.connection.data_received(piece)

    def frames(self) -> list[tuple[int, int, int, bytes]]:
        found, at = [], 0
        while at < len(self.wire.written):
            size = int.from_bytes(self.wire.written[at : at + 3], "big")
            kind, flags = self.wire.written[at + 3 : at + 5]
            stream = int.from_bytes(self.wire.written[at + 5 : at + 9], "big")
            found.append((kind, flags, stream, self.wire.written[at + 9 : at + 9 + size]))
            at += 9 + size
        return found

    def answers(self) -> dict[int, tuple[bytes, dict[str, str]]]:
        """Of every stream: its bytes, and its headers and trailers."""
        decoder = Decoder()
        decoder.max_allowed_table_size = decoder.header_table_size = 0
        text: dict[int, bytes] = defaultdict(bytes)
        headers: dict[int, dict[str, str]] = defaultdict(dict)
        for kind, _, stream, payload in self.frames():
            if kind == DATA:
                text[stream] += payload
            elif kind == HEADERS:
                headers[stream] |= dict(decoder.decode(payload))
        return {stream: (text[stream], headers[stream]) for stream in headers}

    def status(self, stream: int) -> str | None:
        return self.answers().get(stream, (b"", {}))[1].get("grpc-status")

    def resets(self) -> dict[int, int]:
        return {stream: int.from_bytes(payload, "big") for kind, _, stream, payload in self.frames() if kind == RESET}

    def goaways(self) -> list[tuple[int, ...]]:
        return [struct.unpack(">LL", payload[:8]) for kind, _, _, payload in self.frames() if kind == GOAWAY]


def run(scenario: Callable[[Peer], Any], **peer_fields: Any) -> Peer:
    """Plays a scenario on a connection that is lost at its end; whatever it was, every call has ended then."""

    async def play() -> Peer:
        peer = Peer(**peer_fields)
        scenario(peer)
        peer.connection.connection_lost(None)
        assert peer.calls.ended == peer.calls.begun
        assert not peer.connections
        return peer

    return asyncio.run(play())


def fed(*pieces: bytes, **peer_fields: Any) -> Peer:
    def scenario(peer: Peer) -> None:
        peer.send(*pieces)

    return run(scenario, **peer_fields)


LONG = bytes(range(256)) * 150
SCRIPT = b"".join(
    (
        GREETING,
        frame(HEADERS, 0, 1, block()[:7]),
        frame(CONTINUATION, 0, 1, block()[7:20]),
        frame(CONTINUATION, END_HEADERS, 1, block()[20:]),
        frame(SETTINGS, ACK, 0),
        frame(HEADERS, END_HEADERS | PADDED | PRIORITISED, 3, b"\3" + b"\0\0\0\0\7" + b"\x20" + block() + b"\0\0\0"),
        frame(DATA, 0, 1, message(b"one") + message(b"2wo") + message(b"")[:3]),
        frame(PING, 0, 0, b"12345678"),
        frame(DATA, PADDED, 3, b"\5" + message(b"some")[:4] + b"\0" * 5),
        frame(DATA, 0, 1, message(b"")[3:] + message(b"some more")),
        frame(DATA, 0, 3, message(b"some")[4:] + message(b"behind") + message(LONG)[:8000]),
        frame(0x77, 0xFF, 9, b"of no kind that is known"),
        frame(PRIORITY, 0, 3, b"\0\0\0\0\1"),
        opened(5),
        frame(DATA, 0, 3, message(LONG)[8000:24_000]),
        frame(DATA, END_STREAM, 3, message(LONG)[24_000:]),
        frame(WINDOW, 0, 0, b"\0\1\0\0"),
        frame(DATA, END_STREAM, 1),
        sent(5, b"refuse"),
        opened(7, END_STREAM),
        opened(9),
        sent(9, b"last"),
        frame(HEADERS, END_HEADERS | END_STREAM, 9, block()),
    )
)
BEGIN = {":status": "200", "content-type": "application/grpc"}
WANT = {
    1: (b"".join(map(message, (b"one", b"2wo", b"2wo", b"", b"some more"))), BEGIN | {"grpc-status": "0"}),
    3: (b"".join(map(message, (b"some", b"behind", LONG))), BEGIN | {"grpc-status": "0"}),
    5: (b"", BEGIN | {"grpc-status": "5", "grpc-message": "nothing here"}),
    7: (b"", BEGIN | {"grpc-status": "0"}),
    9: (message(b"last"), BEGIN | {"grpc-status": "0"}),
}


def pieces(whole: bytes, cuts: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted(cuts), len(whole)]
    return [whole[start:end] for start, end in itertools.pairwise(edges)]


def test_every_stream_is_answered_in_order():
    peer = fed(SCRIPT)
    assert peer.answers() == WANT
    assert (PING, ACK, 0, b"12345678") in peer.frames()
    assert not peer.goaways()
    assert peer.resets() == {5: 0}, "the client of a refused call need not go on"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, len(SCRIPT)), max_size=40))
def test_the_pieces_in_which_it_comes_change_nothing(cuts):
    assert fed(*pieces(SCRIPT, cuts)).answers() == WANT


def test_neither_do_single_bytes():
    assert fed(*pieces(SCRIPT, range(len(SCRIPT)))).answers() == WANT


def test_nor_a_cut_at_any_byte():
    telling = [cut for cut in range(len(SCRIPT)) if SCRIPT[max(0, cut - 8) : cut + 8] not in LONG]
    assert len(telling) > 500
    for cut in telling:
        assert fed(SCRIPT[:cut], SCRIPT[cut:]).answers() == WANT, cut


FRAMES = st.builds(
    frame,
    st.integers(0, 11),
    st.integers(0, 255),
    st.sampled_from((0, 1, 2, 3, 5, 7, 2**31 - 1, 2**31 + 1)),
    st.one_of(st.binary(max_size=40), st.builds(message, st.binary(max_size=20)), st.just(block())),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(FRAMES, max_size=12))
def test_no_frames_raise_and_every_call_is_ended(frames):
    fed(OPEN + sent(1, b"x"), *frames)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(SCRIPT) - 1), st.binary(max_size=6), st.integers(0, 6))
def test_no_damage_raises_and_every_call_is_ended(at, put, taken):
    fed(SCRIPT[:at] + put + SCRIPT[at + taken :])


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_what_is_no_http2_is_refused(text):
    peer = fed(b"G" + text)
    assert peer.goaways() == [(0, 1)]
    assert peer.wire.is_closed


PROTOCOL, FLOW, SIZE, COMPRESSION, CALM = 1, 3, 6, 9, 11
AGREED = OPEN + opened(3)
VIOLATIONS = {
    "no settings first": (PREFACE + frame(PING, 0, 0, b"12345678"), PROTOCOL),
    "an acknowledgement first": (PREFACE + frame(SETTINGS, ACK, 0), PROTOCOL),
    "a frame too long": (OPEN + frame(DATA, 0, 1, b"\0" * 16385), SIZE),
    "data on no stream": (OPEN + frame(DATA, 0, 0), PROTOCOL),
    "data on a stream that never began": (OPEN + frame(DATA, 0, 7), PROTOCOL),
    "an even stream": (OPEN + opened(2), PROTOCOL),
    "headers on no stream": (OPEN + opened(0), PROTOCOL),
    "padding longer than the frame": (OPEN + frame(DATA, PADDED, 1, b"\x04123"), PROTOCOL),
    "padding without a length": (OPEN + frame(DATA, PADDED, 1), PROTOCOL),
    "headers without their priority": (OPEN + frame(HEADERS, END_HEADERS | PRIORITISED, 3, b"123"), SIZE),
    "a block broken off by another frame": (OPEN + frame(HEADERS, 0, 3, block()) + frame(DATA, 0, 1), PROTOCOL),
    "a block broken off by another stream": (OPEN + frame(HEADERS, 0, 3) + frame(CONTINUATION, 4, 5), PROTOCOL),
    "the rest of no block": (OPEN + frame(CONTINUATION, END_HEADERS, 1), PROTOCOL),
    "a block of nothing for ever": (OPEN + frame(HEADERS, 0, 3, block()) + frame(CONTINUATION, 0, 3), CALM),
    "a block too long": (OPEN + frame(HEADERS, 0, 3) + frame(CONTINUATION, 0, 3, b"\x88" * 16000) * 5, CALM),
    "a block that is none": (OPEN + frame(HEADERS, END_HEADERS, 3, b"\xff\xff\xff"), COMPRESSION),
    "a block that is cut off": (OPEN + frame(HEADERS, END_HEADERS, 3, block()[:-3]), COMPRESSION),
    "a table larger than agreed": (OPEN + frame(HEADERS, END_HEADERS, 3, b"\x3f\x01" + block()), COMPRESSION),
    "a reset of a wrong length": (OPEN + frame(RESET, 0, 1, b"123"), SIZE),
    "a reset of a stream that never began": (OPEN + frame(RESET, 0, 9, b"1234"), PROTOCOL),
    "a reset of no stream": (OPEN + frame(RESET, 0, 0, b"1234"), PROTOCOL),
    "settings of a stream": (OPEN + frame(SETTINGS, 0, 1), PROTOCOL),
    "settings of a wrong length": (OPEN + frame(SETTINGS, 0, 0, b"12345"), SIZE),
    "settings with an acknowledgement": (OPEN + frame(SETTINGS, ACK, 0, b"123456"), SIZE),
    "a frame size too small": (OPEN + frame(SETTINGS, 0, 0, struct.pack(">HL", 5, 100)), PROTOCOL),
    "a window too large by settings": (OPEN + frame(SETTINGS, 0, 0, struct.pack(">HL", 4, 2**31)), FLOW),
    "a push": (OPEN + frame(PUSH, 0, 1, b"1234"), PROTOCOL),
    "a ping of a wrong length": (OPEN + frame(PING, 0, 0, b"1234567"), SIZE),
    "a ping of a stream": (OPEN + frame(PING, 0, 1, b"12345678"), PROTOCOL),
    "a goaway of a stream": (OPEN + frame(GOAWAY, 0, 1, b"12345678"), PROTOCOL),
    "a window of nothing": (OPEN + frame(WINDOW, 0, 0, b"\0\0\0\0"), PROTOCOL),
    "a window of a wrong length": (OPEN + frame(WINDOW, 0, 0, b"123"), SIZE),
    "a window too large": (OPEN + frame(WINDOW, 0, 0, b"\x7f\xff\xff\xff"), FLOW),
    "a window of a stream that never began": (OPEN + frame(WINDOW, 0, 9, b"\0\0\0\1"), PROTOCOL),
}


@pytest.mark.parametrize(("received", "code"), VIOLATIONS.values(), ids=VIOLATIONS)
def test_who_breaks_the_rules_is_told_and_cut_off_and_all_calls_end(received, code):
    def scenario(peer: Peer) -> None:
        peer.send(received + sent(1, b"not looked at"))
        assert peer.wire.is_closed
        assert [found for _, found in peer.goaways()] == [code]
        assert peer.calls.ended == peer.calls.begun, "before the connection is lost"
        assert not peer.calls.taken

    run(scenario)


STREAM_ERRORS = {
    "data after the end": (frame(DATA, END_STREAM, 1) + sent(1, b"more"), 5),
    "trailers that do not end": (opened(1), PROTOCOL),
    "trailers after the end": (frame(DATA, END_STREAM, 1) + opened(1, END_STREAM), 5),
    "a window of nothing": (frame(WINDOW, 0, 1, b"\0\0\0\0"), PROTOCOL),
    "a window too large": (frame(WINDOW, 0, 1, b"\x7f\xff\xff\xff"), FLOW),
}


@pytest.mark.parametrize(("received", "code"), STREAM_ERRORS.values(), ids=STREAM_ERRORS)
def test_a_stream_that_breaks_the_rules_is_reset_and_the_others_go_on(received, code):
    peer = fed(OPEN + opened(3) + sent(3, b"a") + received + sent(1, b"late") + sent(3, b"b", END_STREAM))
    assert peer.resets() == {1: code}
    assert peer.answers()[3] == (message(b"a") + message(b"b"), BEGIN | {"grpc-status": "0"})
    assert not peer.goaways()


REFUSALS = {
    "compressed": (frame(DATA, 0, 1, message(b"x", compressed=True)), "12"),
    "too long": (frame(DATA, 0, 1, message(b"x", size=LIMIT_BYTES + 1)), "8"),
    "cut off": (frame(DATA, END_STREAM, 1, message(b"xyz")[:-1]), "13"),
    "failing": (sent(1, b"fail"), "2"),
    "failing later": (sent(1, b"x") + sent(1, b"fail") + sent(1, b"not looked at"), "2"),
    "refused": (sent(1, b"refuse"), "5"),
}


@pytest.mark.parametrize(("received", "status"), REFUSALS.values(), ids=REFUSALS)
def test_a_call_that_cannot_go_on_ends_with_a_status_and_the_others_go_on(received, status, caplog):
    peer = fed(OPEN, received, opened(3) + sent(3, b"other", END_STREAM))
    assert (peer.status(1), peer.status(3)) == (status, "0")
    assert b"not looked at" not in peer.calls.taken
    assert not peer.goaways()
    assert "secret" not in caplog.text


def test_the_limit_holds_for_short_messages_too():
    assert [fed(OPEN + sent(1, text, END_STREAM), limit_bytes=4).status(1) for text in (b"four", b"five!")] == ["0", "8"]


def test_a_method_that_there_is_not_is_said():
    peer = fed(GREETING + opened(1, path="/other") + sent(1, b"x") + opened(3, END_STREAM, path="/other"))
    assert [peer.status(stream) for stream in (1, 3)] == ["12", "12"]
    assert (peer.resets(), peer.calls.begun) == ({1: 0}, 0)


def test_a_client_that_has_gone_is_not_answered_and_its_call_ends():
    def scenario(peer: Peer) -> None:
        late = message(b"late")
        peer.send(OPEN + sent(1, b"x") + frame(DATA, 0, 1, late[:-1]) + opened(3) + frame(DATA, 0, 3, late[:-1]))
        answered = peer.answers()
        peer.send(frame(RESET, 0, 1, b"\0\0\0\10") + frame(RESET, 0, 3, b"\0\0\0\10"))
        assert peer.calls.ended == 2
        peer.send(frame(DATA, 0, 1, late[-1:]) + frame(DATA, END_STREAM, 3, late[-1:]))
        assert peer.answers() == answered == {1: (message(b"x"), BEGIN)}
        peer.send(opened(5) + sent(5, b"y", END_STREAM))

    peer = run(scenario)
    assert peer.calls.taken == [b"x", b"y"]
    assert peer.answers().keys() == {1, 5}


def test_an_end_and_a_reset_at_once_as_envoy_sends_them_cost_no_answer():
    def scenario(peer: Peer) -> None:
        peer.send(OPEN + sent(1, b"x"))
        writes = peer.wire.writes
        peer.send(frame(DATA, END_STREAM, 1) + frame(RESET, 0, 1, b"\0\0\0\2"))
        assert (peer.calls.ended, peer.wire.writes) == (1, writes)

    run(scenario)


def test_a_call_ends_only_at_the_clients_end_and_when_all_before_it_is_answered():
    def scenario(peer: Peer) -> None:
        peer.send(OPEN + sent(1, b"first"))
        assert (peer.calls.ended, peer.answers()) == (0, {1: (message(b"first"), BEGIN)})
        peer.send(sent(1, b"next", END_STREAM))
        assert (peer.calls.ended, peer.calls.taken) == (1, [b"first", b"next"])

    assert run(scenario).answers() == {1: (message(b"first") + message(b"next"), BEGIN | {"grpc-status": "0"})}


def test_many_messages_of_one_read_are_answered_by_one_write():
    def scenario(peer: Peer) -> None:
        writes = peer.wire.writes
        peer.send(OPEN + b"".join(opened(stream) + sent(stream, b"x", END_STREAM) for stream in range(3, 99, 2)))
        assert peer.wire.writes == writes + 1

    run(scenario)


def test_headers_may_refer_to_others_until_the_client_has_agreed_not_to():
    encoder = Encoder()
    headers = [(":path", "/echo"), ("x-some", "thing")]
    first, second = encoder.encode(headers), encoder.encode(headers)
    assert len(second) < len(first)
    encoder.header_table_size = 0
    third, fourth = encoder.encode(headers), encoder.encode(headers)
    opening = [frame(HEADERS, END_HEADERS | END_STREAM, 2 * at + 1, each) for at, each in enumerate((first, second))]
    agreed = [frame(HEADERS, END_HEADERS | END_STREAM, 2 * at + 5, each) for at, each in enumerate((third, fourth, fourth))]
    peer = fed(GREETING, *opening, frame(SETTINGS, ACK, 0), *agreed)
    assert [peer.status(stream) for stream in (1, 3, 5, 7, 9)] == ["0"] * 5
    held_on = fed(GREETING, opening[0], frame(SETTINGS, ACK, 0), opening[1])
    assert held_on.goaways() == [(1, COMPRESSION)]


def test_a_block_means_what_it_means_when_it_comes():
    def literal(path: str) -> bytes:
        return frame(HEADERS, END_HEADERS | END_STREAM, 0, b"\x44" + bytes([len(path)]) + path.encode())

    newest = frame(HEADERS, END_HEADERS | END_STREAM, 0, b"\xbe")
    blocks = [literal("/echo"), newest, literal("/else"), newest]
    numbered = [each[:5] + (2 * at + 1).to_bytes(4, "big") + each[9:] for at, each in enumerate(blocks)]
    peer = fed(GREETING, *numbered)
    assert [peer.status(stream) for stream in (1, 3, 5, 7)] == ["0", "0", "12", "12"]


def test_a_client_is_sent_no_more_than_it_has_room_for():
    def scenario(peer: Peer) -> None:
        no_room = frame(SETTINGS, 0, 0, struct.pack(">HL", 4, 0))
        peer.send(PREFACE + no_room + opened(1) + sent(1, b"hello", END_STREAM) + opened(3) + sent(3, b"other"))
        assert [stream for kind, _, stream, _ in peer.frames() if kind == DATA] == []
        assert peer.calls.ended == 1, "the call is over, whenever the client reads the answer"
        for want in range(1, 11):
            peer.send(frame(WINDOW, 0, 1, b"\0\0\0\1"))
            assert peer.answers()[1][0] == message(b"hello")[:want]
            assert peer.status(1) == ("0" if want == 10 else None)
        peer.send(frame(SETTINGS, 0, 0, struct.pack(">HL", 4, 4)))
        assert peer.answers()[3][0] == message(b"other")[:4]
        peer.send(frame(SETTINGS, 0, 0, struct.pack(">HL", 4, 1)) + frame(WINDOW, 0, 3, b"\0\0\0\3"))
        assert peer.answers()[3][0] == message(b"other")[:4], "what was used of a larger window stays used"
        peer.send(frame(WINDOW, 0, 3, b"\0\0\0\7") + frame(DATA, END_STREAM, 3))

    assert run(scenario).answers()[3] == (message(b"other"), BEGIN | {"grpc-status": "0"})


def test_the_room_of_the_connection_is_kept_too():
    texts = {stream: bytes([stream]) * 40_000 for stream in (1, 3, 5)}
    received = [opened(stream) + long(stream, text) for stream, text in texts.items()]

    def scenario(peer: Peer) -> None:
        peer.send(PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HL", 4, 10**6)), *received)
        assert sum(len(payload) for kind, _, _, payload in peer.frames() if kind == DATA) == 65535
        peer.send(frame(RESET, 0, 3, b"\0\0\0\10"), *[frame(WINDOW, 0, 0, b"\0\1\0\0")] * 3)
        ends = [stream for kind, flags, stream, _ in peer.frames() if kind == HEADERS and flags & END_STREAM]
        assert sorted(ends) == [1, 5]
        peer.connection.drain()
        peer.send(frame(PING, ACK, 0, b"\0drained"))
        assert peer.wire.is_closed, "no stream is left over"

    peer = run(scenario)
    assert [peer.answers()[stream][0] for stream in (1, 5)] == [message(texts[1]), message(texts[5])]
    assert max(len(payload) for _, _, _, payload in peer.frames()) <= 16384


def test_the_room_of_the_connection_is_kept_by_short_messages_too():
    peer = fed(PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HL", 4, 10**6)), opened(1), *[sent(1, b"x" * 9000)] * 10)
    assert len(peer.answers()[1][0]) == 65535


def test_a_connection_is_given_room_for_ever():
    def scenario(peer: Peer) -> None:
        peer.send(OPEN)
        payload = message(b"0" * 16_000)
        for stream in range(1, 21, 2):
            peer.send(*([opened(stream)] if stream > 1 else []), *[frame(DATA, 0, stream, payload)] * 512)
        given = [int.from_bytes(part, "big") for kind, _, stream, part in peer.frames() if (kind, stream) == (WINDOW, 0)]
        assert 65535 + sum(given) > 10 * 512 * len(payload) > CONNECTION_WINDOW_BYTES
        assert not peer.goaways()

    run(scenario)


def long(stream: int, text: bytes) -> bytes:
    whole = message(text)
    cuts = range(16_000, len(whole), 16_000)
    return b"".join(frame(DATA, 0, stream, piece) for piece in pieces(whole, cuts)) + frame(DATA, END_STREAM, stream)


def test_a_client_that_sends_for_long_is_given_room_again_and_one_that_takes_more_is_stopped():
    def scenario(peer: Peer) -> None:
        peer.send(OPEN)
        payload = message(b"0" * 16_000)
        for _ in range(2 * WINDOW_BYTES // len(payload)):
            peer.send(frame(DATA, 0, 1, payload))

        def given() -> int:
            parts = [part for kind, _, stream, part in peer.frames() if (kind, stream) == (WINDOW, 1)]
            return sum(int.from_bytes(part, "big") for part in parts)

        before = given()
        assert before >= WINDOW_BYTES
        assert not peer.resets()
        peer.send(frame(SETTINGS, 0, 0, struct.pack(">HL", 4, 0)) + sent(1, b"x") + sent(1, b"refuse"))
        assert peer.status(1) is None, "the client has no room for its answers"
        peer.send(*[frame(DATA, 0, 1, payload)] * (WINDOW_BYTES // len(payload) + 1))
        assert given() == before, "for what nobody will look at there is no room"
        assert peer.calls.taken[-1] == b"refuse"
        assert peer.resets() == {1: FLOW}

    run(scenario)


def test_a_client_that_does_not_read_is_not_read():
    def scenario(peer: Peer) -> None:
        peer.send(OPEN)
        peer.connection.pause_writing()
        assert not peer.wire.is_read
        peer.connection.resume_writing()
        assert peer.wire.is_read

    run(scenario)


def test_a_drain_lets_streams_end_and_takes_no_more_once_the_client_knows():
    def scenario(peer: Peer) -> None:
        peer.send(OPEN + sent(1, b"x"))
        peer.connection.drain()
        assert peer.goaways() == [(2**31 - 1, 0)]
        peer.send(opened(3) + sent(3, b"still", END_STREAM))
        (ping,) = [payload for kind, _, _, payload in peer.frames() if kind == PING]
        peer.send(frame(PING, ACK, 0, ping) + opened(5) + sent(5, b"too late"))
        assert peer.goaways()[1:] == [(3, 0)]
        assert peer.resets() == {5: 7}
        assert not peer.wire.is_closed
        peer.send(frame(DATA, END_STREAM, 1))
        assert peer.wire.is_closed

    peer = run(scenario)
    assert [peer.status(stream) for stream in (1, 3)] == ["0", "0"]
    assert peer.calls.begun == 2


def test_an_end_that_fails_is_said_and_the_others_go_on(caplog):
    class Failing:
        def take(self, message: bytes) -> list[bytes]:
            return []

        def end(self) -> None:
            raise ValueError("secret-prompt")

    peer = fed(OPEN + opened(3, path="/failing") + frame(DATA, END_STREAM, 3) + sent(1, b"x", END_STREAM), failing=Failing)
    assert (peer.status(1), peer.status(3), peer.goaways()) == ("0", "0", [])
    assert "ValueError" in caplog.text
    assert "secret" not in caplog.text
