"""Stop strings, limits and tokens, each by itself."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sona.errors import ConfigError
from sona.service.bearer import FILE, own_token, read_token
from sona.service.limits import CLIENTS, Rate, Slots
from sona.service.problems import ProblemError
from sona.service.stops import StopFinder

LETTERS = st.text("ab", max_size=12)
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=4)


def cut(text: str, stops: list[str]) -> str:
    """The slow way: letter by letter, the first stop string that is complete, of several the longest."""
    for end in range(len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end - len(stop)]
    return text


@given(st.lists(LETTERS, max_size=8), STOPS)
def test_a_text_is_cut_in_the_same_place_whatever_its_pieces(pieces: list[str], stops: list[str]) -> None:
    finder = StopFinder(stops)
    told = "".join([*map(finder.feed, pieces), finder.rest()])
    whole = "".join(pieces)
    assert told == cut(whole, stops)
    assert finder.stopped == (told != whole)


@given(LETTERS, LETTERS, STOPS)
def test_only_what_may_be_a_beginning_is_held_back(first: str, second: str, stops: list[str]) -> None:
    finder = StopFinder(stops)
    told = finder.feed(first)
    held = first[len(told) :]
    if not finder.stopped:
        assert not held or any(stop.startswith(held) for stop in stops)


def test_slots_are_given_back_whatever_happens() -> None:
    slots = Slots(1, "things")
    for _ in range(3):
        with pytest.raises(RuntimeError), slots.one():
            raise RuntimeError
    with slots.one(), pytest.raises(ProblemError) as refused, slots.one():
        pass
    assert (refused.value.status, slots.taken) == (429, 0)


def test_a_rate_has_bursts_and_recovers() -> None:
    now = 0.0
    rate = Rate(2.0, lambda: now)

    def passes(client: str) -> bool:
        try:
            rate.spend(client)
        except ProblemError:
            return False
        return True

    assert [passes("a") for _ in range(6)] == [True] * 4 + [False] * 2
    assert passes("b")
    now = 0.5
    assert [passes("a") for _ in range(2)] == [True, False]
    now = 1000.0
    assert [passes("a") for _ in range(6)] == [True] * 4 + [False] * 2


def test_a_rate_below_one_a_second_lets_one_through() -> None:
    now = 0.0
    rate = Rate(0.1, lambda: now)
    rate.spend("a")
    with pytest.raises(ProblemError) as refused:
        rate.spend("a")
    assert refused.value.headers == {"retry-after": "10"}


def test_clients_that_are_remembered_are_bounded() -> None:
    rate = Rate(1.0)
    for n in range(CLIENTS + 100):
        rate.spend(str(n))
    assert len(rate._buckets) == CLIENTS


def test_a_token_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    first = own_token(tmp_path)
    file = tmp_path / FILE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    text = file.read_text().strip()
    assert len(text) >= 40
    assert first.matches(f"Bearer {text}".encode())
    assert own_token(tmp_path).matches(f"Bearer {text}".encode())
    assert [entry.name for entry in tmp_path.iterdir()] == [FILE], "no draft is left"
    assert text not in repr(first)


@pytest.mark.parametrize("text", ["", "short", "has spaces in its middle", "ünïcödé-token-of-some-length", "a\nb" * 10])
def test_a_file_that_holds_no_token_is_refused_without_showing_it(tmp_path: Path, text: str) -> None:
    file = tmp_path / "token"
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        read_token(file)
    assert "token file" in str(refused.value)
    assert not text or text not in str(refused.value)


def test_a_token_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_token(tmp_path / "none")
    (tmp_path / "bytes").write_bytes(b"\xff" * 40)
    with pytest.raises(ConfigError, match="no text"):
        read_token(tmp_path / "bytes")
    with pytest.raises(ConfigError, match="can't be made"):
        own_token(tmp_path / "no" / "folder")


def test_others_that_may_read_a_token_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "token"
    file.write_text("a-token-of-a-test")
    os.chmod(file, 0o644)
    with caplog.at_level(logging.WARNING, "sona.service"):
        read_token(file)
    assert "chmod 600" in caplog.text
    assert "a-token-of-a-test" not in caplog.text
