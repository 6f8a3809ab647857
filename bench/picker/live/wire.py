"""HTTP/1.1 framing, and no more than this harness needs of it: the load and the pods must cost less than what they judge.

A message is a head, up to the empty line, and a body of a declared length or in chunks. Trailers are skipped, pipelining
is not expected, and a body that ends with the connection is not known here, because Envoy sends none.
"""

from __future__ import annotations

from collections.abc import Callable

_HEAD_END = b"\r\n\r\n"
_LAST_CHUNK = -1


class FramingError(ValueError):
    """The bytes are no message of the kind that is expected here."""


class Reader:
    """Splits a stream of bytes into messages.

    Args:
        on_head: Called with the head in its own letters, without the empty line.
        on_body: Called with pieces of the body as they come.
        on_end: Called when the message is complete.
    """

    def __init__(self, on_head: Callable[[bytes], None], on_body: Callable[[bytes], None], on_end: Callable[[], None]) -> None:
        self._on_head, self._on_body, self._on_end = on_head, on_body, on_end
        self._rest = b""
        self._step: Callable[[bytes], bytes | None] = self._head
        self._left = 0

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the stream.

        Raises:
            FramingError: They are no HTTP/1.1.
        """
        rest: bytes | None = self._rest + data if self._rest else data
        while rest:
            left = self._step(rest)
            if left is None:
                break
            rest = left
        self._rest = rest or b""

    def _head(self, data: bytes) -> bytes | None:
        end = data.find(_HEAD_END)
        if end < 0:
            return None
        head = data[:end]
        self._on_head(head)
        lower = head.lower()
        if b"\r\ntransfer-encoding: chunked" in lower:
            self._step = self._chunk_size
        else:
            self._left = int(header(head, b"content-length") or 0)
            self._step = self._counted
            if not self._left:
                self._finish()
        return data[end + len(_HEAD_END) :]

    def _counted(self, data: bytes) -> bytes:
        piece, rest = data[: self._left], data[self._left :]
        self._left -= len(piece)
        self._on_body(piece)
        if not self._left:
            self._finish()
        return rest

    def _chunk_size(self, data: bytes) -> bytes | None:
        end = data.find(b"\r\n")
        if end < 0:
            return None
        try:
            self._left = int(data[:end].split(b";")[0], 16)
        except ValueError:
            raise FramingError(data[:40]) from None
        self._step = self._chunk if self._left else self._trailers
        return data[end + 2 :]

    def _chunk(self, data: bytes) -> bytes | None:
        if self._left == _LAST_CHUNK:
            if len(data) < 2:
                return None
            self._step = self._chunk_size
            return data[2:]
        piece, rest = data[: self._left], data[self._left :]
        self._left -= len(piece)
        self._on_body(piece)
        if not self._left:
            self._left = _LAST_CHUNK
        return rest

    def _trailers(self, data: bytes) -> bytes | None:
        end = data.find(b"\r\n")
        if end < 0:
            return None
        if not end:
            self._finish()
        return data[end + 2 :]

    def _finish(self) -> None:
        self._step = self._head
        self._on_end()


def header(head: bytes, name: bytes) -> bytes | None:
    """A header's value, or None where it is missing.

    Args:
        head: As `Reader` gives it.
        name: In small letters.
    """
    at = head.lower().find(b"\r\n" + name + b":")
    if at < 0:
        return None
    begin = at + len(name) + 3
    end = head.find(b"\r\n", begin)
    return head[begin : end if end >= 0 else None].strip()


def chunk(text: bytes) -> bytes:
    """A chunk of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(text), text)


END_OF_CHUNKS = b"0\r\n\r\n"
