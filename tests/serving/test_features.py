"""What a router reads of a prompt, and what reading it costs."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from sona.checks import Int32
from sona.config import ServeConfig
from sona.serving import features
from sona.serving.local import LocalModel
from sona.tiny import model_path
from sona.types import Message
from tests.other_model import write_other_model

TEXTS = ["echo a", "reverse blue river stone", "echo blue river", "last of one two three four five six", "x"]


@pytest.fixture
def model() -> LocalModel:
    return LocalModel("tiny", ServeConfig(device="cpu", threads=1))


def prompts_of(model: LocalModel) -> list[Int32]:
    return [model.encode_prompt([Message(role="user", content=text)]) for text in TEXTS]


@contextmanager
def counted_passes(model: LocalModel) -> Iterator[list[int]]:
    """Batch sizes of the reader's forward passes within the block."""
    passes: list[int] = []

    def count(module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        passes.append(len(kwargs["input_ids"]))

    handle = model._reader._model.base_model.register_forward_hook(count, with_kwargs=True)
    try:
        yield passes
    finally:
        handle.remove()


def test_features_are_pooled_hidden_states_of_norm_1(model: LocalModel) -> None:
    plain: Any = AutoModelForCausalLM.from_pretrained(model_path())
    prompts = prompts_of(model)
    found = model.features(prompts)
    assert found.shape == (len(prompts), model.feature_width) == (len(prompts), 6 * model.hidden_size)
    assert found.dtype == np.float32
    for prompt, row in zip(prompts, found, strict=True):
        with torch.no_grad():
            ids = torch.tensor(prompt[None].astype(np.int64))
            states = plain.model(input_ids=ids, output_hidden_states=True).hidden_states
        wanted = [
            vector / vector.norm()
            for layer in (0, plain.config.num_hidden_layers // 2, -1)
            for vector in (states[layer][0].mean(0), states[layer][0, -1])
        ]
        np.testing.assert_allclose(row, torch.cat(wanted).numpy(), atol=1e-5)
    norms = np.linalg.norm(found.reshape(len(prompts), 6, -1), axis=2)
    np.testing.assert_allclose(norms, 1.0, atol=1e-5)


def test_one_by_one_and_in_a_batch_they_are_the_same(model: LocalModel) -> None:
    prompts = prompts_of(model)
    for read in (model.features, model.embed):
        np.testing.assert_allclose(read(prompts), np.concatenate([read([one]) for one in prompts]), atol=1e-5)


def test_no_prompts_have_no_features(model: LocalModel) -> None:
    assert model.features([]).shape == (0, model.feature_width)
    assert model.embed([]).shape == (0, model.hidden_size)


def test_a_model_of_one_layer_is_read_at_two_states(tmp_path: Path) -> None:
    other = LocalModel(write_other_model(tmp_path), ServeConfig(device="cpu"))
    assert other.feature_width == 4 * other.hidden_size == other.features(prompts_of(other)).shape[1]


def test_of_a_long_prompt_the_end_is_read(model: LocalModel) -> None:
    long = np.concatenate([np.full(600, 20, np.int32), prompts_of(model)[0]])
    np.testing.assert_array_equal(model.features([long]), model.features([long[-model.max_tokens :]]))


def test_embedding_and_features_of_a_prompt_cost_one_pass(model: LocalModel) -> None:
    prompts = prompts_of(model)
    with counted_passes(model) as passes:
        vector = model.embed(prompts[:1])
        found = model.features(prompts[:1])
        vector[:], wanted = 0, found.copy()  # what a caller does to its copy is its own affair
        found[:] = 0
        np.testing.assert_array_equal(model.features(prompts[:1]), wanted)
        assert model.embed(prompts[:1]).any()
    assert passes == [1]


def test_what_a_batch_reads_does_not_depend_on_what_was_read_before(model: LocalModel) -> None:
    prompts = prompts_of(model)
    wanted = model.features(prompts)
    for prompt in prompts:
        model.features([prompt])
    with counted_passes(model) as passes:
        np.testing.assert_array_equal(model.features(prompts), wanted)
    assert passes == [len(prompts)]


def test_the_least_recently_read_prompt_is_forgotten(model: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "KEPT", 2)
    first, second, third, *_ = prompts_of(model)
    with counted_passes(model) as passes:
        for prompt in (first, second, first, third, first, second):
            model.features([prompt])
    assert len(passes) == 4
    assert len(model._reader._remembered) == 2


def test_other_layers_states_are_not_kept(model: LocalModel) -> None:
    kept: list[Any] = []
    handle = model._reader._model.base_model.register_forward_hook(
        lambda module, args, output: kept.append(output.hidden_states)
    )
    model.features(prompts_of(model))
    handle.remove()
    assert [state is not None for state in kept[0]] == [True, True, False, False]  # of 3 layers; the last by its name


def test_reading_leaves_no_hook_in_the_base_model(model: LocalModel) -> None:
    model.features(prompts_of(model))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model._base.modules())
