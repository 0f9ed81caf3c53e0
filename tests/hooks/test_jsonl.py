"""The import form: what agents' logs hold arrives as trajectories, and a wrong line is named."""

import contextlib
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

import sona
from sona.errors import DimensionMismatchError, InvalidInputError
from sona.hooks.jsonl import Imported, read_jsonl


def read(tmp_path: Path, *rows: Any, source: str | None = None) -> list[Imported]:
    file = tmp_path / "log.jsonl"
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n\n")
    return list(read_jsonl(file, source))


def test_the_plain_form(tmp_path: Path) -> None:
    row = {
        "id": "a1",
        "source": "bot",
        "prompt": "hi",
        "response": "yo",
        "quality": 0.5,
        "steps": [{"name": "tool:x", "reward": 0.1, "latency_s": 2.0, "content": "c"}],
        "embedding": [1.0, 2.0],
        "metadata": {"k": "v"},
        "extra": 3,
    }
    (got,) = read(tmp_path, row)
    assert (got.line, got.quality, got.trajectory.id, got.trajectory.source) == (1, 0.5, "a1", "bot")
    assert got.trajectory.messages[0].content == "hi"
    assert got.trajectory.metadata == {"k": "v", "extra": "3"}
    assert (got.trajectory.steps[0].reward, got.trajectory.steps[0].latency_s) == (0.1, 2.0)


def test_a_conversation_ends_with_its_answer_and_its_calls_are_steps(tmp_path: Path) -> None:
    row = {
        "id": 7,
        "agent": "retail",
        "reward": 1,
        "messages": [
            {"role": "user", "content": "return it"},
            {"role": "assistant", "tool_calls": [{"name": "find", "arguments": "{}"}]},
            {"role": "tool", "content": "found", "name": "find"},
            {"role": "assistant", "content": "done"},
            {"role": "user", "content": "###STOP###"},
        ],
    }
    (got,) = read(tmp_path, row)
    assert (got.trajectory.id, got.trajectory.source, got.quality) == ("7", "retail", 1.0)
    assert (got.trajectory.response, len(got.trajectory.messages)) == ("done", 3)
    assert [step.name for step in got.trajectory.steps] == ["tool:find"]
    assert got.trajectory.metadata["followed_by"] == "user: ###STOP###"


def test_actions_and_observations_are_steps_and_the_actions_are_the_answer(tmp_path: Path) -> None:
    steps = [{"thought": "hm", "action": "search[shoes]", "observation": "many"}, {"action": "click[Buy]"}]
    (got,) = read(
        tmp_path, {"env": "shop", "task": "buy shoes", "outcome": "unfinished", "reward": 0.0, "steps": steps}
    )
    assert got.trajectory.response == "search[shoes]\nclick[Buy]"
    assert [step.name for step in got.trajectory.steps] == ["search", "click"]
    assert "many" in got.trajectory.steps[0].content
    assert (got.trajectory.outcome, got.trajectory.metadata["outcome"]) == ("completed", "unfinished")


def test_names_fall_back_to_the_file_s(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "response": "b"}, {"prompt": "a", "response": "b", "source": "x"}]
    assert [got.trajectory.source for got in read(tmp_path, *rows)] == ["log", "x"]
    assert [got.trajectory.source for got in read(tmp_path, *rows, source="me")] == ["me", "me"]
    assert [got.quality for got in read(tmp_path, *rows)] == [None, None]


