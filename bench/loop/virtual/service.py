"""The service that the virtual runs are about: two models on two kinds of GPU, two classes of the Azure traces."""

from __future__ import annotations

from typing import Any

import numpy as np

from servingplan.controller.world import Node
from servingplan.render import names
from servingplan.sim import coefficients
from servingplan.sim.engine import BLOCK_TOKENS, StepCost
from servingplan.sim.replay import Replica
from virtual.traffic import trace

NAMESPACE, PLAN = "llm", "assistant"
KEY = f"{NAMESPACE}/{PLAN}"
PRODUCTS = {"h100": "NVIDIA-H100-80GB-HBM3", "l40s": "NVIDIA-L40S"}
SLO_S = {"chat": 1.0, "code": 2.0}
TRACE = {"chat": "conv", "code": "code"}
COLD_START_S = {"h100": 150, "l40s": 90}

_SETUPS = {
    ("large", "tp2"): ("h100", 2, "Qwen/Qwen3-32B", "H100"),
    ("small", "l40s"): ("l40s", 1, "meta-llama/Llama-3.1-8B", "L40S"),
}
_SEQS, _BUDGET = 256, 2048


def pools() -> dict[str, str]:
    """Accelerator by pool name."""
    return {names.pool_name(PLAN, *key): setup[0] for key, setup in _SETUPS.items()}


def titles() -> dict[str, str]:
    """What people call each pool."""
    said = {"h100": "32B on 2 H100", "l40s": "8B on L40S"}
    return {pool: said[accelerator] for pool, accelerator in pools().items()}


def replicas(speed: dict[str, float]) -> dict[str, Replica]:
    """The true replicas by pool name, `speed` times as fast as their profile by accelerator."""
    found = {}
    for key, (accelerator, units, source, product) in _SETUPS.items():
        known = coefficients.profile(source, product, units)
        cost = StepCost(*(value / speed[accelerator] for value in known.cost))
        found[names.pool_name(PLAN, *key)] = Replica(
            cost, known.kv_tokens // BLOCK_TOKENS + 1, _SEQS, _BUDGET, prefix_caching=False
        )
    return found


def nodes(h100: int = 3, l40s: int = 2) -> tuple[Node, ...]:
    """Nodes of eight GPUs each."""
    kinds = [("h100", at) for at in range(h100)] + [("l40s", at) for at in range(l40s)]
    return tuple(
        Node(f"{kind}-{at}", {"nvidia.com/gpu.product": PRODUCTS[kind]}, {"nvidia.com/gpu": 8}, schedulable=True)
        for kind, at in kinds
    )


def manifest(
    rates_rps: dict[str, float],
    *,
    calibration: bool = True,
    name: str = PLAN,
    drawn: np.random.Generator | None = None,
    **spec: Any,
) -> dict[str, Any]:
    """The plan: chat is better served by the large model, code equally well by both.

    Args:
        rates_rps: Declared rate by class.
        calibration: Whether profiles are corrected by what is measured.
        name: Of the plan.
        drawn: Draws each class's sample of lengths at random; None for the same one each time.
        spec: Further fields of the spec.
    """

    def setup(model: str, setup: str) -> dict[str, Any]:
        accelerator, units, source, product = _SETUPS[model, setup]
        known = coefficients.profile(source, product, units)
        return {
            "name": setup,
            "accelerator": accelerator,
            "count": units,
            "coldStartSeconds": COLD_START_S[accelerator],
            "profile": {
                "coefficients": {
                    "alphaMs": f"{1e3 * known.cost.alpha_s:.9f}",
                    "betaMs": f"{1e3 * known.cost.beta_s:.9f}",
                    "gammaMs": f"{1e3 * known.cost.gamma_s:.9f}",
                },
                "maxNumSeqs": _SEQS,
                "maxNumBatchedTokens": _BUDGET,
                "kvTokens": known.kv_tokens,
            },
        }

    classes = [
        {
            "name": each,
            "rate": f"{rate_rps:.4f}",
            "lengths": trace(TRACE[each]).sample(256, drawn),
            "slo": {"ttft": {"seconds": f"{SLO_S[each]}"}},
        }
        | ({"match": {"headers": {"x-request-class": each}}} if each != "chat" else {})
        for each, rate_rps in rates_rps.items()
    ]
    quality = {"large": {"chat": "0.72", "code": "0.6"}, "small": {"chat": "0.55", "code": "0.6"}}
    return {
        "apiVersion": "servingplan.io/v1alpha1",
        "kind": "ModelServingPlan",
        "metadata": {"name": name, "namespace": NAMESPACE, "uid": f"uid-{name}", "generation": 1},
        "spec": {
            "slo": {"ttft": {"seconds": "2"}},
            "accelerators": [
                {"name": kind, "nodeSelector": {"nvidia.com/gpu.product": product}, "costPerHour": cost}
                for (kind, product), cost in zip(PRODUCTS.items(), (4, 1), strict=True)
            ],
            "models": [
                {
                    "name": model,
                    "source": _SETUPS[model, name][2],
                    "quality": {"default": "0.5", "classes": quality[model]},
                    "setups": [setup(model, name)],
                }
                for model, name in _SETUPS
            ],
            "requestClasses": classes,
            "metrics": {"calibration": "Enabled" if calibration else "Disabled"},
        }
        | spec,
    }
