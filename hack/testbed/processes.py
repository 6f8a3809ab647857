"""Child processes that cannot outlive the bed."""

import asyncio
import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from testbed import kernel

_STOP_GRACE_S = 3.0


class ComponentError(RuntimeError):
    """A part of the bed ended or never became ready; the message holds the end of its log."""


class Component:
    """One long-running part of the control plane, logging to a file of its own.

    Args:
        name: What to call it, also the log file's stem.
        argv: Command line.
        log_dir: Where `<name>.log` goes.
        env: Whole environment; the caller's own by default.
    """

    def __init__(self, name: str, argv: Sequence[str], log_dir: Path, env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._argv = argv
        self._log = log_dir / f"{name}.log"
        self._env = env
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start the process; it gets SIGKILL from the kernel should the bed end first."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._env,
                start_new_session=True,
                preexec_fn=kernel.die_with_parent,
            )

    def raise_if_ended(self) -> None:
        """Raise ComponentError when the process has ended."""
        if self._process is not None and self._process.returncode is not None:
            tail = self._log.read_text(errors="replace")[-2000:]
            raise ComponentError(f"{self.name} ended with code {self._process.returncode}:\n{tail}")

    async def stop(self) -> None:
        """End the process by SIGTERM, after a grace by SIGKILL."""
        if self._process is None or self._process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), _STOP_GRACE_S)
        except TimeoutError:
            self.kill()
            await self._process.wait()

    def kill(self) -> None:
        """End the process by SIGKILL, at once."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, 9)
