"""gRPC on a Unix socket, asked by real clients: gRPC's own, and an HTTP/2 library that is strict about what it is sent."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import stat
import struct
from pathlib import Path
from typing import Any

import grpc
import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from servingplan.picker.http2.server import SocketServer

LIMIT_BYTES = 12_000_000
DEADLINE_S = 20.0
SIZES = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class Echo:
    """A call that sends every message back."""

    open = 0

    def __init__(self) -> None:
        type(self).open += 1

    def take(self, message: bytes) -> list[bytes]:
        return [message]

    def end(self) -> None:
        type(self).open -= 1


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "picker.sock"


@pytest.fixture
def echo() -> type[Echo]:
    """Calls of a test's own."""
    return type("OwnEcho", (Echo,), {"open": 0})


@contextlib.asynccontextmanager
async def served(path: Path, echo: type[Echo], grace_s: float = 5.0):
    server = SocketServer(path, {"/test/Echo": echo}, LIMIT_BYTES)
    await server.start()
    try:
        yield server
    finally:
        await server.stop(grace_s)


def stream(channel: grpc.aio.Channel, method: str = "/test/Echo") -> Any:
    return channel.stream_stream(method)()


def connect(path: Path) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(f"unix:{path}", options=SIZES)


def run(scenario: Any) -> Any:
    return asyncio.run(asyncio.wait_for(scenario, 3 * DEADLINE_S))


@pytest.mark.parametrize("size", [0, 1, 16_379, 16_380, 70_000, 10_000_000])
def test_messages_of_any_size_come_back(size, path, echo):
    async def scenario() -> None:
        async with served(path, echo), connect(path) as channel:
            call = stream(channel)
            for _ in range(2):
                await call.write(b"x" * size)
                assert await call.read() == b"x" * size
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
            assert await call.code() is grpc.StatusCode.OK

    run(scenario())
    assert echo.open == 0


def test_a_message_over_the_limit_and_an_unknown_method_are_refused(path, echo):
    def code(method: str, size: int) -> grpc.StatusCode:
        with grpc.insecure_channel(f"unix:{path}", options=SIZES) as channel:
            call = channel.stream_stream(method)(iter([b"x" * size]), timeout=DEADLINE_S)
            with contextlib.suppress(grpc.RpcError):
                assert [len(answer) for answer in call] == [size]
            return call.code()

    async def scenario() -> list[grpc.StatusCode]:
        async with served(path, echo):
            asked = [("/test/Echo", LIMIT_BYTES + 1), ("/test/Echo", LIMIT_BYTES), ("/test/Other", 1)]
            return [await asyncio.to_thread(code, *each) for each in asked]

    assert [code.name for code in run(scenario())] == ["RESOURCE_EXHAUSTED", "OK", "UNIMPLEMENTED"]
    assert echo.open == 0


def test_thousands_of_streams_are_open_at_a_time(path, echo, until):
    async def one(channel: grpc.aio.Channel, all_are_open: asyncio.Event) -> list[Any]:
        call = stream(channel)
        await call.write(b"first")
        answers = [await call.read()]
        await all_are_open.wait()
        await call.write(b"last")
        await call.done_writing()
        return [*answers, await call.read(), await call.read()]

    async def scenario() -> list[list[Any]]:
        all_are_open = asyncio.Event()
        async with served(path, echo), connect(path) as channel:
            calls = [asyncio.create_task(one(channel, all_are_open)) for _ in range(3000)]
            await asyncio.to_thread(until, lambda: echo.open == 3000, "all are open")
            all_are_open.set()
            return await asyncio.gather(*calls)

    assert run(scenario()) == [[b"first", b"last", grpc.aio.EOF]] * 3000
    assert echo.open == 0


def test_a_stop_lets_streams_end_and_turns_new_ones_away(path, echo, until):
    async def scenario() -> None:
        async with contextlib.AsyncExitStack() as stack:
            server = await stack.enter_async_context(served(path, echo))
            channel = await stack.enter_async_context(connect(path))
            call = stream(channel)
            await call.write(b"first")
            assert await call.read() == b"first"
            stopping = asyncio.create_task(server.stop(DEADLINE_S))
            await asyncio.to_thread(
                until, lambda: channel.get_state() is not grpc.ChannelConnectivity.READY, "the client knows"
            )
            assert await stream(channel).code() is grpc.StatusCode.UNAVAILABLE
            assert not stopping.done()
            await call.write(b"last")
            assert await call.read() == b"last"
            await call.done_writing()
            assert await call.code() is grpc.StatusCode.OK
            await asyncio.wait_for(stopping, DEADLINE_S)

    run(scenario())
    assert (echo.open, path.exists()) == (0, False)


def test_a_stop_waits_no_longer_than_it_may(path, echo, until):
    async def scenario() -> None:
        async with connect(path) as channel:
            async with served(path, echo, grace_s=0.05):
                call = stream(channel)
                await call.write(b"x")
                assert await call.read() == b"x"
            assert await call.code() is grpc.StatusCode.UNAVAILABLE
            await asyncio.to_thread(until, lambda: echo.open == 0, "the call has ended")

    run(scenario())


def test_everyone_may_use_the_socket_and_one_that_was_left_is_taken_over(path, echo):
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))

    async def scenario() -> None:
        async with served(path, echo):
            assert stat.S_IMODE(path.stat().st_mode) == 0o666
            async with connect(path) as channel:
                call = stream(channel)
                await call.write(b"x")
                assert await call.read() == b"x"

    run(scenario())
    assert not path.exists()


