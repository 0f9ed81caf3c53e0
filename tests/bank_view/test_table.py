"""The bank in terminals of several widths."""

from __future__ import annotations

import io

import pytest
from rich.console import Console, RenderableType

from sona.bank_view.table import history_table, pattern_details, pattern_table
from sona.patterns import PatternChange
from tests.bank_view.patterns import HOSTILE, lesson, pattern, rated

LONG = "a question that goes on and on " * 10
ROUTES = {"tool:good": rated(20, 0.9), "tool:bad": rated(20, 0.1), "model:" + "long" * 40: rated(3, 0.5)}
PATTERNS = [
    pattern("p1-0", prompt=LONG, routes=ROUTES, family="orders", lessons=(lesson(),)),
    pattern("p1-1", at=1, prompt="你好，世界 " * 30),
    pattern("p1-2", at=2, prompt=HOSTILE),
]
CHANGES = [
    PatternChange(cycle=1, change="born", pattern="p1-0", count=9),
    PatternChange(cycle=1, change="pruned", pattern="p1-9", count=1),
]


def rendered(what: RenderableType, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(what)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80, 110, 140])
@pytest.mark.parametrize("routes", [False, True])
def test_figures_are_never_cut_and_texts_are(width: int, routes: bool) -> None:
    lines = rendered(pattern_table(PATTERNS, width, routes=routes), width)
    assert sum(line.startswith("p1-") for line in lines) == 3
    assert sum("0.75 (0.49-0.90)" in line for line in lines) == 3
    assert len(lines) == 1 + 3 + (3 if routes else 2)
    assert lines[1].rstrip().endswith("…")
    assert max(map(len, lines)) <= width


def test_a_wide_terminal_shows_more() -> None:
    assert "family" not in rendered(pattern_table(PATTERNS, 109), 109)[0]
    assert "family" in rendered(pattern_table(PATTERNS, 110), 110)[0]
    assert "family" not in rendered(pattern_table(PATTERNS[1:], 110), 110)[0]  # none has one


def test_a_history_fits_and_says_each_cycle_once() -> None:
    known = {one.id: one for one in PATTERNS}
    for width in (60, 80, 140):
        lines = rendered(history_table(CHANGES, known, {1: "2026-01-02 03:04"}, width), width)
        assert ("like" in lines[0]) == (width == 140)
        assert "p1-0 born of 9 trajectories" in lines[1]
        assert "2026-01-02 03:04" in lines[1]
        assert lines[2].split()[0] == "p1-9"


def test_details_wrap_rather_than_cut() -> None:
    whole = "\n".join(rendered(pattern_details(PATTERNS[0], CHANGES, 3.0), 80))
    assert "".join(whole.split()).count("aquestionthatgoesonandon") == 9  # all of the 300 characters that are kept
    assert "longlong" in whole
    assert "Then look it up." in whole
