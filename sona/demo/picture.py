"""The accuracy matrix as a picture. matplotlib is an optional extra: without it there is none."""

from __future__ import annotations

import io
from collections.abc import Sequence

from sona.demo.result import Row
from sona.tiny import AGENT_TASKS

INK, MUTED = "#1d2733", "#5d6b7a"
SCALE = ("#f4f7f6", "#bfe3d6", "#5db99b", "#177e63", "#0b4f40")
"""From nothing right to all."""
DARK_FROM = 0.55
"""Above this share the numbers are white."""


def draw_picture(rows: Sequence[Row]) -> bytes | None:
    """The matrix as a PNG, a row for each exam and a column for each task; None where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.colors import LinearSegmentedColormap
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return None
    columns = [*AGENT_TASKS, "old skills"]
    shares = [[*(row.answers.accuracy[task] for task in AGENT_TASKS), row.answers.skills] for row in rows]
    # A figure of its own rather than pyplot's: no window, no global state.
    figure = Figure(figsize=(7.2, 0.8 * len(rows) + 1.5), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(shares, cmap=LinearSegmentedColormap.from_list("right", SCALE), vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(columns)), [name.replace("_", " ") for name in columns], color=INK)
    axes.set_yticks(range(len(rows)), [row.name for row in rows], color=INK)
    axes.xaxis.tick_top()
    axes.tick_params(length=0, labelsize=11)
    axes.spines[:].set_visible(False)
    axes.set_xticks([place - 0.5 for place in range(1, len(columns))], minor=True)
    axes.set_yticks([place - 0.5 for place in range(1, len(rows))], minor=True)
    axes.grid(which="minor", color="white", linewidth=4)
    axes.tick_params(which="minor", length=0)
    for place, line in enumerate(shares):
        for column, share in enumerate(line):
            colour = "white" if share > DARK_FROM else INK
            axes.text(column, place, f"{share:.0%}", ha="center", va="center", color=colour, fontsize=14)
    axes.set_xlabel("right answers to held-out queries, word for word", color=MUTED, labelpad=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white", metadata={"Software": None})
    return buffer.getvalue()
