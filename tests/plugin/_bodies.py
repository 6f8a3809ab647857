"""A plan as the API server gives it, with everything that its status may hold; tests take away what they do not want."""

from __future__ import annotations

import copy
from datetime import UTC, datetime
from typing import Any

PRODUCT = "nvidia.com/gpu.product"
NOW_S = datetime(2026, 11, 22, 12, 0, tzinfo=UTC).timestamp()


def stamp(age_s: float) -> str:
    """A moment so many seconds before now, as Kubernetes writes it."""
    return datetime.fromtimestamp(NOW_S - age_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def condition(kind: str, status: str, reason: str, message: str = "", age_s: float = 600) -> dict[str, Any]:
    return {
        "type": kind,
        "status": status,
        "observedGeneration": 3,
        "lastTransitionTime": stamp(age_s),
        "reason": reason,
        "message": message,
    }


def _profile(alpha: str, beta: str, gamma: str, tokens: int) -> dict[str, Any]:
    return {"coefficients": {"alphaMs": alpha, "betaMs": beta, "gammaMs": gamma}, "kvTokens": tokens}


def _model(name: str, quality: str, *setups: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "source": f"example/{name}", "quality": {"default": quality}, "setups": list(setups)}


SPEC: dict[str, Any] = {
    "mode": "Auto",
    "slo": {"ttft": {"seconds": "1.2", "percentile": 95}},
    "accelerators": [
        {
            "name": "h100",
            "nodeSelector": {PRODUCT: "NVIDIA-H100-80GB-HBM3"},
            "limit": 6,
            "costPerHour": "3.90",
        },
        {"name": "l40s", "nodeSelector": {PRODUCT: "NVIDIA-L40S"}, "limit": 6, "costPerHour": "1.10"},
    ],
    "models": [
        _model(
            "qwen3-32b",
            "0.82",
            {"name": "h100-tp2", "accelerator": "h100", "count": 2, "profile": _profile("13.7", "0.057", "0.00006", 278000)},
        ),
        _model(
            "qwen2.5-14b",
            "0.72",
            {"name": "h100", "accelerator": "h100", "profile": _profile("11.0", "0.037", "0.000046", 202000)},
            {"name": "l40s-tp2", "accelerator": "l40s", "count": 2, "profile": _profile("20.2", "0.105", "0.00027", 264000)},
        ),
        _model(
            "llama-3.1-8b",
            "0.61",
            {"name": "l40s", "accelerator": "l40s", "profile": _profile("21.8", "0.069", "0.000132", 188000)},
        ),
    ],
    "requestClasses": [
        {"name": "code", "match": {"headers": {"x-request-class": "code"}}, "rate": "5", "weight": "2"},
        {"name": "chat", "rate": "14"},
    ],
}


def _calibration(step: list[str], samples: int, *, drifting: bool = False) -> dict[str, Any]:
    return {
        "samples": samples,
        "logStep": ["0.2231", "0.2109", "0.2287"],
        "covariance": ["0.01", "0", "0.01", "0", "0", "0.02"],
        "logBias": ["0", "0", "0.02", "0"],
        "biasWeight": ["0", "1", "4", "0"],
        "margin": {"ttft.p95": "0.03"},
        "drift": ["0", "0.1"],
        "drifting": drifting,
        "applied": {"step": step, "ttft": ["1", "1", "1.02", "1"], "margin": {"ttft.p95": "0.03"}},
    }


def _allocation(model: str, setup: str, accelerator: str, replicas: int, units: int, **more: Any) -> dict[str, Any]:
    return {
        "model": model,
        "setup": setup,
        "accelerator": accelerator,
        "deployment": f"chat-{model}-{setup}".replace(".", "-"),
        "replicas": replicas,
        "ready": replicas,
        "units": units,
        "changed": stamp(40),
        **more,
    }


STATUS: dict[str, Any] = {
    "observedGeneration": 3,
    "conditions": [
        condition("Ready", "True", "Serving"),
        condition("Reconciling", "False", "Settled"),
        condition("Stalled", "False", "Settled"),
        condition("Feasible", "True", "Optimal"),
        condition("RoutingSynced", "True", "TableServed"),
        condition("MetricsAvailable", "True", "MetricsFound"),
        condition("SLOMet", "True", "Kept"),
    ],
    "allocations": [
        _allocation(
            "llama-3.1-8b", "l40s", "l40s", 2, 2, rate="4.1", utilization="0.61",
            predicted={"ttftMean": "0.31", "ttftP95": "0.84"},
            observed={"ttftMean": "0.3", "ttftP95": "0.79", "time": stamp(20)},
            calibration=_calibration(["1", "1.01", "1"], 12),
        ),
        _allocation(
            "qwen2.5-14b", "l40s-tp2", "l40s", 2, 4, rate="6.2", utilization="0.88",
            predicted={"ttftMean": "0.42", "ttftP95": "1.12"},
            observed={"ttftMean": "0.45", "ttftP95": "1.16", "time": stamp(20)},
            calibration=_calibration(["0.78", "0.8", "0.79"], 7, drifting=True),
        ),
        _allocation(
            "qwen3-32b", "h100-tp2", "h100", 3, 6, ready=2, grew=True, rate="8.9", utilization="0.82",
            predicted={"ttftMean": "0.39", "ttftP95": "0.98"},
            observed={"ttftMean": "0.41", "ttftP95": "1.04", "time": stamp(20)},
            calibration=_calibration(["1.25", "1.24", "1.26"], 31),
        ),
    ],
    "routes": [
        {"class": "code", "weights": {"qwen3-32b": "1"}, "shed": "0"},
        {"class": "chat", "weights": {"qwen3-32b": "0.27", "qwen2.5-14b": "0.44", "llama-3.1-8b": "0.27"}, "shed": "0.02"},
    ],
    "demand": [
        {"class": "code", "observed": "4.8", "planned": "5.2", "routed": "5", "promptFactor": "1.31", "outputFactor": "1"},
        {"class": "chat", "observed": "14.9", "planned": "14.6", "routed": "15.2"},
        {"model": "qwen3-32b", "observed": "0.7", "planned": "0.8", "routed": "0.8"},
    ],
    "objective": {"quality": "0.7643", "costPerHour": "30", "bound": "0.7702", "gap": "0.0001"},
    "metrics": {
        "series": {"ttft": "vllm:time_to_first_token_seconds", "running": "vllm:num_requests_running"},
        "time": stamp(30),
    },
    "router": {"address": "chat-router.llm.svc:80", "ready": 2, "generation": 3, "table": "abc.1"},
    "accelerators": {"h100": 6, "l40s": 6},
    "summary": {"slo": "TTFT p95<=1.2s"},
    "history": [
        {
            "time": stamp(40), "generation": 3, "reason": "load of class chat 11 to 14.6 requests/s",
            "replicas": {"qwen3-32b/h100-tp2": 3, "qwen2.5-14b/l40s-tp2": 2, "llama-3.1-8b/l40s": 2},
        },
        {
            "time": stamp(1500), "generation": 3, "reason": "qwen2.5-14b/l40s-tp2 is faster than its profile",
            "replicas": {"qwen3-32b/h100-tp2": 2, "qwen2.5-14b/l40s-tp2": 2, "llama-3.1-8b/l40s": 2},
        },
        {
            "time": stamp(7300), "generation": 2, "reason": "generation 2 of the spec",
            "replicas": {"qwen3-32b/h100-tp2": 2, "qwen2.5-14b/l40s-tp2": 3},
        },
    ],
}  # fmt: skip

PROPOSAL: dict[str, Any] = {
    "id": "7f3a21",
    "time": stamp(190),
    "generation": 3,
    "reason": "load of class chat 14.6 to 21 requests/s",
    "setups": [
        {"model": "qwen2.5-14b", "setup": "h100", "accelerator": "h100", "before": 0, "after": 2},
        {"model": "qwen3-32b", "setup": "h100-tp2", "accelerator": "h100", "before": 3, "after": 2},
    ],
    "routes": [
        {
            "class": "chat",
            "before": {"qwen3-32b": "0.27", "qwen2.5-14b": "0.44", "llama-3.1-8b": "0.27"},
            "after": {"qwen3-32b": "0.12", "qwen2.5-14b": "0.7", "llama-3.1-8b": "0.18"},
            "ttftBefore": "1.9",
            "ttftAfter": "1.08",
        },
    ],
    "before": {"quality": "0.7643", "costPerHour": "30", "shed": "0.02"},
    "after": {"quality": "0.7401", "costPerHour": "30"},
}


def plan(name: str = "chat", namespace: str = "llm", **parts: Any) -> dict[str, Any]:
    """The plan.

    Args:
        name: Its name.
        namespace: Its namespace.
        parts: Fields of the status that are otherwise, None for absent ones; ``spec`` and ``metadata`` for those of the rest.
    """
    spec = copy.deepcopy(SPEC) | parts.pop("spec", {})
    metadata = {"name": name, "namespace": namespace, "generation": 3} | parts.pop("metadata", {})
    status = {key: value for key, value in (copy.deepcopy(STATUS) | parts).items() if value is not None}
    return {
        "apiVersion": "servingplan.io/v1alpha1",
        "kind": "ModelServingPlan",
        "metadata": metadata,
        "spec": spec,
        "status": status,
    }


def with_conditions(*found: dict[str, Any]) -> list[dict[str, Any]]:
    """The conditions of the status with some of them otherwise."""
    changed = {entry["type"]: entry for entry in found}
    return [changed.get(entry["type"], entry) for entry in copy.deepcopy(STATUS["conditions"])]
