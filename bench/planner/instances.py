"""Random planning problems of a given size, from seeds: what a large fleet's plan looks like to the planner."""

from __future__ import annotations

import numpy as np

from servingplan.latency.profile import Bound, EngineProfile, Slo, StepTime, TokenMix
from servingplan.planning.problem import (
    AcceleratorSupply,
    ClassDemand,
    ModelOption,
    PlanDemand,
    Problem,
    Scope,
    SetupOption,
)

TIERS_S = (0.4, 0.8, 2.0)
"""95th percentiles of TTFT that classes ask for; three tiers."""
MEAN_S = 0.5
_LENGTHS = ((512, 128), (128, 128), (1024, 256), (2048, 64))


def fleet(
    seed: int,
    *,
    models: int = 10,
    gpus: int = 64,
    classes: int = 20,
    scope: Scope = Scope.ROUTE,
    load: float = 0.9,
    shapes: int = 1,
) -> PlanDemand:
    """A plan of random models with six setups each on nodes of eight, and classes that ask for about what they can carry.

    Args:
        seed: Of everything that is drawn.
        models: Each with tensor parallel sizes 1, 2, 4 (8 for the largest) on two kinds of accelerator.
        gpus: Half of either kind.
        classes: With three SLO tiers and Dirichlet rates.
        scope: ROUTE asks for percentiles, PLAN for one mean.
        shapes: Token lengths that classes may have, of four.
        load: Requests as a fraction of what the accelerators would carry with middling models.
    """
    source = np.random.default_rng(seed)
    sizes = np.sort(np.exp(source.uniform(np.log(3), np.log(72), models)))
    names = [f"c{k:02d}" for k in range(classes)]
    hard = source.uniform(0.0, 0.25, classes)
    options = []
    for m, size in enumerate(sizes):
        skill = np.clip(0.35 + 0.12 * np.log(size) - hard + source.normal(0, 0.03, classes), 0.05, 0.98)
        quality = {name: float(score) for name, score in zip(names, skill, strict=True)}
        first = 0 if size < 30 else 1
        setups = tuple(_setup(source, size, 2**power, kind) for kind in ("fast", "slow") for power in range(first, first + 3))
        options.append(ModelOption(f"m{m:03d}", quality, setups))
    share = source.dirichlet(np.full(classes, 2.0))
    total = load * gpus * source.uniform(4.0, 8.0)
    demand = []
    for k, name in enumerate(names):
        prompt, output = _LENGTHS[int(source.integers(shapes))]
        bound = Bound(MEAN_S, None) if scope is Scope.PLAN else Bound(TIERS_S[int(source.integers(3))])
        demand.append(ClassDemand(name, TokenMix(prompt, output), Slo(ttft=bound), float(share[k] * total)))
    half = gpus // 2
    kinds = tuple(
        AcceleratorSupply(
            name,
            "nvidia.com/gpu",
            {f"{name}-{node}": 8 for node in range(half // 8)},
            cost_per_hour=cost,
        )
        for name, cost in (("fast", 4.0), ("slow", 1.8))
    )
    return PlanDemand(f"bench/{seed}", tuple(options), tuple(demand), kinds, scope=scope)


def problem(plan: PlanDemand, gap: float, time_limit_s: float = 60.0) -> Problem:
    """One plan as a problem."""
    return Problem((plan,), relative_gap=gap, time_limit_s=time_limit_s)


def _setup(source: np.random.Generator, size: float, parallel: int, kind: str) -> SetupOption:
    slower = 1.0 if kind == "fast" else 2.1
    factor = slower * source.uniform(0.9, 1.1) / parallel**0.8
    step = StepTime(
        alpha_s=(2.0 + 0.55 * size * factor) * 1e-3, beta_s=1.7e-6 * size * factor, gamma_s=3.5e-9 * size**0.7 * factor
    )
    kv_tokens = int((72e9 * parallel - 2e9 * size) / (60e3 * size**0.5)) if 72 * parallel > 2.3 * size else 2_000
    return SetupOption(
        f"{kind}-tp{parallel}",
        kind,
        parallel,
        EngineProfile(step, max_num_seqs=256, max_num_batched_tokens=8192, kv_tokens=kv_tokens),
    )