def test_a_socket_that_another_has_taken_over_is_left_to_it(path, echo):
    async def scenario() -> None:
        async with served(path, echo), contextlib.AsyncExitStack() as stack:
            first = await stack.enter_async_context(served(path, echo))
            await stack.enter_async_context(served(path, echo))
            await first.stop(0.1)
            assert path.exists()

    run(scenario())


@pytest.mark.parametrize("name", ["none/picker.sock", "x" * 120])
def test_a_path_that_cannot_be_had_is_said(name, tmp_path, echo):
    async def scenario() -> None:
        async with served(tmp_path / name, echo):
            pass

    with pytest.raises(OSError, match=f"cannot listen on unix:{tmp_path / name}"):
        run(scenario())


def test_the_health_of_a_service_that_there_is_not_is_not_told(start_picker, path):
    async def codes() -> list[grpc.StatusCode]:
        async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            check = stub.Check(health_pb2.HealthCheckRequest(service="other"))
            watch = stub.Watch(health_pb2.HealthCheckRequest())
            return [await call.code() for call in (check, watch)]

    picker = start_picker(f"unix:{path}")
    assert run(codes()) == [grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED]
    picker.stop()


class Strict:
    """A client that raises at whatever HTTP/2 forbids a server.

    Args:
        window: Bytes that each stream may be sent at a time.
    """

    def __init__(self, path: Path, window: int) -> None:
        configuration = h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        self.connection, self.read = h2.connection.H2Connection(configuration), 0
        self.connection.local_settings = h2.settings.Settings(
            client=True, initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window}
        )
        self.connection.initiate_connection()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(DEADLINE_S)
        self._socket.connect(str(path))

    def ask(self, number: int) -> None:
        headers = {":method": "POST", ":scheme": "http", ":path": "/test/Echo", ":authority": "x", "te": "trailers"}
        self.connection.send_headers(number, list(headers.items()))

    def send(self, number: int, data: bytes, *, ends: bool = False) -> None:
        while data:
            room = min(self.connection.local_flow_control_window(number), self.connection.max_outbound_frame_size)
            if room:
                self.connection.send_data(number, data[:room])
                data = data[room:]
                self.flush()
            else:
                self.events()
        if ends:
            self.connection.end_stream(number)
            self.flush()

    def flush(self) -> None:
        self._socket.sendall(self.connection.data_to_send())

    def events(self) -> list[h2.events.Event]:
        received = self._socket.recv(65536)
        assert received, "the server has closed"
        found = self.connection.receive_data(received)
        self.flush()
        return found

    def answer(self, number: int) -> tuple[bytes, dict[str, str]]:
        """All of a stream's messages, and its trailers; what is read is given back at once."""
        text, trailers = bytearray(), {}
        while True:
            for event in self.events():
                if isinstance(event, h2.events.DataReceived):
                    text += event.data
                    if event.flow_controlled_length:
                        self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, h2.events.TrailersReceived):
                    trailers = dict(event.headers)
                elif isinstance(event, h2.events.StreamEnded) and event.stream_id == number:
                    self.flush()
                    return bytes(text), trailers
            self.flush()

    def close(self) -> None:
        self._socket.close()


@pytest.mark.parametrize(("window", "size"), [(1, 300), (100, 20_000), (65_535, 10_000_000)])
def test_a_strict_client_with_little_room_gets_the_whole_answer(window, size, path, echo):
    framed = struct.pack(">BL", 0, size) + b"x" * size

    def ask() -> tuple[bytes, dict[str, str]]:
        client = Strict(path, window)
        try:
            client.ask(1)
            client.send(1, framed, ends=True)
            return client.answer(1)
        finally:
            client.close()

    async def scenario() -> tuple[bytes, dict[str, str]]:
        async with served(path, echo):
            return await asyncio.to_thread(ask)

    assert run(scenario()) == (framed, {"grpc-status": "0"})
    assert echo.open == 0


def test_a_client_that_never_reads_holds_up_no_other_and_is_let_go(path, echo, until):
    whole = struct.pack(">BL", 0, 60_000) + b"x" * 60_000

    def pour() -> int:
        """Asks for more and more until no more is taken; returns how many messages were."""
        client = Strict(path, 2**31 - 1)
        client.connection.increment_flow_control_window(2**31 - 1 - 65_535)
        client._socket.setblocking(True)
        client.flush()
        client._socket.recv(65536)
        client._socket.settimeout(0.5)
        data = h2_frames(whole)
        taken = 0
        with contextlib.suppress(TimeoutError):
            client._socket.sendall(head())
            while taken < 2000:
                client._socket.sendall(data)
                taken += 1
        client.close()
        return taken

    async def scenario() -> int:
        async with served(path, echo), connect(path) as channel:
            pouring = asyncio.create_task(asyncio.to_thread(pour))
            for _ in range(50):
                call = stream(channel)
                await call.write(b"x")
                assert await call.read() == b"x"
                call.cancel()
            taken = await pouring
            await asyncio.to_thread(until, lambda: echo.open == 0, "all calls have ended")
            return taken

    assert run(scenario()) < 200, "what is not read is not answered for ever"


def head() -> bytes:
    configuration = h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
    connection = h2.connection.H2Connection(configuration)
    connection.initiate_connection()
    connection.clear_outbound_data_buffer()
    headers = {":method": "POST", ":scheme": "http", ":path": "/test/Echo", ":authority": "x"}
    connection.send_headers(1, list(headers.items()))
    return connection.data_to_send()


def h2_frames(whole: bytes) -> bytes:
    parts = [whole[at : at + 16_384] for at in range(0, len(whole), 16_384)]
    return b"".join(len(part).to_bytes(3, "big") + b"\0\0\0\0\0\1" + part for part in parts)
