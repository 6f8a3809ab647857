"""A name server on loopback: the headless Services that an Envoy without a cluster resolves."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

_A = 1
_ANSWER, _NO_SUCH_NAME = 0x8400, 0x8403


class NameServer(asyncio.DatagramProtocol):
    """Answers A queries from `records`.

    Attributes:
        records: Addresses by absolute name; changed at will while it runs.
    """

    def __init__(self, records: dict[str, list[str]]) -> None:
        self.records = records
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        """Keeps what answers go through."""
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Answers one query."""
        labels, at = [], 12
        while length := data[at]:
            labels.append(data[at + 1 : at + 1 + length].decode())
            at += 1 + length
        (kind,) = struct.unpack("!H", data[at + 1 : at + 3])
        known = self.records.get(".".join(labels).lower() + ".")
        addresses = known if known and kind == _A else []
        flags = _NO_SUCH_NAME if known is None else _ANSWER
        head = data[:2] + struct.pack("!HHHHH", flags, 1, len(addresses), 0, 0)
        answers = b"".join(b"\xc0\x0c" + struct.pack("!HHIH", _A, 1, 1, 4) + socket.inet_aton(each) for each in addresses)
        self._transport.sendto(head + data[12 : at + 5] + answers, addr)
