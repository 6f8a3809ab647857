"""What is asked of Prometheus for a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from servingplan.controller.prometheus.connection import Source


@dataclass(frozen=True, slots=True)
class Asked:
    """A plan and the pods whose figures count; those of any other pod, such as a deleted one, do not.

    Attributes:
        key: What the readings are returned under.
        pods: Names of the ready pods by pool.
        classes: Names of the request classes.
        models: Names of the models that requests may name.
        ready_since: When a pod became ready, by name, in seconds since the epoch; of one that is left out, long ago.
        routers: Names of the ready router pods. While one of them is dark its part of the arrivals is missing, and so all
            arrivals are unknown. None where they are not known; then the newest sample of any router speaks for all.
        picks: Whether pickers beside the routers choose for every request.
    """

    key: str
    namespace: str
    name: str
    source: Source
    pods: Mapping[str, tuple[str, ...]]
    classes: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    ready_since: Mapping[str, float] = field(default_factory=dict)
    routers: tuple[str, ...] | None = None
    picks: bool = False

    def is_due(self, pod: str, now_s: float, within_s: float) -> bool:
        """Whether a pod has been ready for so long that it must have been scraped."""
        return now_s - self.ready_since.get(pod, 0.0) > within_s
