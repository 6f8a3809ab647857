"""The plan of the live benchmarks, and engines whose true speed is not the one that its profiles say."""

from typing import Any

import yaml

from testbed.load import LoadClass
from testbed.traces import Trace

TTFT_S, PERCENTILE = 0.8, 95
LONGEST_PROMPT, LONGEST_OUTPUT = 4096, 128
CHAT = LoadClass("chat")
COEFFICIENTS = {"large": (16.0, 0.08, 0.00003), "small": (12.0, 0.05, 0.00002)}
"""Milliseconds: constant, per token computed, per token of context and step."""

_PLAN = """
apiVersion: servingplan.io/v1alpha1
kind: ModelServingPlan
metadata: {name: chat}
spec:
  accelerators:
  - {name: h100, nodeSelector: {nvidia.com/gpu.product: NVIDIA-H100-80GB-HBM3}, limit: 4, costPerHour: "3.90"}
  - {name: l40s, nodeSelector: {nvidia.com/gpu.product: NVIDIA-L40S}, limit: 4, costPerHour: "1.10"}
  models:
  - name: large
    source: Qwen/Qwen3-32B
    quality: {default: "0.82"}
    setups: [{name: h100, accelerator: h100, count: 2, coldStartSeconds: 10}]
  - name: small
    source: meta-llama/Llama-3.1-8B-Instruct
    quality: {default: "0.61"}
    setups: [{name: l40s, accelerator: l40s, count: 1, coldStartSeconds: 10}]
  requestClasses: [{name: chat}]
"""


def plan(rate_rps: float, speed: float, trace: Trace | None = None, calibration: str = "Enabled") -> dict[str, Any]:
    """A plan whose engines run at ``speed`` times what its profiles say; its requests are like a trace's."""
    body: dict[str, Any] = yaml.safe_load(_PLAN)
    spec = body["spec"]
    spec["slo"] = {"ttft": {"seconds": str(TTFT_S), "percentile": PERCENTILE}}
    spec["metrics"] = {"calibration": calibration}
    for model in spec["models"]:
        alpha_ms, beta_ms, gamma_ms = COEFFICIENTS[model["name"]]
        model["drainSeconds"] = 60
        model["setups"][0]["profile"] = {
            "coefficients": {"alphaMs": str(alpha_ms), "betaMs": str(beta_ms), "gammaMs": f"{gamma_ms:.6f}"},
            "kvTokens": 200_000,
            "maxNumSeqs": 128,
        }
        model["template"] = _engine(alpha_ms, beta_ms, gamma_ms, speed)
    entry = spec["requestClasses"][0]
    entry["rate"] = f"{rate_rps:g}"
    if trace is not None:
        entry["lengths"] = lengths(trace)
    else:
        entry |= {"promptTokens": {"mean": 1000, "cv": 0}, "outputTokens": {"mean": 150, "cv": 0}}
    return body


def lengths(trace: Trace, count: int = 250) -> list[dict[str, int]]:
    """Requests from all over a trace, cut as those that are sent are."""
    step = max(1, len(trace.at_s) // count)
    pairs = zip(trace.prompt_tokens[::step][:count], trace.output_tokens[::step][:count], strict=True)
    return [
        {"promptTokens": int(min(prompt, LONGEST_PROMPT)), "outputTokens": int(min(output, LONGEST_OUTPUT))}
        for prompt, output in pairs
    ]


def _engine(alpha_ms: float, beta_ms: float, gamma_ms: float, speed: float) -> dict[str, Any]:
    settings = {
        "ALPHA_MS": alpha_ms,
        "FLOOR_MS": 0,
        "BETA_US": beta_ms * 1e3,
        "GAMMA_NS": gamma_ms * 1e6,
        "SPEED": speed,
        "COLD_START_S": 5,
    }
    env = [{"name": f"SIM_{name}", "value": f"{value:g}"} for name, value in settings.items()]
    return {"spec": {"containers": [{"name": "vllm", "env": env}]}}


STEP_CHAT = LoadClass("chat", prompt_tokens=100, output_tokens=16)
_SLOW = {"large": (60.0, 0.4, 0.0), "small": (40.0, 0.2, 0.0)}


def stepping_plan(rate_rps: float) -> dict[str, Any]:
    """A plan of slow engines and short requests, so that both models stand at a few requests a second."""
    body = plan(rate_rps, 1.0)
    for model in body["spec"]["models"]:
        alpha_ms, beta_ms, gamma_ms = _SLOW[model["name"]]
        coefficients = {"alphaMs": str(alpha_ms), "betaMs": str(beta_ms), "gammaMs": str(gamma_ms)}
        model["setups"][0]["profile"] = {"coefficients": coefficients, "kvTokens": 200_000, "maxNumSeqs": 8}
        model["template"] = _engine(alpha_ms, beta_ms, gamma_ms, 1.0)
    entry = body["spec"]["requestClasses"][0]
    entry |= {"promptTokens": {"mean": 100, "cv": 0}, "outputTokens": {"mean": 16, "cv": 0}}
    return body


_MOVING = """
apiVersion: servingplan.io/v1alpha1
kind: ModelServingPlan
metadata: {name: chat}
spec:
  slo: {ttft: {seconds: "0.8", percentile: 95}}
  metrics: {calibration: Disabled}
  accelerators:
  - {name: h100, nodeSelector: {nvidia.com/gpu.product: NVIDIA-H100-80GB-HBM3}, limit: 4, costPerHour: "4"}
  - {name: l40s, nodeSelector: {nvidia.com/gpu.product: NVIDIA-L40S}, limit: 4, costPerHour: "1"}
  models:
  - name: only
    source: Qwen/Qwen3-32B
    quality: {default: "0.8"}
    drainSeconds: 20
    setups:
    - {name: h100, accelerator: h100, count: 2, maxReplicas: 2, coldStartSeconds: 30}
    - {name: l40s, accelerator: l40s, count: 2, maxReplicas: 0, coldStartSeconds: 30}
  requestClasses:
  - {name: chat, promptTokens: {mean: 100, cv: 0}, outputTokens: {mean: 16, cv: 0}}
"""
MOVING_CHAT = LoadClass("chat", prompt_tokens=100, output_tokens=16)


def moving_plan(rate_rps: float) -> dict[str, Any]:
    """A plan whose one model may run on one of two kinds of accelerator, and is moved by swapping ``maxReplicas``."""
    body: dict[str, Any] = yaml.safe_load(_MOVING)
    model = body["spec"]["models"][0]
    for setup in model["setups"]:
        coefficients = {"alphaMs": "60", "betaMs": "0.2", "gammaMs": "0"}
        setup["profile"] = {"coefficients": coefficients, "kvTokens": 200_000, "maxNumSeqs": 16}
    model["template"] = _engine(60.0, 0.2, 0.0, 1.0)
    body["spec"]["requestClasses"][0]["rate"] = f"{rate_rps:g}"
    return body
