"""The service: three models that differ in quality and cost, two classes of real prompts, and GPUs too few for the best one.

Scores are those of real models (`virtualfleet.prompts`); the engines are those of models of the sizes that they stand for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from servingplan.controller.world import Node
from servingplan.render import names
from servingplan.sim import coefficients
from servingplan.sim.engine import BLOCK_TOKENS, StepCost
from servingplan.sim.replay import Replica
from virtual.service import COLD_START_S, PRODUCTS
from virtualfleet import settings
from virtualfleet.prompts import Prompts

NAMESPACE, PLAN = "llm", "assistant"
KEY = f"{NAMESPACE}/{PLAN}"
SET = "llmrouter"
CLASSES = ("recall", "solve")
CLASS_HEADER = "x-request-class"
SLO_S = {"recall": 1.0, "solve": 2.0}
"""Target of the 95th percentile of the time to first token."""
GPUS = {"h100": 4, "l40s": 8}
COST_PER_HOUR = {"h100": 4.0, "l40s": 1.0}
RATE_RPS = 14.0
_SOLVING = (
    "agentverse-logicgrid",
    "agentverse-mgsm",
    "gsm8k",
    "human_eval",
    "math",
    "mbpp",
)
_SLOTS, _BUDGET, _LENGTHS = 32, 2048, 256


@dataclass(frozen=True, slots=True)
class Served:
    """A model of the plan.

    Attributes:
        name: In the plan.
        tier: Column of the prompts' scores and lengths.
        accelerator: By name in `PRODUCTS`.
        units: Accelerators of a replica.
        source: Model whose engine it has.
    """

    name: str
    tier: int
    accelerator: str
    units: int
    source: str

    @property
    def pool(self) -> str:
        """Name of its only pool."""
        return names.pool_name(PLAN, self.name, self.accelerator)

    def profile(self) -> coefficients.Profile:
        """Its engine, as the plan declares it."""
        return coefficients.profile(self.source, PRODUCTS[self.accelerator], self.units)


MODELS = (
    Served("large", 3, "h100", 2, "meta-llama/Llama-3.1-70B-fp8"),
    Served("medium", 2, "l40s", 2, "Qwen/Qwen2.5-14B"),
    Served("small", 0, "l40s", 1, "Qwen/Qwen2.5-7B"),
)
TIERS = [model.tier for model in MODELS]


@cache
def kinds() -> np.ndarray:
    """(prompts,) index into CLASSES."""
    return np.isin(prompts().task, _SOLVING).astype(int)


def prompts() -> Prompts:
    """All prompts with their scores."""
    return settings.pool(SET)


def nodes() -> tuple[Node, ...]:
    """A node for each kind of GPU."""
    return tuple(
        Node(kind, {"nvidia.com/gpu.product": PRODUCTS[kind]}, {"nvidia.com/gpu": units}, schedulable=True)
        for kind, units in GPUS.items()
    )


def replicas(speed: dict[str, float]) -> dict[str, Replica]:
    """The true replicas by pool, `speed` times as fast as declared by accelerator."""
    found = {}
    for model in MODELS:
        known = model.profile()
        cost = StepCost(*(value / speed[model.accelerator] for value in known.cost))
        found[model.pool] = Replica(cost, known.kv_tokens // BLOCK_TOKENS + 1, _SLOTS, _BUDGET, prefix_caching=False)
    return found


def cold_start_s(pool: str) -> float:
    """Seconds that a pod of a pool is declared to take until it is ready."""
    return float(next(COLD_START_S[model.accelerator] for model in MODELS if model.pool == pool))


def cost_per_hour(replicas_by_pool: dict[str, int]) -> float:
    """What so many replicas cost."""
    return sum(model.units * COST_PER_HOUR[model.accelerator] * replicas_by_pool.get(model.pool, 0) for model in MODELS)


def manifest(router: dict[str, Any], rate_rps: float = RATE_RPS) -> dict[str, Any]:
    """The plan, with the mean scores and lengths that its classes have on all prompts."""
    return {
        "apiVersion": "servingplan.io/v1alpha1",
        "kind": "ModelServingPlan",
        "metadata": {"name": PLAN, "namespace": NAMESPACE, "uid": "uid-together", "generation": 1},
        "spec": {
            "slo": {"ttft": {"seconds": "2"}},
            "accelerators": [
                {
                    "name": kind,
                    "nodeSelector": {"nvidia.com/gpu.product": PRODUCTS[kind]},
                    "costPerHour": str(cost),
                }
                for kind, cost in COST_PER_HOUR.items()
            ],
            "models": [_model(model) for model in MODELS],
            "requestClasses": [_class(at, name, rate_rps) for at, name in enumerate(CLASSES)],
            "router": router,
        },
    }


def _model(model: Served) -> dict[str, Any]:
    known, scores = model.profile(), prompts().quality[:, model.tier]
    step = {"alphaMs": known.cost.alpha_s, "betaMs": known.cost.beta_s, "gammaMs": known.cost.gamma_s}
    profile = {
        "coefficients": {name: f"{1e3 * seconds:.9f}" for name, seconds in step.items()},
        "maxNumSeqs": _SLOTS,
        "maxNumBatchedTokens": _BUDGET,
        "kvTokens": known.kv_tokens,
    }
    setup = {
        "name": model.accelerator,
        "accelerator": model.accelerator,
        "count": model.units,
        "coldStartSeconds": COLD_START_S[model.accelerator],
        "profile": profile,
    }
    by_class = {name: f"{scores[kinds() == at].mean():.3f}" for at, name in enumerate(CLASSES)}
    return {
        "name": model.name,
        "source": model.source,
        "quality": {"default": f"{scores.mean():.3f}", "classes": by_class},
        "setups": [setup],
    }


def _class(at: int, name: str, rate_rps: float) -> dict[str, Any]:
    found, mine = prompts(), np.flatnonzero(kinds() == at)
    sample = mine[np.random.default_rng(at).choice(len(mine), _LENGTHS, replace=False)]
    answers = found.output_tokens[:, TIERS].mean(axis=1)
    lengths = [{"promptTokens": int(found.prompt_tokens[row]), "outputTokens": round(float(answers[row]))} for row in sample]
    entry = {
        "name": name,
        "rate": f"{rate_rps * len(mine) / len(found.task):.4f}",
        "lengths": lengths,
        "slo": {"ttft": {"seconds": f"{SLO_S[name]}"}},
    }
    return entry | ({"match": {"headers": {CLASS_HEADER: name}}} if at else {})
