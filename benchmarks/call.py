"""One call of a benchmark: it is told figures, tables and pictures, and writes them where they belong."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from benchmarks.machine import commit, machine
from benchmarks.table import Cell, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 140  # where the output is no terminal
DPI = 120


class Call:
    """Handed to a benchmark's ``run``; ``options`` are its command line."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.name, self.options = name, options
        self.quick: bool = options.quick
        self.seeds: tuple[int, ...] = options.seeds
        self.data: list[Path] = getattr(options, "data", [])
        self.models: list[str] = getattr(options, "model", None) or ["shipped"]
        self._out: Path = options.out
        self._console = Console()
        if not self._console.is_terminal:
            self._console.width = WIDTH
        self._values: dict[str, list[float]] = defaultdict(list)
        self._tables: list[Table] = []
        self._pictures: list[str] = []

    def result(self, key: str, value: float) -> None:
        """One figure under a dotted key. Told by several seeds it becomes the mean; ``<key>_std`` is the deviation."""
        self._values[key].append(float(value))

    def values(self, key: str) -> list[float]:
        """What was told under ``key`` so far, a value a seed."""
        return list(self._values.get(key, ()))  # asking makes no figure

    def note(self, text: str) -> None:
        """One line for the reader, such as that a peer is not installed."""
        self._console.print(text, markup=False, highlight=False)

    def progress(self, text: str) -> None:
        """One line for someone who waits, on stderr."""
        print(text, file=sys.stderr, flush=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], note: str = "") -> None:
        """Print a table, and keep it for the report."""
        self._tables.append(Table.of(title, columns, rows, note))
        self._tables[-1].show(self._console)

    @contextmanager
    def picture(self, name: str, width_in: float = 10.0, height_in: float = 4.0) -> Iterator[Figure | None]:
        """A figure to draw in, saved as ``<name>.png`` beside the JSON; None where matplotlib is missing."""
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError:
            self.note(f"{name}.png: not drawn, matplotlib is not installed (pip install 'sona[plots]')")
            yield None
            return
        figure = Figure(figsize=(width_in, height_in), layout="constrained")
        FigureCanvasAgg(figure)  # not pyplot: no window system, nothing global
        yield figure
        self._out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(self._out.parent / f"{name}.png", dpi=DPI)
        self._pictures.append(f"{name}.png")

    def finish(self, seconds: float) -> None:
        """Write the JSON file, and print its first part as the last line."""
        measured = {
            "benchmark": self.name,
            "commit": commit(),
            "machine": machine(),
            "quick": self.quick,
            "seeds": list(self.seeds),
            "seconds": round(seconds, 1),
            "results": self._results(),
        }
        shown: dict[str, Any] = {"tables": [asdict(table) for table in self._tables], "pictures": self._pictures}
        self._out.parent.mkdir(parents=True, exist_ok=True)
        self._out.write_text(json.dumps({**measured, **shown}, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        print(json.dumps(measured, allow_nan=False), flush=True)

    def _results(self) -> dict[str, float]:
        results: dict[str, float] = {}
        for key, values in self._values.items():
            results[key] = statistics.fmean(values)
            if len(values) > 1:
                results[f"{key}_std"] = statistics.stdev(values)
        return results
