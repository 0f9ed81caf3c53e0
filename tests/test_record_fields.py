"""Field by field: every record takes what its field allows, and answers everything else with InvalidInputError."""

import math
from typing import Any, NamedTuple

import hypothesis.strategies as st
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.strategies import SearchStrategy

from sona.errors import InvalidInputError
from sona.patterns import (
    BestRoute,
    Exemplar,
    Lesson,
    Pattern,
    PatternChange,
    Recall,
    RouteEstimate,
    Verdict,
)
from sona.types import (
    CycleReport,
    Feedback,
    Funnel,
    GateCheck,
    GateDecision,
    Message,
    Progress,
    Record,
    Reply,
    Step,
    Token,
    ToolCall,
    Trajectory,
    Version,
)

HUGE = 10**5000  # larger than any float, and Python refuses to print it

texts = st.text(st.characters(codec="utf-8"), max_size=20)
said = texts.filter(lambda text: bool(text.strip()))
ids = said.filter(lambda text: "\x00" not in text)
counts = st.integers(0, 2**63 - 1)
cosines = st.floats(-1, 1)
qualities = st.floats(0, 1) | st.sampled_from([0, 1, np.float32(0.5)])
measures = st.floats() | st.integers(-1000, 1000)
rewards = st.floats(-1e9, 1e9) | st.integers(-(10**9), 10**9)
token_ids = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=8)
vectors = st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=8).filter(
    lambda row: any(abs(x) > 1e-3 for x in row)
)

not_text: SearchStrategy[Any] = st.sampled_from([None, 7, b"a", ["a"], "\ud800"])
not_said: SearchStrategy[Any] = not_text | st.sampled_from(["", "  \n"])
not_id: SearchStrategy[Any] = not_said | st.sampled_from(["a\x00b", "x" * 201, HUGE])
not_count: SearchStrategy[Any] = st.integers(max_value=-1) | st.sampled_from(
    [None, "1", 1.0, math.nan, True, 2**63, HUGE]
)
not_number: SearchStrategy[Any] = st.sampled_from(["1", b"1", True, 1j, [], math.nan, math.inf, -math.inf, HUGE, -HUGE])
not_quality: SearchStrategy[Any] = (
    not_number
    | st.none()
    | st.floats(max_value=-1e-9, allow_nan=False)
    | st.floats(min_value=1.0, exclude_min=True, allow_nan=False)
)
not_cosine: SearchStrategy[Any] = not_number | st.sampled_from([None, 1.1, -1.1])
not_measure: SearchStrategy[Any] = st.sampled_from(["1", None, True, 1j, HUGE, -HUGE])
not_a_list: SearchStrategy[Any] = st.sampled_from([None, 7, "text", b"bytes", {"a": 1}])
not_bool: SearchStrategy[Any] = st.sampled_from([None, 0, 1, "yes", 1.0])
not_bytes: SearchStrategy[Any] = st.sampled_from([None, 7, "text of 8", b"1234567", [1]])
not_mapping: SearchStrategy[Any] = st.sampled_from([None, 7, "text", ["a"], {"": "a"}, {1: "a"}])
not_schema: SearchStrategy[Any] = st.sampled_from([0, 2, -1, True, None, "1", 1.0, HUGE])
not_vector: SearchStrategy[Any] = st.sampled_from(
    [
        7,
        "text",
        b"abc",
        bytearray(b"abcd"),
        [],
        [0.0],
        [[1.0]],
        ["1", "2"],
        [True, False],
        [1j],
        np.ones(3, complex),
        np.ones(3, bool),
        np.asarray(["1", "2"]),
        [math.nan],
        [1.0, math.inf],
        [1e39],
        [HUGE],
        [None],
        {1.0},
    ]
)
not_tokens: SearchStrategy[Any] = st.sampled_from(
    [7, "text", b"abc", [], [-1], [2**31], [0.5], [[1]], ["1"], [True], [None], [HUGE], np.asarray([1j])]
)


