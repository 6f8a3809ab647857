"""The plan as it comes up and works: a screen that renews itself on a terminal, a line per change anywhere else."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from testbed.demo.figures import colours
from testbed.demo.view import Snapshot
from testbed.load import Record, by_class, summarise

_WINDOW_S = 10.0
_QUIET_S = 5.0
_EVENTS = 4


class Traffic:
    """The requests that ended lately."""

    def __init__(self) -> None:
        self._all = self._failed = 0
        self._lately: deque[Record] = deque()

    def add(self, record: Record) -> None:
        """A request has ended."""
        self._all += 1
        self._failed += record.failed
        self._lately.append(record)

    def lines(self) -> list[str]:
        """What to tell of them: nothing before the first."""
        since_s = time.time() - _WINDOW_S
        while self._lately and self._lately[0].start_s + self._lately[0].e2e_s < since_s:
            self._lately.popleft()
        if not self._all:
            return []
        lines = [f"{self._all} requests ended, {self._failed} failed"]
        for name, records in by_class(self._lately).items():
            found = summarise(records)
            shares = ", ".join(f"{model} {100 * share:.0f} %" for model, share in found.shares.items())
            lines.append(f"{name}: {found.sent / _WINDOW_S:.1f}/s, TTFT p95 {found.ttft_p95_s:.2f} s, {shares}")
        return lines


class Display:
    """Shows what happens.

    Attributes:
        traffic: The requests that ended.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.traffic = Traffic()
        self.start_s = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Leaves the console as it was."""

    def say(self, text: str) -> None:
        """A step of the demo begins."""
        raise NotImplementedError

    def seen(self, found: Snapshot) -> None:
        """The plan looks like this now."""
        raise NotImplementedError

    def ended(self, record: Record) -> None:
        """A request has ended."""
        self.traffic.add(record)


class Lines(Display):
    """A line when the plan's state changes, and one now and then while nothing does; for logs and pipes."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._last = ""
        self._last_s = self.start_s

    def say(self, text: str) -> None:
        """One line."""
        self._last_s = time.monotonic()
        line = f"[{self._last_s - self.start_s:5.0f} s] {text}"
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def seen(self, found: Snapshot) -> None:
        """One line if it looks otherwise than before, or long has not been spoken of."""
        ready = found.condition("Ready")
        setups = ", ".join(f"{each.model}/{each.setup} {each.ready}/{each.replicas}" for each in found.allocations)
        state = f"Ready={ready.status} {ready.reason}; {setups}" if ready else "not decided yet"
        if state != self._last or time.monotonic() - self._last_s > _QUIET_S:
            self._last = state
            self.say("; ".join([f"generation {found.generation}: {state}", *self.traffic.lines()[:1]]))


class Screen(Display):
    """A screen for terminals."""

    def __init__(self, console: Console, models: Sequence[str]) -> None:
        super().__init__(console)
        self._colours = colours(models)
        self._doing = ""
        self._found: Snapshot | None = None
        self._live = Live(console=console, get_renderable=self._screen, refresh_per_second=2, transient=True)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Leaves the console as it was."""
        self._live.__exit__(kind, error, trace)

    def say(self, text: str) -> None:
        """The new title; the step before scrolls away as done."""
        if self._doing:
            self.console.print(f"[dim]{time.monotonic() - self.start_s:4.0f} s[/] {self._doing}: [green]done[/]")
        self._doing = text

    def seen(self, found: Snapshot) -> None:
        """What the screen shows from now on."""
        self._found = found

    def _screen(self) -> Panel:
        parts: list[Table | Text | Rule] = []
        if self._found:
            parts += [self._allocations(self._found), Rule(style="dim"), self._pods(self._found), self._conditions(self._found)]
            events = [Text(line, style="dim", no_wrap=True, overflow="ellipsis") for line in self._found.events[-_EVENTS:]]
            parts += [Rule("events", style="dim", align="left"), *events] if events else []
        if lines := self.traffic.lines():
            parts += [Rule(f"load, last {_WINDOW_S:g} s", style="dim", align="left"), *(Text(line) for line in lines)]
        title = f"{self._doing}  [dim]{time.monotonic() - self.start_s:.0f} s[/]"
        return Panel(Group(*parts), title=title, title_align="left", border_style="blue")

    def _allocations(self, found: Snapshot) -> Table:
        table = Table(box=None, padding=(0, 2), header_style="dim")
        for name in ("MODEL", "SETUP", "READY", "GPUS", "RATE", "OF CAPACITY", "PLANNED TTFT P95"):
            table.add_column(name, justify="left" if name in {"MODEL", "SETUP"} else "right")
        for each in found.allocations:
            settled = "green" if each.ready == each.replicas else "yellow"
            table.add_row(
                Text(each.model, style=self._colours.get(each.model, "")),
                each.setup,
                Text(f"{each.ready}/{each.replicas}", style=settled),
                f"{each.gpus} {each.accelerator}",
                f"{each.rate_rps:.1f}/s",
                f"{100 * each.utilization:.0f} %",
                "-" if each.ttft_p95_s is None else f"{each.ttft_p95_s:.2f} s",
            )
        return table

    def _pods(self, found: Snapshot) -> Table:
        table = Table.grid(padding=(0, 3))
        for pod in found.pods:
            style = "green" if pod.ready and pod.state == "Running" else "yellow"
            name = Text(pod.name, style=self._colours.get(pod.model, ""))
            table.add_row(
                name, Text("Ready" if style == "green" else pod.state, style=style), Text(pod.node or "-", style="dim")
            )
        return table

    def _conditions(self, found: Snapshot) -> Text:
        if found.observed_generation != found.generation:
            return Text(f"generation {found.generation}: not decided yet", style="yellow")
        text = Text()
        for each in found.conditions:
            style = "green" if each.status == "True" else "yellow" if each.type in {"Ready", "Feasible"} else "dim"
            text.append(f"{each.type}={each.status} ", style=style)
        ready = found.condition("Ready")
        if ready and ready.message:
            text.append(f"\n{ready.message}", style="yellow")
        return text


def display(console: Console, models: Sequence[str]) -> Display:
    """A screen where there is a terminal, lines where there is none."""
    return Screen(console, models) if console.is_terminal else Lines(console)
