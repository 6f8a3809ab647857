"""One run of each router on a workload."""

from __future__ import annotations

import numpy as np

from baselines import fixed, planrule, routebalance
from baselines.routebalance import Rule
from virtualfleet import engines, outcome, tiers
from virtualfleet.outcome import Outcome
from virtualfleet.workload import Workload


def route_balance(
    work: Workload, rule: Rule, *, slots: int = 256, extra_s: float = 0.0, silent: np.ndarray | None = None
) -> tuple[Outcome, float]:
    """RouteBalance, and the seconds it held requests on average without `extra_s`.

    ``extra_s`` lies between its decision and the instance; ``silent`` (instances,) is 1 for those that answer no poll.
    """
    rule = Rule(*map(float, rule[:4]), *map(bool, rule[4:]))  # one signature to compile, however the weights are written
    fleet = engines.build(work.prompt_tokens, work.output_tokens, slots)
    silent = np.zeros(len(tiers.MODEL_OF), dtype=np.int64) if silent is None else silent
    state = routebalance.unknown(len(tiers.MODEL_OF), slots)
    costs = routebalance.costs(fleet)
    held_s = routebalance.run(
        fleet, rule, costs, state, work.arrival_s, work.predicted_quality, work.predicted_tokens, extra_s, silent
    )
    return outcome.of(fleet, work), held_s


def model_first(
    work: Workload, model: np.ndarray, way: int = fixed.SHORTEST_QUEUE, *, ready_s: np.ndarray | None = None, slots: int = 256
) -> Outcome:
    """A router that knows each request's (n,) model, or ANY_MODEL, at `ready_s` (n,), the arrival unless given."""
    fleet = engines.build(work.prompt_tokens, work.output_tokens, slots)
    ready_s = work.arrival_s if ready_s is None else ready_s
    kinds, kv_tokens = int(work.blocks.max()) + 1, tiers.by_instance("kv_tokens")
    fixed.run(fleet, model.astype(np.int64), ready_s, way, work.draw, kv_tokens, work.blocks, kinds)
    return outcome.of(fleet, work)


def plan_rule(
    work: Workload, per_dollar: float, per_second: float, *, scale_s: float = 10.0, guard_s: float = 1.0, slots: int = 256
) -> Outcome:
    """The picker's rule with perfect knowledge."""
    fleet = engines.build(work.prompt_tokens, work.output_tokens, slots)
    dollars = tiers.cost(work.prompt_tokens, work.predicted_tokens)
    args = work.arrival_s, work.predicted_quality, work.predicted_tokens, dollars
    planrule.run(fleet, *args, per_dollar, per_second, scale_s, guard_s)
    return outcome.of(fleet, work)


def anywhere(work: Workload) -> np.ndarray:
    """(n,) no model chosen."""
    return np.full(len(work), fixed.ANY_MODEL)
