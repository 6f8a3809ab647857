"""Where pickers send a class, and what it is worth that they choose by the request: from counts, and remembered in the status.

A class's score of a model is a mean over its requests. Who chooses by the request sends each model those that it answers best
in comparison. With Q[p,m] the mean score that the requests sent to p would have on m, Q[.,m] that of all requests, and w[m]
how the others of them were spread over the other models, the choice of p is worth

    gain[p] = (Q[p,p] - Q[.,p]) - sum_m w[m] (Q[p,m] - Q[.,m])

a request: what is lost, in comparison with the class's means, when one of them goes elsewhere. With two models that is exact.
The plain difference Q[p,p] - Q[.,p] would not do: a strong model is rightly sent the hard requests, on which it scores less.

What is planned with moves when it is off by more than chance, and then waits until a whole window has passed since, for the
plan that follows changes what pickers choose. The fewer requests a window has, the less of the way it goes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from servingplan.api.plan_status import PickedStatus
from servingplan.calibration.readings import Chosen

ENOUGH_REQUESTS = 50.0
"""Choices below which a window says nothing."""

_HALFWAY_REQUESTS = 200.0
_NEAR_SHARE = 0.03
_NEAR_GAIN = 0.02
_DEVIATIONS = 3.0
_LARGEST_GAIN = 1.0


class Counts(Protocol):
    """What was counted of one class in some time."""

    @property
    def picks(self) -> Mapping[str, float]:
        """Requests by the model that they were sent to."""

    @property
    def quality(self) -> Mapping[tuple[str, str], float]:
        """Sum of the score that was expected, by the model that they were sent to and any model."""


@dataclass(frozen=True, slots=True)
class HeldChoice:
    """What plans are made with of one class; rounded, so that equal worlds give equal plans.

    Attributes:
        moved_s: When it last moved, in seconds since the epoch.
        shares: Fraction of the class by model.
        gains: What the choice of a model is worth per request, in units of quality; may be negative.
    """

    moved_s: float
    shares: dict[str, float]
    gains: dict[str, float] = field(default_factory=dict)


def chosen(request_class: str, counts: Counts, window_s: float, age_s: float = 0.0) -> Chosen | None:
    """What the choices of some time come to; None without any."""
    picks = {model: requests for model, requests in sorted(counts.picks.items()) if requests > 0}
    total = sum(picks.values())
    if total <= 0:
        return None
    gains = {model: gain for model in picks if (gain := _gain(model, picks, counts.quality)) is not None}
    shares = {model: requests / total for model, requests in picks.items()}
    return Chosen(request_class, total, shares, gains, window_s, age_s)


def _gain(picked: str, picks: Mapping[str, float], quality: Mapping[tuple[str, str], float]) -> float | None:
    """The gain of the requests that were sent to one model; None where some of what it takes is not known."""
    total, others = sum(picks.values()), {model: requests for model, requests in picks.items() if model != picked}
    if any((sent, model) not in quality for sent in picks for model in picks):
        return None
    if not others:
        return 0.0

    def lead(model: str) -> float:
        """By how much the model scores more on the requests that were sent to ``picked`` than on all."""
        return quality[picked, model] / picks[picked] - sum(quality[sent, model] for sent in picks) / total

    elsewhere = sum(others.values())
    return lead(picked) - sum(requests / elsewhere * lead(model) for model, requests in others.items())


def follow_choices(
    held: Mapping[str, HeldChoice], seen: Mapping[str, Chosen], now_s: float
) -> tuple[dict[str, HeldChoice], tuple[str, ...]]:
    """What to plan with after a look at what was chosen.

    Args:
        held: What was planned with, by class.
        seen: What was measured.
        now_s: When, in seconds since the epoch.

    Returns:
        What to plan with, and what moved, one phrase each.
    """
    after, news = dict(held), []
    for name, choices in sorted(seen.items()):
        moved = _followed(held.get(name), choices, now_s)
        if moved is not None:
            after[name] = moved
            parts = ", ".join(f"{share:.0%} to {model}" for model, share in moved.shares.items())
            news.append(f"pickers send of class {name} {parts}")
    return after, tuple(news)


def _followed(held: HeldChoice | None, seen: Chosen, now_s: float) -> HeldChoice | None:
    """What is held next; None where it stays."""
    if seen.requests < ENOUGH_REQUESTS:
        return None
    before = held or HeldChoice(0.0, seen.shares)
    if held is not None and (now_s - held.moved_s < seen.window_s or not _off(held, seen)):
        return None
    models = sorted(before.shares.keys() | seen.shares.keys())
    part = _part(seen.requests)
    shares = {m: _between(before.shares.get(m, 0.0), seen.shares.get(m, 0.0), part) for m in models}
    gains = {
        m: _between(before.gains.get(m, 0.0), seen.gains.get(m, 0.0), _part(seen.requests * seen.shares.get(m, 0.0)))
        for m in models
    }
    moved = HeldChoice(
        moved_s=now_s,
        shares={m: rounded for m, share in shares.items() if (rounded := round(share, 2)) > 0},
        gains={m: rounded for m, gain in gains.items() if (rounded := round(gain, 3)) != 0},
    )
    same = held is not None and (moved.shares, moved.gains) == (held.shares, held.gains)
    return None if same else moved


def _off(held: HeldChoice, seen: Chosen) -> bool:
    """Whether a window differs from what is held by more than chance and than a plan would care for."""
    for model in held.shares.keys() | seen.shares.keys():
        before, now = held.shares.get(model, 0.0), seen.shares.get(model, 0.0)
        likely = min(0.5, max(before, 1 / seen.requests))
        if abs(now - before) > max(_NEAR_SHARE, _DEVIATIONS * math.sqrt(likely * (1 - likely) / seen.requests)):
            return True
        of_model = seen.requests * now
        step = _part(of_model) * abs(seen.gains.get(model, 0.0) - held.gains.get(model, 0.0))
        if of_model >= ENOUGH_REQUESTS and step > _NEAR_GAIN:
            return True
    return False


def _part(requests: float) -> float:
    """How far to follow a window that rests on so many requests."""
    return requests / (requests + _HALFWAY_REQUESTS)


def _between(before: float, now: float, part: float) -> float:
    return before + part * (now - before)


def to_status(held: HeldChoice, time: str) -> PickedStatus:
    """What is held, as it stands in a plan's status.

    Args:
        held: What is held.
        time: ``held.moved_s`` in the words of the API.
    """
    return PickedStatus(
        time=time,
        shares={model: f"{share:.2f}" for model, share in held.shares.items()},
        gains={model: f"{gain:.3f}" for model, gain in held.gains.items()},
    )


def from_status(status: PickedStatus, moved_s: float) -> HeldChoice | None:
    """What a status holds; None where it cannot be read."""
    try:
        shares = {model: float(text) for model, text in status.shares.items()}
        gains = {model: float(text) for model, text in status.gains.items()}
    except ValueError:
        return None
    sound = all(0 < share <= 1 for share in shares.values()) and all(abs(gain) <= _LARGEST_GAIN for gain in gains.values())
    return HeldChoice(moved_s, shares, gains) if shares and sound else None