class Field(NamedTuple):
    """What a field takes and what it refuses, the others being as in ``BASES``."""

    record: type[Record]
    name: str
    allowed: SearchStrategy[Any]
    forbidden: SearchStrategy[Any]


def optional(allowed: SearchStrategy[Any]) -> SearchStrategy[Any]:
    return st.none() | allowed


def sometimes_none(forbidden: SearchStrategy[Any]) -> SearchStrategy[Any]:
    return forbidden.filter(lambda value: value is not None)


def lists(of: SearchStrategy[Any]) -> SearchStrategy[Any]:
    return st.lists(of, max_size=3) | st.lists(of, max_size=3).map(tuple)


def wrong_items(of: SearchStrategy[Any]) -> SearchStrategy[Any]:
    return not_a_list | st.lists(of, min_size=1, max_size=2)


def mapping(of: SearchStrategy[Any]) -> SearchStrategy[Any]:
    return st.dictionaries(ids, of, max_size=3)


def wrong_mapping(of: SearchStrategy[Any]) -> SearchStrategy[Any]:
    return not_mapping | st.dictionaries(ids, of, min_size=1, max_size=2)


exemplar = Exemplar(trajectory_id="a", quality=1.0, similarity=0.5, prompt="p", response="r")
pattern = Pattern(
    id="p1",
    centroid=np.ones(2, "<f4").tobytes(),
    count=2**40,
    verdict=Verdict(count=2**30, mean=0.5, m2=1.0, recent_weight=1.0, recent_mean=0.5),
    weight=2.0,
    spread=0.5,
    touched_cycle=2**62,
)
lesson = Lesson(
    title="t", when="w", advice="do", text="x", trajectory_ids=("a",), id="l1", helpful=2**30, harmful=2**30
)
route = RouteEstimate(route="tool:a", quality=0.5, low=0.2, high=0.8, count=3, best=0.6)
failed = GateCheck(name="gain", value=0.0, bound=1.0, passed=False)
gate = GateDecision(passed=False, checks=(failed,))
funnel = Funnel(collected=3, trained=1, held_out=1, left_out={"no answer": 1})
message = Message(role="user", content="hi")

BASES: dict[type[Record], dict[str, Any]] = {
    ToolCall: {"name": "find"},
    Message: {"role": "assistant", "content": "hi"},
    Step: {"name": "tool:find"},
    Trajectory: {"messages": (message,), "embedding": [1.0], "response": "yo"},
    Feedback: {"trajectory_id": "a", "quality": 0.5},
    Exemplar: msgspec.structs.asdict(exemplar),
    Pattern: msgspec.structs.asdict(pattern),
    Verdict: msgspec.structs.asdict(pattern.verdict),
    Lesson: msgspec.structs.asdict(lesson),
    PatternChange: {"cycle": 1, "change": "split", "pattern": "p1", "other": "p2"},
    RouteEstimate: msgspec.structs.asdict(route),
    BestRoute: {"chosen": route, "others": (), "pattern": "p1", "similarity": 0.5},
    Recall: {"pattern": pattern, "similarity": 0.5},
    GateCheck: msgspec.structs.asdict(failed),
    GateDecision: {"passed": False, "checks": (failed,)},
    Funnel: msgspec.structs.asdict(funnel),
    CycleReport: {"cycle": 1, "status": "rejected", "reason": "", "funnel": funnel, "parent": "v0"},
    Version: {"id": "v1", "parent": "v0", "cycle": 1, "created_ns": 1, "digest": "ab"},
    Progress: {"stage": "train", "done": 0, "total": 2**63 - 1},
    Reply: {"text": "yo", "token_ids": (1,), "prompt_ids": (2,), "version": "v0", "finish_reason": "stop"},
}

