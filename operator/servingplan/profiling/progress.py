"""How far the measurement is: a bar on a terminal, a line a level elsewhere. On standard error; the profile has the other."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Protocol, TextIO


class Progress(Protocol):
    """What tells the user how far the measurement is."""

    def level(self, text: str, done: float) -> None:
        """A level begins; `done` is the share of the whole that is behind it."""

    def advance(self, done: float) -> None:
        """The share of the whole that is done."""

    def say(self, text: str) -> None:
        """A line that stays."""


class Lines(AbstractContextManager["Lines"]):
    """Lines alone, for logs and pipes.

    Args:
        prefix: Put before every line. A log mixes them with the profile; as comments they do not spoil it.
        out: Where they go; standard error where none is given.
    """

    def __init__(self, prefix: str = "", out: TextIO | None = None) -> None:
        self._prefix = prefix
        self._out = out or sys.stderr

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Nothing is left to put away."""

    def level(self, text: str, done: float) -> None:
        """Levels are said when they end."""

    def advance(self, done: float) -> None:
        """There is no bar."""

    def say(self, text: str) -> None:
        """Prints it."""
        print(f"{self._prefix}{text}", file=self._out, flush=True)


class Bar(AbstractContextManager["Bar"]):
    """A bar below the lines. Needs rich."""

    def __init__(self) -> None:
        from rich.console import Console  # noqa: PLC0415 - optional
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415
        from rich.progress import Progress as RichProgress  # noqa: PLC0415

        self._console = Console(stderr=True, highlight=False)
        self._bar: Any = RichProgress(
            TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), console=self._console
        )
        self._task: Any = None

    def __enter__(self) -> Bar:
        self._bar.start()
        self._task = self._bar.add_task("starting", total=1.0)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def level(self, text: str, done: float) -> None:
        """Names the level before the bar."""
        self._bar.update(self._task, description=text, completed=done)

    def advance(self, done: float) -> None:
        """Moves the bar."""
        self._bar.update(self._task, completed=done)

    def say(self, text: str) -> None:
        """Prints it above the bar."""
        self._console.print(text, markup=False, soft_wrap=True)


def progress(prefix: str = "") -> Bar | Lines:
    """A bar where there is a terminal and rich, lines elsewhere.

    Args:
        prefix: Put before every line where there is no bar.
    """
    if not sys.stderr.isatty():
        return Lines(prefix)
    try:
        return Bar()
    except ImportError:
        return Lines(prefix)
