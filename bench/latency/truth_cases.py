"""What the closed form is judged on: replicas, lengths, loads."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from servingplan.latency.profile import EngineProfile, StepTime, TokenMix, blend
from servingplan.sim import coefficients

TRACES = Path(os.environ.get("SERVINGPLAN_DATA", Path(__file__).parents[3] / "shared/data")) / "traces"
REAL = ("conv", "code")


def _profile(model: str, accelerator: str, tensor_parallel: int, max_num_seqs: int, budget: int) -> EngineProfile:
    known = coefficients.profile(model, accelerator, tensor_parallel)
    cost = known.cost
    return EngineProfile(
        step=StepTime(cost.alpha_s, cost.beta_s, cost.gamma_s, cost.floor_s),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        kv_tokens=known.kv_tokens,
    )


PROFILES = {
    "32B, 2 x H100": _profile("Qwen/Qwen3-32B", "H100", 2, 256, 2048),
    "32B, 2 x H100, budget 8192": _profile("Qwen/Qwen3-32B", "H100", 2, 1024, 8192),
    "8B, H100, 64 slots": _profile("meta-llama/Llama-3.1-8B", "H100", 1, 64, 2048),
    "8B, RTX 4090, KV-limited": _profile("meta-llama/Llama-3.1-8B", "RTX-4090", 1, 256, 2048),
}
"""The first, third and fourth are gated; the margin was chosen on them."""

HELD_OUT = {
    "70B FP8, 4 x H100": _profile("meta-llama/Llama-3.1-70B-FP8", "H100", 4, 256, 2048),
    "32B, 2 x RTX PRO 6000": replace(_profile("Qwen/Qwen3-32B", "RTX-PRO-6000", 2, 128, 2048), kv_tokens=300_000),
}
"""On these the margin is checked only."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What arrives.

    Attributes:
        parts: Share and lengths of each class, by its name.
    """

    name: str
    parts: dict[str, tuple[float, TokenMix]]
    arrival_cv: float = 1.0

    @property
    def mix(self) -> TokenMix:
        """All classes together."""
        return blend(list(self.parts.values()))


@dataclass(frozen=True, slots=True)
class Case:
    """One replica under one load.

    Attributes:
        load: Fraction of the closed form's stable rate.
    """

    profile_name: str
    profile: EngineProfile
    traffic: Traffic
    load: float


def traffics() -> dict[str, Traffic]:
    """Every traffic by name; the real ones only where the traces are at hand."""
    mixes = {"constant": TokenMix(1000, 200, prompt_cv=0.0), "lognormal": TokenMix(500, 400)}
    if TRACES.is_dir():
        mixes |= {f"Azure {name}": _azure(name) for name in REAL}
    found = {name: Traffic(name, {name: (1.0, mix)}) for name, mix in mixes.items()}
    short, long = TokenMix(200, 300, 0.5), TokenMix(3000, 100, 0.5)
    found["short + long"] = Traffic("short + long", {"short": (2.0, short), "long": (1.0, long)})
    if TRACES.is_dir():
        found["conv + code"] = Traffic("conv + code", {name: (1.0, mixes[f"Azure {name}"]) for name in REAL})
    return found


def _azure(name: str) -> TokenMix:
    pairs = np.loadtxt(TRACES / f"AzureLLMInferenceTrace_{name}.csv", delimiter=",", skiprows=1, usecols=(1, 2))
    return TokenMix.of([(float(prompt), float(output)) for prompt, output in pairs])
