from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from sona.config import LoraConfig
from sona.errors import ConfigError, ModelError
from sona.learn import lora
from sona.learn.dataset import collate
from sona.learn.likelihood import causal_lm, response_logits
from tests.learn.tiny_models import ARCHITECTURES, PAD, random_examples, tiny_adapter, tiny_model

LINEAR = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_new_adapter_is_the_identity(architecture: str) -> None:
    batch = collate(random_examples(4), PAD)
    bare = response_logits(tiny_model(architecture), batch)
    adapted = response_logits(tiny_adapter(architecture, zero=True), batch)
    assert torch.equal(bare, adapted)


@pytest.mark.parametrize("architecture", ARCHITECTURES)  # tied and untied output heads
def test_all_linear_layers_but_the_head_are_adapted(architecture: str) -> None:
    model = tiny_adapter(architecture)
    assert lora.target_modules(tiny_model(architecture), LoraConfig()) == LINEAR
    names = lora.parameters(model).keys()
    assert len(names) == 2 * 2 * len(LINEAR)  # A and B, two layers
    trainable = {p.data_ptr() for p in model.parameters() if p.requires_grad}
    assert trainable == {p.data_ptr() for p in lora.parameters(model).values()}


def test_chosen_layers_alone_are_adapted() -> None:
    model = lora.attach(tiny_model(), LoraConfig(target_modules=("v_proj", "q_proj")), 0)
    assert {name.split(".")[-3] for name in lora.parameters(model)} == {"q_proj", "v_proj"}


@pytest.mark.parametrize("wanted", ["q_projection", "lm_head", "embed_tokens", "input_layernorm"])
def test_layer_that_can_not_be_adapted_is_refused(wanted: str) -> None:
    with pytest.raises(ConfigError, match="q_proj"):
        lora.attach(tiny_model(), LoraConfig(target_modules=("q_proj", wanted)), 0)


def test_seed_alone_decides_the_adapter() -> None:
    torch.default_generator.manual_seed(1)
    first = lora.weights(lora.attach(tiny_model(), LoraConfig(), 7))
    state = torch.get_rng_state()
    second = lora.weights(lora.attach(tiny_model(), LoraConfig(), 7))
    assert torch.equal(torch.get_rng_state(), state), "the global random state was touched"
    third = lora.weights(lora.attach(tiny_model(), LoraConfig(), 8))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], third[name]) for name in first)


def test_adapter_is_float32_on_a_bfloat16_model() -> None:
    model = lora.attach(tiny_model().bfloat16(), LoraConfig(), 0)
    assert {weight.dtype for weight in lora.weights(model).values()} == {torch.float32}
    assert model.get_base_model().dtype == torch.bfloat16


def test_weights_are_copies() -> None:
    model = tiny_adapter()
    held = lora.weights(model)
    before = {name: tensor.clone() for name, tensor in held.items()}
    lora.load_weights(model, {name: tensor + 1 for name, tensor in held.items()})
    assert all(torch.equal(held[name], before[name]) for name in held)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_folder_loads_in_peft_with_equal_logits(architecture: str, tmp_path: Path) -> None:
    model, batch = tiny_adapter(architecture), collate(random_examples(4), PAD)
    lora.save_adapter(model, tmp_path / "adapter", base="org/tiny")
    assert sorted(os.listdir(tmp_path / "adapter")) == ["adapter_config.json", "adapter_model.safetensors"]
    loaded = PeftModel.from_pretrained(tiny_model(architecture), tmp_path / "adapter").eval()
    ours = lora.load_adapter(tiny_model(architecture), tmp_path / "adapter")
    expected = response_logits(model, batch)
    assert torch.equal(response_logits(loaded, batch), expected)
    assert torch.equal(response_logits(ours, batch), expected)
    assert all(parameter.requires_grad for parameter in lora.parameters(ours).values())


def test_folder_is_plain_peft(tmp_path: Path) -> None:
    model = tiny_adapter()
    causal_lm(model).name_or_path = str(tmp_path)
    lora.save_adapter(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_modules"] == LINEAR
    assert config["base_model_name_or_path"] is None
    assert (config["r"], config["lora_alpha"], config["task_type"], config["bias"]) == (4, 8, "CAUSAL_LM", "none")
    keys = load_file(tmp_path / "adapter_model.safetensors").keys()
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in keys
    assert not [key for key in keys if ".default" in key or not key.startswith("base_model.model.model.layers.")]


def test_equal_adapters_make_equal_bytes(tmp_path: Path) -> None:
    """A version's digest is over these bytes; PEFT writes sets in the order of Python's hash seed, which we sort."""
    for name in ("one", "two"):
        lora.save_adapter(tiny_adapter(), tmp_path / name)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    config = json.loads((tmp_path / "one" / "adapter_config.json").read_text())
    assert all(value == sorted(value) for value in config.values() if isinstance(value, list))


def test_weights_that_do_not_fit_change_nothing() -> None:
    model = tiny_adapter()
    before = lora.weights(model)
    name = next(iter(before))
    bad: list[dict[str, torch.Tensor]] = [
        {},
        {**before, "other": torch.zeros(1)},
        {**before, name: torch.zeros(3)},
        {**before, name: before[name] * np.nan},
    ]
    for tensors in bad:
        with pytest.raises(ModelError):
            lora.load_weights(model, tensors)
    assert all(torch.equal(tensor, before[key]) for key, tensor in lora.weights(model).items())


def test_damaged_or_foreign_folder_is_refused(tmp_path: Path) -> None:
    lora.save_adapter(tiny_adapter(), tmp_path)
    good = json.loads((tmp_path / "adapter_config.json").read_text())
    for change in ({"peft_type": "IA3"}, {"r": 2000}, {"r": "4"}, {"unheard_of": 1}, {"target_modules": ["nothing"]}):
        (tmp_path / "adapter_config.json").write_text(json.dumps(good | change))
        with pytest.raises(ModelError):
            lora.load_adapter(tiny_model(), tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match="can't be read"):
        lora.load_adapter(tiny_model(), tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(good))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(ModelError, match="can't be read"):
        lora.load_adapter(tiny_model(), tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="do not match"):
        lora.load_adapter(tiny_model(), tmp_path)
