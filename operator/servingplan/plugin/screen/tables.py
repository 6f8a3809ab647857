"""The two tables of a plan's frame: its setups against their bound, and who answers its classes. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from servingplan.offline import words
from servingplan.plugin import states
from servingplan.plugin.screen import bars
from servingplan.plugin.screen.bars import BAD, FAINT, REFUSED, WATCH, Palette
from servingplan.plugin.screen.scene import Scene
from servingplan.plugin.view import ClassView, PlanView, SetupView

_GAP = 2
_LINE_STEP_S = 10.0
_GAUGE_AT, _LEAST_GAUGE, _MOST_GAUGE = 5, 10, 40
_LEAST_SHARES, _MOST_SHARES = 8, 64
_LOAD_BAR = 10

Columns = list[tuple[str, str]]
"""Title and side: r for right, l for left."""


def setups(plan: PlanView, scene: Scene, palette: Palette) -> Table:
    """What runs, how loaded it is, and how long it takes to the first token against what it may."""
    load, speed = (_LOAD_BAR if scene.wide else 0), scene.wide and any(each.learnt for each in plan.setups)
    columns: Columns = [("MODEL", "l"), ("SETUP", "l"), ("REPLICAS", "l"), ("LOAD", "l" if load else "r"), ("RATE", "r")]
    columns += [("MEASURED", "r"), ("PLANNED", "r"), *([("SPEED", "r")] if speed else [])]
    rows = [
        [
            Text.assemble(palette.swatch(each.model), " ", each.model),
            Text(each.setup),
            bars.dots(each.ready, each.replicas),
            _load(each, load),
            Text(f"{each.rate_rps:.1f}/s"),
            *_latencies(plan, each),
            *([_speed(each)] if speed else []),
        ]
        for each in plan.setups
    ]
    room = min(_MOST_GAUGE, _left(columns, rows, scene.width))
    if room >= _LEAST_GAUGE:
        statistics = {bound.statistic for each in plan.setups if (bound := plan.bound_of(each.model))} or {"p95"}
        ttft = f"TTFT {'/'.join(sorted(statistics, reverse=True))}"
        legend = f"{ttft}  ━ measured  ◆ planned  ┃ bound"
        columns.insert(_GAUGE_AT, (legend if len(legend) <= room else ttft, "l"))
        for row, each in zip(rows, plan.setups, strict=True):
            bound_s, observed_s, predicted_s = _figures(plan, each)
            row.insert(_GAUGE_AT, bars.gauge(observed_s, predicted_s, bound_s, room))
    return _table(columns, rows)


def classes(plan: PlanView, scene: Scene, palette: Palette) -> Table:
    """What is asked of the plan, and which models answer it."""
    lines = [scene.samples.rates(plan.key, each.name, by_name=each.by_name, step_s=_LINE_STEP_S) for each in plan.classes]
    seen, refused = any(len(line) > 1 for line in lines), any(each.shed > 0 for each in plan.classes)
    cells = 18 if scene.wide else 10
    columns: Columns = [("CLASS", "l"), ("RATE", "r"), ("PLANNED", "r")]
    columns += [*([("LAST MINUTES", "l")] if seen else []), *([("REFUSED", "r")] if refused else [])]
    rows = [
        [
            Text(_name(each), style="italic" if each.by_name else ""),
            _rate(each),
            Text(states.rate(each.planned_rps), style=FAINT),
            *([bars.line(line, cells, "cyan")] if seen else []),
            *([Text(words.percent(each.shed), style=BAD) if each.shed else Text("-", style=FAINT)] if refused else []),
        ]
        for each, line in zip(plan.classes, lines, strict=True)
    ]
    room = max(_LEAST_SHARES, min(_MOST_SHARES, _left(columns, rows, scene.width)))
    for row, each in zip(rows, plan.classes, strict=True):
        row.append(bars.shares({**each.weights, **({REFUSED: each.shed} if each.shed > 0 else {})}, room, palette))
    return _table([*columns, ("ANSWERED BY", "l")], rows, leading=scene.roomy)


def _table(columns: Columns, rows: Sequence[Sequence[Text]], *, leading: bool = False) -> Table:
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style=FAINT)
    for name, side in columns:
        table.add_column(name, justify="right" if side == "r" else "left", no_wrap=True, overflow="ellipsis")
    for index, row in enumerate(rows):
        if leading and index:
            table.add_row()
        table.add_row(*row)
    return table


def _left(columns: Columns, rows: Sequence[Sequence[Text]], width: int) -> int:
    """Columns of the terminal that a table leaves to one more."""
    taken = [max(len(name), *(row[at].cell_len for row in rows)) for at, (name, _) in enumerate(columns)]
    return width - sum(taken) - _GAP * len(columns)


def _load(each: SetupView, width: int) -> Text:
    style = WATCH if each.utilization > 0.95 else ""
    percent = Text(f"{100 * each.utilization:3.0f} %", style=style)
    return Text.assemble(bars.bar(each.utilization, width, style or "cyan"), " ", percent) if width else percent


def _latencies(plan: PlanView, each: SetupView) -> list[Text]:
    bound_s, observed_s, predicted_s = _figures(plan, each)
    style = FAINT if observed_s is None else bars.against(observed_s, bound_s)
    return [Text(states.maybe_seconds(observed_s), style=style), Text(states.maybe_seconds(predicted_s), style=FAINT)]


def _figures(plan: PlanView, each: SetupView) -> tuple[float | None, float | None, float | None]:
    """Bound, measured and predicted time to first token in seconds, of the statistic that the bound speaks of."""
    bound = plan.bound_of(each.model)
    statistic = bound.statistic if bound else "p95"
    observed = each.observed.ttft_s(statistic) if each.observed else None
    predicted = each.predicted.ttft_s(statistic) if each.predicted else None
    return (bound.seconds if bound else None), observed, predicted


def _speed(each: SetupView) -> Text:
    """How fast a replica is, as a percentage of its profile."""
    factor = each.learnt.slowness if each.learnt else None
    if factor is None:
        return Text("-", style=FAINT)
    style = "" if 0.9 <= factor <= 1.1 else WATCH
    return Text(f"{'? ' if each.learnt and each.learnt.drifting else ''}{100 / factor:.0f} %", style=style)


def _name(each: ClassView) -> str:
    return f"named {each.name}" if each.by_name else each.name


def _rate(each: ClassView) -> Text:
    if each.observed_rps is None:
        return Text(states.rate(each.declared_rps), style=FAINT)
    over = each.planned_rps is not None and each.observed_rps > 1.02 * each.planned_rps
    return Text(states.rate(each.observed_rps), style=WATCH if over else "bold")
