"""A table of results: on the terminal, and as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import rich.table
from rich.console import Console

Cell = str | int | float | None
NOTHING = "–"


@dataclass(frozen=True)
class Table:
    """Rows of cells under a title; the first column names the row."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    """What a reader must know to read it right."""

    @classmethod
    def of(cls, title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], note: str = "") -> Table:
        """A table of any cells; a number is shown to three figures after the point, None as a dash."""
        return cls(title, tuple(columns), tuple(tuple(as_text(cell) for cell in row) for row in rows), note)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Table:
        """What :func:`dataclasses.asdict` made of one."""
        return cls(raw["title"], tuple(raw["columns"]), tuple(tuple(row) for row in raw["rows"]), raw["note"])

    def show(self, console: Console) -> None:
        """Print it."""
        drawn = rich.table.Table(
            title=self.title, caption=self.note or None, title_justify="left", caption_justify="left"
        )
        for place, column in enumerate(self.columns):
            drawn.add_column(column, justify="right" if place else "left", overflow="fold")
        for row in self.rows:
            drawn.add_row(*row)
        console.print(drawn)

    def markdown(self) -> str:
        """The same as a GitHub table under a bold title."""
        head = [_line(self.columns), _line(["---", *["---:"] * (len(self.columns) - 1)])]
        note = ["", self.note] if self.note else []
        return "\n".join([f"**{self.title}**", "", *head, *(_line(row) for row in self.rows), *note]) + "\n"


def as_text(cell: Cell) -> str:
    """One cell."""
    if cell is None:
        return NOTHING
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell)


def spread(values: Sequence[float], digits: int = 3) -> str:
    """``mean ± standard deviation`` over seeds (n - 1 in the denominator); of one value the mean, of none a dash."""
    if not values:
        return NOTHING
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
