"""The heat map as SVG, to stand in a page."""

from __future__ import annotations

from html import escape

from sona.attribution_view import words
from sona.attribution_view.chart import Chart
from sona.attribution_view.colours import as_hex, hue, opacity
from sona.attribution_view.layout import HEIGHT, Cell, Label, Layout, Step, lay_out
from sona.excerpt import excerpt

STYLE = """
.heat-map { margin: 1.5rem 0; overflow-x: auto; }
.heat-map svg { display: block; max-width: none; }
.heat-map text { font: 11px system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; fill: var(--ink);
  pointer-events: none; }
.heat-map .muted { fill: var(--muted); }
.heat-map .white { fill: #fff; }
.heat-map .bold { font-weight: 600; }
.heat-map .ground { fill: var(--wash); stroke: var(--page); stroke-width: 1; }
.heat-map .after .ground { fill: none; stroke: var(--line); }
.heat-map .failed .ground { fill: var(--line); }
.heat-map .colour { pointer-events: none; }
.heat-map g:hover > .ground { stroke: var(--ink); stroke-width: 2; }
.heat-map figcaption { font-size: .9rem; max-width: 46rem; color: var(--muted); }
"""
"""For a page that sets --ink, --muted, --line, --wash and --page."""
EXCERPT = 160
"""Characters of a text in a tooltip."""


def heat_map(chart: Chart) -> str:
    """A ``<figure>``: a cell for each memory and each response, the value as its colour, the texts in its tooltip."""
    layout = lay_out(chart)
    about = "Memories in rows, responses in columns; the tables say the same in words and figures."
    parts = [
        f'<figure class="heat-map">\n<svg viewBox="0 0 {layout.width:.0f} {layout.height:.0f}" '
        f'width="{layout.width:.0f}" height="{layout.height:.0f}" role="group" aria-label="{about}">',
        *(_cell(chart, one) for one in layout.cells),
        *(_step(one) for one in layout.scale),
        *(_sign(one) for one in layout.signs),
        *(_text(one) for one in layout.labels),
        f"</svg>\n<figcaption>{escape(how_to_read(chart, layout))}</figcaption>\n</figure>",
    ]
    return "\n".join(parts)


def how_to_read(chart: Chart, layout: Layout) -> str:
    """What one must know of the picture."""
    return (
        f"A cell is what a memory gave to a response, in {chart.unit}: blue, likelier with it; orange, less likely. "
        f"Point at one for the texts. {layout.left_out}"
    ).strip()


def tooltip(chart: Chart, one: Cell) -> str:
    """What is said of a cell where the pointer is on it, on several lines."""
    column = chart.columns[one.place]
    value = float(one.line.nats[one.place])
    said = {
        "value": f"{value:+.3f} {chart.unit}, {value / column.tokens:+.4f} a token",
        "noise": f"{value:+.3g} {chart.unit}: within the noise of {chart.floors[one.place]:.2g}",
        "after": "it comes after the response",
        "failed": f"no score: {excerpt(one.line.failure, EXCERPT)}",
    }[one.state]
    lines = [f"{words.name(one.line)} → response {column.number}: {said}"]
    if one.line.text:
        lines.append(f"memory: {excerpt(one.line.text, EXCERPT)}")
    return "\n".join([*lines, f"response: {excerpt(column.text, EXCERPT)}"])


def _cell(chart: Chart, one: Cell) -> str:
    return f'<g class="{one.state}"><title>{escape(tooltip(chart, one))}</title>{_shape(one, HEIGHT)}</g>'


def _shape(one: Cell, height: float) -> str:
    place = f'x="{one.x:.1f}" y="{one.y:.1f}" width="{one.width:.1f}" height="{height:.0f}"'
    colour = "" if one.share == 0 else f'<rect class="colour" {place} {_fill(one.share)}/>'
    return f'<rect class="ground" {place}/>{colour}'


def _step(one: Step) -> str:
    place = f'x="{one.x:.1f}" y="{one.y:.1f}" width="{one.width:.1f}" height="14"'
    if one.share == 0:
        return f'<rect class="scale" {place} fill="var(--wash)"/>'
    return f'<rect class="scale" {place} {_fill(one.share)}/>'


def _sign(one: Cell) -> str:
    return f'<g class="{one.state}">{_shape(one, 14)}</g>'


def _fill(share: float) -> str:
    return f'fill="{as_hex(hue(share))}" fill-opacity="{opacity(share):.3f}"'


def _text(one: Label) -> str:
    kind = f"{one.ink} bold" if one.bold else one.ink
    turned = f' transform="rotate(-40 {one.x:.1f} {one.y:.1f})"' if one.slanted else ""
    place = f'x="{one.x:.1f}" y="{one.y:.1f}" text-anchor="{one.anchor}"{turned}'
    return f'<text class="{kind}" {place}>{escape(one.text)}</text>'
