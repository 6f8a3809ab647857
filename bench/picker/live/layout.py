"""The plan that the harness serves: four tiers of pods, their speed, prices and scores, and its routing table.

Speeds are those of the four tiers of `docs/method.md`'s thirteen instances: a constant, a time per token computed and one per
token in the KV cache. The pods' engines run at exactly the speed that the table says, so what is measured is the decision
and not a wrong profile. Scores by model are the means of four real models on public prompts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from live.pod import EngineSpec, PodSpec
from servingplan.api.routing_table import RoutingTable, whole_weights

NAMESPACE, PLAN = "llm", "chat"
PORT = 9000
CODE = {"x-request-class": "code"}
PROMPT_BYTES, OUTPUT_TOKENS, OUTPUT_CV = 640, 150.0, 0.8
"""Lengths of the requests to pods with engines: a body of some 160 tokens, as public chat prompts have."""


@dataclass(frozen=True, slots=True)
class Tier:
    """Equal pods of one model.

    Attributes:
        alpha_ms, beta_ms, gamma_ms: Step time: constant, per token computed, per token in the KV cache.
        price: Dollars per million tokens.
        quality: Mean score by class.
        share: Part of the requests by the plan's weights.
    """

    model: str
    alpha_ms: float
    beta_ms: float
    gamma_ms: float
    price: float
    quality: Mapping[str, float]
    share: float

    @property
    def pool(self) -> str:
        """Name of the pool of its pods."""
        return f"chat-{self.model}-pool"

    @property
    def name(self) -> str:
        """DNS name of the pool's Service."""
        return f"{self.pool}.{NAMESPACE}.svc.cluster.local."


TIERS = (
    Tier("m3b", 9.6, 0.095, 6e-5, 0.06, {"chat": 0.387, "code": 0.30}, 0.32),
    Tier("m7b", 18.8, 0.17, 12e-5, 0.07, {"chat": 0.549, "code": 0.47}, 0.40),
    Tier("m14b", 14.6, 0.33, 8e-5, 0.15, {"chat": 0.588, "code": 0.52}, 0.26),
    Tier("m72b", 39.7, 0.13, 10e-5, 0.40, {"chat": 0.647, "code": 0.63}, 0.02),
)
COUNTS = {13: (3, 5, 3, 2), 50: (12, 19, 11, 8)}
"""Pods by tier, for as many pods in all as are measured."""

SLOTS = 32
"""Sequences that a pod runs at once: few, so that queues come about at rates that two cores can send."""

_LIMITS = {"max_num_seqs": SLOTS, "max_num_batched_tokens": 2048, "kv_tokens": 400_000}


def counts(pods: int) -> tuple[int, ...]:
    """Pods by tier.

    Raises:
        ValueError: So many pods are not laid out.
    """
    if pods not in COUNTS:
        message = f"laid out for {sorted(COUNTS)} pods, not for {pods}"
        raise ValueError(message)
    return COUNTS[pods]


def _engine(tier: Tier) -> dict[str, Any]:
    milliseconds = {"alpha_s": tier.alpha_ms, "beta_s": tier.beta_ms, "gamma_s": tier.gamma_ms}
    return {**{name: value / 1e3 for name, value in milliseconds.items()}, "floor_s": 0.0, **_LIMITS}


def _spec(tier: Tier) -> EngineSpec:
    return EngineSpec(**_engine(tier))


def fleet(pods: int, *, engines: bool) -> list[PodSpec]:
    """The pods, each at an address of its own.

    Args:
        pods: How many in all, one of `COUNTS`.
        engines: Whether they generate at their tier's speed, or answer at once.
    """
    return [
        PodSpec(f"{tier.model}-{n}", tier.model, f"127.1.{number}.{n + 1}", PORT, _spec(tier) if engines else None)
        for number, (tier, count) in enumerate(zip(TIERS, counts(pods), strict=True))
        for n in range(count)
    ]


def setup(pods: list[PodSpec], dns_port: int) -> dict[str, Any]:
    """What the pods' process is told to be."""
    return {"pods": [asdict(pod) for pod in pods], "records": records(pods), "dns_port": dns_port}


def records(pods: list[PodSpec]) -> dict[str, list[str]]:
    """Addresses by the names of the pools' Services."""
    return {tier.name: [pod.address for pod in pods if pod.model == tier.model] for tier in TIERS}


def endpoints(pods: list[PodSpec]) -> str:
    """The picker's file of endpoints."""
    return json.dumps({tier.pool: [f"{pod.address}:{pod.port}" for pod in pods if pod.model == tier.model] for tier in TIERS})


def table(generation: int = 1, *, picker: Mapping[str, Any] | None = None) -> RoutingTable:
    """The routing table.

    Args:
        generation: Of the plan.
        picker: What the picker is told; None where requests go by the weights.
    """
    models = [
        {
            "name": tier.model,
            "weights": {tier.pool: 1_000_000},
            "pools": [
                {
                    "name": tier.pool,
                    "setup": "bench",
                    "address": tier.name,
                    "port": PORT,
                    "engine": _engine(tier),
                    "input_price": tier.price / 1e6,
                    "output_price": tier.price / 1e6,
                }
            ],
        }
        for tier in TIERS
    ]
    kinds: tuple[tuple[str, dict[str, str]], ...] = (("code", CODE), ("chat", {}))
    return RoutingTable.model_validate(
        {
            "namespace": NAMESPACE,
            "plan": PLAN,
            "generation": generation,
            "models": models,
            "classes": [_class(name, headers) for name, headers in kinds],
            "picker": picker,
        }
    )


def _class(name: str, headers: Mapping[str, str]) -> dict[str, Any]:
    return {
        "name": name,
        "headers": dict(headers),
        "weights": whole_weights({tier.pool: tier.share for tier in TIERS}),
        "shares": {tier.model: tier.share for tier in TIERS},
        "prices": {tier.model: 0.0 for tier in TIERS},
        "quality": {tier.model: tier.quality[name] for tier in TIERS},
        "prompt_tokens": PROMPT_BYTES / 4,
        "output_tokens": OUTPUT_TOKENS,
    }
