"""The bed's network: one namespace for the node side, one per pod, joined by routed veth pairs.

Neither a bridge nor packet filters are needed: every pod address is a /32 route to that pod's veth, and every pod
sends everything to `GATEWAY`, an address of the bed's own loopback. Pods of different nodes are neighbours, as under
any flat pod network; addresses are never translated, so a server sees its client's pod IP.
"""

import asyncio
import itertools
import os
import socket
import threading
from pathlib import Path

from pyroute2 import IPRoute

from testbed import kernel

GATEWAY = "10.99.0.1"
"""The bed's own address: what pods take for their node's side, and where the API server listens."""

_interface_numbers = itertools.count(1)


def isolate() -> None:
    """Give this process a network and a mount namespace of its own, with loopback up and forwarding on.

    Call it before any thread starts. A caller without root gets a user namespace too.

    Raises:
        OSError: The kernel refuses the namespaces.
    """
    flags = kernel.CLONE_NEWNET | kernel.CLONE_NEWNS
    if os.getuid():
        kernel.enter_user_namespace(flags)
    else:
        kernel.unshare(flags)
    kernel.mount(None, "/", flags=kernel.MS_REC | kernel.MS_PRIVATE)
    with IPRoute() as links:
        links.link("set", index=1, state="up")
    _change_address("replace", GATEWAY)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def join(pid: int) -> None:
    """Move this process into the namespaces of the bed running as `pid`; call it before any thread starts.

    Raises:
        OSError: No such process, or the caller may not enter it.
    """
    here = Path.cwd()
    handle = os.pidfd_open(pid)
    try:
        other_user = Path(f"/proc/{pid}/ns/user").stat().st_ino != Path("/proc/self/ns/user").stat().st_ino
        kernel.setns(handle, kernel.CLONE_NEWNET | kernel.CLONE_NEWNS | (kernel.CLONE_NEWUSER if other_user else 0))
    finally:
        os.close(handle)
    os.chdir(here)


async def add_local_address(address: str) -> None:
    """Make `address` one of this namespace's own (a /32 on loopback)."""
    await asyncio.to_thread(_change_address, "replace", address)


async def remove_local_address(address: str) -> None:
    """Undo `add_local_address`."""
    await asyncio.to_thread(_change_address, "del", address)


def _change_address(verb: str, address: str) -> None:
    # IPRoute runs an event loop of its own, so it may not be used where one is running already.
    with IPRoute() as links:
        links.addr(verb, index=1, address=address, prefixlen=32)


class PodNetwork:
    """A pod's network namespace, kept alive by `fd` and gone once that is closed.

    Attributes:
        address: The pod's IPv4 address.
        fd: The open namespace, inheritable by a launcher through `pass_fds`.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.fd = -1
        failure: list[BaseException] = []
        # unshare(2) moves one thread: a thread that then ends leaves the caller where it was.
        maker = threading.Thread(target=self._make, args=(failure,))
        maker.start()
        maker.join()
        if failure:
            raise failure[0]

    def _make(self, failure: list[BaseException]) -> None:
        try:
            host = IPRoute()
            kernel.unshare(kernel.CLONE_NEWNET)
            self.fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            with host, IPRoute() as pod:
                self._wire(host, pod)
        except BaseException as error:  # raised again in the caller's thread
            failure.append(error)

    def _wire(self, host: IPRoute, pod: IPRoute) -> None:
        name = f"pod{next(_interface_numbers)}"
        host.link("add", ifname=name, kind="veth", peer={"ifname": "eth0", "net_ns_fd": self.fd})
        index = host.link_lookup(ifname=name)[0]
        host.link("set", index=index, state="up")
        host.route("add", dst=f"{self.address}/32", oif=index, scope=253, prefsrc=GATEWAY)
        eth0 = pod.link_lookup(ifname="eth0")[0]
        pod.link("set", index=1, state="up")
        pod.addr("add", index=eth0, address=self.address, prefixlen=32)
        pod.link("set", index=eth0, state="up")
        pod.route("add", dst=f"{GATEWAY}/32", oif=eth0, scope=253)
        pod.route("add", dst="0.0.0.0/0", gateway=GATEWAY)

    def close(self) -> None:
        """Let go of the namespace; the kernel takes the veth pair and its routes away with it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def free_port() -> int:
    """A TCP port nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
