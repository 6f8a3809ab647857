"""The one way in which the plugin's commands end without what was asked for."""

from __future__ import annotations

UNDONE, MISUSED = 1, 2
"""Exit statuses: it cannot be done as things stand, or it was asked for wrongly."""


class PluginError(Exception):
    """Its text is one sentence for the user.

    Attributes:
        status: Exit status.
    """

    def __init__(self, message: str, status: int = UNDONE) -> None:
        super().__init__(message)
        self.status = status


class NotFoundError(PluginError):
    """The object is not there."""


class ForbiddenError(PluginError):
    """The user has no right to it."""


class UnreachableError(PluginError):
    """The API server did not answer, or not with what was asked of it."""
