"""The heat map as a PNG. matplotlib is an optional extra: without it there is none."""

from __future__ import annotations

import io
from typing import Any

from sona.attribution_view.chart import Chart, State
from sona.attribution_view.colours import Rgb, as_hex, blended
from sona.attribution_view.layout import EM, HEIGHT, SCALE_LEFT, Anchor, Ink, Label, lay_out
from sona.bank_view.png import INCHES, INK, MUTED, check_drawable
from sona.excerpt import excerpt

GROUND: Rgb = (244, 246, 248)
"""Of a cell without a colour."""
FILLS: dict[State, str] = {"value": "", "noise": as_hex(GROUND), "after": "#ffffff", "failed": "#dfe5ea"}
INKS: dict[Ink, str] = {"ink": INK, "muted": MUTED, "white": "#ffffff"}
ALIGNED: dict[Anchor, str] = {"start": "left", "middle": "center", "end": "right"}
DPI, TITLE = 160, 34.0
"""Dots an inch; and the height of the title above the picture, in the frame's units."""


def heat_png(chart: Chart, title: str) -> bytes:
    """The same picture as :func:`sona.attribution_view.picture.heat_map`, on white; the same bytes each time.

    Raises:
        InvalidInputError: matplotlib is not installed.
    """
    check_drawable()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    layout = lay_out(chart)
    # A figure of its own rather than pyplot's: no window, no global state.
    figure = Figure(figsize=(layout.width / INCHES, (layout.height + TITLE) / INCHES), dpi=DPI)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(0, layout.width), ylim=(layout.height, -TITLE), xticks=[], yticks=[])
    axes.axis("off")

    def fill(x: float, y: float, width: float, height: float, colour: str, **more: Any) -> None:
        axes.add_patch(Rectangle((x, y), width, height, facecolor=colour, **{"linewidth": 0.0, **more}))

    for one in layout.cells:
        colour = FILLS[one.state] or as_hex(blended(one.share, GROUND))
        fill(one.x, one.y, one.width, HEIGHT, colour, edgecolor=_edge(one.state), linewidth=0.7)
    for step in layout.scale:
        fill(step.x, step.y, step.width + 0.3, 14.0, as_hex(blended(step.share, GROUND)))
    for sign in layout.signs:
        fill(sign.x, sign.y, sign.width, 14.0, FILLS[sign.state], edgecolor=MUTED, linewidth=0.5)
    head = Label(SCALE_LEFT, -12.0, excerpt(title, max(40, int(layout.width / 6.5))), bold=True)
    for label in (head, *layout.labels):
        axes.text(
            *(label.x, label.y, label.text),
            ha=ALIGNED[label.anchor],
            va="baseline",
            color=INKS[label.ink],
            fontsize=EM * 72 / INCHES,
            fontweight="bold" if label.bold else "normal",
            rotation=40 if label.slanted else 0,
            rotation_mode="anchor",
            parse_math=False,  # a text may hold dollars
        )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def _edge(state: State) -> str:
    return "#dfe5ea" if state == "after" else "white"
