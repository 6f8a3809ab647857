"""``top`` itself: looks at the cluster now and then, and draws what it saw."""

from __future__ import annotations

import os
import sys
import threading
import time
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from servingplan.plugin import times
from servingplan.plugin.cluster import Cluster
from servingplan.plugin.errors import ForbiddenError, NotFoundError, PluginError
from servingplan.plugin.reading import read_plan
from servingplan.plugin.screen import keys
from servingplan.plugin.screen.bars import BAD, FAINT
from servingplan.plugin.screen.frame import frame
from servingplan.plugin.screen.overview import Cropped, overview, totals
from servingplan.plugin.screen.samples import Samples
from servingplan.plugin.screen.scene import Scene
from servingplan.plugin.view import KindView, PlanView

_NODES_EVERY_S = 30.0
_ROOMY, _BESIDE_FRAME = 30, 18
"""Lines from which a frame is drawn with room, and those that it keeps beside the list of the plans."""

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sight:
    """What was seen last.

    Attributes:
        at_s: When, in seconds since the epoch.
        there: Units on the nodes by plan key and accelerator; a kind is absent where nodes may not be read.
        error: Why the latest look failed; empty where it did not.
    """

    at_s: float
    plans: tuple[PlanView, ...]
    there: dict[tuple[str, str], int]
    error: str = ""


class Looker:
    """Looks at the plans of a cluster."""

    def __init__(self, cluster: Cluster, namespace: str | None, name: str | None) -> None:
        self._cluster, self._namespace, self._name = cluster, namespace, name
        self._nodes: list[Object] | None = None
        self._nodes_s = -_NODES_EVERY_S

    def look(self) -> Sight:
        """What there is now.

        Raises:
            PluginError: It cannot be read.
        """
        if self._name and self._namespace:
            bodies = [self._cluster.plan(self._namespace, self._name)]
        else:
            bodies = self._cluster.plans(self._namespace)
            if self._name:
                bodies = [body for body in bodies if body["metadata"]["name"] == self._name]
        plans = tuple(sorted(map(read_plan, bodies), key=lambda plan: plan.key))
        if not plans:
            where = f"in namespace {self._namespace}" if self._namespace else "in any namespace"
            raise NotFoundError(f"there is no plan {f'{self._name} ' if self._name else ''}{where}")
        nodes = self._seen_nodes()
        there = (
            {} if nodes is None else {(plan.key, kind.name): units_there(kind, nodes) for plan in plans for kind in plan.kinds}
        )
        return Sight(time.time(), plans, there)

    def _seen_nodes(self) -> list[Object] | None:
        """The nodes, which change seldom; None where they may not be read."""
        if time.monotonic() - self._nodes_s >= _NODES_EVERY_S:
            self._nodes_s = time.monotonic()
            try:
                self._nodes = self._cluster.nodes()
            except ForbiddenError:
                self._nodes = None
        return self._nodes


def units_there(kind: KindView, nodes: list[Object]) -> int:
    """Units of an accelerator that the nodes have, those of others' pods included."""
    total = 0
    for node in nodes:
        labels = node["metadata"].get("labels") or {}
        amount = str((node.get("status", {}).get("allocatable") or {}).get(kind.resource, "0"))
        if kind.selector.items() <= labels.items() and amount.isdigit():
            total += int(amount)
    return total


