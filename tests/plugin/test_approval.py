"""Which approvals can be given, and what the operator's status says to one that was."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest

from servingplan.plugin import approval
from servingplan.plugin.reading import read_plan
from servingplan.plugin.view import PlanView

RECOMMEND = {"mode": "Recommend"}


@dataclass(frozen=True)
class Case:
    name: str
    wanted: str
    parts: dict[str, Any]
    said: list[str] = field(default_factory=list)


CASES = [
    Case("the present proposal", "7f3a21", {"spec": RECOMMEND, "proposal": "it"}),
    Case("whichever is present", "", {"spec": RECOMMEND, "proposal": "it"}),
    Case(
        "a newer one replaced it", "000000", {"spec": RECOMMEND, "proposal": "it"},
        ["proposal 000000 is stale", "7f3a21", "3m10s ago", "load of class chat 14.6 to 21 requests/s"],
    ),
    Case("what stands is the best", "7f3a21", {"spec": RECOMMEND}, ["nothing is proposed", "the best for plan llm/chat"]),
    Case("the operator asks nobody", "7f3a21", {"proposal": "it"}, ["mode Auto", "no approval"]),
    Case("it is paused", "7f3a21", {"spec": {"mode": "Paused"}, "proposal": "it"}, ["paused", "resume"]),
    Case(
        "the spec changed since", "7f3a21", {"spec": RECOMMEND, "proposal": "it", "metadata": {"generation": 4}},
        ["stale", "generation 3", "at 4 now"],
    ),
    Case(
        "the spec is not decided on yet", "7f3a21", {"spec": RECOMMEND, "metadata": {"generation": 4}},
        ["has not decided on generation 4"],
    ),
]  # fmt: skip


def view(bodies: ModuleType, **parts: Any) -> PlanView:
    if parts.get("proposal") == "it":
        parts["proposal"] = bodies.PROPOSAL
    return read_plan(bodies.plan(**parts))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_stale_says_why(bodies: ModuleType, case: Case) -> None:
    reason = approval.stale(view(bodies, **case.parts), case.wanted, bodies.NOW_S)
    assert bool(reason) == bool(case.said), reason
    for part in case.said:
        assert part in reason


ASKED = {"metadata": {"generation": 3, "annotations": {"servingplan.io/approve": "7f3a21"}}, "spec": RECOMMEND}
EARLIER = {"id": "111111", "time": "2026-11-22T10:00:00Z"}

ANSWERS = [
    ("nothing is said yet", ASKED | {"proposal": "it"}, None, ""),
    ("an earlier proposal stands", ASKED | {"proposal": "it", "approval": EARLIER}, None, ""),
    ("an earlier refusal stands", ASKED | {"proposal": "it", "approval": {"refused": "old news"}}, None, ""),
    ("it is adopted", ASKED | {"approval": {"id": "7f3a21"}}, True, "carries it out"),
    (
        "it is refused",
        ASKED | {"proposal": "it", "approval": EARLIER | {"refused": "7f3a21 is not the present proposal"}},
        False,
        "7f3a21 is not the present proposal",
    ),
    ("another came in between", ASKED | {"proposal": "other"}, False, "999999 replaced it"),
    ("what stands became the best", ASKED, False, "nothing is proposed"),
    (
        "somebody else approved another",
        {"metadata": {"generation": 3, "annotations": {"servingplan.io/approve": "999999"}}, "spec": RECOMMEND},
        False,
        "somebody approved 999999 instead",
    ),
    ("somebody withdrew it", {"spec": RECOMMEND, "proposal": "it"}, False, "withdrew"),
]


@pytest.mark.parametrize(("name", "parts", "adopted", "said"), ANSWERS, ids=[case[0] for case in ANSWERS])
def test_the_status_answers_an_approval(
    bodies: ModuleType, name: str, parts: dict[str, Any], adopted: bool | None, said: str
) -> None:
    before = view(bodies, spec=RECOMMEND, proposal="it", approval={"refused": "old news"})
    if parts.get("proposal") == "other":
        parts = parts | {"proposal": bodies.PROPOSAL | {"id": "999999"}}
    found = approval.answer(before, view(bodies, **parts), "7f3a21", bodies.NOW_S)
    assert (None if found is None else found.adopted) == adopted
    assert said in (found.text if found else "")
