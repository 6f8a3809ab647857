"""Where the profile goes: tried before anything is measured, written whole or not at all."""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from servingplan.profiling.errors import ProfilingError

STDOUT = "-"


def check_writable(target: str) -> None:
    """Fails before the minutes of a measurement, not after them.

    Raises:
        ProfilingError: Nothing could be written there.
    """
    if target == STDOUT:
        return
    path = Path(target)
    try:
        if path.is_dir():
            raise IsADirectoryError(21, "it is a directory")
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise _unwritable(target, error) from None


def write(target: str, text: str) -> None:
    """Writes the profile.

    Raises:
        ProfilingError: It cannot be written.
    """
    if target == STDOUT:
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    path = Path(target)
    scratch = None
    try:
        handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(text)
        Path(scratch).chmod(0o644)
        Path(scratch).replace(path)
    except OSError as error:
        if scratch is not None:
            with suppress(OSError):
                Path(scratch).unlink()
        raise _unwritable(target, error) from None


def _unwritable(target: str, error: OSError) -> ProfilingError:
    return ProfilingError(f"cannot write {target} ({error.strerror or error}): give another -o, or - for standard output")
