"""The console: moving bars on a terminal, plain lines in a log."""

import io

import pytest
from rich.console import Console

from sona.demo.screen import Screen
from sona.types import CycleReport, Funnel, GateCheck, GateDecision


def a_console(terminal: bool) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, width=100, force_terminal=terminal, color_system=None), file


def work(console: Console) -> None:
    with Screen(console).bar("traffic", 3) as bar:
        for done in (1, 2, 3):
            bar.move(done, 3, "[not markup]")
        bar.summary = "3 [queries]"


def test_log_gets_one_line_for_each_bar() -> None:
    console, file = a_console(terminal=False)
    work(console)
    assert file.getvalue().splitlines()[0].startswith("  traffic      3 [queries] · ")
    assert len(file.getvalue().splitlines()) == 1


def test_terminal_shows_a_bar_and_keeps_the_same_line() -> None:
    console, file = a_console(terminal=True)
    work(console)
    assert "3/3" in file.getvalue()
    assert "[not markup]" in file.getvalue()
    assert "traffic      3 [queries] · " in file.getvalue().splitlines()[-1]


def test_bar_of_work_that_fails_leaves_no_line() -> None:
    console, file = a_console(terminal=False)
    with pytest.raises(KeyboardInterrupt), Screen(console).bar("traffic", 3):
        raise KeyboardInterrupt
    assert file.getvalue() == ""


def test_rejected_cycle_is_told_with_the_check_that_failed() -> None:
    console, file = a_console(terminal=False)
    checks = (
        GateCheck(name="gain", value=0.5, bound=0.0, passed=True),
        GateCheck(name="base skills", value=0.8, bound=0.9, passed=False),
    )
    report = CycleReport(
        cycle=2,
        status="rejected",
        reason="",
        funnel=Funnel(collected=1, trained=1, held_out=0),
        parent="v1",
        gate=GateDecision(passed=False, checks=checks),
    )
    Screen(console).verdict(report)
    assert "the gate keeps v1" in file.getvalue()
    assert "✗ base skills: 0.8 (at least 0.9)" in file.getvalue()