@pytest.mark.parametrize(
    "wrong",
    [
        "{",
        "[1]",
        "{}",
        {"prompt": "a", "response": "b", "quality": 7},
        {"prompt": "a", "response": "b", "quality": "good"},
        {"prompt": "", "response": "b"},
        {"prompt": "a", "response": ["b"]},
        {"messages": {"role": "user"}, "response": "b"},
        {"messages": [{"role": "king", "content": "x"}], "response": "b"},
        {"prompt": "a", "response": "b", "steps": ["x"]},
        {"prompt": "a", "response": "b", "steps": [{"name": "x", "reward": "y"}]},
        {"prompt": "a", "response": "b", "metadata": [1]},
        {"prompt": "a", "response": "b", "embedding": ["x"]},
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, wrong: Any) -> None:
    with pytest.raises(InvalidInputError, match="line 2"):
        read(tmp_path, {"prompt": "a", "response": "b"}, wrong)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"prompt": "\xff", "response": "b"}',
        b'{"prompt": "a", "response": "b", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"prompt": "a", "response": "b", "x": ' + b"9" * 5000 + b"}",
        b'{"prompt": "a", "response": "b", "reward": ' + b"9" * 400 + b"}",
        b'{"prompt": "a", "response": "b", "id": {}}',
        b'{"prompt": "a", "response": "b", "id": ""}',
    ],
)
def test_what_no_parser_takes_is_named_too(tmp_path: Path, raw: bytes) -> None:
    file = tmp_path / "log.jsonl"
    file.write_bytes(b'{"prompt": "a", "response": "b"}\n' + raw)
    with pytest.raises(InvalidInputError, match="line 2"):
        list(read_jsonl(file))


def test_a_byte_that_is_no_utf8_is_told_by_its_place_in_the_line(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.write_bytes(b'{"prompt": "a", "response": "b"}\n{"prompt":"x","response":"y\xff"}\n')
    with pytest.raises(InvalidInputError, match=r"line 2: byte 27 \(0xff\) is not UTF-8"):
        list(read_jsonl(file))


@given(st.binary(max_size=40) | st.dictionaries(st.text(max_size=9), st.text() | st.integers()).map(json.dumps))
def test_any_line_is_a_trajectory_or_a_typed_error(tmp_path_factory: pytest.TempPathFactory, line: bytes | str) -> None:
    file = tmp_path_factory.getbasetemp() / "any.jsonl"
    file.write_bytes(line.encode() if isinstance(line, str) else line)
    with contextlib.suppress(InvalidInputError):
        list(read_jsonl(file))


ROW = {"prompt": "a", "response": "b", "quality": 1}


def test_a_line_gives_the_same_records_each_time_it_is_read(tmp_path: Path) -> None:
    rows = [ROW, {**ROW, "response": "c"}, ROW, {**ROW, "id": 7}]
    first, again = read(tmp_path, *rows), read(tmp_path, *rows)
    assert first == again
    assert len({row.trajectory.id for row in first}) == 4  # the same answer twice is two events
    assert len({row.feedback.id for row in first if row.feedback is not None}) == 4
    longer = read(tmp_path, {"prompt": "earlier", "response": "b"}, *rows)
    assert [row.trajectory for row in longer[1:]] == [row.trajectory for row in first]


def test_a_source_within_the_line_makes_another_event_of_it_and_one_beside_it_does_not(tmp_path: Path) -> None:
    ids = {read(tmp_path, ROW, source=source)[0].trajectory.id for source in (None, "a", "b")}
    assert len(ids) == 1
    assert len({row.trajectory.id for row in read(tmp_path, *({**ROW, "source": name} for name in "ab"))}) == 2


def test_a_corrected_quality_is_another_feedback(tmp_path: Path) -> None:
    (good,), (bad,) = (read(tmp_path, {**ROW, "id": "x", "quality": quality}) for quality in (1, 0))
    assert good.trajectory == bad.trajectory
    assert good.feedback is not None
    assert bad.feedback is not None
    assert good.feedback.id != bad.feedback.id
    assert (good.feedback.trajectory_id, good.feedback.giver) == ("x", "import")


@pytest.mark.parametrize(
    ("field", "value", "ns"),
    [
        ("created_ns", 5, 5),
        ("created_ns", "1970-01-01T00:00:01Z", 10**9),
        ("timestamp", 1_700_000_000, 1_700_000_000 * 10**9),
        ("timestamp", 1_700_000_000.5, 1_700_000_000 * 10**9 + 5 * 10**8),
        ("timestamp", 1_700_000_000_123, 1_700_000_000_123 * 10**6),
        ("timestamp", 1_700_000_000_123_456, 1_700_000_000_123_456 * 10**3),
        ("timestamp", 1_700_000_000_123_456_789, 1_700_000_000_123_456_789),
        ("timestamp", "1970-01-01T01:00:00+01:00", 0),
        ("timestamp", "1970-01-01 00:00:00.000001", 1000),
    ],
)
def test_the_time_is_the_line_s(tmp_path: Path, field: str, value: object, ns: int) -> None:
    (row,) = read(tmp_path, {**ROW, field: value})
    assert row.trajectory.created_ns == ns
    assert row.feedback is not None
    assert row.feedback.at_ns == ns
    assert row.trajectory.metadata == {}


@pytest.mark.parametrize(
    "value", ["yesterday", -1, True, 1e300, 99_999_999_999, "1969-12-31", "0001-01-01T00:00+14:00"]
)
def test_a_time_that_is_none_counts_as_0_and_is_kept_as_metadata(tmp_path: Path, value: object) -> None:
    (row,) = read(tmp_path, {**ROW, "timestamp": value})
    assert row.trajectory.created_ns == 0
    assert "timestamp" in row.trajectory.metadata


def test_metadata_holds_what_was_not_used_and_only_that(tmp_path: Path) -> None:
    used: dict[str, object] = {"agent": "bot", "task": "buy", "answer": "done", "reward": 1}
    assert read(tmp_path, used)[0].trajectory.metadata == {}
    assert read(tmp_path, {"env": "shop", "question": "buy", "answer": "done"})[0].trajectory.metadata == {}
    both = {**used, "source": "me", "prompt": "hi", "response": "yo", "quality": 0, "env": None}
    (row,) = read(tmp_path, both)
    assert row.trajectory.metadata == {"agent": "bot", "task": "buy", "answer": "done", "reward": "1"}


def test_an_openai_line_keeps_its_calls_ids(tmp_path: Path) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": "{}"}}
    (row,) = read(
        tmp_path,
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "hi"}]},
                {"role": "assistant", "content": None, "refusal": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "found"}]},
                {"role": "assistant", "content": "done", "annotations": []},
            ]
        },
    )
    assert row.trajectory.response == "done"
    assert row.trajectory.messages[1].tool_calls[0].id == row.trajectory.messages[2].tool_call_id == "c1"


