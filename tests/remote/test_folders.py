"""An adapter's folder becomes one that the servers take, and means the same."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from sona.errors import ModelError
from sona.serving.remote.folder import VLLM_RANKS, check_plain, prepare
from sona.serving.remote.shelf import Shelf
from sona.serving.remote.state import RemoteStatus
from sona.storage.store import Store
from sona.storage.versions import Versions
from sona.tiny import model_path
from tests.versions import layers, write_adapter


def logits(folder: Path | None) -> torch.Tensor:
    base = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)
    model = base if folder is None else PeftModel.from_pretrained(base, folder)
    with torch.no_grad():
        found: torch.Tensor = model(torch.arange(5, 25)[None]).logits
    return found


def test_a_rank_raised_by_zeros_answers_as_before_through_peft(store: Store, tmp_path: Path) -> None:
    source = Versions(store.path).path("v1") / "skills" / "s1" / "adapter"
    assert check_plain(source, "it") == 2
    assert prepare(source, tmp_path / "made", "it") == 8
    assert check_plain(tmp_path / "made", "it") == 8
    before, after = logits(source), logits(tmp_path / "made")
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)
    assert float((logits(None) - before).abs().max()) > 1.0, "or it would show nothing"


@pytest.mark.parametrize("rank", [1, 2, 7, 8, 9, 300, 512])
def test_the_product_scaled_is_the_same(rank: int, tmp_path: Path) -> None:
    source = write_adapter(tmp_path / "a", layers(1, rank=rank, names=["up"]), alpha=12)
    wide = prepare(source, tmp_path / "b", "it")
    assert wide in VLLM_RANKS
    products = []
    for folder in (source, tmp_path / "b"):
        config = json.loads((folder / "adapter_config.json").read_text())
        held = load_file(folder / "adapter_model.safetensors")
        A, B = (held[f"base_model.model.up.lora_{side}.weight"] for side in "AB")
        assert A.shape[0] == B.shape[1] == config["r"]
        products.append(config["lora_alpha"] / config["r"] * B.astype(np.float64) @ A)
    np.testing.assert_allclose(products[1], products[0], rtol=1e-12)


def test_files_that_are_right_already_are_the_same_files(tmp_path: Path) -> None:
    source = write_adapter(tmp_path / "a", layers(1, rank=8))
    assert prepare(source, tmp_path / "b", "it") == 8
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert os.path.samefile(source / file, tmp_path / "b" / file)


def test_files_are_copied_where_the_disk_has_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    source = write_adapter(tmp_path / "a", layers(1, rank=8))
    prepare(source, tmp_path / "b", "it")
    weights = "adapter_model.safetensors"
    assert (tmp_path / "b" / weights).read_bytes() == (source / weights).read_bytes()


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"target_modules": "all-linear"}, "no list"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"use_dora": True}, "use_dora"),
        ({"use_rslora": True}, "use_rslora"),
        ({"r": 513}, "at most 512 is allowed"),
    ],
)
def test_what_no_server_takes_is_refused_before_it_is_asked(config: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=why):
        prepare(write_adapter(tmp_path / "a", layers(1), **config), tmp_path / "b", "it")
    assert not (tmp_path / "b").exists()


def test_keys_with_the_adapter_s_name_in_them_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    source = write_adapter(tmp_path / "a", layers(1))
    held = load_file(source / "adapter_model.safetensors")
    renamed = {key.replace(".weight", ".default.weight"): value for key, value in held.items()}
    save_file(renamed, source / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"lora_A\.default\.weight"):
        prepare(source, tmp_path / "b", "it")


def test_a_configuration_that_is_no_object_is_refused(tmp_path: Path) -> None:
    source = write_adapter(tmp_path / "a", layers(1))
    (source / "adapter_config.json").write_text("[]")
    with pytest.raises(ModelError, match="no object"):
        prepare(source, tmp_path / "b", "it")


# ------------------------------------------------------------------------------------------------------------ shelf


def test_every_name_is_fresh_and_of_plain_letters(tmp_path: Path) -> None:
    source, shelf = write_adapter(tmp_path / "a", layers(1, rank=8)), Shelf(tmp_path / "store" / "remote")
    made = [shelf.put("v1", "s 1/ü:", source) for _ in range(3)]
    assert len({name for name, _ in made}) == 3
    assert all(name.startswith("sona-v1-s-1-") and name.isascii() and "/" not in name for name, _ in made)
    assert [path for _, path in made] == [str(tmp_path / "store" / "remote" / name) for name, _ in made]
    assert shelf.names() == {name for name, _ in made}
    for name, _ in made:
        shelf.remove(name)
    assert shelf.names() == set()
    assert (source / "adapter_config.json").exists()


def test_a_server_that_sees_the_store_elsewhere_is_told_that_place(tmp_path: Path) -> None:
    source, shelf = write_adapter(tmp_path / "a", layers(1)), Shelf(tmp_path / "store" / "remote", "/mnt/sona")
    name, path = shelf.put("v1", "s1", source)
    assert path == f"/mnt/sona/remote/{name}"


def test_a_folder_that_can_t_be_prepared_leaves_nothing(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "remote")
    with pytest.raises(ModelError):
        shelf.put("v1", "s1", write_adapter(tmp_path / "a", layers(1), bias="all"))
    assert shelf.names() == set()
    assert not list(tmp_path.glob("remote/.*"))


def test_the_status_comes_back_and_what_is_none_is_none(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "remote")
    assert shelf.read() is None
    told = RemoteStatus(kind="vllm", url="http://a", wanted="v1", names={"s1": "x"})
    shelf.write(told)
    assert shelf.read() == told
    (tmp_path / "remote" / "status.json").write_bytes(b'{"kind":')
    assert shelf.read() is None
