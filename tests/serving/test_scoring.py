"""How likely the served model finds tokens that it is shown."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sona.config import ServeConfig
from sona.errors import InvalidInputError, UnknownTokenError
from sona.serving import scoring
from sona.serving.generation import base_of
from sona.serving.local import LocalModel
from sona.types import Message


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return LocalModel("tiny", ServeConfig(device="cpu", threads=1))


def ids_of(model: LocalModel, count: int = 24) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.random.default_rng(1).integers(0, model.vocab_size, count).astype(np.int32)


def test_scores_and_the_likeliest_are_those_of_a_full_pass(model: LocalModel) -> None:
    ids = ids_of(model)
    places = [1, 5, 6, 23]
    found = model.score(ids, places, prompt_tokens=1, top=4)
    with torch.no_grad():
        whole = base_of(model.trainable_copy())(input_ids=torch.from_numpy(ids.astype(np.int64))[None]).logits[0]
    slow = whole.double().log_softmax(-1)
    for row, place in enumerate(places):
        want = slow[place - 1]
        assert found.log_probs[row] == pytest.approx(float(want[int(ids[place])]), abs=1e-4)
        best = want.topk(4)
        np.testing.assert_array_equal(found.top_ids[row], best.indices)
        np.testing.assert_allclose(found.top_log_probs[row], best.values, atol=1e-4)
    assert (found.version, found.adapter) == ("v0", None)


def test_in_parts_it_is_the_same(model: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = ids_of(model)
    whole = model.score(ids, range(1, 24), prompt_tokens=1, top=2)
    monkeypatch.setattr(scoring, "LOGITS", 3 * model.vocab_size)
    parts = model.score(ids, range(1, 24), prompt_tokens=1, top=2)
    np.testing.assert_allclose(parts.log_probs, whole.log_probs, atol=1e-4)
    np.testing.assert_array_equal(parts.top_ids, whole.top_ids)


def test_a_greedy_answers_tokens_are_the_likeliest(model: LocalModel) -> None:
    prompt = model.encode_prompt([Message(role="user", content="echo blue river stone")])
    reply = model.generate(prompt, max_new_tokens=20)
    ids = np.asarray(reply.prompt_ids + reply.token_ids, dtype=np.int32)
    found = model.score(ids, range(len(prompt), len(ids)), prompt_tokens=len(prompt), top=1)
    np.testing.assert_array_equal(found.top_ids[:, 0], reply.token_ids)
    np.testing.assert_array_equal(found.top_log_probs[:, 0], found.log_probs)


def test_what_can_not_be_scored_is_refused(model: LocalModel) -> None:
    ids = ids_of(model)
    for places in ([], [0], [24], [-1]):
        with pytest.raises(InvalidInputError, match="places: from 1 to 23"):
            model.score(ids, places, prompt_tokens=1)
    with pytest.raises(InvalidInputError, match="at most"):
        model.score(ids_of(model, 600), [1], prompt_tokens=1)
    with pytest.raises(UnknownTokenError):
        model.score(np.asarray([1, model.vocab_size], dtype=np.int32), [1], prompt_tokens=1)


def test_a_text_is_encoded_without_a_template_and_tokens_are_spelt(model: LocalModel) -> None:
    ids = model.encode_text("echo blue")
    assert model.decode(ids.tolist()) == "echo blue"
    (end,) = [token for token in range(10) if model.spell(token) == "<|end|>"]
    assert model.decode([end]) == ""
    assert len(model.encode_text("")) == 0