def test_a_file_that_can_not_be_read_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="is no file"):
        list(read_jsonl(tmp_path))
    locked = tmp_path / "locked.jsonl"
    locked.touch(mode=0)
    if not os.access(locked, os.R_OK):  # root reads everything
        with pytest.raises(InvalidInputError, match="can't be read"):
            list(read_jsonl(locked))


def test_importing_twice_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.write_text(
        "".join(json.dumps({"id": n, "prompt": "a", "response": "b", "quality": 1}) + "\n" for n in range(5))
    )
    with sona.open_sync(tmp_path / "store") as engine:
        assert engine.import_jsonl(file).new == 5
        again = engine.import_jsonl(file)
        assert (again.new, again.known) == (0, 5)
        assert engine.status().store.feedback == 5
        with pytest.raises(InvalidInputError, match="is no file"):
            engine.import_jsonl(tmp_path / "none.jsonl")


def test_a_pipe_is_read_as_a_file_is(tmp_path: Path) -> None:
    rows = (json.dumps(ROW) + "\n").encode() * 3
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as pool:
        pool.submit(pipe.write_bytes, rows)
        got = list(read_jsonl(pipe))
    (tmp_path / "stdin.jsonl").write_bytes(rows)
    assert got == list(read_jsonl(tmp_path / "stdin.jsonl")), "also by their ids, whatever the pipe is called"
    assert {one.trajectory.source for one in got} == {"stdin"}


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.write_bytes(json.dumps(ROW).encode())
    (plain,) = read_jsonl(file)
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(ROW).encode() + b"\r\n")
    assert list(read_jsonl(file)) == [plain]
    file.write_bytes(json.dumps(ROW).encode() + b"\n\xef\xbb\xbf{}")
    with pytest.raises(InvalidInputError, match="line 2"):
        list(read_jsonl(file))


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("promt", "prompt"),
        ("qualty", "quality"),
        ("respones", "response"),
        ("Quality", "quality"),
        ("ID", "id"),
        ("souurce", "source"),
        ("embeding", "embedding"),
        ("timestanp", "timestamp"),
    ],
)
def test_a_misspelt_field_is_refused_with_the_name_that_was_meant(tmp_path: Path, wrong: str, right: str) -> None:
    with pytest.raises(InvalidInputError, match=f"line 1: '{wrong}': did you mean '{right}'"):
        read(tmp_path, {**ROW, wrong: 1})
    (row,) = read(tmp_path, {**ROW, "metadata": {wrong: "1"}})
    assert row.trajectory.metadata == {wrong: "1"}


