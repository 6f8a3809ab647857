"""``top``: what its frames show at any width, with colours and without."""

from __future__ import annotations

import copy
import io
import random
from types import ModuleType
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console, Group

from servingplan.plugin.reading import read_plan
from servingplan.plugin.screen import bars, keys
from servingplan.plugin.screen.bars import Palette
from servingplan.plugin.screen.live import Screen, Sight, units_there
from servingplan.plugin.screen.samples import Samples

MODELS = ("qwen3-32b", "qwen2.5-14b", "llama-3.1-8b")
PALETTE = Palette(MODELS)


def console(width: int, height: int = 40, *, colours: bool = True) -> Console:
    system = "truecolor" if colours else None
    return Console(
        width=width, height=height, force_terminal=True, color_system=system, no_color=not colours, file=io.StringIO()
    )


def lines(given: Console, *plans: dict[str, Any], now_s: float, error: str = "", watched_s: int = 0) -> list[str]:
    """A frame as text, after the plans were watched for some time with rates that vary."""
    screen, rng = Screen(given), random.Random(1)
    for age_s in range(watched_s, 0, -10):
        earlier = copy.deepcopy(plans)
        for entry in (entry for plan in earlier for entry in plan["status"].get("demand", ())):
            entry["observed"] = str(rng.uniform(0, 20))
        screen.seen(Sight(now_s - age_s, tuple(map(read_plan, earlier)), {}))
    views = tuple(map(read_plan, plans))
    sight = Sight(now_s, views, {(view.key, kind.name): 16 for view in views for kind in view.kinds}, error)
    screen.seen(sight)
    with given.capture() as captured:
        given.print(screen.draw(sight, 2.0))
    return [_without_colours(line) for line in captured.get().splitlines()]


def _without_colours(text: str) -> str:
    parts = text.split("\x1b[")
    return parts[0] + "".join(part.partition("m")[2] for part in parts[1:])


def several(bodies: ModuleType) -> list[dict[str, Any]]:
    names = ("a", "batch", "chat", "d", "new")
    found = [bodies.plan(name, spec={"mode": "Paused"} if name == "batch" else {}) for name in names]
    found[-1]["status"] = {}
    return found


@pytest.mark.parametrize("width", [60, 80, 104, 130, 200])
@pytest.mark.parametrize("colours", [True, False], ids=["colours", "none"])
def test_a_frame_keeps_to_the_terminal(bodies: ModuleType, width: int, colours: bool) -> None:
    for plans in ([bodies.plan()], several(bodies)):
        found = lines(console(width, 30, colours=colours), *plans, now_s=bodies.NOW_S, watched_s=120)
        assert len(found) == 30
        assert max(map(cell_len, found)) <= width
        assert found[-1].startswith("q quit")


@pytest.mark.parametrize("width", [80, 130])
def test_a_frame_shows_what_people_look_for(bodies: ModuleType, width: int) -> None:
    text = "\n".join(lines(console(width), bodies.plan(), now_s=bodies.NOW_S))
    for part in (
        "llm/chat  Auto", "● ready", "● SLO kept", "quality 0.764", "30.00 per hour", "20.4 requests/s",
        "h100 ■■■■■■ 6/6", "●●○", "82 %", "8.9/s", "1.04 s", "980 ms", "14.9/s", "14.6/s", "44 %", "REFUSED", "named qwen3-32b",
        "qwen3-32b/h100-tp2 starts: 2 of 3 ready", "+1 qwen3-32b/h100-tp2 (2 to 3)", "40s ago",
    ):  # fmt: skip
        assert part in text, part


def test_more_room_shows_more(bodies: ModuleType) -> None:
    text = "\n".join(lines(console(130), bodies.plan(), now_s=bodies.NOW_S))
    for part in ("of 0.770 possible", "6/6 of 16 there", "━ measured  ◆ planned  ┃ bound", "SPEED", "? 127 %", "80 %"):
        assert part in text, part


