"""What a host can do wrong: each a typed error with a remedy, and nothing is corrupted by it."""

import math
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sona
from sona.config import Config, StoreConfig
from sona.errors import (
    ClosedError,
    ConfigError,
    DimensionMismatchError,
    InvalidInputError,
    ModelError,
    ModelNotFoundError,
    SonaError,
    StoreCorruptError,
    StoreLockedError,
    UnknownIdError,
    UnknownTokenError,
)
from sona.message import to_messages
from sona.storage.doctor import diagnose
from tests.engine.small import open_small, record_task
from tests.other_model import write_other_model
from tests.processes import run


def test_wrong_records_are_refused_and_good_ones_around_them_stay(tmp_path: Path) -> None:
    with open_small(tmp_path / "store") as engine:
        engine.record(sona.Trajectory(messages="a", response="b", embedding=np.ones(128)), quality=1.0)
        with pytest.raises(DimensionMismatchError, match="width 3; this store's have 128"):
            engine.record(sona.Trajectory(messages="a", response="b", embedding=[1.0, 2.0, 3.0]))
        for wrong in (math.nan, math.inf, -math.inf):
            with pytest.raises(InvalidInputError, match="finite"):
                engine.record(sona.Trajectory(messages="a", response="b", embedding=[wrong] * 128))
        with pytest.raises(InvalidInputError, match="empty"):
            engine.record(sona.Trajectory(messages="", response="b"))
        with pytest.raises(InvalidInputError, match=r"0 .* to 1"):
            engine.record(sona.Trajectory(messages="a", response="b"), quality=7)
        with pytest.raises(UnknownTokenError, match="this model knows 0 to"):
            engine.record(sona.Trajectory(prompt_ids=[5], response_ids=[10_000_000]))
        engine.record(sona.Trajectory(messages="c", response="d"), quality=1.0)
        engine.flush()
        assert engine.status().store.trajectories == 2


def test_a_subclass_of_a_trajectory_is_refused(tmp_path: Path) -> None:
    """Stored, what it adds could not be read any more; in the journal it could not be told from a feedback."""

    class Mine(sona.Trajectory, kw_only=True):
        tenant: str = "x"

    with (
        open_small(tmp_path / "store") as engine,
        pytest.raises(InvalidInputError, match=r"trajectory: a Mine; a sona.Trajectory is allowed, and no subclass"),
    ):
        engine.record(Mine(messages=to_messages("a"), response="b"))


def test_a_refused_record_leaves_no_width_behind(tmp_path: Path) -> None:
    with open_small(tmp_path / "store") as engine:
        with pytest.raises(UnknownTokenError):
            engine.record(sona.Trajectory(prompt_ids=[10_000_000], response_ids=[1], embedding=[1.0, 2.0, 3.0]))
        engine.record(sona.Trajectory(messages="a", response="b", embedding=np.ones(128)))
        engine.flush()
        assert engine.status().store.trajectories == 1


def test_wrong_feedback_is_refused(tmp_path: Path) -> None:
    with open_small(tmp_path / "store", model=None) as engine:
        kept = sona.Trajectory(messages="a", response="b")
        engine.record(kept)
        with pytest.raises(UnknownIdError, match="nowhere"):
            engine.feedback("nowhere", 1.0)
        for wrong in (7, -0.1, math.nan, "good", None, True):
            with pytest.raises(InvalidInputError, match="quality"):
                engine.feedback(kept.id, wrong)  # type: ignore[arg-type]
        engine.feedback(kept.id, 0.5)
        engine.flush()
        assert engine.get(kept.id).quality == 0.5


@pytest.mark.parametrize("messages", ["", "  ", [], [{"role": "user", "content": ""}], [{"content": "hi"}], 7, None])
def test_a_wrong_conversation_is_refused_before_the_block_begins(tmp_path: Path, messages: Any) -> None:
    with open_small(tmp_path / "store", model=None) as engine, pytest.raises(InvalidInputError):
        engine.trajectory(messages).__enter__()