def test_a_misspelt_field_of_a_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="steps: 'rewrd': did you mean 'reward'"):
        read(tmp_path, {**ROW, "steps": [{"name": "x", "rewrd": 1}]})


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ({}, "one has no name; give each a 'name', or an 'action'"),
        ({"thought": "hm"}, "one has no name"),
        ({"name": "  "}, "name: '  '; a text is allowed"),
        ({"name": 5}, "name: 5; a text is allowed"),
        ({"action": "[Buy]"}, "name: '[Buy]'; a text is allowed, with something before a '['"),
        ({"nmae": "x"}, "'nmae': did you mean 'name'?"),
        ({"acton": "x"}, "'acton': did you mean 'action'?"),
        ({"name": "x", "latency": 1}, "'latency': did you mean 'latency_s'?"),
    ],
)
def test_a_step_without_a_usable_name_is_refused(tmp_path: Path, step: object, said: str) -> None:
    with pytest.raises(InvalidInputError, match=re.escape(said)) as caught:
        read(tmp_path, ROW, {**ROW, "steps": [step]})
    assert "line 2: steps" in str(caught.value)
    (row,) = read(tmp_path, {**ROW, "steps": [{"name": "", "action": "go", "tool_args": 1, "rewards": [1]}]})
    assert [one.name for one in row.trajectory.steps] == ["go"]


def test_what_was_recalled_is_kept(tmp_path: Path) -> None:
    (row,) = read(tmp_path, {**ROW, "recalled": ["p1-0", "l1"]})
    assert (row.trajectory.recalled, row.trajectory.metadata) == (("p1-0", "l1"), {})
    for wrong in ("p1-0", [5], [""]):
        with pytest.raises(InvalidInputError, match="line 1: recalled"):
            read(tmp_path, {**ROW, "recalled": wrong})


def test_a_source_that_is_no_text_is_refused(tmp_path: Path) -> None:
    for wrong in (5, ["me"], {"name": "me"}):
        for name in ("source", "agent", "env"):
            with pytest.raises(InvalidInputError, match=r"line 1: source: .*; a text is allowed"):
                read(tmp_path, {**ROW, name: wrong})


