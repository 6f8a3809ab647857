"""From the answers on pods to the readings of a plan's pools. Pure.

Of the ready pods, those with a fresh sample are read and those that should have one are dark. A pod whose last scrape was
missed is fresh, but its rate has begun to fall for no reason but that, so it is left out while another pod is left. A figure
is missing where a counted pod lacks it and it is a sum, and where all lack it otherwise.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from servingplan.calibration.readings import Found, Histogram, PoolReading
from servingplan.controller.prometheus import series as names
from servingplan.controller.prometheus.asked import Asked
from servingplan.controller.prometheus.connection import Series
from servingplan.controller.prometheus.queries import FRESH, OLD, PART, RATE, Windows, part_of
from servingplan.controller.prometheus.series import HISTOGRAMS, NEEDS, Kind, Need

_NEED = {need.key: need for need in NEEDS}


@dataclass(slots=True)
class PodSample:
    """What is known of one pod.

    Attributes:
        age_s: Age of its newest sample; None without one of late.
        old: Whether it had samples in the last hour.
        values: By part of the question.
        buckets: Increase of the cumulative buckets by upper edge, by part.
    """

    age_s: float | None = None
    old: bool = False
    values: dict[str, float] = field(default_factory=dict)
    buckets: defaultdict[str, dict[float, float]] = field(default_factory=lambda: defaultdict(dict))

    def is_lit(self, windows: Windows) -> bool:
        """Whether it says something now: a sample that is no number says nothing."""
        return self.age_s is not None and self.age_s <= windows.dark_s and bool(self.values)

    def is_old(self, windows: Windows) -> bool:
        """Whether it said something once."""
        return self.old and (self.age_s is None or self.age_s > windows.dark_s)

    def part(self, need: Need) -> str | None:
        """The part of the first name of a need that the pod exposes."""
        what = "_count" if need.kind is Kind.HISTOGRAM else ""
        places = range(len(need.names))
        return next((part_of(need, place) for place in places if part_of(need, place, what) in self.values), None)

    def value(self, key: str) -> float | None:
        """The value of a need that is a single number."""
        part = self.part(_NEED[key])
        return None if part is None else self.values[part]


Pods = Mapping[tuple[str, str], PodSample]
"""By namespace and name."""


def pods(answer: Iterable[Series], now_s: float) -> Pods:
    """The answer to ``queries.replicas`` sorted by pod; ``now_s`` by the server's clock."""
    found: defaultdict[tuple[str, str], PodSample] = defaultdict(PodSample)
    for series in answer:
        value, part = series.value, series.labels[PART]
        if value is None or "pod" not in series.labels:
            continue
        pod = found[_pod_of(series)]
        if part == FRESH:
            pod.age_s = max(0.0, now_s - value)
        elif part == OLD:
            pod.old = True
        else:
            pod.values[part] = value
    return found


def observed(every: Pods) -> list[tuple[str, str]]:
    """The histograms, as part and name, in which any pod counts anything."""
    return [
        (part_of(need, place), name)
        for need in HISTOGRAMS
        for place, name in enumerate(need.names)
        if any(pod.values.get(part_of(need, place, "_count"), 0.0) > 0 for pod in every.values())
    ]


def add_buckets(every: Pods, part: str, answer: Iterable[Series]) -> None:
    """Sorts the answer to ``queries.buckets`` into the pods that are known."""
    for series in answer:
        pod, value = every.get(_pod_of(series)), series.value
        if value is not None and pod is not None:
            pod.buckets[part][float(series.labels["le"])] = value


def _pod_of(series: Series) -> tuple[str, str]:
    return series.labels.get("namespace", ""), series.labels.get("pod", "")


@dataclass(frozen=True, slots=True)
class PoolsRead:
    """What the pods of a plan say.

    Attributes:
        aliases: Names by which the series were found, by need.
    """

    found: Found
    error: str
    pools: dict[str, PoolReading]
    aliases: dict[str, str]


