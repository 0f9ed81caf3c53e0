"""The screen of ``sona review`` as text, and a store to look at."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

from sona.attribution.preferences import Preferences, Seen
from sona.candidate import Mattered
from sona.config import Config
from sona.review_view.app import ReviewApp
from sona.review_view.of_store import StoreReviewer
from sona.storage.store import Store
from tests.reviews import candidate

SIZE = (100, 30)
GOLDEN = Path(__file__).parent / "screens"
SEEN = Seen(turns=40, responses=44, above=3, largest=3.5, failed=1, last_error="RuntimeError: the backend died")
_TEXT = re.compile(r'<text class="[^"]*-r\d+" x="([\d.]+)"[^>]*?y="([\d.]+)"[^>]*?>(.*?)</text>', re.DOTALL)
_CELL = 12.2  # pixels of a column in textual's SVG


def lines_of(app: ReviewApp) -> list[str]:
    """What is on the screen, row by row, without the window around it."""
    rows: dict[float, dict[int, str]] = {}
    for x, y, text in _TEXT.findall(app.export_screenshot(simplify=True)):
        rows.setdefault(float(y), {})[round(float(x) / _CELL)] = unescape(text).replace("\xa0", " ")
    return [_line(parts) for _, parts in sorted(rows.items())]


def _line(parts: dict[int, str]) -> str:
    line = ""
    for column, text in sorted(parts.items()):
        line = line.ljust(column) + text
    return line.rstrip()


def filled(folder: Path) -> Path:
    """A store with candidates in several states, some of them with texts that a terminal must not obey."""
    wild = "the key rotates on [bold]Friday[/bold] \x1b[31m\x1b]0;owned\x07"
    with Store.open(folder) as store:
        store.candidates.add(
            [
                candidate(0, response="blue", alternate="", source="bot"),
                candidate(1, response=wild, context_tail="user: when does the key rotate?", alternate="I don't know"),
                candidate(2, response="[/] green", mattered=[Mattered(key="a [red]memory", nats=2.25)]),
                candidate(3, response="turned down"),
                candidate(4, divergence=0.001, response="below"),
            ]
        )
        store.candidates.change([4], "rejected", by="ana", note="private")
        Preferences(store).set_floor(0.25)
        Preferences(store).keep_seen(SEEN)
    return folder


def app_on(store: Path, config: Config | None = None) -> ReviewApp:
    return ReviewApp(StoreReviewer(store, config or Config(), "ana"), "the store", refresh_s=60.0)
