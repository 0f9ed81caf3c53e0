"""The heat map and the texts as one HTML page that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from sona.attribution_view import words
from sona.attribution_view.chart import Chart
from sona.attribution_view.picture import STYLE, heat_map
from sona.bank_view.standalone import standalone_page
from sona.excerpt import excerpt, printable

TITLE = "What each memory gave to each response"
TEXT = 2000
"""Characters of a text in a table."""
MOST = 2000
"""Rows of a table."""
Cells = Sequence[tuple[str, str]]
"""Of a row: the kind, which is a class in the style, and the text."""


def heat_page(chart: Chart, lead: str) -> str:
    """The whole page: what is missing and what to beware of, the picture, and two tables with the texts.

    It may be opened anywhere: see :func:`sona.bank_view.standalone.standalone_page`.
    """
    told = [lead, *([f"Stopped early: {chart.note}."] if chart.note else [])]
    told += [f"Warning: {words.warning(chart, one)}." for one in chart.warnings]
    paragraphs = "\n".join(f"<p>{escape(printable(one))}</p>" for one in told)
    content = f"{paragraphs}\n{heat_map(chart)}\n{_memories(chart)}\n{_responses(chart)}"
    return standalone_page(TITLE, content, STYLE)


def _memories(chart: Chart) -> str:
    rows: list[Cells] = []
    for line in [*chart.ranked, *([chart.together] if chart.together else [])][:MOST]:
        figures = [("number", words.weight(chart, line)), ("number", words.per_token(chart, line))]
        text = [("text", excerpt(line.text, TEXT)), ("text", excerpt(line.failure, TEXT))]
        rows.append([("name", words.name(line)), *figures, *text])
    return _table(("memory", f"weight ({chart.unit})", "a token", "text", "no score because"), rows)


def _responses(chart: Chart) -> str:
    rows: list[Cells] = []
    for place, column in enumerate(chart.columns[:MOST]):
        given = words.given(chart, place)
        figures = [("number", str(column.number)), ("number", str(column.tokens)), ("number", given)]
        rows.append([*figures, ("text", excerpt(column.text, TEXT))])
    return _table(("response", "tokens", f"from memories ({chart.unit})", "text"), rows)


def _table(names: Sequence[str], rows: Sequence[Cells]) -> str:
    """A table; a column that would be empty is left out."""
    kept = [place for place in range(len(names)) if any(row[place][1] for row in rows)]
    head = "".join(f'<th class="{rows[0][place][0]}">{escape(names[place])}</th>' for place in kept)
    lines = []
    for row in rows:
        cells = "".join(f'<td class="{row[place][0]}">{escape(row[place][1])}</td>' for place in kept)
        lines.append(f"<tr>{cells}</tr>")
    body = "\n".join(lines)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'
