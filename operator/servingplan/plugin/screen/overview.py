"""Many plans, a line for each, and the frame around everything. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from servingplan.offline import words
from servingplan.plugin import states
from servingplan.plugin.screen import bars
from servingplan.plugin.screen.bars import BAD, FAINT, WATCH
from servingplan.plugin.screen.frame import light, ready_light
from servingplan.plugin.screen.scene import Scene
from servingplan.plugin.view import PlanView


@dataclass(frozen=True, slots=True)
class Cropped:
    """Parts from top to bottom, cut off where the terminal ends, above a last line that is always there."""

    parts: Sequence[RenderableType]
    last: Text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The lines that there is room for."""
        height = max(2, options.height or console.height)
        free = options.update(height=None)
        lines = [line for part in self.parts for line in console.render_lines(part, free, pad=False)]
        for line in lines[: height - 1]:
            yield from line
            yield Segment.line()
        yield from (Segment.line() for _ in range(height - 1 - len(lines)))
        yield from console.render_lines(self.last, free, pad=False)[0]


def overview(plans: Sequence[PlanView], chosen: int, scene: Scene, rows: int) -> Table:
    """A line for every plan; those around the chosen one where there is no room for all.

    Args:
        plans: In the order in which they are shown.
        chosen: Which of them stands below in full; -1 for none.
        scene: What is drawn on.
        rows: Lines at most.
    """
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style=FAINT, expand=True)
    columns = ["", "PLAN", "STATE", "SLO", "MODE", "QUALITY", "GPUS", "COST/H", "RATE", "GOING ON"]
    dropped = set() if scene.wide else {"MODE", "COST/H", "QUALITY"}
    right = {"QUALITY", "GPUS", "COST/H", "RATE"}
    for name in columns:
        if name not in dropped:
            ratio = 1 if name == "GOING ON" else None
            table.add_column(name, justify="right" if name in right else "left", no_wrap=True, overflow="ellipsis", ratio=ratio)
    first = max(0, min(chosen - rows // 2, len(plans) - rows))
    for index, plan in enumerate(plans[first : first + rows], first):
        cells = _cells(plan, scene)
        cells = [Text("▸", style="bold") if index == chosen else Text(" "), *cells]
        table.add_row(*(cell for name, cell in zip(columns, cells, strict=True) if name not in dropped))
    return table


def _cells(plan: PlanView, scene: Scene) -> list[Text]:
    news = states.going_on(plan, scene.now_s)
    rates = [each.rate_rps for each in plan.classes if each.rate_rps is not None]
    return [
        Text(plan.key, style="bold"),
        ready_light(plan),
        light(plan.condition("SLOMet"), "kept", "missed", "unknown"),
        Text(plan.mode, style="" if plan.mode == "Auto" else WATCH),
        Text("-" if plan.quality is None else f"{plan.quality:.3f}"),
        Text(str(sum(kind.used for kind in plan.kinds))),
        Text("-" if plan.cost_per_hour is None else f"{plan.cost_per_hour:,.2f}"),
        Text(f"{words.number(sum(rates))}/s" if rates else "-"),
        Text(news[0].text if news else "", style=BAD if news and news[0].bad else ""),
    ]


def totals(plans: Sequence[PlanView]) -> Text:
    """All plans in one line."""
    units: dict[str, int] = {}
    for plan in plans:
        for kind in plan.kinds:
            units[kind.name] = units.get(kind.name, 0) + kind.used
    missed = sum((found := plan.condition("SLOMet")) is not None and found.status == "False" for plan in plans)
    cost = sum(plan.cost_per_hour or 0.0 for plan in plans)
    text = Text.assemble((f" {len(plans)} plans", "bold"), f"   {words.gpus({k: n for k, n in sorted(units.items()) if n})}")
    text.append(f"   {words.money(cost)}")
    text.append(f"   {missed} miss{'es' if missed == 1 else ''} the SLO" if missed else "", style=bars.BAD)
    return text
