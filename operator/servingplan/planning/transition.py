"""From the replicas that run to the replicas that are wanted, without dropping requests and without exceeding the GPUs.

New before old: where there is room for both, what grows grows at once and what shrinks waits until everything of its plan that
grows is ready. Where there is not, exactly as much is given up as the growth needs: first what is not ready anyway, then the
largest surplus. What is given up leaves first and its units are free only when it has gone: nothing grows into units that
somebody still holds. A setup that runs never falls below its target. Nothing here remembers: a step is a function of what
runs now.
"""

from __future__ import annotations

from dataclasses import dataclass

Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class SetupState:
    """One setup during a move.

    Attributes:
        key: What names the setup; (namespace/plan, model, setup).
        pool: What its replicas compete for; setups with equal pools draw on the same units.
        current: Replicas that its Deployment asks for now.
        ready: Replicas that are ready.
        target: Replicas that the plan wants.
    """

    key: Key
    pool: str
    units: int
    current: int
    ready: int
    target: int


def step(states: tuple[SetupState, ...], capacity: dict[str, int]) -> dict[Key, int]:
    """Replicas to ask for now.

    Args:
        states: Every setup of every plan, in any order.
        capacity: Units that the replicas of each pool may take in all: those that pods on their way out still hold are not in.

    Returns:
        Replicas by setup. Repeated steps end at the targets when replicas become ready and units become free.
    """
    ordered = sorted(states, key=lambda state: state.key)
    growing = {state.key[0] for state in ordered if state.ready < state.target}
    wanted = {
        state.key: max(state.current, state.target) if state.key[0] in growing and state.ready > 0 else state.target
        for state in ordered
    }
    for pool in sorted({state.pool for state in ordered}):
        members = [state for state in ordered if state.pool == pool]
        excess = sum(state.units * wanted[state.key] for state in members) - capacity.get(pool, 0)
        for state in sorted(members, key=_surplus_units, reverse=True):
            excess = _lower(wanted, state, state.target, excess)
        for state in reversed(members):
            excess = _lower(wanted, state, min(state.current, state.target), excess)
        room = capacity.get(pool, 0) - sum(state.units * state.current for state in members)
        for state in members:
            grown = max(0, min(wanted[state.key] - state.current, room // state.units))
            wanted[state.key] = min(wanted[state.key], state.current + grown)
            room -= state.units * grown
    return wanted


def _lower(wanted: dict[Key, int], state: SetupState, least: int, excess: int) -> int:
    """Takes replicas of a setup back, down to ``least``, while units are too many; says how many still are."""
    while excess > 0 and wanted[state.key] > least:
        wanted[state.key] -= 1
        excess -= state.units
    return excess


def _surplus_units(state: SetupState) -> tuple[int, Key]:
    return state.units * (state.current - state.target), state.key
