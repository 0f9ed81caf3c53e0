"""Trajectories whose answers a host takes from the served model by itself, as a server does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import sona
from sona.errors import ClosedError, InvalidInputError, ModelError, StoreFullError, UnknownIdError
from sona.storage.store import Store
from tests.engine.small import open_small


def test_what_the_model_was_asked_and_wrote_is_kept(tmp_path: Path) -> None:
    with open_small(tmp_path / "store") as engine:
        prompt = engine.model.encode_text("echo blue river stone")
        reply = engine.model.generate(prompt, max_new_tokens=4)
        with engine.trajectory((), prompt_ids=prompt, source="bot") as t:
            t.respond(reply.text, token_ids=list(reply.token_ids), version=reply.version)
        with engine.trajectory("hello", id="chat") as other:
            other.respond("well", token_ids=[5], prompt_ids=[1, 2], version="v0")
        engine.flush()
        kept = engine.get(t.id).trajectory
        assert (kept.messages, kept.response, kept.version, kept.embedding) == ((), reply.text, "v0", None)
        np.testing.assert_array_equal(kept.prompt_array(), prompt)
        np.testing.assert_array_equal(kept.response_array(), reply.token_ids)
        chat = engine.get("chat").trajectory
        np.testing.assert_array_equal(chat.prompt_array(), [1, 2])
        assert (chat.version, len(chat.messages)) == ("v0", 1)


def test_a_block_without_an_answer_keeps_its_prompt(tmp_path: Path) -> None:
    with open_small(tmp_path / "store", model=None) as engine:
        with engine.trajectory((), prompt_ids=[1, 2, 3]) as t:
            pass
        engine.flush()
        kept = engine.get(t.id).trajectory
        assert kept.outcome == "abandoned"
        np.testing.assert_array_equal(kept.prompt_array(), [1, 2, 3])


@pytest.mark.parametrize("prompt", [[], [-1], ["a"], [[1]]])
def test_ids_that_are_none_are_refused_at_the_call(tmp_path: Path, prompt: list[object]) -> None:
    with open_small(tmp_path / "store", model=None) as engine:
        with pytest.raises(InvalidInputError, match="prompt_ids"):
            engine.trajectory((), prompt_ids=prompt)  # type: ignore[arg-type]
        with engine.trajectory("hello") as t, pytest.raises(InvalidInputError, match="prompt_ids"):
            t.respond("well", prompt_ids=prompt)  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match="messages: none"):
            engine.trajectory(())


def test_feedback_can_be_read_back(tmp_path: Path) -> None:
    with open_small(tmp_path / "store", model=None) as engine:
        engine.record(sona.Trajectory(id="a", messages="hello", response="well"))
        engine.feedback("a", 0.5, id="first", giver="ann")
        engine.feedback("a", 1.0, id="second")
        engine.flush()
        assert [(one.id, one.quality, one.giver) for one in engine.feedback_of("a")] == [
            ("first", 0.5, "ann"),
            ("second", 1.0, "host"),
        ]
        with pytest.raises(UnknownIdError):
            engine.feedback_of("b")


def test_whether_it_can_store_is_told_without_counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise StoreFullError("no room")

    with open_small(tmp_path / "store", model=None) as engine:
        before = engine.degraded
        assert before is None
        with monkeypatch.context() as patched:
            patched.setattr(Store, "append", full)
            engine.record(sona.Trajectory(messages="hello", response="well"))
            with pytest.raises(StoreFullError):
                engine.flush()
            assert "no room" in str(engine.degraded)
        with pytest.raises(ModelError, match="has no model"):
            _ = engine.model
    with pytest.raises(ClosedError):
        _ = engine.degraded
