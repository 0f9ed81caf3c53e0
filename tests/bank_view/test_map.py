"""The map: where patterns are, what the page holds, and what it never does."""

from __future__ import annotations

import re
import sys
from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sona.bank_view.colours import STOPS, colour
from sona.bank_view.layout import HEIGHT, WIDTH, Layout, lay_out, plane, radii_of
from sona.bank_view.page import map_page
from sona.bank_view.picture import bank_map, samples
from sona.bank_view.png import bank_png
from sona.errors import InvalidInputError
from sona.patterns import Pattern, Verdict
from tests.bank_view.patterns import HOSTILE, lesson, pattern, rated

VOID = frozenset({"meta", "rect", "circle"})


def several(count: int = 12) -> list[Pattern]:
    return [pattern(f"p1-{at}", at=at, count=10 + 5 * at, prompt=f"question {at}") for at in range(count)]


class Page(HTMLParser):
    """What a browser would find, and whether all tags close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.found if name == tag]


def discs(page: Page) -> list[dict[str, str]]:
    return [one for one in page.all("circle") if "disc" in one.get("class", "") and "sample" not in one["class"]]


# Where patterns are


def test_the_plane_keeps_distances_that_lie_in_it() -> None:
    rng = np.random.default_rng(0)
    flat, basis = rng.normal(size=(9, 2)), np.linalg.qr(rng.normal(size=(6, 2)))[0]
    points, explained = plane(flat @ basis.T + rng.normal(size=6))
    assert explained == pytest.approx(1.0)
    expected, found = (np.linalg.norm(x[:, None] - x[None], axis=-1) for x in (flat, points))
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_the_plane_shows_less_than_all_of_more_directions() -> None:
    points, explained = plane(np.eye(4))
    assert explained == pytest.approx(2 / 3)  # three directions of equal variance
    assert points.shape == (4, 2)


def test_the_plane_is_no_mirror_image_of_itself() -> None:
    x = np.random.default_rng(1).normal(size=(20, 5))
    points, _ = plane(x)
    moved, _ = plane(np.vstack([x, x.mean(0)]))  # one more, in the middle
    np.testing.assert_allclose(moved[:-1], points, atol=1e-9)


@pytest.mark.parametrize("x", [np.ones((1, 3)), np.ones((4, 3)), 1e-30 * np.ones((4, 3))])
def test_patterns_at_one_place_are_one_point(x: np.ndarray) -> None:
    points, explained = plane(x)
    assert not points.any()
    assert explained == 1.0


def test_areas_are_as_traffic() -> None:
    radii = radii_of(np.array([400.0, 100.0, 0.0]))
    assert radii[0] == pytest.approx(2 * radii[1])
    assert radii[2] > 0  # to be seen at all
    assert (np.pi * radii_of(np.full(500, 7.0)) ** 2).sum() < 0.2 * WIDTH * HEIGHT


def check(layout: Layout) -> None:
    for spot in layout.spots:
        assert spot.radius <= spot.x <= WIDTH - spot.radius
        assert spot.radius <= spot.y <= layout.height - spot.radius
    boxes = [label.box for label in layout.labels]
    for place, box in enumerate(boxes):
        assert box.left >= 0
        assert box.right <= WIDTH
        assert not any(map(box.meets, boxes[place + 1 :]))
        assert not any(spot.meets(box) for spot in layout.spots)


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 10**6), st.sampled_from(["", "a question", "你好，世界", HOSTILE])),
        max_size=30,
    )
)
def test_whatever_patterns_come_all_are_in_the_frame(drawn: list[tuple[int, int, str]]) -> None:
    patterns = [
        pattern(f"p{place}", at=at, count=count, prompt=prompt, verdict=Verdict())
        for place, (at, count, prompt) in enumerate(drawn)
    ]
    check(lay_out(patterns))
    assert "nan" not in map_page(patterns, "", "").lower()


# What the page holds


def test_each_pattern_has_a_disc_that_tells_about_it_and_leads_to_its_row() -> None:
    page = Page(map_page(several(), "Title", "lead"))
    assert len(discs(page)) == 12
    assert len({one["href"] for one in page.all("a")}) == 12
    assert {one["href"].removeprefix("#") for one in page.all("a")} == {
        one["id"] for one in page.all("tr") if "id" in one
    }
    assert any(text.startswith("p1-3: 25 trajectories\nquality 0.75, ") for text in page.texts)
    assert "question 3" in page.texts


def test_the_table_says_what_is_known() -> None:
    routes = {"tool:good": rated(20, 0.9), "tool:bad": rated(20, 0.1)}
    one = pattern(count=60, verdict=rated(40, 0.5), routes=routes, family="orders", lessons=(lesson(),))
    texts = Page(map_page([one], "Title", "lead")).texts
    assert {"p1-0", "where is my order", "60", "40", "0.50", "orders", "lessons", "1", "2"} <= set(texts)
    assert any(text.startswith("tool:good 0.90 (") for text in texts)
    assert any(text.startswith("tool:bad 0.10 (") for text in texts)


def test_a_column_of_nothing_is_left_out() -> None:
    texts = Page(map_page(several(), "Title", "lead")).texts
    assert not {"family", "lessons", "best route", "trend"} & set(texts)


def test_what_nobody_rated_is_grey_and_of_another_line() -> None:
    (unrated,) = discs(Page(bank_map([pattern(verdict=Verdict())])))[:1]
    (rated_one,) = discs(Page(bank_map([pattern(verdict=rated(9, 0.5))])))[:1]
    assert (unrated["class"], unrated["fill"]) == ("disc unrated", colour(None))
    assert (rated_one["class"], rated_one["fill"]) == ("disc", colour(0.5))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_patterns_make_a_map(count: int) -> None:
    patterns = several(count)
    check(lay_out(patterns))
    page = Page(map_page(patterns, "Title", "lead"))
    assert "nan" not in "".join(page.texts).lower()
    assert ("With one pattern there is no distance to show." in page.texts) == (count == 1)


def test_two_patterns_at_one_place_make_a_map() -> None:
    check(lay_out([pattern("a"), pattern("b")]))


def test_without_patterns_the_page_says_so() -> None:
    page = Page(map_page([], "Title", "lead"))
    assert not page.all("svg")
    assert any("No patterns yet" in text for text in page.texts)


def test_of_too_many_the_largest_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sona.bank_view.page.MOST", 3)
    page = Page(map_page(several(), "Title", "lead"))
    assert "The largest 3 of 12 patterns." in page.texts
    assert "p1-11" in page.texts
    assert "p1-0" not in page.texts


def test_the_same_patterns_in_any_order_are_the_same_bytes() -> None:
    patterns = several()
    assert map_page(patterns, "a", "b") == map_page(patterns[::-1], "a", "b")


# What it never does


def hostile() -> Sequence[Pattern]:
    routes = {f"good {HOSTILE}"[:200]: rated(20, 0.9), "bad": rated(20, 0.1)}
    return [
        pattern("p<b>&'\"", prompt=HOSTILE, routes=routes, family=HOSTILE),
        pattern("p2", at=1, prompt="</svg></title></style><img src=x onerror=alert(1)>"),
    ]


def test_no_text_becomes_markup() -> None:
    text = map_page(hostile(), HOSTILE, HOSTILE)
    page = Page(text)
    allowed = {"html", "head", "meta", "title", "style", "body", "main", "h1", "p", "figure", "figcaption", "div"}
    drawn = {"svg", "g", "a", "rect", "circle", "text", "table", "thead", "tbody", "tr", "th", "td"}
    assert {tag for tag, _ in page.found} <= allowed | drawn
    assert not [name for _, attributes in page.found for name in attributes if name.startswith("on")]
    assert "<script>alert('\"&')</script>" in "".join(page.texts)  # as a text
    assert not set("\x1b\x07\u202e") & set(text)


def test_the_page_needs_nothing_beside_it_and_its_policy_says_so() -> None:
    text = map_page([*several(), *hostile()], "Title", "lead")
    page = Page(text)
    assert all(value.startswith("#pattern-") for _, one in page.found for name, value in one.items() if name == "href")
    assert not [one for _, one in page.found if {"src", "style"} & set(one)]
    assert not re.search(r"url\(|@import|https?:", text)
    (policy,) = [one["content"] for one in page.all("meta") if one.get("http-equiv") == "Content-Security-Policy"]
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    assert f"style-src 'sha256-{b64encode(sha256(style.encode()).digest()).decode()}'" in policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


# Colours and legend


def test_colours_grow_darker_all_the_way() -> None:
    """So the order is seen by whoever sees no colour."""

    def luminance(hexadecimal: str) -> float:
        values = np.array([int(hexadecimal[place : place + 2], 16) for place in (1, 3, 5)]) / 255
        linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    steps = [luminance(colour(step / 100)) for step in range(101)]
    assert all(a > b for a, b in pairwise(steps))
    assert colour(0.0) == "#{:02x}{:02x}{:02x}".format(*STOPS[0])
    assert colour(1.0) == "#{:02x}{:02x}{:02x}".format(*STOPS[-1])


def test_the_legend_s_discs_are_of_the_map_s_scale() -> None:
    layout = lay_out([pattern("a", count=4000), pattern("b", at=1, count=1000)])
    for count, radius in samples(layout.spots):
        assert radius == pytest.approx(layout.spots[0].radius * (count / 4000) ** 0.5)
    assert samples(lay_out([pattern(count=0, verdict=Verdict())]).spots) == []


# The PNG


@pytest.mark.parametrize("patterns", [[], several(1), [*several(), *hostile()]], ids=["none", "one", "several"])
@pytest.mark.filterwarnings("ignore:Glyph .* missing from font")
def test_the_png_is_the_same_each_time(patterns: list[Pattern]) -> None:
    pytest.importorskip("matplotlib")
    drawn = bank_png(patterns, HOSTILE)
    assert drawn.startswith(b"\x89PNG")
    assert drawn == bank_png(patterns, HOSTILE)


def test_without_matplotlib_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InvalidInputError, match="pip install matplotlib"):
        bank_png(several(), "Title")
