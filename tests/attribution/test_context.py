"""Segments, their order, and what may be left out."""

from __future__ import annotations

import pytest

from sona.attribution.context import ALL_MEMORIES, KINDS, Context, Drop, Segment
from sona.attribution.layout import lay_out
from sona.errors import InvalidInputError

WHOLE = Context(
    (
        Segment("system", "Be kind."),
        Segment("memory", "She is Ann.", "ann"),
        Segment("identity", "I am a helper."),
        Segment("journal", "Day one."),
        Segment("user", "Hi."),
        Segment("memory", "It rains.", "rain"),
        Segment("assistant", "Take a coat."),
        Segment("memory", "She is Ann.", "ann"),
        Segment("user", "Thanks."),
        Segment("assistant", "Bye, Ann."),
    )
)


def contents(context: Context, drop: Drop = Drop()) -> list[tuple[str, str]]:  # noqa: B008 - frozen
    return [(one.message.role, one.message.content) for one in lay_out(context, drop)]


def test_system_identity_and_journal_are_one_message_and_memories_join_the_turn_that_takes_them() -> None:
    assert contents(WHOLE) == [
        ("system", "Be kind.\n\nShe is Ann.\n\nI am a helper.\n\nDay one."),
        ("user", "Hi.\n\nIt rains."),
        ("assistant", "Take a coat."),
        ("user", "She is Ann.\n\nThanks."),
        ("assistant", "Bye, Ann."),
    ]


def test_a_memory_dropped_by_key_goes_wherever_it_stands() -> None:
    left = contents(WHOLE, Drop(keys=("ann",)))
    assert left[0] == ("system", "Be kind.\n\nI am a helper.\n\nDay one.")
    assert left[3] == ("user", "Thanks.")


def test_dropping_all_memories_leaves_all_else() -> None:
    left = WHOLE.kept(ALL_MEMORIES)
    assert [WHOLE.segments[index].kind for index in left] == [
        *("system", "identity", "journal", "user", "assistant", "user", "assistant")
    ]


def test_a_segment_dropped_by_index_goes_alone() -> None:
    assert WHOLE.kept(Drop(indices=(7,))) == (0, 1, 2, 3, 4, 5, 6, 8, 9)


@pytest.mark.parametrize(("index", "why"), [(0, "system"), (3, "journal"), (10, "index"), (-1, "index")])
def test_system_and_journal_are_never_dropped(index: int, why: str) -> None:
    with pytest.raises(InvalidInputError, match=why):
        WHOLE.kept(Drop(indices=(index,)))


def test_an_unknown_key_drops_nothing() -> None:
    assert WHOLE.kept(Drop(keys=("nobody",))) == tuple(range(10))


def test_keys_are_in_the_order_in_which_they_first_surface_and_each_once() -> None:
    assert WHOLE.keys == ("ann", "rain")
    assert (WHOLE.first_of("ann"), WHOLE.first_of("nobody")) == (1, None)


def test_a_memory_lies_in_identity_until_the_journal_or_the_conversation_begins() -> None:
    assert [WHOLE.places[index] for index in (1, 5, 7)] == [1, 3, 3]


def test_a_memory_that_no_message_takes_is_one_of_its_own_and_its_message_goes_with_it() -> None:
    context = Context((Segment("assistant", "Hi."), Segment("memory", "Sun.", "sun"), Segment("assistant", "Ho.")))
    assert contents(context) == [("assistant", "Hi."), ("user", "Sun."), ("assistant", "Ho.")]
    assert contents(context, ALL_MEMORIES) == [("assistant", "Hi."), ("assistant", "Ho.")]


def test_two_texts_under_one_key_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="'a'"):
        Context((Segment("memory", "one", "a"), Segment("memory", "two", "a")))


@pytest.mark.parametrize(
    ("first", "second"), [("user", "system"), ("journal", "identity"), ("assistant", "journal"), ("identity", "system")]
)
def test_another_order_is_refused(first: str, second: str) -> None:
    with pytest.raises(InvalidInputError, match="the order is"):
        Context((Segment(first, "x"), Segment(second, "y")))


def test_nothing_and_unknown_kinds_and_misplaced_keys_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="no segments"):
        Context(())
    with pytest.raises(InvalidInputError, match="segment kind"):
        Segment("thought", "x")
    with pytest.raises(InvalidInputError, match="key"):
        Segment("memory", "x")
    with pytest.raises(InvalidInputError, match="key"):
        Segment("user", "x", "k")
    with pytest.raises(InvalidInputError, match="glue"):
        Context((Segment("user", "x", glue=""),))
    assert len(KINDS) == 7
