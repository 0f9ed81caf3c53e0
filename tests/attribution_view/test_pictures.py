"""The heat map: what its cells are, and what the page never does."""

from __future__ import annotations

import io
import re
import sys
from base64 import b64encode
from hashlib import sha256

import numpy as np
import pytest

from sona.attribution_view.colours import ABOVE, BELOW, blended, is_dark, opacity, share_of
from sona.attribution_view.layout import EM, HEIGHT, MOST_COLUMNS, MOST_LINES, lay_out
from sona.attribution_view.page import heat_page
from sona.attribution_view.png import DPI, GROUND, TITLE, heat_png
from sona.bank_view.png import INCHES
from sona.errors import InvalidInputError
from tests.attribution_view.charts import HOSTILE, NOISE, chart
from tests.bank_view.test_map import Page

NAN, AFTER = float("nan"), float("inf")
FOUND = chart(
    ("up", [4.0, 1.0, NOISE / 2]), ("down", [AFTER, -4.0, -1.0]), (HOSTILE, [NAN] * 3), failures={HOSTILE: HOSTILE}
)


def test_colour_is_none_within_the_noise_and_grows_on_either_side() -> None:
    assert share_of(NOISE, NOISE, 4.0) == 0.0 == opacity(0.0)
    shares = [share_of(nats, NOISE, 4.0) for nats in (0.26, 1.0, 4.0, 9.0)]
    assert shares == sorted(shares)
    assert shares[1:] == [0.5, 1.0, 1.0]
    assert [share_of(-nats, NOISE, 4.0) for nats in (1.0, 4.0)] == [-0.5, -1.0]
    assert (blended(1.0, GROUND), blended(-1.0, GROUND), blended(0.0, GROUND)) == (ABOVE, BELOW, GROUND)


def test_text_can_be_read_on_every_colour() -> None:
    for share in np.linspace(-1, 1, 41):
        ink = (255, 255, 255) if is_dark(share) else (0x1D, 0x27, 0x33)
        assert contrast(blended(share, GROUND), ink) > 3.0


def contrast(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    """As WCAG 2.2 defines it."""

    def luminance(colour: tuple[int, int, int]) -> float:
        linear = [v / 12.92 if (v := c / 255) <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for c in colour]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_the_page_is_whole_and_its_texts_are_texts() -> None:
    text = heat_page(FOUND, f"of {HOSTILE}")
    page = Page(text)
    assert not set("\x1b\u202e") & set(text)
    tags = {tag for tag, _ in page.found}
    assert not tags & {"script", "link", "img", "iframe", "a"}
    assert not [name for _, held in page.found for name in held if name.startswith("on") or name in ("src", "href")]
    (policy,) = [held["content"] for held in page.all("meta") if "http-equiv" in held]
    (style,) = re.findall("<style>(.*?)</style>", text, re.DOTALL)
    assert b64encode(sha256(style.encode()).digest()).decode() in policy
    assert "url(" not in style
    assert "@import" not in style


def test_a_cell_says_what_it_is_and_of_which_texts() -> None:
    told = [text for text in Page(heat_page(FOUND, "lead")).texts if "→ response" in text]
    assert len(told) == 9
    assert told[0].startswith(
        "up → response 1: +4.000 nats, +2.0000 a token\nmemory: text of up\nresponse: answer 0 <scri"
    )
    assert "within the noise" in told[2]
    assert "it comes after the response" in told[3]
    assert "no score: <script>" in told[6]


def test_the_page_says_that_it_is_partial() -> None:
    assert "Stopped early: 2 of 3 memories were not reached." in heat_page(
        chart(("a", [1.0]), note="2 of 3 memories were not reached"), "lead"
    )


def test_the_png_has_the_colours_of_the_cells() -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    data = heat_png(FOUND, "title $x")
    assert data == heat_png(FOUND, "title $x")
    assert data.startswith(b"\x89PNG\r\n")
    pixels = np.round(imread(io.BytesIO(data)) * 255).astype(int)
    layout = lay_out(FOUND)
    for cell in layout.cells:
        # Near the cell's corner: in its middle is a text.
        x, y = (round(place * DPI / INCHES) for place in (cell.x + 4, cell.y + HEIGHT - 4 + TITLE))
        wanted = {"after": (255, 255, 255), "failed": (0xDF, 0xE5, 0xEA)}.get(cell.state, blended(cell.share, GROUND))
        assert np.abs(pixels[y, x, :3] - wanted).max() <= 1, cell


def test_a_large_chart_shows_the_heaviest_and_says_so() -> None:
    rng = np.random.default_rng(0)
    many = chart(*((f"m{at}", rng.normal(size=100).tolist()) for at in range(100)))
    layout = lay_out(many)
    assert len(layout.cells) == MOST_LINES * MOST_COLUMNS
    shown = {id(cell.line) for cell in layout.cells}
    lightest = min(line.weight for line in many.lines if id(line) in shown)
    assert lightest >= max(line.weight for line in many.lines if id(line) not in shown)
    assert "the 80 heaviest of 100 memories and the 80 of 100 responses" in heat_page(many, "lead")


def test_a_chart_of_noise_alone_can_be_drawn() -> None:
    found = chart(("a", [0.0, 0.1]))
    assert found.most == 0.0
    assert {cell.share for cell in lay_out(found).cells} == {0.0}
    Page(heat_page(found, "lead"))


def test_the_labels_stay_in_the_picture() -> None:
    layout = lay_out(chart(("a", [1.0])))
    for label in layout.labels:
        wide = 0 if label.slanted else len(label.text) * EM * 0.6
        left = label.x - {"start": 0, "middle": wide / 2, "end": wide}[label.anchor]
        assert 0 < left <= left + wide < layout.width, label
        assert 0 < label.y < layout.height


def test_a_png_without_matplotlib_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InvalidInputError, match="pip install"):
        heat_png(FOUND, "title")
