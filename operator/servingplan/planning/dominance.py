"""Columns that cannot be part of a better plan, left out before the search.

Within a model and an accelerator, a column is dominated by another one whose replicas are no larger (their size divides), which
serves every class that the first one serves, and at least as much of each per unit: whatever the first carries, the second
carries on the same units of the same nodes. That holds as long as a setup may be kept strict for several classes at once, so
the answer stands only if no setup is (``planning.solve`` looks, and asks again without leaving anything out).
"""

from __future__ import annotations

from dataclasses import replace

from servingplan.planning.columns import Column, Frame
from servingplan.planning.problem import Scope

_EQUAL = 1e-12


def undominated(asked: Frame) -> Frame:
    """The frame with dominated columns closed to every class; those of setups with bounds or with running replicas stay."""
    closed = {j for columns in _families(asked) for j in columns if _dominated(asked, j, columns)}
    if not closed:
        return asked
    columns: list[Column] = []
    setups = []
    for family in asked.setups:
        # A setup keeps a column, so that its minimum and its place in the answer do.
        kept = [asked.columns[j] for j in family if j not in closed] or [
            replace(asked.columns[family[0]], capacity={}, strictest="")
        ]
        setups.append(tuple(range(len(columns), len(columns) + len(kept))))
        columns += kept
    return replace(asked, columns=tuple(columns), setups=tuple(setups))


def _families(asked: Frame) -> list[list[int]]:
    """Columns by plan, model and accelerator that may stand for one another."""
    found: dict[tuple[int, str, str], list[int]] = {}
    for j, column in enumerate(asked.columns):
        setup, plan = column.setup, asked.plans[column.plan]
        if plan.scope is Scope.ROUTE and not plan.tolerate_nodes and setup.max_replicas is None and column.capacity:
            found.setdefault((column.plan, column.model.name, setup.accelerator), []).append(j)
    return list(found.values())


def _dominated(asked: Frame, j: int, family: list[int]) -> bool:
    column = asked.columns[j]
    if column.setup.min_replicas > 0 or column.setup.current_replicas > 0:
        return False
    return any(_dominates(asked.columns[i], column, earlier=i < j) for i in family if i != j)


def _dominates(better: Column, worse: Column, *, earlier: bool) -> bool:
    if worse.setup.units % better.setup.units or worse.capacity.keys() - better.capacity.keys():
        return False
    gains = [better.capacity[name] / better.setup.units - rate / worse.setup.units for name, rate in worse.capacity.items()]
    # Of two equals the earlier one stays.
    return min(gains) >= -_EQUAL and (earlier or max(gains) > _EQUAL or len(better.capacity) > len(worse.capacity))