def test_what_is_no_trajectory_is_refused_and_a_mapping_told_how_to_become_one(tmp_path: Path) -> None:
    given = {"mesages": "q", "response": "a", "quality": 1.0}
    with open_small(tmp_path / "store", model=None) as engine:
        for wrong in (given, "q", None):
            for quality in (None, 1.0):
                with pytest.raises(InvalidInputError, match=r"a sona\.Trajectory is allowed"):
                    engine.record(wrong, quality=quality)  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match=r"'mesages' is no field of it; did you mean 'messages'.*quality="):
            engine.record(given)  # type: ignore[arg-type]
        assert engine.status().rejected == engine.status().pending == 0


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("contnet", "content"), ("rol", "role"), ("Content", "content"), ("tool_call", "tool_calls")],
)
def test_a_misspelt_key_of_a_message_is_named_with_the_nearest_one(tmp_path: Path, wrong: Any, meant: str) -> None:
    message = {"role": "user", "content": "q", wrong: "x"}
    with open_small(tmp_path / "store", model=None) as engine:
        for use in (lambda: engine.trajectory([message]), lambda: sona.Trajectory(messages=[message], response="a")):
            with pytest.raises(InvalidInputError, match=rf"messages\[0\]: {wrong!r} is no key.*did you mean '{meant}"):
                use()


@pytest.mark.parametrize("far", ["foo", 3])
def test_a_key_that_is_like_none_is_not_said_to_be_meant_as_one(far: Any) -> None:
    with pytest.raises(
        InvalidInputError, match=rf"{far!r} is no key of a message; \(role, content.* are allowed"
    ) as told:
        to_messages([{"role": "user", "content": "q", far: "x"}])
    assert "did you mean" not in str(told.value)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"role": "user", "content": 5}, "messages[0].content: a text is allowed, not a whole number"),
        ({"role": 5, "content": "q"}, "messages[0].role: "),
        ({"content": "q"}, "messages[0].role: missing"),
        ({"role": "tool", "content": "q", "tool_call_id": 5}, "messages[0].tool_call_id: a text is allowed"),
        ({"role": "assistant", "tool_calls": [{"id": 1, "name": "x"}]}, "messages[0].tool_calls[0].id: a text is "),
    ],
)
def test_a_wrong_value_in_a_message_is_told_in_plain_words(message: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInputError) as told:
        to_messages([message])
    assert str(told.value).startswith(said)
    assert "`" not in str(told.value)


