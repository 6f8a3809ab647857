"""What a plan's status says, as the values of metrics.

Each is a gauge of the labels ``namespace`` and ``plan`` and a few more, whose values are names in the spec or of a closed set.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

Labels = tuple[str, ...]
Samples = dict[str, dict[Labels, float]]
"""Values by metric and by the values of the labels that follow ``namespace`` and ``plan``."""

_POOL = ("model", "setup")
_WORD = re.compile(r"[A-Z][A-Za-z0-9]{0,40}")
_COEFFICIENTS = ("alpha", "beta", "gamma")
_LATENCIES = {"ttftMean": "ttft_mean", "ttftP95": "ttft_p95", "interTokenMean": "inter_token_mean"}
_STATUSES = ("True", "False", "Unknown")

PLAN_METRICS: dict[str, tuple[Labels, str]] = {
    "servingplan_plan_quality": ((), "Mean quality of the answers that the plan comes to, weighted by class."),
    "servingplan_plan_cost_per_hour": ((), "Cost of the accelerators that the plan uses."),
    "servingplan_plan_gap": ((), "Relative distance between the plan's quality and its proven upper bound."),
    "servingplan_plan_shed_ratio": (("class",), "Share of a class that is refused."),
    "servingplan_share_distance": (("class",), "Share of a class that pickers sent to other models than planned."),
    "servingplan_accelerator_units": (("accelerator",), "Accelerator units that the plan's replicas take."),
    "servingplan_replicas": ((*_POOL, "state"), "Replicas: wanted by the plan, asked for at the moment, and ready."),
    "servingplan_replicas_given_up": (_POOL, "Attempts in a row to start replicas that did not become ready in time."),
    "servingplan_utilization_ratio": (_POOL, "Planned load as a fraction of the capacity within the latency target."),
    "servingplan_latency_seconds": ((*_POOL, "latency", "source"), "Latency, predicted for the planned load and observed."),
    "servingplan_slo_seconds": (("class", "bound"), "Latency that a class is to get."),
    "servingplan_correction_ratio": (
        (*_POOL, "coefficient", "source"),
        "Factor on a coefficient of the profile: learnt from live latency, and applied in plans.",
    ),
    "servingplan_margin_ratio": ((*_POOL, "bound", "source"), "Margin on a latency bound beyond the declared one."),
    "servingplan_drifting": (_POOL, "Whether replicas have become other than what was learnt of them."),
    "servingplan_rate_rps": (("class", "model", "source"), "Requests per second: observed, planned for, and routed for."),
    "servingplan_weight_ratio": (("class", *_POOL), "Share of a class that goes to a model, or to a setup of it."),
    "servingplan_router_ready": ((), "Router pods that are ready."),
    "servingplan_condition": (("type", "status"), "1 for the status that a condition has, 0 for those it has not."),
    "servingplan_condition_reason": (("type", "reason"), "1 for the reason that a condition gives."),
}
"""Every gauge of a plan: its further labels and its help."""


def of_status(status: Mapping[str, Any]) -> Samples:
    """What a status says, in numbers; what it leaves out has no sample, because nothing is known of it."""
    samples: Samples = {name: {} for name in PLAN_METRICS}

    def put(name: str, labels: Labels, text: Any) -> None:
        value = _number(text)
        if value is not None:
            samples[f"servingplan_{name}"][labels] = value

    objective = status.get("objective") or {}
    put("plan_quality", (), objective.get("quality"))
    put("plan_cost_per_hour", (), objective.get("costPerHour"))
    put("plan_gap", (), objective.get("gap"))
    put("router_ready", (), (status.get("router") or {}).get("ready"))
    for name, units in (status.get("accelerators") or {}).items():
        put("accelerator_units", (name,), units)
    for entry in status.get("allocations") or ():
        _put_allocation(put, entry)
    for entry in status.get("routes") or ():
        put("plan_shed_ratio", (entry["class"],), entry.get("shed"))
        put("share_distance", (entry["class"],), entry.get("distance"))
        for model, share in (entry.get("weights") or {}).items():
            put("weight_ratio", (entry["class"], model, ""), share)
    for entry in status.get("demand") or ():
        for source in ("observed", "planned", "routed"):
            put("rate_rps", (entry.get("class") or "", entry.get("model") or "", source), entry.get(source))
    for entry in status.get("conditions") or ():
        for value in _STATUSES:
            put("condition", (entry["type"], value), int(entry["status"] == value))
        put("condition_reason", (entry["type"], word(entry["reason"])), 1)
    return samples


def _put_allocation(put: Callable[[str, Labels, Any], None], entry: Mapping[str, Any]) -> None:
    pool = (entry["model"], entry["setup"])
    put("replicas", (*pool, "wanted"), entry.get("replicas"))
    put("replicas", (*pool, "ready"), entry.get("ready"))
    put("replicas_given_up", pool, (entry.get("givenUp") or {"attempts": 0}).get("attempts"))
    put("utilization_ratio", pool, entry.get("utilization"))
    for source in ("predicted", "observed"):
        for written, latency in _LATENCIES.items():
            put("latency_seconds", (*pool, latency, source), (entry.get(source) or {}).get(written))
    learnt = entry.get("calibration")
    if not learnt:
        return
    put("drifting", pool, int(bool(learnt.get("drifting"))))
    for coefficient, text in zip(_COEFFICIENTS, learnt.get("logStep") or (), strict=False):
        logarithm = _number(text)
        put("correction_ratio", (*pool, coefficient, "learnt"), None if logarithm is None else math.exp(logarithm))
    for bound, text in (learnt.get("margin") or {}).items():
        put("margin_ratio", (*pool, bound, "learnt"), text)
    applied = learnt.get("applied") or {}
    for coefficient, text in zip(_COEFFICIENTS, applied.get("step") or (), strict=False):
        put("correction_ratio", (*pool, coefficient, "applied"), text)
    for place, text in enumerate(applied.get("ttft") or ()):
        put("correction_ratio", (*pool, f"ttft_bin_{place}", "applied"), text)
    for bound, text in (applied.get("margin") or {}).items():
        put("margin_ratio", (*pool, bound, "applied"), text)


def _number(text: Any) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def word(reason: str) -> str:
    """The reason where it is one word, as constants are, and ``Other`` where it is a sentence."""
    return reason if _WORD.fullmatch(reason) else "Other"
