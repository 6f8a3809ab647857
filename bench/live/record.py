"""What a live run leaves: requests as their clients saw them, and the plan's status all through it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from testbed.load import Record
from testbed.witness import Witness

WINDOW_S = 60.0
FEWEST_REQUESTS = 20
"""A window with fewer says nothing of a 95th percentile."""


@dataclass(frozen=True, slots=True)
class Window:
    """One minute of one model, or of the whole class where ``model`` is empty.

    Attributes:
        begin_s: Seconds since the epoch.
        requests: Answered ones that were sent in it.
        mean_s: Their mean time to first token.
        p95_s: Its 95th percentile.
    """

    model: str
    begin_s: float
    requests: int
    mean_s: float
    p95_s: float


@dataclass(frozen=True, slots=True)
class Look:
    """One status of the plan; latencies in seconds, by model."""

    at_s: float
    replicas: dict[str, int]
    ready: dict[str, int]
    shares: dict[str, float]
    predicted_mean_s: dict[str, float]
    predicted_p95_s: dict[str, float]
    observed_p95_s: dict[str, float]
    factor: dict[str, float]


def windows(records: Iterable[Record], begin_s: float, end_s: float, model: str = "") -> Iterator[Window]:
    """Whole windows between two moments."""
    kept = [r for r in records if r.answered and r.ttft_s is not None and model in {"", r.model}]
    starts, ttfts = np.array([r.start_s for r in kept]), np.array([r.ttft_s for r in kept])
    for number in range(int((end_s - begin_s) // WINDOW_S)):
        low = begin_s + number * WINDOW_S
        inside = ttfts[(starts >= low) & (starts < low + WINDOW_S)]
        if len(inside) >= FEWEST_REQUESTS:
            yield Window(model, low, len(inside), float(inside.mean()), float(np.percentile(inside, 95)))


def looks(witness: Witness, plan: str) -> list[Look]:
    """Every status that the plan had and that says something."""
    return [_look(at_s, status) for at_s, status in witness.statuses(plan) if status.get("allocations")]


def _look(at_s: float, status: dict[str, Any]) -> Look:
    by_model = {entry["model"]: entry for entry in status["allocations"]}

    def latency(kind: str, name: str) -> dict[str, float]:
        return {m: float(e[kind][name]) for m, e in by_model.items() if e.get(kind, {}).get(name)}

    shares = {m: float(s) for route in status.get("routes", []) for m, s in route.get("weights", {}).items()}
    applied = {m: (e.get("calibration") or {}).get("applied") for m, e in by_model.items()}
    return Look(
        at_s=at_s,
        replicas={m: e["replicas"] for m, e in by_model.items()},
        ready={m: e["ready"] for m, e in by_model.items()},
        shares=shares,
        predicted_mean_s=latency("predicted", "ttftMean"),
        predicted_p95_s=latency("predicted", "ttftP95"),
        observed_p95_s=latency("observed", "ttftP95"),
        factor={m: float(a["step"][0]) for m, a in applied.items() if a},
    )


def predicted_at(found: list[Look], model: str, at_s: float) -> float | None:
    """Mean time to first token that the status predicted at a moment; None where it said nothing."""
    last = [look.predicted_mean_s.get(model) for look in found if look.at_s <= at_s]
    return last[-1] if last else None


def wilson(kept: int, total: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson's)."""
    if not total:
        return 0.0, 1.0
    z, share = 1.96, kept / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * np.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, middle - half), min(1.0, middle + half)