def test_wrong_sampling_is_refused(tmp_path: Path) -> None:
    with open_small(tmp_path / "store") as engine:
        for wrong in ({"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}, {"max_new_tokens": -5}):
            with pytest.raises(InvalidInputError, match=next(iter(wrong))):
                engine.generate("echo a", **wrong)
        with pytest.raises(InvalidInputError, match="at most 511"):
            engine.generate("echo a " * 600)
        with pytest.raises(InvalidInputError, match="NaN"):
            engine.recall(np.asarray([math.nan], dtype=np.float32))


def test_an_engine_without_a_model_says_how_to_get_one(tmp_path: Path) -> None:
    with open_small(tmp_path / "store", model=None) as engine, pytest.raises(ModelError, match="open it with model="):
        engine.generate("hi")


@pytest.mark.parametrize("model", ["/no/such/folder", "./nothing/here"])
def test_a_missing_model_folder_is_a_typed_error_and_leaves_the_store_free(tmp_path: Path, model: str) -> None:
    with pytest.raises(ModelNotFoundError, match="does not exist"):
        open_small(tmp_path / "store", model=model).__enter__()
    assert not (tmp_path / "store").exists()
    with open_small(tmp_path / "store", model=None) as engine:
        assert engine.status().store.trajectories == 0


def test_a_folder_that_is_no_model_is_a_typed_error(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(ModelNotFoundError, match=r"no config\.json"):
        open_small(tmp_path / "store", model=str(folder)).__enter__()
    (folder / "config.json").write_text("{}")
    with pytest.raises(ModelError):
        open_small(tmp_path / "store", model=str(folder)).__enter__()
    assert not (tmp_path / "store").exists(), "a model that can't be loaded leaves no empty store behind"
    with open_small(tmp_path / "store", model=None) as engine:
        record_task(engine, 1, seed=1)
    with pytest.raises(ModelError):
        open_small(tmp_path / "store", model=str(folder)).__enter__()
    with open_small(tmp_path / "store", model=None) as engine:
        assert engine.status().store.trajectories == 1


@pytest.mark.parametrize("path", ["", None, 7, b"store"])
def test_a_path_that_is_none_is_refused(tmp_path: Path, path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for opened in (sona.open, sona.open_sync):
        with pytest.raises(InvalidInputError, match=r"store: .*; the path of a folder is allowed"):
            opened(path)
    assert list(tmp_path.iterdir()) == []


def test_settings_may_be_a_dict(tmp_path: Path) -> None:
    with sona.open_sync(tmp_path / "store", config={"store": {"queue_bytes": 4096}}) as engine:
        assert engine.record(sona.Trajectory(messages="a" * 9000, response="b")) == "rejected"
    with pytest.raises(ConfigError, match=r"did you mean store\.'queue_bytes'"):
        sona.open(tmp_path / "store", config={"store": {"queue_byte": 4096}})
    with pytest.raises(ConfigError, match=r"a list; a sona\.Config, a dict such as"):
        sona.open(tmp_path / "store", config=[])  # type: ignore[arg-type]


def test_a_hub_id_without_a_network_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="nobody/nothing"):
        open_small(tmp_path / "store", model="nobody/nothing").__enter__()


def test_a_store_of_another_base_model_is_refused(tmp_path: Path) -> None:
    other = write_other_model(tmp_path / "other")
    with open_small(tmp_path / "store") as engine:
        record_task(engine, 60, seed=1)
        assert engine.learn().status == "published"
    with pytest.raises(ModelError, match="another base model"):
        open_small(tmp_path / "store", model=other).__enter__()


def test_a_locked_store_is_a_typed_error(tmp_path: Path) -> None:
    with open_small(tmp_path / "store", model=None), pytest.raises(StoreLockedError):
        open_small(tmp_path / "store", model=None).__enter__()


def test_a_file_in_the_store_s_place_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(SonaError):
        open_small(tmp_path / "file", model=None).__enter__()
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "store.db").write_text("no database at all, only some text" * 1000)
    with pytest.raises(StoreCorruptError):
        open_small(tmp_path / "store", model=None).__enter__()


OPEN_AS_NOBODY = """
import os, sys
import anyio
import sona.sync
from sona.errors import SonaError
from sona.storage.store import Store
anyio.run(anyio.sleep, 0)  # loads the event loop while the interpreter's own folder can still be read
os.setuid(65534)
try:
    sona.open_sync(sys.argv[1]).__enter__()
except SonaError as error:
    print(type(error).__name__)
with Store.open(sys.argv[1], read_only=True) as readable:
    print(readable.counts().trajectories)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not write")
def test_a_store_that_may_not_be_written_to_is_a_typed_error() -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is closed to others
        with open_small(Path(folder) / "store", model=None) as engine:
            record_task(engine, 3, seed=1)
        for path in (Path(folder), *Path(folder).rglob("*")):  # as `chmod -R go+rX` does
            path.chmod(path.stat().st_mode | (0o055 if path.is_dir() else 0o044))
        assert run(OPEN_AS_NOBODY, Path(folder) / "store").split() == ["StoreReadOnlyError", "3"]


def test_a_damaged_version_is_not_served(tmp_path: Path) -> None:
    with open_small(tmp_path / "store") as engine:
        record_task(engine, 60, seed=1)
        assert engine.learn().version == "v1"
        adapter = tmp_path / "store" / "versions" / "v1" / "skills" / "s1" / "adapter" / "adapter_model.safetensors"
        engine.roll_back()
        raw = bytearray(adapter.read_bytes())
        raw[-5] ^= 0xFF
        adapter.write_bytes(bytes(raw))
        with pytest.raises(StoreCorruptError):
            engine.roll_back("v1")
        assert engine.version.id == "v0"
        assert engine.generate("echo a", max_new_tokens=4).version == "v0"


def test_a_closed_engine_says_so(tmp_path: Path) -> None:
    engine = open_small(tmp_path / "store", model=None)
    with pytest.raises(ClosedError):
        engine.flush()
    with engine:
        pass
    with pytest.raises(ClosedError):
        engine.record(sona.Trajectory(messages="a", response="b"))


def test_a_full_queue_rejects_and_counts(tmp_path: Path) -> None:
    config = Config(store=StoreConfig(queue_bytes=4096))
    with open_small(tmp_path / "store", model=None, config=config) as engine:
        receipts = [engine.record(sona.Trajectory(messages="a" * 3000, response="b")) for _ in range(50)]
        engine.flush()
        status = engine.status()
        assert receipts.count("rejected") == status.rejected
        assert status.store.trajectories == receipts.count("recorded") >= 1


@pytest.mark.parametrize("model", [5, b"tiny", ["tiny"]])
def test_a_model_that_is_none_is_refused(tmp_path: Path, model: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"model: .*'tiny', or None for no model is allowed"):
        sona.open_sync(tmp_path / "store", model=model)


@pytest.mark.parametrize("path", [5, None, b"x", ""])
def test_a_file_or_folder_that_is_none_is_refused(tmp_path: Path, path: Any) -> None:
    with sona.open_sync(tmp_path / "store") as engine:
        with pytest.raises(InvalidInputError, match=r"target: .*the path of a folder is allowed"):
            engine.backup(path)
        with pytest.raises(InvalidInputError, match=r"path: .*the path of a file is allowed"):
            engine.import_jsonl(path)


def test_a_time_limit_that_is_none_is_refused(tmp_path: Path) -> None:
    with sona.open_sync(tmp_path / "store") as engine:
        for wrong in ("x", -1, math.nan, True):
            with pytest.raises(InvalidInputError, match=r"timeout_s: .*a number from 0 to"):
                engine.flush(wrong)  # type: ignore[arg-type]
        for right in (None, 5, math.inf):
            engine.flush(right)


def test_what_is_no_text_has_no_tokens(tmp_path: Path) -> None:
    with sona.open_sync(tmp_path / "store", model="tiny") as engine:
        for wrong in (5, None, "\ud800"):
            with pytest.raises(InvalidInputError, match="text: "):
                engine.count_tokens(wrong)  # type: ignore[arg-type]
        assert engine.count_tokens("") == 0


async def _awaited(_: object) -> None: ...


@pytest.mark.parametrize("wrong", [5, "x", _awaited])
def test_progress_is_told_to_a_plain_function(tmp_path: Path, wrong: Any) -> None:
    with sona.open_sync(tmp_path / "store") as engine, pytest.raises(InvalidInputError, match=r"on_progress: .*plain"):
        engine.learn(wrong)


def test_numbers_that_leave_float32_together_are_refused_without_a_warning(tmp_path: Path) -> None:
    with sona.open_sync(tmp_path / "store") as engine:
        for wrong in (np.full(8, 3e38, dtype=np.float32), np.full(8, 3e38)):
            with pytest.raises(InvalidInputError, match="beyond float32"):
                engine.recall(wrong)
            with pytest.raises(InvalidInputError, match="beyond float32"):
                sona.Trajectory(embedding=wrong)


class Markup(str):
    """As markupsafe's, and those of agent frameworks."""


class Number(int):
    """An int of a host's own."""


class Packed(bytes):
    """Bytes of a host's own."""


def test_texts_of_a_class_of_the_hosts_own_are_stored_as_texts(tmp_path: Path) -> None:
    text = Markup
    given = sona.Trajectory(
        id=text("a"),
        source=text("bot"),
        created_ns=Number(5),
        messages=[sona.Message(role="user", content=text("q"))],
        response=text("río"),
        response_ids=Packed(b"\1\0\0\0"),
        embedding=Packed(b"\0\0\x80\x3f"),
        steps=[sona.Step(name=text("tool:x"), content=text("c"), at_ns=Number(1))],
        metadata={text("k"): text("v")},
        recalled=[text("p1")],
    )
    with sona.open_sync(tmp_path / "store") as engine:
        assert engine.record(given, quality=0.5, giver=text("ann")) == "recorded"
        assert engine.feedback(text("a"), 0.25, id=text("f"), comment=text("hm")) == "recorded"
        with engine.trajectory(text("q"), source=text("bot"), id=text("b")) as block:
            block.respond(text("r"))
        engine.flush()
        assert engine.get("a").trajectory == given
        assert type(engine.get("a").trajectory.response) is str
        assert engine.get("b").trajectory.response == "r"
        assert [one.comment for one in engine.feedback_of("a")] == ["", "hm"]
    assert diagnose(tmp_path / "store").exit_code == 0


def test_a_quality_of_minus_nothing_is_nothing(tmp_path: Path) -> None:
    """SQLite keeps no sign of a zero, and a checksum does."""
    with sona.open_sync(tmp_path / "store") as engine:
        engine.record(sona.Trajectory(id="a", messages="q", response="r"), quality=-0.0)
        engine.flush()
        engine.feedback("a", -0.0)
        engine.flush()
        assert [str(one.quality) for one in engine.feedback_of("a")] == ["0.0", "0.0"]
    assert diagnose(tmp_path / "store").exit_code == 0


def test_a_token_id_that_is_none_is_named_with_its_place() -> None:
    several: list[Any] = [[1, 2, -3, 4], np.array([1, 2, -3, 4], dtype=np.int32), [[1, 2], [-3, 4]]]
    for ids in several:
        with pytest.raises(InvalidInputError, match=r"prompt_ids: -3 at place 2; ids from 0 to 2147483647 are allowed"):
            sona.Trajectory(prompt_ids=ids, outcome="abandoned")
    batch: Any = [[1, 2]]
    with pytest.raises(InvalidInputError, match=r"shape \(1, 2\); one list .* as the first row of a batch is"):
        sona.Trajectory(prompt_ids=batch, outcome="abandoned")