def test_an_embedding_of_another_width_names_its_line(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    rows = [{**ROW, "embedding": [1.0] * width} for width in (3, 3, 4)]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    with sona.open_sync(tmp_path / "store") as engine:
        with pytest.raises(DimensionMismatchError, match=r"log.jsonl line 3: embedding of width 4.*the lines before"):
            engine.import_jsonl(file)
        engine.flush()
        assert engine.status().store.trajectories == 2


def test_each_line_is_counted_once(tmp_path: Path) -> None:
    """Also one whose id is there with other content, in the store or earlier in the file."""
    first = [{**ROW, "id": n, "quality": 1} for n in range(2)]
    other = [{**ROW, "response": "another", "id": n, "quality": 0} for n in (1, 7, 7)]
    other[2]["response"] = "a third"
    file = tmp_path / "log.jsonl"
    with sona.open_sync(tmp_path / "store") as engine:
        file.write_text("".join(json.dumps(row) + "\n" for row in first))
        engine.import_jsonl(file)
        file.write_text("".join(json.dumps(row) + "\n" for row in [*first, *other]))
        counts = engine.import_jsonl(file)
        assert (counts.new, counts.known, counts.left_out, counts.rated) == (1, 2, 2, 3)
        assert engine.get("1").quality == 1.0
        engine.flush()
        assert engine.status().store.feedback == 3


def test_the_same_ids_under_another_source_are_told(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.write_text("".join(json.dumps({**ROW, "id": n, "quality": 1}) + "\n" for n in range(3)))
    with sona.open_sync(tmp_path / "store") as engine:
        assert engine.import_jsonl(file, source="one").elsewhere == {}
        again = engine.import_jsonl(file, source="two")
        assert (again.known, again.left_out, again.elsewhere) == (0, 3, {"one": 3})
        assert engine.get("0").trajectory.source == "one"
        assert engine.import_jsonl(file, source="one").elsewhere == {}


def test_the_same_lines_in_another_file_or_of_another_sender_are_known(tmp_path: Path) -> None:
    lines = [json.dumps({**ROW, "n": n, "quality": 0.5}) + "\n" for n in (0, 1, 2, 2)]
    (tmp_path / "talk.jsonl").write_text("".join(lines))
    (tmp_path / "talk.jsonl.1").write_text("".join([*lines[1:], lines[1]]))
    with sona.open_sync(tmp_path / "store") as engine:
        assert engine.import_jsonl(tmp_path / "talk.jsonl").new == 4
        rotated = engine.import_jsonl(tmp_path / "talk.jsonl.1")
        assert (rotated.new, rotated.known, rotated.elsewhere) == (1, 3, {}), "a line that is there twice is two events"
        again = engine.import_jsonl(tmp_path / "talk.jsonl", source="bot")
        assert (again.new, again.known, engine.status().conflicts) == (0, 4, 0)
        counts = engine.status().store
        assert (counts.trajectories, counts.feedback) == (5, 5)


def test_lines_that_were_imported_under_the_former_ids_are_known(tmp_path: Path) -> None:
    file = tmp_path / "new.jsonl"
    file.write_text("".join(json.dumps({**ROW, "n": n, "quality": 0.5}) + "\n" for n in (0, 1, 1)))
    with sona.open_sync(tmp_path / "store") as engine:
        engine.record(sona.Trajectory(messages="q", response="a", source="bot"))
        for row in read_jsonl(file):
            assert row.made_up is not None
            former = row.known_as(row.made_up.former("old"), "old")
            engine.record(former.trajectory, quality=former.quality)
        engine.flush()
        for source in (None, "old"):
            counts = engine.import_jsonl(file, source=source)
            assert (counts.new, counts.known, counts.rated) == (0, 3, 3)
        assert (engine.status().store.trajectories, engine.status().conflicts) == (4, 0)


def test_the_former_id_is_what_it_was(tmp_path: Path) -> None:
    (row,) = read(tmp_path, '{"prompt": "a", "response": "b"}')
    assert row.made_up is not None
    assert row.made_up.former("log") == "71163dcda393009026d3c47b6c0428ad"


@pytest.mark.parametrize("name", ["prompt", "task", "question"])
def test_a_prompt_that_is_no_text_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInputError, match=rf"line 1: {name}: 5; a text is allowed"):
        read(tmp_path, {name: 5, "response": "a"})
    (row,) = read(tmp_path, {name: 5, "response": "a", "embedding": [1.0]})
    assert row.trajectory.metadata == {name: "5"}


def test_a_misspelt_key_of_a_message_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="messages: 'contnet': did you mean 'content'"):
        read(tmp_path, {"messages": [{"role": "user", "contnet": "q"}], "response": "a"})
    (row,) = read(tmp_path, {"messages": [{"role": "user", "content": "q", "audio_id": 3}], "response": "a"})
    assert row.trajectory.messages[0].content == "q"


@pytest.mark.parametrize(
    "own",
    ["sources", "rewards", "step", "tasks", "created_at", "response_s", "prompt_id", "uid", "idx", "model", "user"],
)
def test_other_words_are_metadata_as_ever(tmp_path: Path, own: str) -> None:
    (row,) = read(tmp_path, {**ROW, own: "x"})
    assert row.trajectory.metadata == {own: "x"}
