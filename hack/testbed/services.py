"""ClusterIP Services without kube-proxy: a TCP proxy that owns every cluster IP in the bed's namespace.

The kernel of the test machine may have neither iptables nor IPVS, so every (cluster IP, port) gets a listening socket
and each connection goes to the next ready endpoint in turn. It runs as a process of its own, so that its bytes do not
delay the node agent's probes. UDP and session affinity are not offered; clients see the bed's gateway as their peer.
"""

import asyncio
import contextlib
import itertools
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from testbed import netns
from testbed.api import Api, Object
from testbed.pki import KeyPair

Backend = tuple[str, int]
_CONNECT_TIMEOUT_S = 3.0
_HIGH_WATER_BYTES = 2**20


class _Half(asyncio.Protocol):
    """One side of a proxied connection: what it reads goes to its peer."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self.peer: _Half | None = None
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(_HIGH_WATER_BYTES)

    def join(self, peer: "_Half") -> None:
        self.peer = peer
        for data in self._early:
            peer.transport.write(data)
        self._early.clear()

    def data_received(self, data: bytes) -> None:
        if self.peer is None:
            self._early.append(data)
        else:
            self.peer.transport.write(data)

    def eof_received(self) -> bool:
        if self.peer is not None and self.peer.transport.can_write_eof():
            self.peer.transport.write_eof()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        if self.peer is not None:
            if exc is None:
                self.peer.transport.close()
            else:
                self.peer.transport.abort()

    def pause_writing(self) -> None:
        if self.peer is not None:
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.peer is not None:
            self.peer.transport.resume_reading()


class Port:
    """A listening socket and the backends its connections go to in turn.

    Attributes:
        backends: Address and port of each.
    """

    def __init__(self) -> None:
        self.backends: tuple[Backend, ...] = ()
        self._turn: Iterator[int] = itertools.count()
        self._server: asyncio.Server | None = None
        self._connects: set[asyncio.Task[None]] = set()

    async def serve(self, listener: socket.socket) -> None:
        """Accept connections on `listener`."""
        self._server = await asyncio.get_running_loop().create_server(self._accept, sock=listener)

    def close(self) -> None:
        """Accept no more; open connections go on."""
        if self._server is not None:
            self._server.close()

    def _accept(self) -> _Half:
        client = _Half()
        task = asyncio.create_task(self._connect(client))
        self._connects.add(task)
        task.add_done_callback(self._connects.discard)
        return client

    async def _connect(self, client: _Half) -> None:
        for _ in range(len(self.backends)):
            host, port = self.backends[next(self._turn) % len(self.backends)]
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                    _, server = await asyncio.get_running_loop().create_connection(_Half, host, port)
                server.join(client)
                client.join(server)
                if client.transport.is_closing():
                    server.transport.close()
                return
        client.transport.abort()


class ServiceProxy:
    """Follows Services and EndpointSlices and keeps the listening sockets in step with them."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._services: dict[str, Object] = {}
        self._slices: dict[str, Object] = {}
        self._ports: dict[Backend, Port] = {}
        self._addresses: set[str] = set()
        self._dirty = asyncio.Event()

    async def run(self) -> None:
        """Proxy until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow("/api/v1/services", self._services))
            group.create_task(self._follow("/apis/discovery.k8s.io/v1/endpointslices", self._slices))
            while True:
                await self._dirty.wait()
                self._dirty.clear()
                await self._reconcile()

    async def _follow(self, path: str, into: dict[str, Object]) -> None:
        async for event in self._api.follow(path):
            if event.type == "synced":
                into.clear()
                into.update({item["metadata"]["uid"]: item for item in event.items})
            elif event.type == "changed":
                into[event.item["metadata"]["uid"]] = event.item
            else:
                into.pop(event.item["metadata"]["uid"], None)
            self._dirty.set()

    async def _reconcile(self) -> None:
        wanted = dict(self._wanted())
        for key in [key for key in self._ports if key not in wanted]:
            self._ports.pop(key).close()
        for address in self._addresses - {address for address, _ in wanted}:
            await netns.remove_local_address(address)
            self._addresses.discard(address)
        for (address, number), backends in wanted.items():
            if address not in self._addresses:
                await netns.add_local_address(address)
                self._addresses.add(address)
            port = self._ports.get((address, number))
            if port is None:
                port = self._ports[address, number] = Port()
                await port.serve(socket.create_server((address, number), backlog=1024))
            port.backends = backends

    def _wanted(self) -> Iterator[tuple[Backend, tuple[Backend, ...]]]:
        for service in self._services.values():
            address = service["spec"].get("clusterIP", "None")
            if address in {"None", ""}:
                continue
            for port in service["spec"].get("ports", []):
                if port.get("protocol", "TCP") == "TCP":
                    yield (address, port["port"]), tuple(sorted(self._backends(service, port.get("name", ""))))

    def _backends(self, service: Object, port_name: str) -> Iterator[Backend]:
        meta = service["metadata"]
        for part in self._slices.values():
            of = part["metadata"].get("labels", {}).get("kubernetes.io/service-name")
            if of != meta["name"] or part["metadata"]["namespace"] != meta["namespace"]:
                continue
            numbers = [port["port"] for port in part.get("ports") or [] if (port.get("name") or "") == port_name]
            for endpoint in part.get("endpoints") or []:
                if endpoint.get("conditions", {}).get("ready") is not False:
                    yield from ((address, number) for address in endpoint["addresses"] for number in numbers)


async def _main(server: str, directory: Path) -> None:
    pair = KeyPair((directory / "agent.crt").read_bytes(), (directory / "agent.key").read_bytes())
    async with Api(server, (directory / "ca.crt").read_bytes(), pair, directory / "services") as api:
        await ServiceProxy(api).run()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], Path(sys.argv[2])))
