"""What the closed form says of the load that is measured, beside what is measured: the error of the predictor."""

from __future__ import annotations

from dataclasses import dataclass

from servingplan.controller import demands
from servingplan.controller.case import case_of
from servingplan.controller.learn import sent
from servingplan.controller.memory import recall
from servingplan.controller.world import PlanObject, World
from servingplan.latency.capacity import latency, stable_rate_rps
from servingplan.latency.profile import blend

LEAST_REQUESTS = 30


@dataclass(frozen=True, slots=True)
class Compared:
    """One pool over the last minute: predicted from what was learnt before it, and measured.

    Attributes:
        load: Rate as a fraction of the stable one.
    """

    now_s: float
    pool: str
    requests: float
    load: float
    predicted_mean_s: float
    predicted_p95_s: float
    observed_mean_s: float


def compared(world: World, plan: PlanObject) -> list[Compared]:
    """Every pool with enough requests."""
    case = case_of(plan, (plan,), world, recall(plan))
    asked, shares = demands.routed(case), sent(case)
    profiles = {(model.name, setup.name): setup.profile for model in asked.models for setup in model.setups}
    found = []
    for key, pool in case.pools.items():
        reading = case.readings.pools.get(pool)
        if reading is None or reading.ttft is None or not reading.rate_rps or reading.ttft.count < LEAST_REQUESTS:
            continue
        parts = [(shares.get(entry.name, {}).get(pool, 0.0) * entry.rate_rps, entry.mix) for entry in asked.classes]
        if not any(rate > 0 for rate, _ in parts):
            continue
        mix, rate_rps = blend(parts), reading.rate_rps / reading.replicas
        expected = latency(profiles[key], mix, rate_rps)
        found.append(
            Compared(
                now_s=world.now_s,
                pool=pool,
                requests=reading.ttft.count,
                load=rate_rps / stable_rate_rps(profiles[key], mix),
                predicted_mean_s=expected.ttft_mean_s,
                predicted_p95_s=expected.ttft_s(95.0),
                observed_mean_s=reading.ttft.mean or 0.0,
            )
        )
    return found