def test_without_colours_every_model_has_its_texture(bodies: ModuleType) -> None:
    given = console(120, colours=False)
    found = lines(given, bodies.plan(), now_s=bodies.NOW_S)
    (chat,) = (line for line in found if line.startswith("chat"))
    assert "█ 27 % █" in chat
    assert "▓ 44 % ▓" in chat
    assert "▒ 27 % ▒" in chat
    assert [line[0] for line in found if line[2:].startswith(MODELS) and "%" in line] == ["▒", "▓", "█"], (
        "as the table of setups says"
    )


def test_a_low_terminal_loses_the_least_important(bodies: ModuleType) -> None:
    found = lines(console(120, 10), bodies.plan(), now_s=bodies.NOW_S)
    text = "\n".join(found)
    assert len(found) == 10
    assert "SLO kept" in text
    assert "LAST DECISIONS" not in text
    assert found[-1].startswith("q quit")


@pytest.mark.parametrize(
    ("conditions", "shown"),
    [
        ([("SLOMet", "False", "Late")], "▲ SLO missed"),
        ([("SLOMet", "Unknown", "NoTraffic")], "○ SLO not measured"),
        ([("Ready", "False", "Progressing")], "◐ moving"),
        ([("Ready", "False", "PodsNotStarting")], "▲ PodsNotStarting"),
        ([("Feasible", "False", "Infeasible"), ("Ready", "False", "Infeasible")], "▲ not feasible"),
        ([("MetricsAvailable", "False", "PrometheusUnreachable")], "▲ PrometheusUnreachable"),
    ],
)
def test_every_state_has_a_shape_of_its_own(bodies: ModuleType, conditions: list[tuple[str, str, str]], shown: str) -> None:
    given = bodies.with_conditions(*(bodies.condition(*each, "why it is so") for each in conditions))
    text = "\n".join(lines(console(120), bodies.plan(conditions=given), now_s=bodies.NOW_S))
    assert shown in text
    assert "why it is so" in text or "Progressing" in str(conditions)


def test_plans_stand_in_a_list_with_one_of_them_below(bodies: ModuleType) -> None:
    found = lines(console(120, 44), *several(bodies), now_s=bodies.NOW_S)
    assert "5 plans   24 h100 and 24 l40s   120.00 per hour" in found[0]
    assert [line.split()[0] for line in found[2:7]] == ["▸", "llm/batch", "llm/chat", "llm/d", "llm/new"]
    assert "‖ paused" in found[3]
    assert "not decided" in found[6]
    assert found[8].startswith(" llm/a  Auto")


def test_a_list_of_many_plans_shows_those_around_the_chosen_one(bodies: ModuleType) -> None:
    given = console(120, 26)
    screen = Screen(given)
    plans = tuple(read_plan(bodies.plan(f"p{index:03}")) for index in range(100))
    sight = Sight(bodies.NOW_S, plans, {})
    screen.move(50, len(plans))
    with given.capture() as captured:
        given.print(screen.draw(sight, 2.0))
    text = captured.get()
    assert "llm/p050" in text
    assert "llm/p099" not in text
    screen.move(49, len(plans))
    screen.move(1, len(plans))
    assert screen.chosen == 0, "behind the last comes the first"


def test_an_old_sight_says_how_old(bodies: ModuleType) -> None:
    found = lines(console(120), bodies.plan(), now_s=bodies.NOW_S, error="the API server does not answer")
    assert "old: the API server does not answer" in found[-1]
    assert "SLO kept" in "\n".join(found), "what was seen stays"


@pytest.mark.parametrize(
    ("ready", "wanted", "text"), [(2, 3, "●●○"), (3, 1, "●●●"), (0, 0, ""), (12, 12, "● 12"), (9, 12, "● 9/12")]
)
def test_replicas_are_dots(ready: int, wanted: int, text: str) -> None:
    assert bars.dots(ready, wanted).plain == text