FIELDS = [
    Field(ToolCall, "name", ids, not_id),
    Field(ToolCall, "arguments", texts, not_text),
    Field(ToolCall, "id", optional(ids), sometimes_none(not_id)),
    Field(
        Message,
        "role",
        st.sampled_from(["system", "developer", "user", "assistant", "tool"]),
        not_id | st.just("king") | st.just(["user"]),
    ),
    Field(Message, "content", said, not_said),
    Field(Message, "name", optional(ids), sometimes_none(not_id)),
    Field(Message, "tool_calls", lists(st.builds(ToolCall, name=ids)), wrong_items(st.just("find"))),
    Field(Message, "tool_call_id", optional(ids), sometimes_none(not_id)),
    Field(Step, "name", ids, not_id),
    Field(Step, "reward", optional(rewards), not_number | st.sampled_from([1.1e9, -1.1e9])),
    Field(Step, "latency_s", optional(st.floats(0, 1e9)), not_number | st.sampled_from([1.1e9, -1e-9])),
    Field(Step, "content", texts, not_text),
    Field(Step, "at_ns", counts, not_count),
    Field(Trajectory, "id", ids, not_id),
    Field(Trajectory, "source", ids, not_id),
    Field(Trajectory, "created_ns", counts, not_count),
    Field(
        Trajectory,
        "messages",
        said | lists(st.builds(Message, role=st.just("user"), content=said)),
        st.sampled_from([None, 7, b"hi", {"role": "user"}, "", [7], [{"role": "king", "content": "x"}]]),
    ),
    Field(Trajectory, "response", said, not_text),
    Field(Trajectory, "prompt_ids", optional(token_ids), not_tokens),
    Field(Trajectory, "response_ids", optional(token_ids), not_tokens),
    Field(Trajectory, "embedding", optional(vectors), not_vector),
    Field(Trajectory, "steps", lists(st.builds(Step, name=ids)), wrong_items(st.just("find"))),
    Field(
        Trajectory,
        "outcome",
        st.sampled_from(["completed", "failed", "abandoned"]),
        not_id | st.just("won") | st.just(["failed"]),
    ),
    Field(Trajectory, "version", optional(ids), sometimes_none(not_id)),
    Field(Trajectory, "recalled", lists(ids), not_a_list | st.lists(not_id, min_size=1)),
    Field(Trajectory, "metadata", mapping(texts), wrong_mapping(not_text)),
    Field(Trajectory, "schema", st.just(1), not_schema),
    Field(Feedback, "trajectory_id", ids, not_id),
    Field(Feedback, "quality", qualities, not_quality),
    Field(Feedback, "id", ids, not_id),
    Field(Feedback, "giver", ids, not_id),
    Field(Feedback, "at_ns", counts, not_count),
    Field(Feedback, "comment", texts, not_text),
    Field(Feedback, "schema", st.just(1), not_schema),
    Field(Exemplar, "trajectory_id", ids, not_id),
    Field(Exemplar, "quality", qualities, not_quality),
    Field(Exemplar, "similarity", cosines, not_cosine),
    Field(Exemplar, "prompt", texts, not_text),
    Field(Exemplar, "response", texts, not_text),
    Field(Pattern, "id", ids, not_id),
    Field(Pattern, "centroid", vectors, not_vector),
    Field(Pattern, "count", st.integers(2**30, 2**63 - 1), not_count | st.integers(0, 2**30 - 1)),
    Field(Verdict, "count", st.integers(4, 2**40), not_count | st.just(3)),
    Field(Verdict, "mean", qualities, not_quality),
    Field(Verdict, "m2", st.floats(0, 2**28), not_number | st.sampled_from([None, -1e-6, 2.0**29])),
    Field(Verdict, "recent_weight", st.floats(0, 2**30), not_number | st.sampled_from([None, -1e-6, 2.0**31])),
    Field(Verdict, "recent_mean", qualities, not_quality),
    Field(Lesson, "title", said, not_said),
    Field(Lesson, "when", said, not_said),
    Field(Lesson, "advice", st.sampled_from(["do", "avoid"]), st.sampled_from(["", "Do", None, 1])),
    Field(Lesson, "text", said, not_said),
    Field(Lesson, "trajectory_ids", lists(ids), wrong_items(not_id)),
    Field(Lesson, "id", ids, not_id),
    Field(Lesson, "helpful", counts, not_count),
    Field(Lesson, "harmful", counts, not_count),
    Field(Lesson, "gain", st.floats(-(2**31), 2**31), not_number | st.sampled_from([None, 2.0**32, -(2.0**32)])),
    Field(Lesson, "noise", st.floats(0, 1e9), not_number | st.sampled_from([None, -1e-6])),
    Field(Lesson, "born_cycle", counts, not_count),
    Field(Lesson, "shown", lists(ids), wrong_items(not_id)),
    Field(Lesson, "trials", st.binary(max_size=4).map(lambda part: 8 * part), not_bytes),
    Field(Pattern, "verdict", st.just(pattern.verdict), st.sampled_from([None, 0.5, exemplar])),
    Field(Pattern, "routes", mapping(st.just(pattern.verdict)), wrong_mapping(st.just(0.5))),
    Field(Pattern, "spread", cosines, not_cosine),
    Field(Pattern, "exemplars", lists(st.just(exemplar)), wrong_items(st.just("a"))),
    Field(Pattern, "failures", lists(st.just(exemplar)), wrong_items(st.just("a"))),
    Field(Pattern, "lessons", lists(st.just(lesson)), wrong_items(st.just("a"))),
    Field(Pattern, "family", texts, not_text),
    Field(Pattern, "weight", st.floats(0, 2**40), not_number | st.sampled_from([None, -1e-6, 2.0**41])),
    Field(Pattern, "born_cycle", st.integers(0, 2**62), not_count | st.integers(2**62 + 1, 2**63 - 1)),
    Field(Pattern, "touched_cycle", counts, not_count),
    Field(PatternChange, "cycle", counts, not_count),
    Field(PatternChange, "change", st.sampled_from(["born", "split", "merged", "pruned"]), st.sampled_from(["", None])),
    Field(PatternChange, "pattern", ids, not_id),
    Field(PatternChange, "other", ids | st.just(""), st.sampled_from(["a\x00b", "x" * 201])),
    Field(PatternChange, "count", counts, not_count),
    Field(RouteEstimate, "route", ids, not_id),
    Field(RouteEstimate, "quality", qualities, not_quality),
    Field(RouteEstimate, "low", qualities, not_quality),
    Field(RouteEstimate, "high", qualities, not_quality),
    Field(RouteEstimate, "count", counts, not_count),
    Field(RouteEstimate, "best", qualities, not_quality),
    Field(BestRoute, "chosen", st.just(route), st.sampled_from([None, "tool:a"])),
    Field(BestRoute, "others", lists(st.just(route)), wrong_items(st.just("a"))),
    Field(BestRoute, "pattern", ids, not_id),
    Field(BestRoute, "similarity", cosines, not_cosine),
    Field(Recall, "pattern", st.just(pattern), st.sampled_from([None, "p1", exemplar])),
    Field(Recall, "similarity", cosines, not_cosine),
    Field(Recall, "text", texts, not_text),
    Field(Recall, "tokens", optional(counts), st.integers(max_value=-1) | st.sampled_from(["1", 1.0, True, 2**63])),
    Field(GateCheck, "name", ids, not_id),
    Field(GateCheck, "value", measures, not_measure),
    Field(GateCheck, "bound", rewards, not_number | st.none()),
    Field(GateCheck, "passed", st.just(False), not_bool | st.just(True)),  # 0 is below the bound of 1
    Field(GateCheck, "detail", texts, not_text),
    Field(GateDecision, "passed", st.booleans(), not_bool),
    Field(GateDecision, "checks", st.lists(st.just(failed), min_size=1), wrong_items(st.just("gain")) | st.just([])),
    Field(Funnel, "collected", st.just(3), not_count | st.sampled_from([2, 4])),
    Field(Funnel, "trained", st.just(1), not_count | st.sampled_from([0, 2])),
    Field(Funnel, "held_out", st.just(1), not_count | st.sampled_from([0, 2])),
    Field(
        Funnel,
        "left_out",
        ids.map(lambda reason: {reason: 1}),
        wrong_mapping(not_count) | st.sampled_from([{}, {"late": 2}]),
    ),
    Field(Funnel, "waiting_for_feedback", counts, not_count),
    Field(CycleReport, "cycle", counts, not_count),
    Field(CycleReport, "status", st.sampled_from(["published", "rejected", "skipped"]), not_id | st.just("done")),
    Field(CycleReport, "reason", texts, not_text),
    Field(CycleReport, "funnel", st.just(funnel), st.sampled_from([None, {}, gate])),
    Field(CycleReport, "parent", ids, not_id),
    Field(CycleReport, "version", optional(ids), sometimes_none(not_id)),
    Field(CycleReport, "gate", optional(st.just(gate)), st.sampled_from([True, {}, failed])),
    Field(CycleReport, "metrics", mapping(measures), wrong_mapping(not_measure)),
    Field(CycleReport, "started_ns", counts, not_count),
    Field(CycleReport, "finished_ns", counts, not_count),
    Field(CycleReport, "schema", st.just(1), not_schema),
    Field(Version, "id", ids, not_id),
    Field(Version, "parent", optional(ids), sometimes_none(not_id)),
    Field(Version, "cycle", counts, not_count),
    Field(Version, "created_ns", counts, not_count),
    Field(
        Version,
        "digest",
        st.text("0123456789abcdef", max_size=64),
        st.sampled_from([None, 7, "AB", "xyz", "0" * 65, b"ab"]),
    ),
    Field(Version, "trajectories", counts, not_count),
    Field(Version, "metrics", mapping(measures), wrong_mapping(not_measure)),
    Field(Version, "settings", mapping(texts | counts), not_mapping),
    Field(Version, "schema", st.just(1), not_schema),
    Field(Progress, "stage", said, not_said),
    Field(Progress, "done", counts, not_count),
    Field(Progress, "total", counts, not_count),
    Field(Progress, "note", texts, not_text),
    Field(Reply, "text", texts, not_text),
    Field(Reply, "token_ids", token_ids | st.just([]), not_a_list | st.sampled_from([[-1], [2**31], ["1"], [0.5]])),
    Field(Reply, "prompt_ids", token_ids, not_a_list | st.sampled_from([[-1], [2**31], ["1"], [0.5], [HUGE]])),
    Field(Reply, "version", ids, not_id),
    Field(Reply, "finish_reason", st.sampled_from(["stop", "length"]), not_id | st.just("tool_calls")),
    Field(Reply, "adapter", optional(ids), sometimes_none(not_id)),
    Field(Reply, "micro", optional(ids), sometimes_none(not_id)),
    Field(Reply, "tokens", lists(st.builds(Token, id=counts)), wrong_items(st.just(1))),
]


def test_every_field_of_every_record_has_its_strategies() -> None:
    named = {(field.record, field.name) for field in FIELDS}
    assert named == {(record, field.name) for record in BASES for field in msgspec.structs.fields(record)}
    public = {"sona.types", "sona.message", "sona.reply", "sona.patterns"}
    assert {record for record in Record.__subclasses__() if record.__module__ in public} == set(BASES)


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: f"{field.record.__name__}-{field.name}")
@settings(max_examples=20)
@given(data=st.data())
def test_what_a_field_allows_is_taken_and_survives_its_encoding(field: Field, data: st.DataObject) -> None:
    made = field.record(**{**BASES[field.record], field.name: data.draw(field.allowed)})
    encoded = msgspec.msgpack.encode(made)
    assert msgspec.msgpack.encode(msgspec.msgpack.decode(encoded, type=field.record)) == encoded


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: f"{field.record.__name__}-{field.name}")
@settings(max_examples=40)
@given(data=st.data())
def test_what_a_field_forbids_is_a_typed_error(field: Field, data: st.DataObject) -> None:
    with pytest.raises(InvalidInputError):
        field.record(**{**BASES[field.record], field.name: data.draw(field.forbidden)})
