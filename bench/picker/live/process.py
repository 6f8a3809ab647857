"""Child processes that are told what to do by JSON lines, and what they cost."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import uvloop

HERE = Path(__file__).resolve().parents[1]
_TOOLS = HERE.parents[1] / "hack"
_TICKS = os.sysconf("SC_CLK_TCK")
_QUIET = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "GRPC_VERBOSITY": "ERROR"}
DEADLINE_S = 30.0

Value = TypeVar("Value")


def _die_with_parent() -> None:
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def run(work: Coroutine[Any, Any, Any]) -> None:
    """Run a child's main coroutine, with the collector kept from stopping it often."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    uvloop.run(work)


def tell(message: Mapping[str, Any]) -> None:
    """Answer the parent."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


class Child:
    """A child process that dies with its parent.

    Args:
        argv: Command line.
        log: Where standard error goes, and standard output too unless it is spoken to.
        talks: Whether it takes and gives JSON lines.
    """

    def __init__(self, argv: Sequence[str | Path], log: Path, *, talks: bool = False) -> None:
        pipe = subprocess.PIPE if talks else None
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [str(word) for word in argv],
                stdin=pipe or subprocess.DEVNULL,
                stdout=pipe or out,
                stderr=out,
                env={**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{_TOOLS}", **_QUIET},
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - nothing here has threads yet
                text=True,
            )
        self.log = log

    @property
    def pid(self) -> int:
        """Its process number."""
        return self._process.pid

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Send a line and wait for its answer."""
        self.send(message)
        return self.hear()

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a line."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        """Wait for a line.

        Raises:
            RuntimeError: The child has ended instead.
        """
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            message = f"{self.log.name} ended: {self.log.read_text()[-3000:]}"
            raise RuntimeError(message)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait(DEADLINE_S)
        for end in (self._process.stdin, self._process.stdout):
            if end:
                with suppress(BrokenPipeError):
                    end.close()


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process has used so far.

    Attributes:
        cpu_s: User and system time of all its threads.
        rss_mb: Memory that it holds.
    """

    cpu_s: float
    rss_mb: float


def usage(pid: int) -> Usage:
    """Read from /proc; zeros for a process that has gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return Usage(0.0, 0.0)
    return Usage((int(fields[11]) + int(fields[12])) / _TICKS, pages * os.sysconf("SC_PAGE_SIZE") / 1e6)


def busy_s() -> float:
    """CPU seconds that this machine has worked so far, whoever for, stolen ones included."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
    return (user + nice + system + irq + softirq + steal) / _TICKS


def wait_until(condition: Callable[[], Value], what: str, deadline_s: float = DEADLINE_S) -> Value:
    """The condition's first true value.

    Raises:
        TimeoutError: It does not come true; `what` says what was waited for.
    """
    end_s = time.monotonic() + deadline_s
    while time.monotonic() < end_s:
        with suppress(OSError):
            if value := condition():
                return value
        time.sleep(0.02)  # between two looks; the deadline bounds them
    message = f"not within {deadline_s:g} s: {what}"
    raise TimeoutError(message)
