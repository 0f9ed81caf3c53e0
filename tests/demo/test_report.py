"""The page and the picture, from made-up results."""

import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sona.demo.evaluation import Answers
from sona.demo.picture import draw_picture
from sona.demo.report import report_page
from sona.demo.result import Comparison, DemoResult, Return, Row, Traffic
from sona.patterns import Pattern
from sona.tiny import AGENT_TASKS, SKILLS
from sona.types import CycleReport, Funnel, GateCheck, GateDecision, Version

NASTY = "<script>alert('\"&')</script>"


def row(cycle: int, share: float) -> Row:
    parts = (*AGENT_TASKS, *SKILLS)
    return Row(cycle, Answers(f"v{cycle}", {}, (), dict.fromkeys(parts, share)))


def cycle_report(passed: bool = True) -> CycleReport:
    check = GateCheck(name="gain", value=0.5, bound=0.0, passed=passed, detail=NASTY)
    return CycleReport(
        cycle=1,
        status="published" if passed else "rejected",
        reason=NASTY,
        funnel=Funnel(collected=12, trained=7, held_out=2, left_out={NASTY: 3}),
        parent="v0",
        version="v1" if passed else None,
        gate=GateDecision(passed=passed, checks=(check,)),
        metrics={"steps": 20.0, "train_s": 1.0},
    )


def made_up() -> DemoResult:
    return DemoResult(
        rows=(row(0, 0.0), row(1, 0.9)),
        traffic=(Traffic("tool_call", 10, 5, 5),),
        cycles=(cycle_report(),),
        returns=(Return("v0", True), Return("v1", False)),
        comparisons=(Comparison("tool_call", NASTY, NASTY, "", NASTY),),
        versions=(Version(id="v0", parent=None, cycle=0, created_ns=1, digest="ab" * 32),),
        patterns=(Pattern(id="p1-0", centroid=b"\0\0\x80?", count=12, spread=1.0, family=NASTY),),
        trajectories=12,
        seed=0,
        seconds=61.5,
        store=Path(f"out/{NASTY}"),
        report=Path("out/report.html"),
        picture=None,
    )


class Page(HTMLParser):
    """Collects what a browser would open or load, and checks that tags close."""

    VOID = frozenset({"meta", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in {"src", "href"}]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("picture", [None, b"\x89PNG"])
def test_page_needs_nothing_beside_it(picture: bytes | None) -> None:
    page = Page(report_page(made_up(), picture))
    assert page.open == []
    assert all(load.startswith("data:image/png;base64,") for load in page.loads)
    assert len(page.loads) == (picture is not None)
    assert not re.search(r"url\(|@import|https?:", report_page(made_up(), picture))


def test_page_escapes_what_was_said() -> None:
    page = report_page(made_up(), None)
    assert "script" not in Page(page).tags
    assert "&lt;script&gt;" in page


def test_page_shows_the_gate_s_decision() -> None:
    page = report_page(replace(made_up(), cycles=(cycle_report(passed=False),)), None)
    assert "rejected" in page
    assert "✗ no" in page


def test_page_shows_the_bank() -> None:
    assert "What the bank holds" in report_page(made_up(), None)
    assert "p1-0: 12 trajectories" in report_page(made_up(), None)
    assert "What the bank holds" not in report_page(replace(made_up(), patterns=()), None)


def test_picture_is_a_png_and_the_same_each_time() -> None:
    pytest.importorskip("matplotlib")
    picture = draw_picture([row(0, 0.0), row(1, 0.7)])
    assert picture is not None
    assert picture.startswith(b"\x89PNG")
    assert picture == draw_picture([row(0, 0.0), row(1, 0.7)])


def test_without_matplotlib_there_is_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    assert draw_picture([row(0, 0.0)]) is None
