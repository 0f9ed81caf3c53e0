"""Model folders: which are served, which are refused, and what tells one from another."""

import builtins
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sona.config import ServeConfig
from sona.errors import ModelError, ModelNotFoundError
from sona.serving.local import LocalModel
from sona.tiny import model_path
from sona.types import Message
from tests.other_model import write_other_model

CPU = ServeConfig(device="cpu")
WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the shipped model, to be damaged."""
    return Path(shutil.copytree(model_path(), tmp_path / "copy"))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    tensors = {name: value.clone() for name, value in load_file(folder / WEIGHTS).items()}
    save_file(change(tensors), folder / WEIGHTS, metadata={"format": "pt"})


def change_config(folder: Path, **fields: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


# ------------------------------------------------------------------------------------------------ damaged folders


def test_truncated_weights_are_refused(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r"damaged.*download"):
        LocalModel(folder, CPU)


def test_weights_of_another_shape_are_refused_by_name(folder: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    change_weights(folder, lambda tensors: tensors | {name: tensors[name][:5].contiguous()})
    with pytest.raises(ModelError, match=f"shape.*{name}.*download"):
        LocalModel(folder, CPU)


def test_a_missing_layer_is_refused_instead_of_served_at_random(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    change_weights(folder, lambda tensors: {name: value for name, value in tensors.items() if ".layers.1." not in name})
    with pytest.raises(ModelError, match=r"missing.*model\.layers\.1\."):
        LocalModel(folder, CPU)
    assert capfd.readouterr().err == ""


def test_an_output_head_may_be_missing_only_where_it_is_the_embedding(folder: Path) -> None:
    assert "lm_head.weight" not in load_file(folder / WEIGHTS)
    LocalModel(folder, CPU)
    change_config(folder, tie_word_embeddings=False)
    with pytest.raises(ModelError, match=r"missing.*lm_head"):
        LocalModel(folder, CPU)


def test_missing_weights_are_not_found(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    with pytest.raises(ModelNotFoundError, match="safetensors"):
        LocalModel(folder, CPU)


@pytest.mark.parametrize("make", [lambda to: shutil.copytree(model_path(), to), write_other_model])
def test_a_missing_tokenizer_is_refused_at_load(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "model")  # of two architectures: transformers makes each another tokenizer up
    for file in (tmp_path / "model").glob("*token*"):
        file.unlink()
    with pytest.raises(ModelError, match=r"tokenizer.*put its tokenizer\.json"):
        LocalModel(tmp_path / "model", CPU)


@pytest.mark.parametrize("text", ['{"a":', '{"a": 1}', "[]", ""])
@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_a_damaged_json_file_is_refused(folder: Path, file: str, text: str) -> None:
    (folder / file).write_text(text)
    with pytest.raises(ModelError, match="model '"):
        LocalModel(folder, CPU)


def test_code_of_a_checkpoint_is_refused_without_asking(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(builtins, "input", asked.append)
    own = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    change_config(folder, model_type="its_own", auto_map=own)
    with pytest.raises(ModelError, match="custom code"):
        LocalModel(folder, CPU)
    assert asked == []


@pytest.mark.parametrize("device", ["mps", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has it")
    with pytest.raises(ModelError, match=r"serve\.device"):
        LocalModel("tiny", ServeConfig(device=device))


def test_tokens_beyond_the_embedding_neither_fill_batches_nor_end_answers(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "<|new pad|>", "eos_token": "<|new end|>"})
    tokenizer.save_pretrained(folder)
    model, shipped = LocalModel(folder, CPU), LocalModel("tiny", CPU)
    assert model.pad_id < model.vocab_size
    texts = ["echo blue", "reverse a b c d e"]
    prompts = [shipped.encode_prompt([Message(role="user", content=text)]) for text in texts]
    answers = [reply.token_ids for reply in model.generate_batch(prompts, max_new_tokens=8)]
    assert answers == [reply.token_ids for reply in shipped.generate_batch(prompts, max_new_tokens=8)]
    assert model.encode_response("blue").max() < model.vocab_size


# ------------------------------------------------------------------------------------------------ fingerprint


def fingerprint(model: str | Path, **settings: Any) -> str:
    return LocalModel(model, ServeConfig(device="cpu", **settings)).fingerprint


def test_fingerprint_does_not_depend_on_the_precision_loaded_in() -> None:
    assert fingerprint("tiny", dtype="bfloat16") == fingerprint("tiny", dtype="float32") == fingerprint("tiny")


@pytest.mark.parametrize(("stored", "loaded"), [(torch.bfloat16, "bfloat16"), (torch.float16, "float16")])
def test_fingerprint_of_a_half_precision_checkpoint_is_the_same_in_float32(
    tmp_path: Path, stored: torch.dtype, loaded: str
) -> None:
    plain: Any = AutoModelForCausalLM.from_pretrained(model_path())
    plain.to(stored).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(model_path()).save_pretrained(tmp_path)
    assert fingerprint(tmp_path, dtype=loaded) == fingerprint(tmp_path, dtype="float32")


def test_fingerprint_does_not_depend_on_the_folder_or_on_how_attention_is_computed(folder: Path) -> None:
    change_config(folder, transformers_version="5.0.0", attn_implementation="eager", use_cache=False, dtype="bfloat16")
    assert fingerprint(folder) == fingerprint("tiny")


def test_fingerprint_tells_weights_templates_and_vocabularies_apart(folder: Path) -> None:
    seen = {fingerprint(folder)}
    name = "model.layers.2.mlp.down_proj.weight"
    change_weights(folder, lambda tensors: tensors | {name: tensors[name] * 1.01})
    seen.add(fingerprint(folder))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{{ messages[0].content }}"
    tokenizer.save_pretrained(folder)
    seen.add(fingerprint(folder))
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace('"Ġblue":', '"Ġblau":'))
    seen.add(fingerprint(folder))
    assert len(seen) == 4


def test_fingerprint_tells_apart_what_no_shape_shows(tmp_path: Path) -> None:
    before = fingerprint(write_other_model(tmp_path))
    change_config(tmp_path, num_attention_heads=4, num_key_value_heads=4, head_dim=4)
    assert fingerprint(tmp_path) != before


# ------------------------------------------------------------------------------------------------ precision


def test_half_precision_embeddings_are_float32_and_near() -> None:
    half, full = LocalModel("tiny", ServeConfig(device="cpu", dtype="bfloat16")), LocalModel("tiny", CPU)
    prompt = full.encode_prompt([Message(role="user", content="echo blue")])
    vector = half.embed([prompt])
    assert vector.dtype == np.float32
    cosine = float(
        (vector * full.embed([prompt])).sum() / np.linalg.norm(vector) / np.linalg.norm(full.embed([prompt]))
    )
    assert cosine > 0.999
