"""The process of the load, from its parent's side."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from live.process import HERE, Child
from live.stack import Router
from live.traffic import Plan


class Sender:
    """The process of the load."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._child = Child([sys.executable, HERE / "live" / "generator.py"], folder / "load.log", talks=True)
        self._child.hear()

    def begin(self, targets: Sequence[Router], plan: Plan) -> None:
        """Send to these routers; `finish` waits for the end."""
        self.begin_at([router.paths.http_port for router in targets], plan)

    def begin_at(self, ports: Sequence[int], plan: Plan) -> None:
        """Send to these ports of loopback."""
        told = replace(plan, targets=tuple(("127.0.0.1", port) for port in ports), out=str(self._folder / "rows.npy"))
        self._child.send({name: getattr(told, name) for name in told.__dataclass_fields__})

    def finish(self) -> tuple[np.ndarray, float]:
        """One row a request (`generator.ROW`), and the CPU seconds that sending took."""
        cpu_s = float(self._child.hear()["cpu_s"])
        return np.load(self._folder / "rows.npy"), cpu_s

    def send(self, targets: Sequence[Router], plan: Plan) -> tuple[np.ndarray, float]:
        """Send and wait."""
        self.begin(targets, plan)
        return self.finish()

    def stop(self) -> None:
        """End it."""
        self._child.stop()


@contextmanager
def sending(folder: Path) -> Iterator[Sender]:
    """A load process, ended afterwards."""
    started = Sender(folder)
    try:
        yield started
    finally:
        started.stop()
