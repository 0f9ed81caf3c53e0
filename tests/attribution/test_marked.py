"""Contexts of plain messages and of recorded trajectories."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sona.attribution.context import ALL_MEMORIES, Drop
from sona.attribution.layout import lay_out
from sona.attribution.marked import from_messages, from_trajectory
from sona.errors import InvalidInputError
from sona.memory_spans import METADATA_KEY, MemorySpan, find_spans, spans_as_text
from sona.types import Message, ToolCall, Trajectory

CALL = ToolCall(name="look", arguments='{"at": "sky"}', id="c1")
MESSAGES = (
    Message(role="system", content="Help. Ann is nine. Be brief."),
    Message(role="user", content="Who is Ann?"),
    Message(role="assistant", tool_calls=(CALL,)),
    Message(role="tool", content="Rain. ", tool_call_id="c1", name="look"),
    Message(role="assistant", content="Ann is nine."),
)
MEMORIES = {"age": "Ann is nine.", "sky": "Rain."}


def shown(context: object, drop: Drop = Drop()) -> tuple[Message, ...]:  # noqa: B008 - frozen
    return tuple(one.message for one in lay_out(context, drop))  # type: ignore[arg-type]


def test_a_marked_conversation_is_rendered_as_it_was() -> None:
    assert shown(from_messages(MESSAGES, MEMORIES)) == MESSAGES


def test_memories_are_found_word_for_word_but_never_in_an_answer() -> None:
    assert find_spans(MESSAGES, MEMORIES) == (MemorySpan("age", 0, 6, 18), MemorySpan("sky", 3, 0, 5))


def test_without_its_memories_nothing_else_is_missing() -> None:
    left = shown(from_messages(MESSAGES, MEMORIES), ALL_MEMORIES)
    assert [one.content for one in left] == ["Help. Be brief.", "Who is Ann?", "", " ", "Ann is nine."]
    assert left[3].tool_call_id == "c1"


def test_a_tools_result_that_was_only_a_memory_stays_as_an_empty_one() -> None:
    tool = Message(role="tool", content="Rain.", tool_call_id="c1")
    context = from_messages([MESSAGES[1], MESSAGES[2], tool], {"sky": "Rain."})
    assert shown(context)[2] == tool
    assert shown(context, ALL_MEMORIES)[2] == Message(role="tool", content="", tool_call_id="c1")


def test_a_memory_in_the_users_first_words_is_of_the_conversation() -> None:
    context = from_messages([{"role": "user", "content": "Rain. So?"}], {"sky": "Rain."})
    assert [(one.kind, place) for one, place in zip(context.segments, context.places, strict=True)] == [
        ("memory", 3),
        ("user", 3),
    ]
    assert shown(context, ALL_MEMORIES) == (Message(role="user", content="So?"),)


def test_a_system_message_amid_the_conversation_keeps_its_role() -> None:
    messages = [MESSAGES[1], Message(role="system", content="Now in French.")]
    assert shown(from_messages(messages)) == tuple(messages)


@given(st.lists(st.sampled_from(["a", "b", " ", "ab", "c\n"]), min_size=1, max_size=12), st.data())
def test_any_spans_give_back_the_text(pieces: list[str], data: st.DataObject) -> None:
    text = "x" + "".join(pieces)
    borders = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)))
    spans = [MemorySpan(f"k{a}", 0, a, b) for a, b in zip(borders[::2], borders[1::2], strict=False)]
    context = from_messages([Message(role="user", content=text)], spans)
    assert [one.content for one in shown(context)] == [text]
    assert [one.text for one in context.segments if one.key] == [text[span.start : span.end] for span in spans]


@pytest.mark.parametrize(
    "span", [MemorySpan("k", 4, 0, 3), MemorySpan("k", 1, 5, 5), MemorySpan("k", 1, 0, 99), MemorySpan("k", 7, 0, 1)]
)
def test_a_span_outside_the_text_or_in_an_answer_is_refused(span: MemorySpan) -> None:
    with pytest.raises(InvalidInputError, match="memory 'k'"):
        from_messages(MESSAGES, [span])


def test_a_trajectory_says_in_its_metadata_where_its_memories_lie() -> None:
    spans = find_spans(MESSAGES[:2], MEMORIES)
    kept = Trajectory(
        messages=MESSAGES[:2], response="Nine.", created_ns=7, metadata={METADATA_KEY: spans_as_text(spans)}
    )
    context = from_trajectory(kept)
    assert context.keys == ("age",)
    assert context.segments[-1].kind == "assistant"
    assert (context.segments[-1].text, context.segments[-1].at_ns) == ("Nine.", 7)


def test_a_trajectorys_recalled_memories_are_found_by_their_texts() -> None:
    kept = Trajectory(messages=MESSAGES[:2], response="Nine.", recalled=("age",))
    assert from_trajectory(kept).keys == ()
    assert from_trajectory(kept, MEMORIES).keys == ("age",)


def test_a_trajectory_that_tells_too_little_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="no messages"):
        from_trajectory(Trajectory(prompt_ids=[1, 2], response="x"))
    with pytest.raises(InvalidInputError, match="no response"):
        from_trajectory(Trajectory(messages="hi", outcome="failed"))
    with pytest.raises(InvalidInputError, match="memory spans"):
        from_trajectory(Trajectory(messages="hi", response="x", metadata={METADATA_KEY: '[{"key": 3}]'}))
