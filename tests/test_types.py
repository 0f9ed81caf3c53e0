"""The boundary: every field of every record takes what it says and refuses the rest with a typed error."""

import copy
import math
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import msgspec
import numpy as np
import pytest
from hypothesis import given

from sona.checks import MAX_TEXT_BYTES, pack_tokens, pack_vector
from sona.errors import InvalidInputError
from sona.types import Feedback, GateCheck, GateDecision, Message, Step, ToolCall, Trajectory, new_id, to_messages
from tests.processes import run

words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40).filter(lambda text: text.strip())
names = words.filter(lambda text: "\x00" not in text)
reals = st.floats(-1e9, 1e9, width=32)
vectors = st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=20).filter(
    lambda row: any(abs(x) > 1e-3 for x in row)
)
tokens = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=30)
steps = st.builds(Step, name=names, reward=st.none() | reals, latency_s=st.none() | st.floats(0, 1e6), content=words)
messages = st.builds(Message, role=st.sampled_from(["system", "user", "assistant"]), content=words)


@given(
    st.lists(messages, min_size=1, max_size=4),
    words,
    st.none() | tokens,
    st.none() | vectors,
    st.lists(steps, max_size=3),
    st.dictionaries(names, words, max_size=3),
)
def test_a_trajectory_survives_its_encoding(
    conversation: list[Message],
    response: str,
    ids: list[int] | None,
    embedding: list[float] | None,
    taken: list[Step],
    metadata: dict[str, str],
) -> None:
    made = Trajectory(
        messages=conversation, response=response, response_ids=ids, embedding=embedding, steps=taken, metadata=metadata
    )
    read = msgspec.msgpack.decode(msgspec.msgpack.encode(made), type=Trajectory)
    assert read == made
    if embedding is not None:
        vector = read.vector()
        assert vector is not None
        np.testing.assert_array_equal(vector, np.asarray(embedding, dtype=np.float32))
    if ids is not None:
        row = read.response_array()
        assert row is not None
        assert row.tolist() == ids


@given(reals | st.just(0) | st.just(1))
def test_quality_is_a_number_from_0_to_1(value: float) -> None:
    if 0 <= value <= 1:
        assert Feedback(trajectory_id="a", quality=value).quality == value
    else:
        with pytest.raises(InvalidInputError, match=r"from 0 .* to 1"):
            Feedback(trajectory_id="a", quality=value)


WRONG: list[tuple[str, Any]] = [
    ("id", ""),
    ("id", "x" * 201),
    ("id", 7),
    ("id", "a\x00b"),
    ("source", " "),
    ("created_ns", -1),
    ("created_ns", 1.5),
    ("created_ns", True),
    ("messages", [{"role": "user", "content": ""}]),
    ("messages", [{"role": "king", "content": "hi"}]),
    ("messages", [{"role": "user", "content": "hi", "colour": "red"}]),
    ("messages", [7]),
    ("messages", 7),
    ("messages", {"role": "user"}),
    ("messages", "  "),
    ("response", None),
    ("response", "\ud800"),
    ("response", "x" * (MAX_TEXT_BYTES + 1)),
    ("prompt_ids", []),
    ("prompt_ids", [-1]),
    ("prompt_ids", [2**31]),
    ("prompt_ids", [0.5]),
    ("prompt_ids", b"abc"),
    ("response_ids", [[1, 2]]),
    ("embedding", [math.nan]),
    ("embedding", [1.0, math.inf]),
    ("embedding", [-math.inf, 0.0]),
    ("embedding", []),
    ("embedding", [0.0, 0.0]),
    ("embedding", [[1.0]]),
    ("embedding", ["a"]),
    ("embedding", [1e39]),
    ("embedding", b"abc"),
    ("steps", ["lookup"]),
    ("steps", "lookup"),
    ("outcome", "won"),
    ("recalled", [1]),
    ("recalled", ["\ud800"]),
    ("id", "\ud800"),
    ("version", ""),
    ("metadata", {"a": 1}),
    ("metadata", {"": "x"}),
    ("metadata", ["a"]),
    ("schema", 2),
    ("schema", 0),
    ("schema", True),
]


@pytest.mark.parametrize(("field", "value"), WRONG, ids=[f"{name}-{place}" for place, (name, _) in enumerate(WRONG)])
def test_a_wrong_field_is_a_typed_error_that_names_it(field: str, value: object) -> None:
    given_fields: dict[str, Any] = {"messages": "hi", "response": "yo", field: value}
    with pytest.raises(InvalidInputError) as caught:
        Trajectory(**given_fields)
    assert field.partition("_")[0].rstrip("s") in str(caught.value).replace("metadata key", "metadata")