class Screen:
    """Draws sights."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._samples = Samples()
        self.chosen = 0

    def seen(self, sight: Sight) -> None:
        """Remembers a sight for the lines of the last minutes."""
        self._samples.add(sight.at_s, sight.plans)

    def move(self, by: int, count: int) -> None:
        """Chooses another plan."""
        self.chosen = (self.chosen + by) % count if count else 0

    def whole(self, sight: Sight) -> list[RenderableType]:
        """Everything, however long: what is printed once."""
        scene = self._scene(sight)
        parts: list[RenderableType] = []
        if len(sight.plans) > 1:
            parts += [totals(sight.plans), overview(sight.plans, -1, scene, len(sight.plans)), Text()]
        for plan in sight.plans:
            parts += [*frame(plan, scene), Text()]
        return parts

    def draw(self, sight: Sight, every_s: float) -> Cropped:
        """What fits on the terminal."""
        scene = self._scene(sight)
        several = len(sight.plans) > 1
        self.chosen = min(self.chosen, len(sight.plans) - 1)
        parts: list[RenderableType] = []
        if several:
            rows = max(2, min(len(sight.plans), self._console.height - _BESIDE_FRAME))
            parts += [totals(sight.plans), overview(sight.plans, self.chosen, scene, rows), Text()]
        parts += frame(sight.plans[self.chosen], scene)
        return Cropped(parts, self._footer(sight, every_s, several=several))

    def _scene(self, sight: Sight) -> Scene:
        plain = self._console.no_color or self._console.color_system is None
        roomy = self._console.height >= _ROOMY
        return Scene(sight.at_s, self._console.width, plain, roomy, self._samples, sight.there)

    def _footer(self, sight: Sight, every_s: float, *, several: bool) -> Text:
        if sight.error:
            age = times.duration(time.time() - sight.at_s)
            return Text(f"what is shown is {age} old: {sight.error}", style=BAD, no_wrap=True, overflow="ellipsis")
        at = time.strftime("%H:%M:%S", time.localtime(sight.at_s))
        choose = "   ↑↓ choose" if several else ""
        text = f"q quit{choose}   {at}, every {every_s:g} s"
        return Text(text, style=FAINT, no_wrap=True, overflow="ellipsis")


def show(cluster: Cluster, namespace: str | None, name: str | None, *, every_s: float, once: bool) -> int:
    """Shows plans until somebody quits; once where there is no terminal.

    Raises:
        PluginError: The first look failed.
    """
    console = Console(highlight=False)
    looker, screen = Looker(cluster, namespace, name), Screen(console)
    sight = looker.look()
    screen.seen(sight)
    if once or not console.is_terminal or not sys.stdin.isatty():
        if not console.is_terminal and "COLUMNS" not in os.environ:
            console.width = 120
        # As a group: texts that are printed one by one lose how they are to be cut.
        console.print(Group(*screen.whole(sight)))
        return 0
    try:
        _watch(console, looker, screen, sight, every_s)
    except KeyboardInterrupt:
        # The terminal is as it was, and nothing was left half done.
        return 0
    return 0


class _Watcher(threading.Thread):
    """Looks in a thread of its own, so that a slow API server does not keep a key waiting."""

    def __init__(self, looker: Looker, first: Sight, every_s: float, seen: keys.Keys) -> None:
        super().__init__(daemon=True)
        self._looker, self._every_s, self._keys = looker, every_s, seen
        self._stopped = threading.Event()
        self.sight = first

    def run(self) -> None:
        while not self._stopped.wait(self._every_s):
            try:
                self.sight = self._looker.look()
            except PluginError as error:
                self.sight = replace(self.sight, error=str(error))
            if not self._stopped.is_set():
                self._keys.wake()

    def stop(self) -> None:
        self._stopped.set()


def _watch(console: Console, looker: Looker, screen: Screen, first: Sight, every_s: float) -> None:
    with keys.keys() as pressed, Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
        watcher = _Watcher(looker, first, every_s, pressed)
        watcher.start()
        shown = first
        try:
            while True:
                if watcher.sight is not shown:
                    shown = watcher.sight
                    if not shown.error:
                        screen.seen(shown)
                live.update(screen.draw(shown, every_s), refresh=True)
                for key in pressed.wait(max(1.0, every_s)):
                    if key == keys.QUIT:
                        return
                    if key in {keys.UP, keys.DOWN}:
                        screen.move(1 if key == keys.DOWN else -1, len(shown.plans))
        finally:
            watcher.stop()
