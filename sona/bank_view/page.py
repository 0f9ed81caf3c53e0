"""The map as one HTML page that needs nothing beside it: no script, no other file, no network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import NamedTuple

from sona.bank_view.colours import colour
from sona.bank_view.picture import STYLE, bank_map
from sona.bank_view.standalone import standalone_page
from sona.bank_view.words import best_and_worst, interval, like, quality, quality_and_interval, trend
from sona.excerpt import excerpt, printable
from sona.patterns import Pattern, Verdict
from sona.terminal import number

TITLE = "What the bank holds"
MOST = 2000
"""Patterns on a page, those of most trajectories: as many as a bank holds by default."""


class Column(NamedTuple):
    """One of the table's."""

    name: str
    kind: str
    """Its class in the style."""
    of: Callable[[Pattern], str]


def _route(one: Pattern, which: int) -> str:
    two = best_and_worst(one.routes)
    return "" if two is None else f"{excerpt(two[which])} {quality_and_interval(one.routes[two[which]])}"


COLUMNS = (
    Column("like", "text", lambda one: like(one, 200)),
    Column("count", "number", lambda one: str(one.count)),
    Column("rated", "number", lambda one: str(one.verdict.count)),
    Column("quality", "number", lambda one: quality(one.verdict)),
    Column("90 %", "number", lambda one: interval(one.verdict)),
    Column("trend", "number", lambda one: trend(one.verdict)),
    Column("best route", "route", lambda one: _route(one, 0)),
    Column("worst route", "route", lambda one: _route(one, 1)),
    Column("lessons", "number", lambda one: str(len(one.lessons) or "")),
    Column("family", "family", lambda one: excerpt(one.family, 40)),
    Column("last cycle", "number", lambda one: str(one.touched_cycle)),
)


def map_page(patterns: Sequence[Pattern], title: str, lead: str) -> str:
    """The whole page: the map of ``patterns``, and all of them in a table.

    It may be opened anywhere: see :func:`sona.bank_view.standalone.standalone_page`.
    """
    shown = sorted(patterns, key=lambda one: (-one.count, one.id))[:MOST]
    title, lead = printable(title), printable(lead)
    content = _content(shown, len(patterns)) if shown else "<p>No patterns yet: the first cycle makes them.</p>"
    return standalone_page(title, f"<p>{escape(lead)}</p>\n{content}", STYLE)


def pattern_rows(patterns: Sequence[Pattern], anchors: Mapping[str, str] | None = None) -> str:
    """A table of ``patterns``, each row with its anchor if it has one; a column that would be empty is left out."""
    columns = [column for column in COLUMNS if any(map(column.of, patterns))]
    head = "".join(_cell("th", column.kind, column.name) for column in columns)
    lines = []
    for one in patterns:
        anchor = f' id="{escape(anchors[one.id])}"' if anchors and one.id in anchors else ""
        cells = "".join(_cell("td", column.kind, column.of(one)) for column in columns)
        first = f'<td class="id">{_swatch(one.verdict)}{escape(excerpt(one.id))}</td>'
        lines.append(f"<tr{anchor}>{first}{cells}</tr>")
    rows = "\n".join(lines)
    return (
        f'<div class="wide"><table><thead><tr><th>pattern</th>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>'
    )


def _content(shown: Sequence[Pattern], of: int) -> str:
    # Numbers rather than the patterns' ids, which may be any text.
    anchors = {one.id: f"pattern-{place}" for place, one in enumerate(shown, 1)}
    left = f"<p>The largest {len(shown)} of {number(of, 'pattern', 'patterns')}.</p>\n" if len(shown) < of else ""
    return f"{left}{bank_map(shown, anchors)}\n{pattern_rows(shown, anchors)}"


def _cell(tag: str, kind: str, text: str) -> str:
    return f'<{tag} class="{kind}">{escape(text)}</{tag}>'


def _swatch(verdict: Verdict) -> str:
    fill = colour(verdict.mean if verdict.count else None)
    return (
        f'<svg class="swatch" viewBox="0 0 10 10" aria-hidden="true"><circle cx="5" cy="5" r="5" fill="{fill}"/></svg>'
    )
