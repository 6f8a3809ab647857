"""From the weights that are published to the weights that are wanted, a step at a time.

A replica that has just become ready has empty caches, and a plan may be wrong about a setup that nobody has measured: so no
step moves more than a part of a class, each step waits until every router serves the one before, and a new setup takes a small
part until it has been watched for a cycle. Routers learn of a pod a moment after it is ready, and refuse what they are to send
to a pool that they know no pod of. What is no longer ready loses its weight at once.
"""

from __future__ import annotations

from collections.abc import Mapping

from servingplan.api.routing_table import WEIGHT_TOTAL, ClassEntry, RoutingTable, whole_weights

LARGEST_STEP = 0.25
"""Part of a class that one step may move."""
UNSEEN_SHARE = 0.2
"""Part of a class that a setup may take in its first cycle."""
_CALM = 0.01


def stepped(
    published: RoutingTable | None,
    wanted: RoutingTable,
    ready: frozenset[str],
    unseen: frozenset[str] = frozenset(),
    unreached: frozenset[str] = frozenset(),
    *,
    synced: bool,
) -> tuple[RoutingTable, bool]:
    """The table to publish now, and whether its weights are where they are wanted.

    Args:
        published: The table that stands.
        wanted: The table to end at.
        ready: Pools with a ready replica.
        unseen: Pools that were never measured and are in their first cycle.
        unreached: Pools that some router knows no pod of yet; they get no weight that they do not have, as long as another has.
        synced: Whether every ready router serves what is published; where not, weights stay.
    """
    before = {entry.name: entry.weights for entry in published.classes} if published else {}
    classes, arrived = [], True
    for entry in wanted.classes:
        still = _still(before.get(entry.name, {}), ready)
        goal = _capped(_reached(entry.weights, unreached, still), unseen, still)
        now = _towards(still, goal, synced=synced)
        arrived &= goal == entry.weights and _distance(now, goal) < _CALM
        classes.append(_with(entry, now, wanted))
    named = {model.name: model.weights for model in published.models} if published else {}
    models = []
    for model in wanted.models:
        goal = _reached(model.weights, unreached, _still(named.get(model.name, {}), ready))
        arrived &= goal == model.weights
        models.append(model if goal == model.weights else model.model_copy(update={"weights": goal}))
    return wanted.model_copy(update={"classes": tuple(classes), "models": tuple(models)}), arrived


def _still(weights: Mapping[str, int], ready: frozenset[str]) -> dict[str, int]:
    return whole_weights({pool: float(weight) for pool, weight in weights.items() if pool in ready})


def _reached(weights: Mapping[str, int], unreached: frozenset[str], still: Mapping[str, int]) -> dict[str, int]:
    """The weights of the pools that requests can get to, or already go to; else what serves, else as they are."""
    found = {pool: float(weight) for pool, weight in weights.items() if pool not in unreached or pool in still}
    if len(found) == len(weights):
        return dict(weights)
    return whole_weights(found) or dict(still) or dict(weights)


def _capped(weights: Mapping[str, int], unseen: frozenset[str], still: Mapping[str, int]) -> dict[str, int]:
    """The weights, with what unseen pools have beyond their part left to others: those wanted, else those that serve."""
    most = UNSEEN_SHARE * WEIGHT_TOTAL
    others = {pool: weight for pool, weight in weights.items() if pool not in unseen}
    others = others or {pool: weight for pool, weight in still.items() if pool not in unseen}
    spare = sum(max(0.0, weight - most) for pool, weight in weights.items() if pool in unseen)
    if not others or spare <= 0:
        return dict(weights)
    found = {pool: min(most, weight) if pool in unseen else float(weight) for pool, weight in weights.items()}
    for pool, weight in others.items():
        found[pool] = found.get(pool, 0.0) + spare * weight / sum(others.values())
    return whole_weights(found)


def _towards(old: dict[str, int], goal: dict[str, int], *, synced: bool) -> dict[str, int]:
    if not old or not goal:
        return goal
    distance = _distance(old, goal)
    if not synced or distance == 0 or (distance < _CALM and old.keys() == goal.keys()):
        return old
    if distance <= LARGEST_STEP:
        return goal
    part = LARGEST_STEP / distance
    pools = old.keys() | goal.keys()
    return whole_weights({pool: old.get(pool, 0) + part * (goal.get(pool, 0) - old.get(pool, 0)) for pool in pools})


def _distance(one: Mapping[str, int], other: Mapping[str, int]) -> float:
    """Part of the requests that two sets of weights send to different pools; all of them where one is empty."""
    if not one or not other:
        return float(bool(one) != bool(other))
    return sum(abs(one.get(pool, 0) - other.get(pool, 0)) for pool in one.keys() | other.keys()) / 2 / WEIGHT_TOTAL


def _with(entry: ClassEntry, weights: dict[str, int], table: RoutingTable) -> ClassEntry:
    """The class with other weights, and the shares that follow from them."""
    if weights == entry.weights:
        return entry
    models = {pool.name: model.name for model in table.models for pool in model.pools}
    total = sum(weights.values())
    shares: dict[str, float] = {}
    for pool, weight in weights.items():
        if pool in models:
            shares[models[pool]] = shares.get(models[pool], 0.0) + (1 - entry.shed) * weight / total
    return entry.model_copy(
        update={"weights": weights, "shares": {name: round(share, 6) for name, share in sorted(shares.items())}}
    )