def test_a_trajectory_needs_a_prompt_or_an_embedding_and_an_answer() -> None:
    with pytest.raises(InvalidInputError, match="no prompt"):
        Trajectory(response="yo")
    with pytest.raises(InvalidInputError, match="response: empty"):
        Trajectory(messages="hi")
    assert Trajectory(messages="hi", outcome="failed").response == ""
    assert Trajectory(embedding=[1.0, 2.0]).messages == ()


def test_a_damaged_record_is_refused_when_it_is_read() -> None:
    raw = msgspec.msgpack.decode(msgspec.msgpack.encode(Trajectory(messages="hi", response="yo", embedding=[1.0])))
    raw["embedding"] = np.asarray([np.nan], dtype="<f4").tobytes()
    with pytest.raises(msgspec.ValidationError, match="NaN"):
        msgspec.msgpack.decode(msgspec.msgpack.encode(raw), type=Trajectory)


@pytest.mark.parametrize(
    "wrong", [{"reward": math.nan}, {"latency_s": -1.0}, {"name": ""}, {"reward": "x"}, {"at_ns": -5}]
)
def test_a_wrong_step_is_a_typed_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        Step(**{"name": "tool:lookup", **wrong})


CALL = {"id": "c1", "type": "function", "function": {"name": "lookup", "arguments": '{"a": 1}'}}


def test_a_mapping_in_place_of_a_step_is_told_how_to_become_one() -> None:
    with pytest.raises(InvalidInputError, match=r"steps\[0\]: dict; a Step is allowed; sona\.Step\(\*\*fields\)"):
        Trajectory(messages="q", response="a", steps=[{"name": "tool:x"}])  # type: ignore[list-item]


def test_an_openai_transcript_is_taken_as_it_is_written() -> None:
    made = to_messages(
        [
            {"role": "developer", "content": [{"type": "text", "text": "be"}, {"type": "text", "text": "kind"}]},
            {"role": "user", "content": [{"type": "text", "text": "hi"}], "name": None},
            {
                "role": "assistant",
                "content": None,
                "refusal": None,
                "annotations": [],
                "audio": None,
                "function_call": None,
                "tool_calls": [CALL],
            },
            {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "found"}]},
            {"role": "tool", "content": "", "name": "lookup"},
            {"role": "assistant", "content": None, "refusal": "I can't help with that."},
        ]
    )
    assert [message.content for message in made] == ["be\nkind", "hi", "", "found", "", "I can't help with that."]
    assert made[2].tool_calls == (ToolCall(name="lookup", arguments='{"a": 1}', id="c1"),)
    assert made[3].tool_call_id == "c1"
    assert made[4].name == "lookup"


def test_arguments_that_are_an_object_become_json_text() -> None:
    (made,) = to_messages([{"role": "assistant", "tool_calls": [{"name": "find", "arguments": {"was": "Öl"}}]}])
    assert made.tool_calls[0] == ToolCall(name="find", arguments='{"was": "Öl"}')


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:,"}},
        {"type": "input_audio", "input_audio": {}},
        {"type": "text"},
        {"type": "text", "text": 7},
        {},
        "hi",
        7,
        None,
    ],
)
def test_a_part_that_is_no_text_is_refused_by_name(part: object) -> None:
    with pytest.raises(InvalidInputError, match=r"messages\[0\]: content part: .*text only"):
        to_messages([{"role": "user", "content": [{"type": "text", "text": "see"}, part]}])


def test_a_tensor_that_numpy_refuses_is_a_typed_error() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(InvalidInputError, match="embedding"):
        Trajectory(embedding=torch.ones(3, requires_grad=True))
    assert Trajectory(embedding=torch.ones(3)).embedding == pack_vector([1.0, 1.0, 1.0])


def test_numbers_of_other_libraries_are_stored_as_python_s() -> None:
    made = Step(name="x", reward=np.float32(0.5), latency_s=np.int64(2))  # type: ignore[arg-type]
    assert (type(made.reward), type(made.latency_s)) == (float, float)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(made), type=Step) == made


def test_packed_bytes_are_not_copied() -> None:
    ready = np.asarray([1.0, 2.0], dtype="<f4").tobytes()
    assert pack_vector(ready) is ready
    ids = np.asarray([1, 2], dtype="<i4").tobytes()
    assert pack_tokens(ids) is ids


