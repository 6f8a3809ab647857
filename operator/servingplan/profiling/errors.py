"""Why a measurement cannot go on."""

from __future__ import annotations


class ProfilingError(Exception):
    """Ends the run; its text is one sentence for the user, with the cause and what to do."""


class ShedError(ProfilingError):
    """The server refused a request because it has too many (HTTP 429 or 503)."""
