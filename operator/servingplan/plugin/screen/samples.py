"""What was seen lately, for the lines of ``top``: the status holds the present alone."""

from __future__ import annotations

from collections import deque

from servingplan.plugin.view import PlanView

_KEEP_S = 600.0


class Samples:
    """Rates by plan and class, as they were seen."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], deque[tuple[float, float | None]]] = {}

    def add(self, now_s: float, plans: tuple[PlanView, ...]) -> None:
        """Remembers what the plans show now, and forgets what is long past."""
        for plan in plans:
            for each in plan.classes:
                series = self._seen.setdefault((plan.key, _key(each.name, by_name=each.by_name)), deque())
                series.append((now_s, each.observed_rps))
                while series[0][0] < now_s - _KEEP_S:
                    series.popleft()
        self._seen = {key: series for key, series in self._seen.items() if series[-1][0] >= now_s - _KEEP_S}

    def rates(self, plan: str, name: str, *, by_name: bool, step_s: float) -> list[float | None]:
        """The last rates, one for each step of time up to the latest sight; None where nothing was measured.

        Args:
            plan: ``namespace/name``.
            name: Of the class, or of the model that requests name.
            by_name: Whether it is a model.
            step_s: Seconds of each.
        """
        series = self._seen.get((plan, _key(name, by_name=by_name)))
        if not series:
            return []
        latest_s, found = series[-1][0], {}
        for at_s, value in series:
            found[int((latest_s - at_s) // step_s)] = value
        return [found.get(age) for age in range(max(found), -1, -1)]


def _key(name: str, *, by_name: bool) -> str:
    return f"model {name}" if by_name else f"class {name}"
