"""Where each cell and each text of the heat map is, for the page and for the PNG alike. All in the frame's units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sona.attribution_view import words
from sona.attribution_view.chart import Chart, Line, State
from sona.attribution_view.colours import is_dark, share_of
from sona.excerpt import excerpt

MOST_LINES, MOST_COLUMNS = 80, 80
"""In the picture: the heaviest memories, and the responses that depend on memories most."""
HEIGHT, GAP = 24.0, 8.0
"""Of a line; and between the memories and all of them at once."""
LEFT, RIGHT = 190.0, 84.0
"""Room for the names, and for the weights."""
WIDEST, NARROWEST, CELLS = 76.0, 16.0, 640.0
"""Of a column, and of all of them about."""
SLANTED_FROM, WRITTEN_FROM = 28.0, 42.0
"""Column widths with room for the beginning of the response, and for a value in the cell."""
NUMBERS, SLANTED = 24.0, 104.0
"""Heights above the cells, for the responses' numbers and for their texts."""
LEGEND = 70.0
LEAST_WIDTH = 740.0
EM = 11.0
NAME, TEXT = 26, 20
"""Characters of a memory's name, and of a response."""
STEPS = 40
"""Of the colour scale."""
SCALE_LEFT, SCALE_WIDTH = 26.0, 240.0
Anchor = Literal["start", "middle", "end"]
Ink = Literal["ink", "muted", "white"]


@dataclass(frozen=True)
class Cell:
    """A memory at a response."""

    line: Line
    place: int
    """The response's among all of the chart."""
    x: float
    y: float
    width: float
    share: float
    """Of the colour scale, from -1 to 1; 0 within the noise."""
    state: State


@dataclass(frozen=True)
class Label:
    """A text; ``y`` is its baseline, and it may rise to the right."""

    x: float
    y: float
    text: str
    anchor: Anchor = "start"
    ink: Ink = "ink"
    slanted: bool = False
    bold: bool = False


@dataclass(frozen=True)
class Step:
    """A piece of the colour scale."""

    x: float
    y: float
    width: float
    share: float


@dataclass(frozen=True)
class Layout:
    """The whole picture."""

    width: float
    height: float
    cells: tuple[Cell, ...]
    labels: tuple[Label, ...]
    scale: tuple[Step, ...]
    signs: tuple[Cell, ...]
    """One of each kind that is no value, for the legend."""
    left_out: str
    """What the picture does not show; empty where it shows all."""


def lay_out(chart: Chart) -> Layout:
    """The heat map of a chart with at least one response."""
    lines, places = _shown_lines(chart), _shown_places(chart)
    wide = min(WIDEST, max(NARROWEST, CELLS / len(places)))
    top = NUMBERS + (SLANTED if wide >= SLANTED_FROM else 0.0)
    cells, labels = list[Cell](), _heads(chart, places, wide, top)
    for at, line in enumerate(lines):
        y = top + at * HEIGHT + (GAP if line is chart.together and at else 0.0)
        middle = y + HEIGHT / 2 + EM * 0.35
        labels.append(Label(LEFT - 8, middle, words.name(line, NAME), "end", bold=line is chart.together))
        labels.append(Label(LEFT + len(places) * wide + RIGHT - 8, middle, words.weight(chart, line), "end"))
        for column, place in enumerate(places):
            one = _cell(chart, line, place, LEFT + column * wide, y, wide)
            cells.append(one)
            if (text := _written(chart, one)) is not None:
                labels.append(text)
    bottom = top + len(lines) * HEIGHT + (GAP if chart.together is not None and chart.lines else 0.0)
    width = max(LEAST_WIDTH, LEFT + len(places) * wide + RIGHT)
    scale, signs, legend = _legend(chart, bottom + 30)
    height = bottom + LEGEND
    left_out = _left_out(chart, lines, places)
    return Layout(width, height, tuple(cells), (*labels, *legend), scale, signs, left_out)


def _shown_lines(chart: Chart) -> list[Line]:
    heaviest = {id(line) for line in chart.ranked[:MOST_LINES]}
    return [line for line in chart.all_lines if id(line) in heaviest or line is chart.together]


