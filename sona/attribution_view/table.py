"""The chart in a terminal, as rich's renderables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from sona.attribution_view import words
from sona.attribution_view.chart import Chart, Line
from sona.excerpt import excerpt

NAME, TEXT = 24, 200
LEAST_TEXT = 20
"""Columns of a terminal that a memory's text has at least."""
GAP = 2


def fitting(chart: Chart, width: int) -> list[int]:
    """The responses that a terminal of this width has room for, by their places: those that depend on memories most."""
    names = max(cell_len(name) for name in ("memory", *(words.name(line, NAME) for line in chart.all_lines)))
    room = width - names - len("weight") - len("a token") - LEAST_TEXT - 3 * GAP
    order, kept = np.argsort(-chart.dependence, kind="stable"), list[int]()
    for place in map(int, order):
        room -= _width(chart, place) + GAP
        if room < 0 and kept:
            break
        kept.append(place)
    return sorted(kept)


def chart_table(chart: Chart, lines: Sequence[Line], places: Sequence[int]) -> Table:
    """A row for each of these ``lines``, a column for the responses at these ``places``."""
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0))
    table.add_column("memory", no_wrap=True)
    for name in ("weight", "a token"):
        table.add_column(name, justify="right", no_wrap=True, min_width=len(name))
    for place in places:
        wide = _width(chart, place)
        table.add_column(str(chart.columns[place].number), justify="right", no_wrap=True, min_width=wide)
    table.add_column("text", no_wrap=True, overflow="ellipsis", ratio=1)
    for line in lines:
        cells = [Text(words.cell(chart, line, place), style=_style(chart, line, place)) for place in places]
        text = Text(f"no score: {excerpt(line.failure, TEXT)}", style="yellow") if line.failure else _text(line)
        figures = (words.weight(chart, line), words.per_token(chart, line))
        table.add_row(Text(words.name(line, NAME)), *figures, *cells, text)
    return table


def response_table(chart: Chart, places: Sequence[int]) -> Table:
    """What the responses at these ``places`` say, and how much of each memories gave."""
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0))
    for name in ("response", "tokens", "from memories"):
        table.add_column(name, justify="right", no_wrap=True, min_width=len(name))
    table.add_column("text", no_wrap=True, overflow="ellipsis", ratio=1)
    for place in places:
        column = chart.columns[place]
        table.add_row(
            str(column.number), str(column.tokens), words.given(chart, place), Text(excerpt(column.text, TEXT))
        )
    return table


def _text(line: Line) -> Text:
    return Text(excerpt(line.text, TEXT))


def _width(chart: Chart, place: int) -> int:
    cells = (words.cell(chart, line, place) for line in chart.all_lines)
    return max(map(cell_len, (str(chart.columns[place].number), *cells)))


def _style(chart: Chart, line: Line, place: int) -> str:
    state = chart.state(line, place)
    if state != "value":
        return "yellow" if state == "failed" else "dim"
    return "blue" if line.nats[place] > 0 else "dark_orange3"