def read_pools(asked: Asked, every: Pods, windows: Windows, now_s: float) -> PoolsRead:
    """The readings of all pools of a plan; ``now_s`` by the clock of ``asked.ready_since``."""
    readings: dict[str, PoolReading] = {}
    fresh: list[PodSample] = []
    silent: list[str] = []
    for pool, ready in sorted(asked.pods.items()):
        samples = {name: every.get((asked.namespace, name), PodSample()) for name in sorted(ready)}
        dark = tuple(name for name, sample in samples.items() if _is_dark(asked, name, sample, windows, now_s))
        lit = [sample for sample in samples.values() if sample.is_lit(windows)]
        if ready:
            readings[pool] = _pool(lit, dark, windows)
        fresh += lit
        silent += dark
    if fresh or not silent:
        return PoolsRead(Found.FOUND if fresh else Found.AWAITED, "", readings, _aliases(fresh))
    known = [name for name in silent if every.get((asked.namespace, name), PodSample()).is_old(windows)]
    return PoolsRead(*_nothing(asked, silent, known, windows), readings, {})


def _is_dark(asked: Asked, name: str, sample: PodSample, windows: Windows, now_s: float) -> bool:
    if sample.age_s is None and not sample.old:
        return asked.is_due(name, now_s, windows.dark_s)
    return not sample.is_lit(windows)


def _nothing(asked: Asked, silent: Sequence[str], known: Sequence[str], windows: Windows) -> tuple[Found, str]:
    """Why there is nothing, where every ready pod is dark."""
    who = silent[0] if len(silent) == 1 else f"{len(silent)} ready replicas, such as {silent[0]}"
    prometheus = f"Prometheus at {asked.source.host}"
    if known:
        return Found.STALE, f"{prometheus} has had no sample of {who} for more than {windows.dark_s:g} s."
    return Found.MISSING, f"{prometheus} has no vLLM series with the labels namespace and pod of {who}, or none with a number."


def _aliases(fresh: Sequence[PodSample]) -> dict[str, str]:
    aliases = {}
    for need in NEEDS:
        parts = {pod.part(need) for pod in fresh}
        if matched := [name for place, name in enumerate(need.names) if part_of(need, place) in parts]:
            aliases[need.key] = ", ".join(matched)
    return aliases


def _pool(fresh: Sequence[PodSample], dark: tuple[str, ...], windows: Windows) -> PoolReading:
    current = [pod for pod in fresh if RATE in pod.values and (pod.age_s or 0.0) <= windows.current_s]
    counted = current or fresh
    if not counted:
        return PoolReading(replicas=0, dark=dark)
    usage = [value for pod in counted if (value := pod.value(names.KV_USAGE)) is not None]
    return PoolReading(
        replicas=len(counted),
        dark=dark,
        rate_rps=sum(pod.values[RATE] for pod in current) if current else None,
        ttft=_histogram(counted, names.TTFT),
        inter_token=_histogram(counted, names.INTER_TOKEN),
        e2e=_histogram(counted, names.E2E),
        prompt_tokens=_histogram(counted, names.PROMPT_TOKENS),
        output_tokens=_histogram(counted, names.OUTPUT_TOKENS),
        running=_sum(counted, names.RUNNING),
        waiting=_sum(counted, names.WAITING),
        kv_usage=max(usage, default=None),
        prefix_hit_share=_hit_share(counted),
        age_s=max(pod.age_s or 0.0 for pod in counted),
    )


def _sum(counted: Sequence[PodSample], key: str) -> float | None:
    values = [pod.value(key) for pod in counted]
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _hit_share(counted: Sequence[PodSample]) -> float | None:
    pairs = [(pod.value(names.PREFIX_HITS), pod.value(names.PREFIX_QUERIES)) for pod in counted]
    known = [(hits, queries) for hits, queries in pairs if hits is not None and queries is not None]
    queries = sum(pair[1] for pair in known)
    return min(1.0, sum(pair[0] for pair in known) / queries) if queries > 0 else None


def _histogram(counted: Sequence[PodSample], key: str) -> Histogram | None:
    """The histograms of all pods as one, over the edges that they have in common: two releases may differ in theirs."""
    cumulative, total = [], 0.0
    for pod in counted:
        part = pod.part(_NEED[key])
        buckets, of_pod = pod.buckets.get(part or "", {}), pod.values.get(f"{part}_sum")
        if math.inf in buckets and of_pod is not None:
            cumulative.append(buckets)
            total += of_pod
    if not cumulative:
        return None
    edges = sorted(set.intersection(*(set(buckets) for buckets in cumulative)))
    counts, below = [], 0.0
    for edge in edges:
        # Every bucket is extrapolated by itself, so that a wider one may come out a hair smaller.
        up_to = max(below, sum(buckets[edge] for buckets in cumulative))
        counts.append(up_to - below)
        below = up_to
    return Histogram(tuple(edges), tuple(counts), total) if below > 0 else None
