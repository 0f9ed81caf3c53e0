"""The map as SVG, to stand in a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from sona.bank_view.colours import STOPS, UNRATED, colour, is_dark
from sona.bank_view.layout import EM, WIDTH, Label, Layout, Spot, lay_out, text_width
from sona.bank_view.words import interval, like, quality
from sona.excerpt import excerpt
from sona.patterns import Pattern
from sona.terminal import number, trajectories

STYLE = """
.bank-map { margin: 1rem 0; overflow-x: auto; }
.bank-map svg { display: block; width: 100%; min-width: 40rem; height: auto; }
.bank-map .frame { fill: var(--wash); }
.bank-map .disc { stroke: var(--ink); stroke-opacity: .55; stroke-width: 1; fill-opacity: .9; }
.bank-map .unrated { stroke-dasharray: 3 2; fill-opacity: .85; }
.bank-map a:hover .disc, .bank-map a:focus .disc { stroke-opacity: 1; stroke-width: 2.5; }
.bank-map text { font: 11px system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; fill: var(--ink); }
.bank-map .name { pointer-events: none; font-weight: 600; fill: #14181d; }
.bank-map .name.light { fill: #fff; }
.bank-map .label { pointer-events: none; paint-order: stroke; stroke: var(--wash); stroke-width: 3px;
  stroke-linejoin: round; }
.bank-map .legend text, .bank-map figcaption { fill: var(--muted); color: var(--muted); }
.bank-map figcaption { font-size: .9rem; max-width: 46rem; }
td.id { white-space: nowrap; }
.swatch { width: .8rem; height: .8rem; vertical-align: -.05rem; margin-right: .4rem; }
"""
"""For a page that sets --ink, --muted and --wash."""
LEGEND = 48.0
"""Height of what is below the frame."""
LARGEST_SAMPLE = 22.0
"""Radius of the largest disc in the legend."""


def bank_map(patterns: Sequence[Pattern], anchors: Mapping[str, str] | None = None) -> str:
    """A ``<figure>``: a disc for each of ``patterns``, its area by count, its colour by mean quality.

    Args:
        patterns: at least one.
        anchors: fragments of the page to which the discs lead, by the patterns' ids; None: they lead nowhere.
    """
    layout = lay_out(patterns)
    about = f"Map of {number(len(patterns), 'pattern', 'patterns')}; the table says the same in figures."
    parts = [
        f'<figure class="bank-map">\n<svg viewBox="0 0 {WIDTH:.0f} {layout.height + LEGEND:.0f}" role="group" '
        f'aria-label="{about}">',
        f'<rect class="frame" width="{WIDTH:.0f}" height="{layout.height:.0f}" rx="12"/>',
        *(
            _disc(spot, layout.names.get(spot.pattern.id), (anchors or {}).get(spot.pattern.id))
            for spot in layout.spots
        ),
        *(_text(label, "label") for label in layout.labels),
        _legend(layout),
        f"</svg>\n<figcaption>{how_to_read(layout)}</figcaption>\n</figure>",
    ]
    return "\n".join(parts)


def how_to_read(layout: Layout) -> str:
    """What one must know of the map."""
    if len(layout.spots) < 2:
        return "With one pattern there is no distance to show."
    if layout.explained > 0.995:
        return "Near means alike: the plane shows all of how the patterns differ."
    return (
        "Near means alike. The plane lies along the two directions in which the patterns differ most, and shows "
        f"{layout.explained:.0%} of their differences: what lies side by side here may still be far apart."
    )


def tooltip(one: Pattern) -> str:
    """What is said of a pattern where the pointer is on it, on several lines."""
    verdict, text = one.verdict, like(one, 200)
    rated = f"quality {quality(verdict)}, {interval(verdict)} by 90 %, {verdict.count} rated"
    lines = [
        f"{excerpt(one.id)}: {trajectories(one.count)}",
        rated if verdict.count else "nothing rated yet",
        f"family: {excerpt(one.family)}" if one.family else "",
        f"like: {text}" if text else "",
    ]
    return "\n".join(line for line in lines if line)


def _disc(spot: Spot, name: Label | None, anchor: str | None) -> str:
    one = spot.pattern
    mean = one.verdict.mean if one.verdict.count else None
    shape = (
        f"<title>{escape(tooltip(one))}</title>"
        f'<circle class="disc{"" if one.verdict.count else " unrated"}" cx="{spot.x:.1f}" cy="{spot.y:.1f}" '
        f'r="{spot.radius:.1f}" fill="{colour(mean)}"/>'
    )
    if name is not None:
        shape += _text(name, "name light" if is_dark(mean) else "name")
    # A link is no stop of the tab key here: a keyboard goes through the table.
    return f"<g>{shape}</g>" if anchor is None else f'<a href="#{escape(anchor)}" tabindex="-1">{shape}</a>'


def _text(label: Label, kind: str) -> str:
    place = f'x="{label.x:.1f}" y="{label.y:.1f}" text-anchor="{label.anchor}"'
    return f'<text class="{kind}" {place}>{escape(label.text)}</text>'


def _legend(layout: Layout) -> str:
    middle = layout.height + LEGEND / 2 + 4
    base = middle + EM * 0.35
    steps = 5 * (len(STOPS) - 1)
    parts = [f'<text x="0" y="{base:.1f}">mean quality 0</text>']
    left, wide = 86.0, 8.0
    for step in range(steps + 1):
        parts.append(
            f'<rect x="{left + step * wide:.1f}" y="{middle - 6:.1f}" width="{wide + 0.5:.1f}" height="12" '
            f'fill="{colour(step / steps)}"/>'
        )
    left += (steps + 1) * wide + 6
    parts.append(f'<text x="{left:.1f}" y="{base:.1f}">1</text>')
    parts.append(f'<circle class="disc unrated sample" cx="{left + 42:.1f}" cy="{middle:.1f}" r="7" fill="{UNRATED}"/>')
    parts.append(f'<text x="{left + 55:.1f}" y="{base:.1f}">nothing rated</text>')
    left += 160
    for count, radius in samples(layout.spots):
        text = trajectories(count)
        parts.append(
            f'<circle class="disc sample" cx="{left + radius:.1f}" cy="{middle:.1f}" r="{radius:.1f}" fill="none"/>'
        )
        parts.append(f'<text x="{left + 2 * radius + 6:.1f}" y="{base:.1f}">{text}</text>')
        left += 2 * radius + text_width(text) + 30
    return f'<g class="legend">{"".join(parts)}</g>'


def samples(spots: Sequence[Spot]) -> list[tuple[int, float]]:
    """Two round counts and the radii of their discs, as far as there are patterns of such a size."""
    largest = spots[0]
    if not largest.pattern.count:
        return []
    each = largest.radius / math.sqrt(largest.pattern.count)  # the radius of a disc of one
    most = min(largest.pattern.count, (LARGEST_SAMPLE / each) ** 2)
    top = _round_below(most)
    counts = [_round_below(top / 5), top] if top >= 5 else [top]
    return [(count, each * math.sqrt(count)) for count in counts]


def _round_below(number: float) -> int:
    """The largest of 1, 2, 5, 10, 20, 50... that is no larger; at least 1."""
    power = 10 ** math.floor(math.log10(max(number, 1.0)))
    return int(max(step * power for step in (1, 2, 5) if step * power <= max(number, 1.0)))
