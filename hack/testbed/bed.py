"""The bed as its users hold it: started, entered, commanded and stopped.

The bed is one process with children, in namespaces of its own. From outside, `kubeconfig` leads to its API server
through a port on loopback; a process that has called `enter` stands inside, where pod addresses, cluster IPs and
cluster names work as they do in a pod.
"""

import contextlib
import fcntl
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Self

from testbed import kernel, netns, tools
from testbed.agent import NodeSpec
from testbed.cluster import Cluster
from testbed.daemon import Settings

__all__ = ["DEMO_NODES", "Bed", "BedError", "NodeSpec", "Settings"]

_HACK = Path(__file__).resolve().parents[1]
_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 20.0
_POLL_S = 0.02

DEMO_NODES = (
    NodeSpec("h100-1", "NVIDIA-H100-80GB-HBM3", gpus=8),
    NodeSpec("h100-2", "NVIDIA-H100-80GB-HBM3", gpus=8),
    NodeSpec("l40s-1", "NVIDIA-L40S", gpus=4),
    NodeSpec("l40s-2", "NVIDIA-L40S", gpus=4),
)


class BedError(RuntimeError):
    """The bed did not start, or is not there."""


def _remove_leftovers(run: Path) -> None:
    """Remove the folders of beds that were killed: one that lives, or is starting, holds a lock or is young."""
    for folder in run.glob("bed-*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime < _START_TIMEOUT_S:
                continue
            with (folder / "settings.json").open("a") as settings:
                fcntl.flock(settings, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)


class Bed(Cluster):
    """A cluster of real parts on this machine; a context manager.

    Args:
        nodes: Nodes to register.
        settings: Everything else; its `nodes` are replaced by `nodes`.
        directory: Where its files go; a temporary folder, removed at the end, when not given.
    """

    controls_nodes = True

    def __init__(
        self, nodes: Iterable[NodeSpec] = DEMO_NODES, settings: Settings | None = None, directory: Path | None = None
    ) -> None:
        self._settings = replace(settings or Settings(nodes=()), nodes=tuple(nodes))
        if directory is None:
            run = tools.cache_folder() / "run"
            run.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(run)
            directory = Path(tempfile.mkdtemp(prefix="bed-", dir=run))
        self.dir = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._inside = False
        super().__init__(directory / "kubeconfig")

    @classmethod
    def at(cls, directory: Path) -> Self:
        """The bed that runs in `directory`.

        Raises:
            BedError: None does.
        """
        bed = cls(directory=directory)
        if not bed.is_running():
            raise BedError(f"no bed is running in {directory}")
        return bed

    @property
    def kubeconfig(self) -> Path:
        """Path of the administrator's kubeconfig for where this process stands."""
        return self.dir / ("kubeconfig.inside" if self._inside else "kubeconfig")

    @property
    def audit_log(self) -> Path:
        """What service accounts asked of the API server, one JSON event per line."""
        return self.dir / "logs" / "audit.log"

    @property
    def pid(self) -> int:
        """Process id of the bed.

        Raises:
            BedError: It has not become ready.
        """
        try:
            return int(json.loads((self.dir / "ready.json").read_text())["pid"])
        except FileNotFoundError as error:
            raise BedError(f"no bed is ready in {self.dir}") from error

    def is_running(self) -> bool:
        """Whether the bed is ready and its process alive."""
        try:
            arguments = Path(f"/proc/{self.pid}/cmdline").read_bytes().split(b"\0")
        except (BedError, OSError):
            return False
        return str(self.dir).encode() in arguments  # the number may be another process's by now

    def environment(self) -> dict[str, str]:
        """Environment in which kubectl finds the bed; its discovery cache is the bed's own, as ports are reused."""
        return super().environment() | {"KUBECACHEDIR": str(self.dir / "kubectl")}

    def start(self) -> None:
        """Start the bed and return at once; `wait_ready` tells when it stands. Call it from the main thread."""
        self.dir.mkdir(parents=True, exist_ok=True)
        (self.dir / "ready.json").unlink(missing_ok=True)
        (self.dir / "settings.json").write_text(json.dumps(asdict(self._settings)))
        with (self.dir / "daemon.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "testbed.daemon", str(self.dir)],
                env=os.environ | {"PYTHONPATH": str(_HACK)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_ready(self, timeout_s: float = _START_TIMEOUT_S) -> None:
        """Return once nodes are registered and names resolve.

        Raises:
            BedError: The bed ended, or is not ready within `timeout_s`.
        """
        assert self._process is not None, "start comes first"
        deadline = time.monotonic() + timeout_s
        while not (self.dir / "ready.json").exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = (self.dir / "daemon.log").read_text()[-3000:]
                raise BedError(f"the test bed did not start:\n{said}")
            time.sleep(_POLL_S)  # the file appears, or the process ends: neither can be waited for together

    def stop(self, *, keep_files: bool = False) -> None:
        """End the bed and everything in it, and remove its folder."""
        pid = self._process.pid if self._process is not None else self.pid if self.is_running() else None
        if pid is not None:
            self._end(pid)
        if not keep_files:
            if self._inside:
                with contextlib.suppress(OSError):
                    kernel.unmount(str(self.dir / "volatile"))  # else this process itself keeps the folder busy
            shutil.rmtree(self.dir, ignore_errors=True)

    def _end(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        while self._is_alive(pid):
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
            time.sleep(_POLL_S)  # the bed may be another process's child, whose end cannot be waited for

    def _is_alive(self, pid: int) -> bool:
        if self._process is not None:
            return self._process.poll() is None
        return self.is_running() and Path(f"/proc/{pid}").exists()

    def __enter__(self) -> Self:
        self.start()
        try:
            self.wait_ready()
        except BaseException:
            self.stop(keep_files=True)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def enter(self) -> None:
        """Move this process into the bed's network, where cluster names resolve.

        Threads that run already stay outside; a caller without root may have none.
        """
        if not self._inside:
            netns.join(self.pid)
            self._inside = True
            self.__dict__.pop("helm", None)

    def kill_node(self, name: str) -> None:
        """Let a node lose power: its processes vanish and its heartbeat ends."""
        self._command(f"/nodes/{name}/kill")

    def revive_node(self, name: str) -> None:
        """Start a killed node again."""
        self._command(f"/nodes/{name}/revive")

    def _command(self, path: str) -> None:
        connection = http.client.HTTPConnection("bed")
        connection.sock = socket.socket(socket.AF_UNIX)
        with contextlib.closing(connection):
            connection.sock.connect(str(self.dir / "control.sock"))
            connection.request("POST", path)
            answer = connection.getresponse()
            text = answer.read().decode()
        if answer.status != http.HTTPStatus.OK:
            raise BedError(f"{path}: {text}")
