"""Figures drawn in cells of a terminal: bars, gauges, dots and lines. Pure.

Without colours every model has a texture of its own, so that nothing is said by colour alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.text import Text

# Okabe and Ito's colours, told apart by every kind of eye, for light and dark grounds alike.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8C8C8C", "#B8A000")
_INKS = ("#FFFFFF", "#000000", "#FFFFFF", "#000000", "#FFFFFF", "#000000", "#000000", "#000000")
_TEXTURES = "█▓▒░▞▤▥▦"
_LEVELS = "▁▂▃▄▅▆▇"
"""The full block would touch the line above."""

GOOD, WATCH, BAD, FAINT, TRACK = "green", "yellow", "bold red", "dim", "grey37"
REFUSED = "refused"
_MOST_DOTS = 8


@dataclass(frozen=True, slots=True)
class Palette:
    """What every model looks like, the same in the whole screen.

    Attributes:
        names: The models in their order.
        plain: Whether there are no colours.
    """

    names: tuple[str, ...]
    plain: bool = False

    def colour(self, name: str) -> str:
        """The colour of a model; red for what is refused."""
        return BAD if name == REFUSED else _COLOURS[self._index(name) % len(_COLOURS)]

    def fill(self, name: str) -> str:
        """The style of a surface with text on it."""
        at = self._index(name) % len(_COLOURS)
        return "bold white on red" if name == REFUSED else f"{_INKS[at]} on {_COLOURS[at]}"

    def texture(self, name: str) -> str:
        """One character that stands for a model."""
        if name == REFUSED:
            return "!"
        return _TEXTURES[self._index(name) % len(_TEXTURES)] if self.plain else "█"

    def swatch(self, name: str) -> Text:
        """What leads the name of a model."""
        return Text(self.texture(name) if self.plain else "■", style=self.colour(name))

    def _index(self, name: str) -> int:
        return self.names.index(name) if name in self.names else len(self.names)


def bar(fraction: float, width: int, style: str) -> Text:
    """A line that is drawn to a fraction of its width, in halves of a cell."""
    halves = round(2 * width * min(1.0, max(0.0, fraction)))
    found = Text("━" * (halves // 2) + "╸" * (halves % 2), style=style)
    return found.append("·" * (width - found.cell_len), style=TRACK)


def units(parts: Mapping[str, int], there: int, width: int, palette: Palette) -> Text:
    """A square for every unit in the colour of the model that has it, hollow where it is free; fewer where there is no room."""
    used = {name: count for name, count in parts.items() if count > 0}
    free = max(0, there - sum(used.values()))
    counts = [*used.values(), *([free] if free else [])]
    cells = counts if sum(counts) <= width else _cells([count / sum(counts) for count in counts], width)
    found = Text()
    for name, count in zip(used, cells, strict=False):
        found.append((palette.texture(name) if palette.plain else "■") * count, style=palette.colour(name))
    return found.append("□" * (cells[-1] if free else 0), style=TRACK)


def dots(ready: int, wanted: int) -> Text:
    """A dot for every replica: full where it is ready, hollow where it is awaited, faint where it is to go."""
    if max(ready, wanted) > _MOST_DOTS:
        style = GOOD if ready == wanted else WATCH
        return Text(f"● {ready}", style=style).append(f"/{wanted}" if ready != wanted else "", style=style)
    found = Text("●" * min(ready, wanted), style=GOOD)
    found.append("○" * max(0, wanted - ready), style=WATCH)
    return found.append("●" * max(0, ready - wanted), style=FAINT)


def gauge(value: float | None, mark: float | None, bound: float | None, width: int) -> Text:
    """A figure against its bound: a bar for what is measured, a diamond where it was predicted, a line at the bound.

    Args:
        value: What is measured; None for none.
        mark: What is predicted; None for none.
        bound: What may not be exceeded; None for none.
        width: In cells; the bound stands at four fifths of it.
    """
    scale = bound / 0.8 if bound else 1.25 * max(value or 0.0, mark or 0.0)
    if scale <= 0:
        return Text("·" * width, style=TRACK)

    def cell(at: float) -> int:
        return min(width - 1, max(0, int(width * at / scale)))

    filled = 0 if value is None else max(1, cell(value) + 1) if value > 0 else 0
    style = FAINT if value is None else against(value, bound)
    cells = [("━", style) if index < filled else ("·", TRACK) for index in range(width)]
    if bound:
        cells[cell(bound)] = ("┃", BAD if value is not None and value > bound else "bold")
    if mark is not None:
        cells[cell(mark)] = ("◆", "bold")
    return Text.assemble(*cells)


def against(value: float, bound: float | None) -> str:
    """The style of a figure that has to stay below a bound."""
    if not bound:
        return ""
    return BAD if value > bound else WATCH if value > 0.9 * bound else GOOD


def shares(parts: Mapping[str, float], width: int, palette: Palette) -> Text:
    """Parts of a whole, one beside the other in the order of the palette, each with its percentage where there is room."""
    ordered = [name for name in (*palette.names, *sorted(parts.keys() - set(palette.names))) if parts.get(name, 0) > 0]
    found = Text()
    for name, cells in zip(ordered, _cells([parts[name] for name in ordered], width), strict=True):
        label = f"{100 * parts[name]:.0f} %"
        fits = len(label) + 2 <= cells
        if palette.plain:
            found.append((f" {label} " if fits else "").center(cells, palette.texture(name)))
        else:
            found.append((label if fits else "").center(cells), style=palette.fill(name))
    return found or Text("·" * width, style=TRACK)


def _cells(parts: Sequence[float], width: int) -> list[int]:
    """Whole cells for each part, which fill the width; none that is there is left without one."""
    total = sum(parts)
    if not parts or total <= 0:
        return []
    exact = [width * part / max(1.0, total) for part in parts]
    found = [max(1, int(each)) for each in exact]
    while sum(found) < round(sum(exact)):
        found[max(range(len(found)), key=lambda at: exact[at] - found[at])] += 1
    while sum(found) > width and max(found) > 1:
        found[max(range(len(found)), key=lambda at: found[at] - exact[at] if found[at] > 1 else -1.0)] -= 1
    return found


def line(values: Sequence[float | None], width: int, style: str) -> Text:
    """The last values as heights from zero to their largest; a gap where one is not known."""
    kept = values[-width:]
    most = max((value for value in kept if value is not None), default=0.0)
    top = len(_LEVELS) - 1

    def level(value: float) -> str:
        return _LEVELS[min(top, int(len(_LEVELS) * value / most))] if most > 0 else _LEVELS[0]

    return Text("".join(" " if value is None else level(value) for value in kept).rjust(width), style=style)
