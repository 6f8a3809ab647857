"""From the counters of a plan's pickers to what they choose of late. Pure.

The pods tell which plan it is: a picker serves one, and only those of routers that are ready are asked for.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from servingplan.calibration.choices import chosen
from servingplan.calibration.readings import Chosen
from servingplan.controller.prometheus.asked import Asked
from servingplan.controller.prometheus.connection import Series
from servingplan.controller.prometheus.queries import PART, PICKED, PICKERS, Windows

PodKey = tuple[str, str]
"""Namespace and name."""


@dataclass(slots=True)
class Counted:
    """What was counted of one class.

    Attributes:
        picks: Requests by the model that they were sent to.
        quality: Sum of the quality that was expected, by the model that they were sent to and any model.
    """

    picks: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    quality: defaultdict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))


@dataclass(slots=True)
class Picker:
    """One picker.

    Attributes:
        newest_s: Time of its newest sample; None where it has none.
        classes: By request class.
    """

    newest_s: float | None = None
    classes: defaultdict[str, Counted] = field(default_factory=lambda: defaultdict(Counted))


def pickers(answer: Iterable[Series]) -> dict[PodKey, Picker]:
    """The answer to ``queries.choices``."""
    found: defaultdict[PodKey, Picker] = defaultdict(Picker)
    for series in answer:
        labels, value = series.labels, series.value
        if value is None:
            continue
        picker = found[labels.get("namespace", ""), labels.get("pod", "")]
        if labels[PART] == PICKERS:
            picker.newest_s = value
            continue
        counted = picker.classes[labels.get("request_class", "")]
        if labels[PART] == PICKED:
            counted.picks[labels.get("model", "")] += value
        else:
            counted.quality[labels.get("picked", ""), labels.get("model", "")] += value
    return dict(found)


def read_choices(asked: Asked, every: dict[PodKey, Picker], windows: Windows, clocks: tuple[float, float]) -> dict[str, Chosen]:
    """What is chosen of late by class; nothing while a picker that should have been scraped is dark.

    ``clocks`` are now by the clock of ``asked.ready_since`` and now by the server's.
    """
    here_s, there_s = clocks
    mine = {name: every.get((asked.namespace, name), Picker()) for name in asked.routers or ()}
    ages_s = [
        math.inf if picker.newest_s is None else max(0.0, there_s - picker.newest_s)
        for name, picker in mine.items()
        if picker.newest_s is not None or asked.is_due(name, here_s, windows.dark_s)
    ]
    if not ages_s or max(ages_s) > windows.dark_s:
        return {}
    found = {name: chosen(name, _of_class(name, mine.values()), windows.choice_s, max(ages_s)) for name in asked.classes}
    return {name: each for name, each in found.items() if each is not None}


def _of_class(name: str, mine: Iterable[Picker]) -> Counted:
    total = Counted()
    for picker in mine:
        if counted := picker.classes.get(name):
            for model, requests in counted.picks.items():
                total.picks[model] += requests
            for pair, quality in counted.quality.items():
                total.quality[pair] += quality
    return total
