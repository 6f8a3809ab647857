"""HTTP/2 on the wire (RFC 9113, RFC 7541) as far as a gRPC server needs it: frames, settings, header blocks.

The replies' header blocks are constants, which refer to nothing that was sent before. The client is asked to send such blocks
too, by a header table of size 0. One that has been decoded then means the same for ever, and Envoy sends the same one with
every request. Until the client has agreed, blocks may refer to one another, and each is decoded.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct

from hpack import Decoder, Encoder, HPACKError, NeverIndexedHeaderTuple

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)

ACK = END_STREAM = 0x1
END_HEADERS = 0x4
PADDED = 0x8
HAS_PRIORITY = 0x20

SET_TABLE_SIZE, SET_MOST_STREAMS, SET_WINDOW, SET_FRAME_BYTES = 0x1, 0x3, 0x4, 0x5
FRAME_BYTES = 16384
"""Longest frame's payload that either side may send unless it is told otherwise."""

HEAD_BYTES = 9
DEFAULT_WINDOW_BYTES = 65535
MOST_WINDOW_BYTES = MOST_NUMBER = 2**31 - 1
MOST_FRAME_BYTES = 2**24 - 1
MOST_BLOCK_BYTES = 65536

HEAD = Struct(">BHBBL")
"""A frame's head: its length in two parts, its kind, flags and stream."""

MESSAGE = Struct(">BHBBLBL")
"""The head of a DATA frame and that of the gRPC message which it holds."""

PREFIX = Struct(">BL")
"""The head of a gRPC message: whether it is compressed, and its length."""

NUMBER = Struct(">L")
PAIR = Struct(">LL")
SETTING = Struct(">HL")

_MOST_BLOCKS_KEPT = 256
_PATH = b":path"


class Code(IntEnum):
    """Why a connection or a stream is given up."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11


class Http2Error(Exception):
    """The peer broke the protocol, so that the connection cannot go on."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    size = len(payload)
    return HEAD.pack(size >> 16, size & 0xFFFF, kind, flags, stream) + payload


def settings(values: dict[int, int]) -> bytes:
    """The frame that tells the peer what it may do."""
    return frame(SETTINGS, 0, 0, b"".join(SETTING.pack(name, value) for name, value in values.items()))


def block(*headers: tuple[str, str]) -> bytes:
    """A header block that refers to no other and that no other can refer to."""
    encoder = Encoder()
    return encoder.encode([NeverIndexedHeaderTuple(name, value) for name, value in headers], huffman=False)


RESPONSE = block((":status", "200"), ("content-type", "application/grpc"))
"""How an answer begins."""


def trailers(status: int, message: str = "") -> bytes:
    """The block that ends an answer.

    Args:
        status: Of gRPC.
        message: In ASCII without per cent signs; empty for none.
    """
    return block(("grpc-status", str(status)), *([("grpc-message", message)] if message else []))


OK_TRAILERS = trailers(0)


class Blocks:
    """Reads the header blocks of one connection, and keeps what the frequent ones mean."""

    def __init__(self) -> None:
        self._decoder = Decoder(max_header_list_size=MOST_BLOCK_BYTES)
        self._paths: dict[bytes, bytes] = {}

    def agree(self) -> None:
        """The client has agreed to send blocks that refer to no other."""
        self._decoder.max_allowed_table_size = 0

    def path(self, received: bytes) -> bytes:
        """The path that a block names; empty without one.

        Raises:
            Http2Error: The block cannot be decoded.
        """
        known = self._paths.get(received)
        if known is not None:
            return known
        try:
            # Values may be any bytes; only the path is looked at.
            headers = self._decoder.decode(received, raw=True)
        except (HPACKError, IndexError, ValueError) as error:
            raise Http2Error(Code.COMPRESSION_ERROR, "header block that cannot be decoded") from error
        path = bytes(next((value for name, value in headers if name == _PATH), b""))
        if self._decoder.header_table_size == 0:
            if len(self._paths) >= _MOST_BLOCKS_KEPT:
                self._paths.clear()
            self._paths[received] = path
        return path
