"""The map as a PNG. matplotlib is an optional extra: without it there is none."""

from __future__ import annotations

import io
from collections.abc import Sequence

from sona.bank_view.colours import STOPS, colour, is_dark
from sona.bank_view.layout import EM, WIDTH, Anchor, Label, lay_out
from sona.errors import InvalidInputError
from sona.patterns import Pattern

INK, MUTED, WASH = "#1d2733", "#5d6b7a", "#f4f6f8"
INCHES = 100.0
"""Units of the frame in an inch, and so 72 points."""
ALIGNED: dict[Anchor, str] = {"start": "left", "middle": "center", "end": "right"}


def check_drawable() -> None:
    """InvalidInputError where matplotlib is not installed."""
    try:
        import matplotlib as _  # noqa: F401
    except ModuleNotFoundError:
        raise InvalidInputError(
            "a PNG needs matplotlib, which is not installed: 'pip install matplotlib' (sona's extra 'plots'), "
            "or leave --png out: the page has the same picture"
        ) from None


def bank_png(patterns: Sequence[Pattern], title: str) -> bytes:
    """The same picture as :func:`sona.bank_view.picture.bank_map`, on white; the same bytes each time.

    Raises:
        InvalidInputError: matplotlib is not installed.
    """
    check_drawable()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Circle

    layout = lay_out(patterns)
    # A figure of its own rather than pyplot's: no window, no global state.
    figure = Figure(figsize=(WIDTH / INCHES, (layout.height + 90) / INCHES), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set(xlim=(0, WIDTH), ylim=(layout.height, 0), xticks=[], yticks=[], aspect="equal", facecolor=WASH)
    axes.spines[:].set_visible(False)
    axes.set_title(title, loc="left", color=INK, fontsize=11, parse_math=False)
    points = 72 / INCHES

    def write(label: Label, ink: str, weight: str = "normal") -> None:
        axes.text(
            *(label.x, label.y, label.text),
            ha=ALIGNED[label.anchor],
            color=ink,
            fontsize=EM * points,
            fontweight=weight,
            parse_math=False,  # a query may hold dollars
        )

    for spot in layout.spots:
        mean = spot.pattern.verdict.mean if spot.pattern.verdict.count else None
        line = "-" if mean is not None else (0, (3, 2))
        axes.add_patch(
            Circle((spot.x, spot.y), spot.radius, facecolor=colour(mean), edgecolor=INK, linestyle=line, linewidth=0.5)
        )
        if (name := layout.names.get(spot.pattern.id)) is not None:
            write(name, "white" if is_dark(mean) else INK, "bold")
    for label in layout.labels:
        write(label, INK)
    if not layout.spots:
        write(Label(WIDTH / 2, layout.height / 2, "middle", "no patterns yet"), MUTED)
    scale = LinearSegmentedColormap.from_list("quality", [tuple(value / 255 for value in stop) for stop in STOPS])
    bar = figure.colorbar(ScalarMappable(cmap=scale), ax=axes, location="bottom", fraction=0.03, pad=0.02, aspect=50)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=EM * points, labelcolor=MUTED)
    bar.set_label("mean quality (grey: nothing rated); area: trajectories", color=MUTED, fontsize=EM * points)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white", metadata={"Software": None})
    return buffer.getvalue()
