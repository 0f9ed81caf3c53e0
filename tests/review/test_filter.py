"""What a reviewer types, and which candidates it means."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sona.candidate import STATES, Mattered
from sona.errors import InvalidInputError
from sona.review_filter import Filter, parse_filter
from sona.reviewed import Shown, shown
from tests.reviews import candidate

ONE = shown(
    candidate(
        1,
        source="bot",
        response="The Key rotates",
        context_tail="user: when?",
        alternate="no idea",
        mattered=[Mattered(key="k 1", nats=1.0)],
    )
)


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("", True),
        ("key ROTATES", True),
        ("when idea", True),
        ("lock", False),
        ("source:bot", True),
        ("source:bo", False),
        ("memory:'k 1'", True),
        ("memory:k", False),
        ("state:new", True),
        ("state:approved", False),
        ("trajectory:turn-1", True),
        ("nats>2", True),
        ("nats>=2.5", False),
        ("nats<2", True),
        ("nats>1 nats<1.5", False),
        ("source:bot nats>1 key", True),
        ("source:bot nats>1 lock", False),
    ],
)
def test_a_candidate_has_to_fit_all_of_it(text: str, fits: bool) -> None:
    assert parse_filter(text).fits(ONE) is fits


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("sauce:bot", "did you mean 'source'"),
        ("nats:3", "nats> and nats<"),
        ("state:old", "one of new, approved"),
        ("nats>many", "a number of nats"),
        ("nats>nan", "a number of nats"),
        ("'open", "close the quote"),
    ],
)
def test_what_is_no_filter_says_what_is(text: str, told: str) -> None:
    with pytest.raises(InvalidInputError, match=told):
        parse_filter(text)


words = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1)
plain = words.filter(lambda word: ":" not in word and not word.startswith("nats"))


@given(
    source=st.none() | words,
    memory=st.none() | words,
    state=st.none() | st.sampled_from(STATES),
    above=st.floats(0, 1e6),
    said=st.lists(plain, max_size=3),
)
def test_what_was_quoted_is_read_as_it_was_meant(
    source: str | None, memory: str | None, state: str | None, above: float, said: list[str]
) -> None:
    parts = [f"nats>{above!r}", *said]
    parts += [f"{name}:{value}" for name, value in (("source", source), ("memory", memory), ("state", state)) if value]
    found = parse_filter(shlex.join(parts))
    assert found == Filter(source=source, memory=memory, state=state, above=above, words=tuple(said))  # type: ignore[arg-type]


@given(st.text())
def test_any_text_is_a_filter_or_an_error_of_the_input(text: str) -> None:
    try:
        found: list[Shown] = parse_filter(text).of([ONE])
    except InvalidInputError:
        return
    assert found in ([], [ONE])
