"""From the replicas that run to those that are wanted."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servingplan.planning.transition import SetupState, step


@dataclass(frozen=True)
class Case:
    name: str
    given: dict[str, tuple[int, int, int, int]]  # units, current, ready, target
    room: int
    want: dict[str, int]


CASES = [
    Case("nothing runs: everything starts", {"a": (2, 0, 0, 3)}, 8, {"a": 3}),
    Case("new starts beside old while there is room", {"a": (2, 2, 2, 0), "b": (1, 0, 0, 4)}, 8, {"a": 2, "b": 4}),
    Case("old goes once new is ready", {"a": (2, 2, 2, 0), "b": (1, 4, 4, 4)}, 8, {"a": 0, "b": 4}),
    Case("without room just enough of the old goes first", {"a": (2, 4, 4, 0), "b": (1, 0, 0, 3)}, 8, {"a": 2, "b": 0}),
    Case("then the new starts in what it left", {"a": (2, 2, 2, 0), "b": (1, 0, 0, 3)}, 8, {"a": 2, "b": 3}),
    Case(
        "the largest surplus goes first", {"a": (1, 4, 4, 3), "b": (2, 2, 2, 0), "c": (2, 0, 0, 1)}, 8, {"a": 4, "b": 1, "c": 0}
    ),
    Case("what never became ready is not kept", {"a": (2, 2, 0, 0), "b": (1, 0, 0, 4)}, 8, {"a": 0, "b": 4}),
    Case("shrinking alone happens at once", {"a": (1, 4, 4, 2)}, 8, {"a": 2}),
    Case("growth waits for units that are not free yet", {"a": (2, 1, 1, 1), "b": (1, 0, 0, 4)}, 4, {"a": 1, "b": 2}),
    Case("a lowered limit holds at once", {"a": (1, 8, 8, 4)}, 4, {"a": 4}),
]


def states(given_: dict[str, tuple[int, int, int, int]], plan: str = "ns/p") -> tuple[SetupState, ...]:
    return tuple(
        SetupState((plan, name, "s"), "pool", units, current, ready, target)
        for name, (units, current, ready, target) in given_.items()
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_step(case):
    found = step(states(case.given), {"pool": case.room})
    assert {key[1]: count for key, count in found.items()} == case.want


def test_a_plan_waits_only_for_its_own_replicas():
    stuck = states({"a": (1, 2, 0, 2)}, plan="ns/stuck")
    shrinking = states({"b": (1, 3, 3, 1)}, plan="ns/fine")
    assert step(stuck + shrinking, {"pool": 8})["ns/fine", "b", "s"] == 1


@given(
    st.lists(st.tuples(st.sampled_from([1, 2, 4]), st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=5),
    st.integers(0, 8),
)
def test_steps_end_at_the_targets_and_never_exceed_the_room(setups, slack):
    moving = tuple(
        SetupState(("ns/p", f"m{i}", "s"), "pool", units, current, current, target)
        for i, (units, current, target) in enumerate(setups)
    )
    # What runs and what is wanted each fit; both together need not.
    room = max(sum(s.units * s.current for s in moving), sum(s.units * s.target for s in moving)) + slack
    for _ in range(4):
        asked = step(moving, {"pool": room})
        assert sum(s.units * max(s.current, asked[s.key]) for s in moving) <= room
        assert all(asked[s.key] >= min(s.current, s.target) for s in moving)
        moving = tuple(replace(s, current=asked[s.key], ready=asked[s.key]) for s in moving)
    assert {s.key: s.current for s in moving} == {s.key: s.target for s in moving}