@pytest.mark.parametrize(
    ("value", "mark", "bound", "text"),
    [
        (0.5, 0.8, 1.0, "━━━━━·◆·┃·"),
        (1.0, None, 1.0, "━━━━━━━━┃·"),
        (5.0, None, 1.0, "━━━━━━━━┃━"),
        (None, 0.5, 1.0, "····◆···┃·"),
        (None, None, 1.0, "········┃·"),
        (None, None, None, "··········"),
    ],
)
def test_a_gauge_holds_a_figure_against_its_bound(
    value: float | None, mark: float | None, bound: float | None, text: str
) -> None:
    assert bars.gauge(value, mark, bound, 10).plain == text


@pytest.mark.parametrize("width", [1, 3, 8, 40])
def test_shares_fill_their_width(width: int) -> None:
    for parts in (
        {"qwen3-32b": 1.0},
        {"qwen3-32b": 0.335, "qwen2.5-14b": 0.335, "llama-3.1-8b": 0.33},
        {"llama-3.1-8b": 0.999, "x": 0.001},
    ):
        found = bars.shares(parts, width, PALETTE)
        assert found.cell_len == max(width, len(parts))
        assert len({span.style for span in found.spans}) == len(parts), "what is there is seen, however small"
    assert bars.shares({}, width, PALETTE).plain == "·" * width


def test_units_show_who_has_them() -> None:
    assert bars.units({"qwen3-32b": 4, "llama-3.1-8b": 1}, 8, 16, PALETTE).plain == "■■■■■□□□"
    assert bars.units({"qwen3-32b": 40}, 80, 16, PALETTE).plain == "■" * 8 + "□" * 8
    assert bars.units({}, 0, 16, PALETTE).plain == ""


def test_a_line_has_gaps_where_nothing_was_measured() -> None:
    assert bars.line([0, 5, None, 10], 6, "").plain == "  ▁▄ ▇"
    assert bars.line([0, 0], 2, "").plain == "▁▁"


def test_samples_are_by_time_and_forgotten(bodies: ModuleType) -> None:
    samples = Samples()
    for at_s, rate in ((0.0, "1"), (10.0, None), (30.0, "3"), (700.0, "7"), (710.0, "8")):
        demand = [{"class": "chat", "planned": "9", **({"observed": rate} if rate else {})}]
        samples.add(at_s, (read_plan(bodies.plan(demand=demand)),))
        if at_s == 30:
            assert samples.rates("llm/chat", "chat", by_name=False, step_s=10) == [1.0, None, None, 3.0]
    assert samples.rates("llm/chat", "chat", by_name=False, step_s=10) == [7.0, 8.0]
    assert samples.rates("llm/chat", "chat", by_name=True, step_s=10) == []


def test_units_of_matching_nodes_are_counted(bodies: ModuleType) -> None:
    kind = read_plan(bodies.plan()).kinds[0]

    def node(units: str, **labels: str) -> dict[str, Any]:
        return {"metadata": {"name": "n", "labels": labels}, "status": {"allocatable": {"nvidia.com/gpu": units}}}

    h100 = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    assert units_there(kind, [node("8", **h100), node("4", **h100), node("16"), {"metadata": {}, "status": {}}]) == 12


@pytest.mark.parametrize(
    ("text", "pressed"),
    [("q", ["quit"]), ("\x1b[A\x1b[B", ["up", "down"]), ("jk", ["down", "up"]), ("x", ["other"]), ("", [])],
)
def test_keys_are_told_apart(text: str, pressed: list[str]) -> None:
    assert keys.named(text) == pressed


def test_what_is_printed_once_is_cut_as_on_the_screen(bodies: ModuleType) -> None:
    given = console(80)
    sight = Sight(bodies.NOW_S, tuple(map(read_plan, several(bodies))), {})
    with given.capture() as captured:
        given.print(Group(*Screen(given).whole(sight)))
    found = [_without_colours(line) for line in captured.get().splitlines()]
    assert max(map(cell_len, found)) <= 80
    assert sum(line.startswith("LAST DECISIONS") for line in found) == 4, "each plan in full"
    assert not any(line.startswith("its profile") for line in found)
