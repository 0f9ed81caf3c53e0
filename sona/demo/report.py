"""The results as one HTML page that needs nothing beside it: no script, no other file, no network."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from shlex import quote

from sona.bank_view.page import TITLE, pattern_rows
from sona.bank_view.picture import STYLE as MAP_STYLE
from sona.bank_view.picture import bank_map
from sona.demo.picture import DARK_FROM, SCALE
from sona.demo.result import Comparison, DemoResult, Return, Row, Traffic
from sona.demo.style import STYLE
from sona.patterns import Pattern
from sona.terminal import number
from sona.tiny import AGENT_TASKS, SKILLS
from sona.types import CycleReport, GateCheck, Version

LISTED = 12
"""Patterns in the table; the map shows all."""


def report_page(result: DemoResult, picture: bytes | None) -> str:
    """The whole page.

    Args:
        result: what to tell.
        picture: the accuracy matrix as a PNG, if there is one; it travels inside the page.
    """
    sections = [
        _head(result),
        _matrix(result.rows, picture),
        _cycles(result),
        _roll_back(result.returns),
        _comparisons(result.comparisons),
        _bank(result.patterns),
        _versions(result.versions),
        _further(result),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>sona demo</title>\n<style>{STYLE}{MAP_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main>\n</body>\n</html>\n"
    )


def _head(result: DemoResult) -> str:
    learned = (
        "It recorded its own traffic, learned from it in three cycles, and kept what it could do before."
        if result.cycles
        else "It recorded its own traffic; the learning was switched off."
    )
    backs = {
        True: ("identical", "answers after rolling back, compared token for token"),
        False: ("different", "answers after rolling back, compared token for token"),
        None: ("–", "no version was published, so there was nothing to roll back"),
    }
    cards = [
        (f"{result.before:.0%} → {result.after:.0%}", "of the held-out queries of three new tasks answered rightly"),
        (f"{result.kept:.0%}", "of the accuracy on eight old skills kept"),
        backs[result.rollback_identical],
        (f"{result.seconds:.0f} s", f"for everything, {result.trajectories:,} recorded trajectories included"),
    ]
    boxes = "".join(
        f'<div class="card"><b>{escape(figure)}</b><span>{escape(note)}</span></div>' for figure, note in cards
    )
    return (
        "<h1>An agent met tasks that its model could not do</h1>\n"
        f'<p class="lead">{learned} Seed {result.seed}.</p>\n<div class="cards">{boxes}</div>'
    )


def _matrix(rows: Sequence[Row], picture: bytes | None) -> str:
    figure = ""
    if picture is not None:
        data = b64encode(picture).decode("ascii")
        figure = f'<figure><img alt="Accuracy matrix" src="data:image/png;base64,{data}"></figure>'
    parts = [*AGENT_TASKS, *SKILLS]
    head = _line(["", *(part.replace("_", " ") for part in parts)], "th", numbers=range(1, len(parts) + 1))
    lines = "".join(
        f'<tr><td class="name">{escape(row.name)}</td>'
        + "".join(_heat(row.answers.accuracy[part]) for part in parts)
        + "</tr>"
        for row in rows
    )
    return (
        "<h2>What it can do, cycle by cycle</h2>\n"
        "<p>Right answers to held-out queries, word for word. No cycle learned from any of these queries.</p>\n"
        f'{figure}\n<div class="wide"><table class="heat">{head}{lines}</table></div>\n'
        '<p class="note">The first three columns are the tasks that came up, one in each cycle; the others are skills '
        "that the model came with.</p>"
    )


def _cycles(result: DemoResult) -> str:
    boxes = [_cycle(cycle, traffic) for cycle, traffic in zip(result.cycles, result.traffic, strict=False)]
    return "<h2>What each cycle did</h2>\n" + "\n".join(boxes) if boxes else ""


def _cycle(cycle: CycleReport, traffic: Traffic) -> str:
    tag = f'<span class="tag {cycle.status}">{cycle.status}{" as " + cycle.version if cycle.version else ""}</span>'
    gate = _gate(cycle.gate.checks) if cycle.gate else f"<p>{escape(cycle.reason)}</p>"
    steps = ""
    if "steps" in cycle.metrics:
        steps = (
            f'<p class="note">{cycle.metrics["steps"]:.0f} steps in {cycle.metrics.get("train_s", 0):.1f} s, '
            f"{cycle.metrics.get('replayed', 0):,.0f} replayed examples among them.</p>"
        )
    return (
        f'<div class="cycle"><h3>Cycle {cycle.cycle}: {escape(traffic.task.replace("_", " "))}{tag}</h3>\n'
        f"<p>{traffic.queries} queries came in. The model answered {traffic.right} rightly; "
        f"{traffic.asked_person} were handed to a person.</p>\n{_funnel(cycle)}{gate}{steps}</div>"
    )


def _funnel(cycle: CycleReport) -> str:
    funnel = cycle.funnel
    counts = [
        ("collected", funnel.collected, "answers with a quality, new to this cycle"),
        ("learned from", funnel.trained, ""),
        ("held out", funnel.held_out, "for the gate to judge by"),
        *(("left out", count, reason) for reason, count in sorted(funnel.left_out.items())),
    ]
    lines = "".join(_line([name, str(count), note], numbers=(1,)) for name, count, note in counts)
    return f"<table>{lines}</table>"


def _gate(checks: Iterable[GateCheck]) -> str:
    head = _line(["gate's check", "value", "at least", "", ""], "th", numbers=(1, 2))
    lines = "".join(
        f'<tr><td class="name">{escape(check.name)}</td><td class="number">{check.value:.3g}</td>'
        f'<td class="number">{check.bound:.3g}</td><td class="mark">{_mark(check.passed)}</td>'
        f'<td class="note">{escape(check.detail)}</td></tr>'
        for check in checks
    )
    return f'<div class="wide"><table>{head}{lines}</table></div>'


def _roll_back(returns: Sequence[Return]) -> str:
    if not returns:
        return ""
    lines = "".join(
        f'<tr><td class="name">{escape(back.version)}</td><td class="mark">{_mark(back.identical)}</td></tr>'
        for back in returns
    )
    return (
        "<h2>Taking it back</h2>\n<p>Each version was put in force again, in this order, and asked the whole exam. The "
        "tokens of its answers were compared with those that it gave when it was new.</p>\n"
        f"<table>{_line(['version', 'same answers'], 'th')}{lines}</table>"
    )


def _comparisons(comparisons: Iterable[Comparison]) -> str:
    head = _line(["query", "right answer", "base model", "after the last cycle"], "th")
    lines = "".join(
        f'<tr><td class="text">{escape(item.prompt)}</td><td class="text">{escape(item.expected)}</td>'
        f"{_answer(item.before, item.expected)}{_answer(item.after, item.expected)}</tr>"
        for item in comparisons
    )
    return (
        "<h2>The same queries, before and after</h2>\n<p>The first held-out queries of each task, not chosen.</p>\n"
        f'<div class="wide"><table>{head}{lines}</table></div>'
    )


def _bank(patterns: Sequence[Pattern]) -> str:
    if not patterns:
        return ""
    largest = sorted(patterns, key=lambda one: -one.count)[:LISTED]
    few = "" if len(largest) == len(patterns) else f"<p>The largest {LISTED}:</p>\n"
    found = number(len(patterns), "pattern", "patterns")
    return (
        f"<h2>{TITLE}</h2>\n<p>Nobody said which queries belong together. The reasoning bank found {found} in them.</p>"
        f"\n{bank_map(patterns)}\n{few}{pattern_rows(largest)}"
    )


def _versions(versions: Iterable[Version]) -> str:
    head = _line(["version", "made from", "cycle", "answers learned from", "made at", "digest"], "th", numbers=(2, 3))
    lines = "".join(
        _line(
            [
                version.id,
                version.parent or "the base model",
                str(version.cycle),
                str(version.trajectories),
                datetime.fromtimestamp(version.created_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
                version.digest[:12],
            ],
            numbers=(2, 3),
        )
        for version in versions
    )
    return f'<h2>Versions</h2>\n<div class="wide"><table>{head}{lines}</table></div>'


def _further(result: DemoResult) -> str:
    store = str(result.store)
    commands = "\n".join(
        f"sona {command} --store {quote(store)}"
        for command in ("status", "bank show", "versions list", "versions rollback")
    )
    code = (
        "import sona\n\n"
        f'with sona.open_sync({store!r}, model="tiny") as engine:\n'
        f'    with engine.trajectory({result.comparisons[0].prompt!r}, source="me") as t:\n'
        "        print(t.generate(max_new_tokens=24).text)\n"
        "    engine.feedback(t.id, quality=1.0)  # from 0, useless, to 1, right\n"
        "    print(engine.learn().reason)"
    )
    return (
        "<h2>How to go on</h2>\n<p>The store holds the traffic and every version. Open it, or begin one for a model "
        f"and an agent of your own in the same way:</p>\n<pre>{escape(code)}</pre>\n"
        f"<p>The command line looks at it and takes a step back:</p>\n<pre>{escape(commands)}</pre>"
    )


def _line(cells: Sequence[str], kind: str = "td", numbers: Iterable[int] = ()) -> str:
    """A row of a table; the cells at the places ``numbers`` stand to the right."""
    right = dict.fromkeys(numbers, ' class="number"')
    inside = "".join(f"<{kind}{right.get(place, '')}>{escape(cell)}</{kind}>" for place, cell in enumerate(cells))
    return f"<tr>{inside}</tr>"


def _heat(share: float) -> str:
    """A cell of the matrix in the picture's colours, rounded to its five."""
    ground = SCALE[round(share * (len(SCALE) - 1))]
    ink = "#fff" if share > DARK_FROM else "var(--ink)"
    return f'<td class="number" style="background:{ground};color:{ink}">{share:.0%}</td>'


def _answer(text: str, expected: str) -> str:
    mark = "yes" if text == expected else "no"
    return f'<td class="text"><span class="{mark}">{escape(text) or "(nothing)"}</span></td>'


def _mark(passed: bool) -> str:
    return '<span class="yes">✓ yes</span>' if passed else '<span class="no">✗ no</span>'
