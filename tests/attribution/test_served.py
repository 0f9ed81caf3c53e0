"""The served model as a scorer, beside its answers."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from sona.attribution.context import ALL_MEMORIES, Context, Drop, Segment
from sona.attribution.leave_one_out import LeaveOneOut
from sona.attribution.live import LiveScorer
from sona.attribution.memories import MatrixRun, score_memories, score_memory
from sona.attribution.online import Online
from sona.attribution.tokens import encode
from sona.config import ServeConfig
from sona.serving.local import LocalModel
from sona.types import Message
from tests.serving.noisy_adapter import one, write_noisy_adapter

TALK = Context(
    (
        Segment("system", "be kind"),
        Segment("memory", "blue river", "a"),
        Segment("user", "echo stone"),
        Segment("assistant", "stone"),
        Segment("memory", "echo means say again", "b"),
        Segment("user", "echo river"),
        Segment("assistant", "river blue"),
    )
)


@pytest.fixture
def model() -> LocalModel:
    return LocalModel("tiny", ServeConfig(device="cpu", threads=1))


def by_full_passes(model: LocalModel) -> list[list[float]]:
    """The signed matrix from the model's own score()."""
    from sona.attribution.context import NOTHING, Drop

    totals = []
    for drop in (NOTHING, Drop(keys=("a",)), Drop(keys=("b",))):
        passage = encode(TALK, model, drop).passage()
        scores = [
            model.score(passage.ids, range(*span), prompt_tokens=passage.ranges[-1][0]).log_probs.sum()
            for span in passage.ranges
        ]
        totals.append(np.asarray(scores, np.float64))
    return [(totals[0] - without).tolist() for without in totals[1:]]


def test_the_matrix_is_that_of_full_passes_by_the_adapter_that_answers(model: LocalModel, tmp_path: Path) -> None:
    scorer = LeaveOneOut(model)
    assert scorer.way == "packed"
    base = score_memories(TALK, model, scorer).signed
    np.testing.assert_allclose(base, by_full_passes(model), atol=1e-4)
    model.swap("v1", one(write_noisy_adapter(model, tmp_path / "a", 1)))
    learnt = score_memories(TALK, model, scorer).signed
    np.testing.assert_allclose(learnt, by_full_passes(model), atol=1e-4)
    assert np.abs(learnt - base).max() > 0.1


def test_answers_and_swaps_do_not_wait_for_a_matrix_and_are_not_changed(model: LocalModel, tmp_path: Path) -> None:
    prompt = model.encode_prompt([Message(role="user", content="echo blue river stone")])
    alone = model.generate(prompt, max_new_tokens=8).token_ids
    folder = write_noisy_adapter(model, tmp_path / "a", 1)
    answers = LeaveOneOut(model).score_all([encode(TALK, model, drop).passage() for drop in (ALL_MEMORIES,) * 3])
    next(answers)  # the model's tree is lent from here on
    done = threading.Event()

    def beside() -> None:
        assert model.generate(prompt, max_new_tokens=8).token_ids == alone
        model.swap("v1", one(folder))
        model.embed([prompt])
        done.set()

    thread = threading.Thread(target=beside)
    thread.start()
    assert done.wait(60)
    thread.join()
    assert len(list(answers)) == 2


def test_a_conversation_is_scored_online_as_it_is_at_once(model: LocalModel) -> None:
    online = Online(model, LiveScorer(LeaveOneOut(model)))
    parts = [online.extend(Context(TALK.segments[:end])).signed for end in (4, 7)]
    at_once = score_memories(TALK, model, LeaveOneOut(model)).signed
    np.testing.assert_allclose(parts[0], at_once[:1, :1], atol=1e-4)
    np.testing.assert_allclose(parts[1], at_once[:, 1:], atol=1e-4)


def test_one_memory_is_its_row(model: LocalModel) -> None:
    scorer = LeaveOneOut(model)
    whole = score_memories(TALK, model, scorer)
    assert score_memory(TALK, model, scorer, "a").weight == pytest.approx(whole.weights[0], abs=1e-4)


def test_a_swap_amid_a_matrix_of_several_chunks_mixes_no_two_versions(model: LocalModel, tmp_path: Path) -> None:
    folder, tokens = write_noisy_adapter(model, tmp_path / "a", 1), len(encode(TALK, model).ids)
    base = score_memories(TALK, model, LeaveOneOut(model), chunk_tokens=tokens - 1)
    assert base.version == "v0"
    told: list[str] = []

    def swap(row: object) -> None:
        told.append(str(row))
        model.swap("v1", one(folder))

    run = MatrixRun(TALK, model, LeaveOneOut(model), chunk_tokens=tokens - 1)
    drops = [Drop(keys=(key,)) for key in TALK.keys]
    assert sorted(len(run._comparison.chunks_with(drop)) for drop in drops) == [1, 2], "else one chunk was enough"
    found = score_memories(TALK, model, LeaveOneOut(model), chunk_tokens=tokens - 1, on_row=swap)
    assert told
    assert found.version == "v0", "as a request ends with the version that it began with"
    np.testing.assert_allclose(found.signed, base.signed, atol=1e-5)
    after = score_memories(TALK, model, LeaveOneOut(model), chunk_tokens=tokens - 1)
    assert after.version == "v1"
    assert np.abs(after.signed - base.signed).max() > 0.1
