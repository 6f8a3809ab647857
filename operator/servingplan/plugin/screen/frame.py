"""One plan as a frame of ``top``: how it is, what runs, who goes where, what was decided. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.rule import Rule
from rich.text import Text

from servingplan.offline import words
from servingplan.plugin import states, times
from servingplan.plugin.screen import bars, tables
from servingplan.plugin.screen.bars import BAD, FAINT, GOOD, WATCH, Palette
from servingplan.plugin.screen.scene import Scene
from servingplan.plugin.view import ConditionView, PlanView

_NEWS, _DECISIONS = 5, 5


def frame(plan: PlanView, scene: Scene) -> list[RenderableType]:
    """The parts from top to bottom, the least important last: a low terminal cuts them off."""
    palette = Palette(plan.models, scene.plain)
    parts: list[RenderableType] = [_title(plan, scene), _state(plan, scene), _supply(plan, scene, palette)]
    parts += _news(plan, scene)
    if plan.setups:
        parts += [Text(), tables.setups(plan, scene, palette)]
    if any(each.weights or each.rate_rps is not None for each in plan.classes):
        parts += [Text(), tables.classes(plan, scene, palette)]
    if plan.history:
        parts += [Text(), Text("LAST DECISIONS", style=FAINT), *_decisions(plan, scene)]
    return parts


def light(found: ConditionView | None, yes: str, no: str, unknown: str) -> Text:
    """A lamp and a word for a condition; the shape says what the colour says."""
    status = found.status if found else "Unknown"
    mark, style, word = {
        "True": ("●", GOOD, yes),
        "False": ("▲", BAD, no),
        "Unknown": ("○", FAINT, unknown),
    }[status]
    return Text.assemble((f"{mark} ", style), (word, style))


def ready_light(plan: PlanView) -> Text:
    """Whether the plan serves as decided; work in progress is no failure."""
    found = plan.condition("Ready")
    if plan.mode == "Paused":
        return Text("‖ paused", style=WATCH)
    if found and found.status == "False" and found.reason in {"Progressing", "RouterNotReady", "RoutingNotSynced"}:
        return Text("◐ moving", style=WATCH)
    if found and not plan.decided:
        return Text("◐ deciding", style=WATCH)
    return light(found, "ready", found.reason if found else "not ready", "not decided")


def slo_light(plan: PlanView) -> Text:
    """Whether the SLO is kept, as measured."""
    return light(plan.condition("SLOMet"), "SLO kept", "SLO missed", "SLO not measured")


def _title(plan: PlanView, scene: Scene) -> Rule:
    mode = plan.mode if plan.mode == "Auto" else plan.mode.upper()
    text = Text.assemble((f" {plan.key} ", "bold"), (f" {mode}", "" if plan.mode == "Auto" else WATCH))
    if scene.wide and plan.slo:
        text.append(f"   {plan.slo}", style=FAINT)
    style = {"True": GOOD, "False": BAD.removeprefix("bold ")}.get(_health(plan), WATCH)
    return Rule(text.append(" "), align="left", style=style, characters="━")


def _health(plan: PlanView) -> str:
    bad = [kind for kind in ("Feasible", "SLOMet") if (found := plan.condition(kind)) and found.status == "False"]
    if bad or any(setup.given_up for setup in plan.setups):
        return "False"
    found = plan.condition("Ready")
    return "True" if found and found.status == "True" and plan.decided else "Unknown"


def _state(plan: PlanView, scene: Scene) -> Text:
    parts = [ready_light(plan), slo_light(plan)]
    metrics = plan.condition("MetricsAvailable")
    if metrics and metrics.status == "False":
        parts.append(Text(f"▲ {metrics.reason}", style=BAD))
    feasible = plan.condition("Feasible")
    if feasible and feasible.status == "False":
        parts.append(Text("▲ not feasible", style=BAD))
    if plan.quality is not None:
        quality = Text.assemble("quality ", (f"{plan.quality:.3f}", "bold"))
        if plan.quality_bound is not None and scene.wide:
            quality.append(f" of {plan.quality_bound:.3f} possible", style=FAINT)
        parts.append(quality)
    if plan.cost_per_hour is not None:
        parts.append(Text.assemble((f"{plan.cost_per_hour:,.2f}", "bold"), " per hour"))
    rates = [each.rate_rps for each in plan.classes if each.rate_rps is not None]
    if rates:
        parts.append(Text.assemble((f"{words.number(sum(rates))}", "bold"), " requests/s"))
    return Text("   ").join(parts)


def _supply(plan: PlanView, scene: Scene, palette: Palette) -> Text:
    """Who has the accelerators."""
    parts = []
    for kind in plan.kinds:
        there = scene.there.get((plan.key, kind.name))
        allowed = kind.limit if kind.limit is not None else there
        most = kind.used if allowed is None else allowed
        taken: dict[str, int] = {}
        for each in plan.setups:
            if each.accelerator == kind.name:
                taken[each.model] = taken.get(each.model, 0) + each.units
        text = Text.assemble(f"{kind.name} ", bars.units(taken, most, 16 if scene.wide else 8, palette), f" {kind.used}/{most}")
        if scene.wide and there is not None and kind.limit is not None and there > kind.limit:
            text.append(f" of {there} there", style=FAINT)
        parts.append(text)
    return Text("   ").join(parts)


def _news(plan: PlanView, scene: Scene) -> Iterator[Text]:
    found = states.going_on(plan, scene.now_s)
    for news in found[:_NEWS]:
        mark, style = ("▲ ", BAD) if news.bad else ("→ ", WATCH)
        yield Text.assemble((mark, style), (news.text, "bold" if news.bad else ""), no_wrap=True, overflow="ellipsis")
    if len(found) > _NEWS:
        yield Text(f"  and {len(found) - _NEWS} more", style=FAINT)


def _decisions(plan: PlanView, scene: Scene) -> Iterator[Text]:
    """A line for each of the last decisions: what it changed, and why."""
    ages = [times.ago(decision.time, scene.now_s) for decision in plan.history[:_DECISIONS]]
    for decision, moved, age in zip(plan.history, states.steps(plan.history), ages, strict=False):
        text = Text(no_wrap=True, overflow="ellipsis").append(f"{age.rjust(max(map(len, ages)))}  ", style=FAINT)
        text.append(", ".join(moved), style="bold").append("  because: " if moved else "", style=FAINT)
        yield text.append(decision.reason)
