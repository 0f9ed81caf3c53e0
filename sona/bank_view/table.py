"""The bank in a terminal, as rich's renderables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sona.bank_view.words import best_and_worst, effect, like, quality_and_interval, trend, what_happened
from sona.excerpt import excerpt, printable
from sona.patterns import Exemplar, Lesson, Pattern, PatternChange, Verdict
from sona.terminal import trajectories

WIDE = 110
"""Columns of a terminal that has room for all that there is to say."""
PROMPT = 300
"""Characters of a text at most, where there is room."""
EXTRA: Mapping[str, Callable[[Pattern], str]] = {
    "lessons": lambda pattern: str(len(pattern.lessons) or ""),
    "family": lambda pattern: excerpt(pattern.family, 24),
    "last cycle": lambda pattern: str(pattern.touched_cycle),
}
"""What a wide terminal shows too, where there is any of it."""
NUMBERS = {"cycle", "count", "rated", "trend", "lessons", "last cycle"}
LEAST = 8
"""Columns of a text, however narrow the terminal is."""


def pattern_table(patterns: Sequence[Pattern], width: int, *, routes: bool = False) -> Table:
    """A line for each of ``patterns``, and below it its best and worst route, or all ``routes``.

    Args:
        patterns: what to show, in this order.
        width: columns of the terminal; below :data:`WIDE` there is no room for :data:`EXTRA`.
        routes: show each route rather than two.
    """
    extra = {name: of for name, of in EXTRA.items() if width >= WIDE and any(map(of, patterns))}
    names = ["pattern", "count", "rated", "quality (90 %)", "trend", *extra, "like"]
    lines: list[list[str]] = []
    for one in patterns:
        rest = [*(of(one) for of in extra.values()), like(one, PROMPT)]
        lines.append([excerpt(one.id), str(one.count), *_figures(one.verdict), *rest])
        for name, verdict in _routes(one, every=routes):
            lines.append(["", "", *_figures(verdict), *[""] * len(extra), f"  {name}"])
    table = _fitted(names, lines, width)
    for line in lines:
        table.add_row(*map(Text, line), style="" if line[0] else "dim")
    return table


def pattern_details(pattern: Pattern, history: Sequence[PatternChange], weight: float) -> Group:
    """All that is known of ``pattern``, its lines of the ``history``, and its ``weight`` as of today."""
    facts = Table.grid(padding=(0, 2))
    change = trend(pattern.verdict)
    facts.add_row("quality", quality_and_interval(pattern.verdict) + (f", trend {change}" if change else ""))
    if pattern.family:
        facts.add_row("family", Text(printable(pattern.family)))
    facts.add_row("weight", f"{weight:.1f}: old trajectories count less")
    facts.add_row("spread", f"{pattern.spread:.2f}, the mean cosine to its centre")
    facts.add_row("cycles", f"born in {pattern.born_cycle}, last grown in {pattern.touched_cycle}")
    size = f": {trajectories(pattern.count)}, {pattern.verdict.count} rated"
    parts: list[RenderableType] = [Text.assemble((excerpt(pattern.id), "bold"), size), facts]
    if pattern.routes:
        parts += ["", _route_table(pattern.routes)]
    for title, exemplars in (("best rated", pattern.exemplars), ("worst rated", pattern.failures)):
        if exemplars:
            parts += ["", _exemplar_table(title, exemplars)]
    for lesson in pattern.lessons:
        parts += ["", _lesson(lesson)]
    if history:
        parts += ["", *(Text(f"cycle {change.cycle}: {what_happened(change)}") for change in history)]
    return Group(*parts)


def history_table(
    changes: Sequence[PatternChange], patterns: Mapping[str, Pattern], moments: Mapping[int, str], width: int
) -> Table:
    """A line for each of ``changes``.

    Args:
        changes: in this order.
        patterns: those that are still there, by id; where ``width`` allows, a line says what its pattern is like.
        moments: when each cycle was; those that are not known any more are missing.
        width: columns of the terminal.
    """
    lines: list[list[str]] = []
    before = None
    for change in changes:
        first = change.cycle != before
        head = [str(change.cycle), moments.get(change.cycle, "-")] if first else ["", ""]
        known = patterns.get(change.pattern)
        lines.append([*head, what_happened(change), like(known, PROMPT) if known else ""])
        before = change.cycle
    names = ["cycle", "when", "what happened", "like"]
    if width < WIDE:
        names, lines = names[:-1], [line[:-1] for line in lines]
    table = _fitted(names, lines, width)
    for line in lines:
        table.add_row(*map(Text, line))
    return table


def _fitted(names: Sequence[str], lines: Sequence[Sequence[str]], width: int) -> Table:
    """A table for ``lines`` whose last column has what the others leave of ``width``; those are never cut."""
    table = Table(box=None, pad_edge=False)
    for place, name in enumerate(names[:-1]):
        needed = max(map(cell_len, (name, *(line[place] for line in lines))))
        table.add_column(name, justify="right" if name in NUMBERS else "left", no_wrap=True, min_width=needed)
        width -= needed + 2  # the gap to the next one
    # In figures: of a longer text rich would make room at the cost of the other columns.
    table.add_column(names[-1], no_wrap=True, overflow="ellipsis", max_width=max(width, LEAST))
    return table


def _figures(verdict: Verdict) -> tuple[str, str, str]:
    return str(verdict.count), quality_and_interval(verdict), trend(verdict)


def _routes(pattern: Pattern, *, every: bool) -> Iterator[tuple[str, Verdict]]:
    if every:
        yield from ((excerpt(name), verdict) for name, verdict in _by_count(pattern.routes))
    elif (two := best_and_worst(pattern.routes)) is not None:
        yield f"best: {excerpt(two.best)}", pattern.routes[two.best]
        yield f"worst: {excerpt(two.worst)}", pattern.routes[two.worst]


def _by_count(routes: Mapping[str, Verdict]) -> list[tuple[str, Verdict]]:
    return sorted(routes.items(), key=lambda item: (-item[1].count, item[0]))


def _route_table(routes: Mapping[str, Verdict]) -> Table:
    table = Table("route", box=None, pad_edge=False)
    table.add_column("rated", justify="right")
    table.add_column("quality (90 %)", no_wrap=True)
    table.add_column("trend", justify="right")
    for name, verdict in _by_count(routes):
        table.add_row(Text(excerpt(name, PROMPT)), *_figures(verdict))
    return table


def _exemplar_table(title: str, exemplars: Sequence[Exemplar]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(title, justify="right", no_wrap=True)
    table.add_column("cosine", justify="right", no_wrap=True)
    table.add_column("trajectory", overflow="fold")
    table.add_column("query, and answer", ratio=1)
    for one in exemplars:
        texts = Text(excerpt(one.prompt, PROMPT))
        if one.response:
            texts.append(f"\n→ {excerpt(one.response, PROMPT)}", style="dim")
        table.add_row(f"{one.quality:.2f}", f"{one.similarity:.2f}", Text(excerpt(one.trajectory_id)), texts)
    return table


def _lesson(lesson: Lesson) -> Group:
    rests = f"born in cycle {lesson.born_cycle}, from {', '.join(map(excerpt, lesson.trajectory_ids)) or 'none'}"
    return Group(
        Text.assemble((f"{lesson.advice}: ", "bold"), (excerpt(lesson.title, PROMPT), "bold"), f"; {effect(lesson)}"),
        Text(f"  when {printable(lesson.when).strip()}"),
        *(Text(f"  {line}") for line in printable(lesson.text).strip().splitlines()),
        Text(f"  {rests}", style="dim"),
    )