def _shown_places(chart: Chart) -> list[int]:
    order = np.argsort(-chart.dependence, kind="stable")[:MOST_COLUMNS]
    return sorted(int(place) for place in order)


def _left_out(chart: Chart, lines: Sequence[Line], places: Sequence[int]) -> str:
    parts = []
    if (shown := sum(line is not chart.together for line in lines)) < len(chart.lines):
        parts.append(f"the {shown} heaviest of {len(chart.lines)} memories")
    if len(places) < len(chart.columns):
        parts.append(f"the {len(places)} of {len(chart.columns)} responses that depend on them most")
    return f"Shown are {' and '.join(parts)}." if parts else ""


def _heads(chart: Chart, places: Sequence[int], wide: float, top: float) -> list[Label]:
    labels = [
        Label(LEFT - 8, top - 8, "memory", "end", "muted"),
        Label(LEFT + len(places) * wide + RIGHT - 8, top - 8, "weight", "end", "muted"),
    ]
    for column, place in enumerate(places):
        middle = LEFT + (column + 0.5) * wide
        one = chart.columns[place]
        labels.append(Label(middle, top - 8, str(one.number), "middle", "muted"))
        if wide >= SLANTED_FROM:
            labels.append(Label(middle, top - NUMBERS, excerpt(one.text, TEXT), ink="muted", slanted=True))
    return labels


def _cell(chart: Chart, line: Line, place: int, x: float, y: float, wide: float) -> Cell:
    state = chart.state(line, place)
    share = share_of(float(line.nats[place]), float(chart.floors[place]), chart.most) if state == "value" else 0.0
    return Cell(line, place, x, y, wide, share, state)


def _written(chart: Chart, one: Cell) -> Label | None:
    """What stands in a cell; a narrow one has its colour alone."""
    if one.state == "value" and one.width < WRITTEN_FROM:
        return None
    ink: Ink = "white" if is_dark(one.share) else "ink" if one.state == "value" else "muted"
    text = words.cell(chart, one.line, one.place)
    if one.width < WRITTEN_FROM and one.state == "noise":
        text = ""
    middle = one.y + HEIGHT / 2 + EM * 0.35
    return Label(one.x + one.width / 2, middle, text, "middle", ink) if text else None


def _legend(chart: Chart, y: float) -> tuple[tuple[Step, ...], tuple[Cell, ...], list[Label]]:
    """The colour scale with its ends and its noise, and what the cells without a value are."""
    wide, most = SCALE_WIDTH / STEPS, chart.most
    steps = []
    for step in range(STEPS):
        share = 2 * (step + 0.5) / STEPS - 1
        nats = share * abs(share) * most
        steps.append(Step(SCALE_LEFT + step * wide, y, wide, share_of(nats, chart.floor, most)))
    base = y + 26
    ticks = [
        (share, words.nats(share * abs(share) * most) if share else "0")
        for share in ((-1.0, -0.5, 0.0, 0.5, 1.0) if most else (0.0,))
    ]
    labels = [Label(SCALE_LEFT + (share + 1) / 2 * SCALE_WIDTH, base, text, "middle", "muted") for share, text in ticks]
    title = f"{chart.unit}, square-root scale; no colour within the noise, ±{words.floor(chart)}"
    labels.append(Label(SCALE_LEFT, y - 6, title, ink="muted"))
    line, x, signs = chart.all_lines[0], SCALE_LEFT + SCALE_WIDTH + 40, list[Cell]()
    kinds: tuple[tuple[State, str], ...] = (
        ("noise", f"{words.NOISE} noise"),
        ("after", f"{words.AFTER} comes after the response"),
        ("failed", f"{words.NO_SCORE} no score"),
    )
    for state, text in kinds:
        signs.append(Cell(line, 0, x, y, 14.0, 0.0, state))
        labels.append(Label(x + 20, y + 11, text, ink="muted"))
        x += 30 + EM * 0.56 * len(text) + 10
    return tuple(steps), tuple(signs), labels
