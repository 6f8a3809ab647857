"""Keys as they are pressed, and the terminal as it was when that ends."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from types import FrameType

_UP, _DOWN = ("\x1b[A", "\x1bOA", "k"), ("\x1b[B", "\x1bOB", "j", "\t")
_QUIT = ("q", "Q", "\x03", "\x04")
QUIT, UP, DOWN, OTHER = "quit", "up", "down", "other"


class Keys:
    """What wakes the screen: a key, another size of the terminal, or news."""

    def __init__(self) -> None:
        self._stopped = False
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)

    def wake(self) -> None:
        """Ends the wait; from any thread, and from a signal handler."""
        # A full pipe wakes as well, and a closed one has nobody to wake.
        with contextlib.suppress(OSError):
            os.write(self._write, b"!")

    def stop(self) -> None:
        """As if somebody had quit. Raised from a handler, an interrupt may be lost in whatever code it comes upon."""
        self._stopped = True
        self.wake()

    def wait(self, timeout_s: float) -> list[str]:
        """What was pressed meanwhile, in order; nothing where something else woke it or the time has passed."""
        watched = [self._read, *([sys.stdin] if sys.stdin.isatty() else [])]
        ready, _, _ = select.select(watched, [], [], timeout_s)
        if self._read in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._read, 4096)
        pressed = named(os.read(sys.stdin.fileno(), 64).decode(errors="ignore")) if sys.stdin in ready else []
        return [*pressed, QUIT] if self._stopped else pressed

    def close(self) -> None:
        """Gives the pipe back."""
        os.close(self._read)
        os.close(self._write)


@contextlib.contextmanager
def keys() -> Iterator[Keys]:
    """Keys one by one and unseen, as long as it lasts."""
    found = Keys()
    with contextlib.ExitStack() as stack:
        stack.callback(found.close)
        if sys.stdin.isatty():
            before = termios.tcgetattr(sys.stdin)
            stack.callback(termios.tcsetattr, sys.stdin, termios.TCSADRAIN, before)
            tty.setcbreak(sys.stdin)
        stack.enter_context(_signals({signal.SIGWINCH: found.wake, signal.SIGINT: found.stop, signal.SIGTERM: found.stop}))
        yield found


@contextlib.contextmanager
def _signals(handlers: dict[signal.Signals, Callable[[], None]]) -> Iterator[None]:
    def handler(action: Callable[[], None]) -> Callable[[int, FrameType | None], None]:
        return lambda _number, _frame: action()

    before = {number: signal.signal(number, handler(action)) for number, action in handlers.items()}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def named(text: str) -> list[str]:
    """The keys that a terminal has sent."""
    found = []
    while text:
        name, length = next(
            (
                (name, len(code))
                for name, codes in ((UP, _UP), (DOWN, _DOWN), (QUIT, _QUIT))
                for code in codes
                if text.startswith(code)
            ),
            (OTHER, 1),
        )
        found.append(name)
        text = text[length:]
    return found
