"""What the demo saw, and what follows from it. Pure."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from testbed.demo.view import Node, Snapshot, pool_of
from testbed.load import Record

WARM_UP_S = 8.0
"""Batches fill for about the length of an answer after load starts or moves: what is measured then is no steady state."""


@dataclass(frozen=True, slots=True)
class Story:
    """A plan under load, whose latency target changes once.

    Attributes:
        models: In the order of the plan.
        before, after: The plan when it had settled, before and after the change.
        looks: The plan, looked at again and again, in the order of time.
        load_from_s, changed_s, settled_s, load_until_s: Moments in seconds since the epoch; the table that follows the
            change was served from ``settled_s`` on.
        rerouted_s: When routers first served another table after the change.
        machine_busy: Busy part of the machine's processors under load, between 0 and 1.
    """

    models: tuple[str, ...]
    nodes: tuple[Node, ...]
    before: Snapshot
    after: Snapshot
    looks: tuple[Snapshot, ...]
    records: tuple[Record, ...]
    load_from_s: float
    changed_s: float
    rerouted_s: float
    settled_s: float
    load_until_s: float
    machine_busy: float

    @property
    def steady_before(self) -> list[Record]:
        """Requests sent before the change, without those of the warm-up."""
        return self._sent(self.load_from_s + WARM_UP_S, self.changed_s)

    @property
    def steady_after(self) -> list[Record]:
        """Requests sent after the change had settled, without those of the warm-up."""
        return self._sent(self.settled_s + WARM_UP_S, self.load_until_s)

    @property
    def moving(self) -> list[Record]:
        """Requests sent between the change and the steady state that follows."""
        return self._sent(self.changed_s, self.settled_s + WARM_UP_S)

    def _sent(self, from_s: float, until_s: float) -> list[Record]:
        return [record for record in self.records if from_s <= record.start_s < until_s]


def ttft_p95_by_pool(records: Sequence[Record]) -> dict[str, tuple[float, int]]:
    """Measured 95th percentile of the time to first token in seconds, and the requests behind it, by pool."""
    found = defaultdict(list)
    for record in records:
        if record.answered and record.ttft_s is not None:
            found[pool_of(record.pod)].append(record.ttft_s)
    return {pool: (_p95(values_s), len(values_s)) for pool, values_s in sorted(found.items())}


def _p95(values_s: list[float]) -> float:
    ordered = sorted(values_s)
    position = 0.95 * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)
