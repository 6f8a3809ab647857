"""Values of a program's variables, and how exactly they are meant."""

from __future__ import annotations

from dataclasses import dataclass, field

from servingplan.planning.compiled import Vector
from servingplan.planning.problem import Binding

PIN = 1e-7
"""How far below its optimum, relative to it, an earlier level may fall while a later one is sought: the solver's tolerance."""
DUST = 1e-7
"""A share of a class below it is the solver's tolerance, not a decision."""


@dataclass(frozen=True, slots=True)
class Solution:
    """Values of the variables, and what the quality solve proved.

    Attributes:
        share: (pairs,) fraction of its class that goes to a column.
        replicas: (columns,).
        refused: (classes,) fraction of each class.
        refused_after_loss: (classes,) the worst fraction over the nodes that may be lost.
        unmet: (setups,) replicas of the minimum that do not fit.
        column_price: (columns,) quality that one more replica's worth of load would add.
        class_value: (classes,) quality that one more request per second would add.
        quality: Weighted requests per second times score.
        bound: Proven upper bound on it.
        bindings: By plan index.
    """

    share: Vector
    replicas: Vector
    refused: Vector
    refused_after_loss: Vector
    unmet: Vector
    column_price: Vector
    class_value: Vector
    quality: float
    bound: float
    status: str
    seconds: float
    bindings: dict[int, tuple[Binding, ...]] = field(default_factory=dict)
