"""Moments and durations as people read them."""

from __future__ import annotations

from datetime import UTC, datetime

_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86_400


def seconds_of(text: str | None) -> float | None:
    """Seconds since the epoch of a moment as Kubernetes writes it; None where it is none."""
    try:
        found = datetime.fromisoformat(text) if text else None
    except ValueError:
        return None
    if found is None:
        return None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def duration(seconds: float) -> str:
    """A duration in its two largest units: ``12s``, ``5m10s``, ``3h20m``, ``4d``."""
    whole = max(0, round(seconds))
    if whole < 2 * _MINUTE_S:
        return f"{whole}s"
    if whole < 10 * _MINUTE_S:
        return f"{whole // _MINUTE_S}m{whole % _MINUTE_S}s" if whole % _MINUTE_S else f"{whole // _MINUTE_S}m"
    if whole < 2 * _HOUR_S:
        return f"{whole // _MINUTE_S}m"
    if whole < 2 * _DAY_S:
        minutes = whole % _HOUR_S // _MINUTE_S
        return f"{whole // _HOUR_S}h{minutes}m" if minutes else f"{whole // _HOUR_S}h"
    return f"{whole // _DAY_S}d"


def ago(text: str | None, now_s: float) -> str:
    """How long ago a moment was; a dash where it is not known."""
    then_s = seconds_of(text)
    return "-" if then_s is None else f"{duration(now_s - then_s)} ago"


def ahead(text: str | None, now_s: float) -> str:
    """How far ahead a moment is."""
    then_s = seconds_of(text)
    if then_s is None:
        return "later"
    return f"in {duration(then_s - now_s)}" if then_s > now_s else "any moment now"


def clock(text: str | None, now_s: float) -> str:
    """The local time of a moment, with its date where that is another day than now's."""
    then_s = seconds_of(text)
    if then_s is None:
        return "-"
    then, now = datetime.fromtimestamp(then_s).astimezone(), datetime.fromtimestamp(now_s).astimezone()
    return then.strftime("%H:%M:%S" if then.date() == now.date() else "%Y-%m-%d %H:%M")
