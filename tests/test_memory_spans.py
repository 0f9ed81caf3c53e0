"""Memories in a conversation: put in, found again, taken out."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sona.errors import InvalidInputError
from sona.loops.split import question_key
from sona.memory_spans import METADATA_KEY, MemorySpan, find_spans, question_of, show, spans_of, without_memories
from sona.types import Message, Trajectory, to_messages

TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=20).filter(
    str.strip
)


def said(*messages: tuple[str, str]) -> tuple[Message, ...]:
    return tuple(Message(role=role, content=content) for role, content in messages)


def test_a_memory_goes_to_the_end_of_the_systems_message_or_into_one_of_its_own() -> None:
    known = {"a": "likes tea", "b": "lives in Oslo"}
    assert show(to_messages("hi"), known).messages == said(("system", "likes tea\n\nlives in Oslo"), ("user", "hi"))
    there = said(("system", "be brief"), ("user", "hi"))
    shown = show(there, known)
    assert shown.messages == said(("system", "be brief\n\nlikes tea\n\nlives in Oslo"), ("user", "hi"))
    assert shown.question == there
    assert [shown.messages[span.message].content[span.start : span.end] for span in shown.spans] == list(known.values())


def test_one_that_stands_in_the_messages_stays_where_it_is() -> None:
    messages = said(("user", "I like tea. You know: likes tea. What now?"))
    shown = show(messages, {"a": "likes tea."})
    assert shown.messages == messages
    assert shown.question == said(("user", "I like tea. You know: What now?"))


def test_a_conversation_without_memories_is_as_it_was() -> None:
    messages = said(("system", " be brief "), ("user", "hi"))
    assert show(messages, None) == show(messages, {}) == (messages, (), messages)
    assert show(messages, None).metadata == {}


def test_a_conversation_of_memories_alone_keeps_them() -> None:
    messages = said(("user", "likes tea"))
    assert without_memories(messages, find_spans(messages, {"a": "likes tea"})) == messages


@given(st.lists(TEXTS, min_size=1, max_size=4), st.dictionaries(st.sampled_from("abcd"), TEXTS, max_size=3))
def test_what_was_put_in_is_found_by_its_trajectory_and_taken_out(asked: list[str], memories: dict[str, str]) -> None:
    messages = said(*(("user", text) for text in asked))
    shown = show(messages, memories)
    trajectory = Trajectory(messages=shown.messages, response="r", metadata=shown.metadata)
    assert spans_of(trajectory) == shown.spans
    assert question_of(trajectory) == shown.question
    if not any(text in one for text in memories.values() for one in asked):
        assert shown.question == messages


def test_two_that_ask_the_same_beside_other_memories_ask_the_same() -> None:
    keys = set()
    for text in ("it is monday", "it is friday"):
        shown = show(said(("user", f"{text} . what is open ?")), {"day": f"{text} . "})
        keys.add(question_key(Trajectory(messages=shown.messages, response="r", metadata=shown.metadata)))
    assert len(keys) == 1


@pytest.mark.parametrize("text", ["no json", "[1]", '[{"key": "", "message": 0, "start": 0, "end": 1}]'])
def test_a_hosts_own_use_of_the_key_takes_nothing_out(text: str) -> None:
    trajectory = Trajectory(messages="hi", response="r", metadata={METADATA_KEY: text})
    assert question_of(trajectory) == trajectory.messages
    with pytest.raises(InvalidInputError, match="no list of memory spans"):
        spans_of(trajectory)


def test_a_memory_without_a_text_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="memory"):
        show(to_messages("hi"), {"a": ""})
    with pytest.raises(InvalidInputError, match="memory"):
        MemorySpan("", 0, 0, 1)


@given(
    st.text("ab \n", max_size=12),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 15), st.integers(0, 15)), max_size=12),
)
def test_spans_that_somebody_made_up_only_ever_take_away(text: str, made_up: list[tuple[int, int, int]]) -> None:
    messages = said(("user", f"a{text}"), ("user", "b"))
    spans = [MemorySpan("k", message, start, end) for message, start, end in made_up]
    left = without_memories(messages, spans)
    assert sum(len(message.content) for message in left) <= sum(len(message.content) for message in messages)
    if not any(span.start < span.end for span in spans):
        assert left == messages


@given(st.lists(st.sampled_from(["a", "ab", "b a", "aa", "bab"]), min_size=1, max_size=4), st.text("ab ", max_size=40))
def test_spans_share_no_character_and_the_longer_text_comes_first(texts: list[str], content: str) -> None:
    memories = {f"k{place}": text for place, text in enumerate(dict.fromkeys(texts))}
    spans = find_spans(said(("user", f"x{content}")), memories)
    for one, other in itertools.pairwise(spans):
        assert one.end <= other.start
    for span in spans:
        assert f"x{content}"[span.start : span.end] == memories[span.key]
    longest = max(memories.values(), key=len)
    covered = {place for span in spans for place in range(span.start, span.end)}
    found = f"x{content}".find(longest)
    if found >= 0:
        assert found in covered


def test_a_text_that_stands_everywhere_is_refused_at_once() -> None:
    began = time.perf_counter()
    with pytest.raises(InvalidInputError, match="more than 1000 memories"):
        show(to_messages("a" * 1_000_000), {"k": "a"})
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize("memories", ["q", ["x"], [], "", 5])
def test_memories_that_are_no_mapping_are_refused(memories: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"memories: a \w+; texts by names of yours are allowed"):
        show(to_messages("hi"), memories)
