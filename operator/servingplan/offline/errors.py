"""The two ways in which the offline commands end without an answer."""

from __future__ import annotations


class InputError(Exception):
    """Input that cannot be used; its text is one sentence that names the field or option and says what to write instead."""


class SolveError(Exception):
    """A question that could not be answered; its text is one sentence."""