def test_a_trajectory_knows_its_largest_token_however_it_came_to_be() -> None:
    made = Trajectory(prompt_ids=[3, 9, 1], response_ids=[4])
    decoded = msgspec.msgpack.decode(msgspec.msgpack.encode(made), type=Trajectory)
    ways = [made, decoded, copy.copy(made), copy.deepcopy(made)]
    assert [one.largest_token for one in ways] == [9] * 4
    assert [one == made for one in ways] == [True] * 4
    assert msgspec.structs.replace(made, response_ids=[12]).largest_token == 12
    assert Trajectory(messages="Why?", response_ids=[4]).largest_token == 4
    assert copy.copy(Trajectory(messages="Why?", response="So.")).largest_token == -1


def test_ids_are_uuid7_and_in_order_of_time() -> None:
    ids = [new_id() for _ in range(50)]
    assert len(set(ids)) == 50
    assert all(one[12] == "7" and one[16] in "89ab" for one in ids)
    assert [one[:12] for one in ids] == sorted(one[:12] for one in ids)


def test_a_check_says_what_it_needs_also_where_its_bound_is_not_enough() -> None:
    checks = [GateCheck(name="gain", value=value, bound=0.0, passed=value > 0) for value in (0.0, 0.5, -1.0)]
    assert [check.needed for check in checks] == ["above 0", "at least 0", "at least 0"]
    assert GateDecision(passed=False, checks=tuple(checks)).reason == "gain 0 (above 0); gain -1 (at least 0)"


def test_metadata_of_a_record_can_not_be_changed() -> None:
    given = {"a": "b"}
    made = Trajectory(messages="Why?", response="So.", metadata=given)
    given["a"] = "c"
    decoded = msgspec.msgpack.decode(msgspec.msgpack.encode(made), type=Trajectory)
    for one in (made, decoded, copy.deepcopy(made), Trajectory(messages="Why?", response="So.", metadata={})):
        before = dict(one.metadata)
        changes: list[Callable[[Any], object]] = [
            lambda texts: texts.update(x=1),
            lambda texts: texts.__setitem__("a", 12),
            lambda texts: texts.__delitem__("a"),
            lambda texts: texts.setdefault("x", "y"),
            lambda texts: texts.pop("a", None),
            lambda texts: texts.clear(),
            lambda texts: texts.__ior__({"x": "y"}),
        ]
        for change in changes:
            with pytest.raises(TypeError, match="can't be changed"):
                change(one.metadata)
        assert one.metadata == before
    assert made.metadata == decoded.metadata == {"a": "b"}
    assert made.metadata | {"x": "y"} == {"a": "b", "x": "y"}


def test_what_is_default_is_not_written() -> None:
    plain = Trajectory(id="a", created_ns=1, messages="Why?", response="So.")
    assert b"metadata" not in msgspec.msgpack.encode(plain)
    assert b"metadata" not in msgspec.msgpack.encode(msgspec.structs.replace(plain, metadata={}))


def test_subclasses_of_records_are_refused_as_parts() -> None:
    class MyStep(Step, kw_only=True):
        tenant: str = "x"

    class MyMessage(Message, kw_only=True):
        tenant: str = "x"

    with pytest.raises(InvalidInputError, match=r"steps\[0\]: MyStep; a Step is allowed"):
        Trajectory(messages="Why?", response="So.", steps=(MyStep(name="a"),))
    with pytest.raises(InvalidInputError, match=r"messages\[0\]: MyMessage"):
        Trajectory(messages=(MyMessage(role="user", content="x"),), response="So.")


IN_A_FINALISER = """
import gc, random
from contextvars import ContextVar
from sona.types import Trajectory

class Late:
    def __init__(self):
        self.me = self  # a cycle: only the collector finds it
    def __del__(self):
        made.append(Trajectory(messages="q", response="r", embedding=[1.0, 2.0]))

made = []
request, span = ContextVar("request"), ContextVar("span")
request.set("first")
draw = random.Random(0)
for _ in range(8000):
    gc.set_threshold(draw.randint(1, 60))
    Late()
    span.reset(span.set([{} for _ in range(draw.randint(0, 9))]))
gc.set_threshold(700)
gc.collect()
print(len(made))
"""


def test_one_may_be_made_by_a_finaliser_in_the_midst_of_setting_a_context_variable() -> None:
    """Python 3.11 crashes where that sets one too."""
    assert run(IN_A_FINALISER) == "8000"


@pytest.mark.parametrize("value", [1e39, -1e39, 3.4028236e38, float("inf"), float("nan")])
def test_what_float32_can_not_hold_is_refused_without_a_warning(value: float) -> None:
    with pytest.raises(InvalidInputError, match="finite numbers"):
        pack_vector([0.0, value])
