"""An exported adapter answers elsewhere as its version does here."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from sona.config import SkillsConfig
from sona.errors import (
    InvalidInputError,
    ModelError,
    SonaError,
    StoreCorruptError,
    StoreFullError,
    StoreReadOnlyError,
    UnknownIdError,
)
from sona.export import export_peft
from sona.serving.remote.folder import check_plain, vllm_rank
from sona.storage.store import Store
from sona.storage.versions import Versions
from sona.tiny import model_path
from tests.engine.small import SMALL, WORLD, open_small, record_task
from tests.storage.learned import spoil
from tests.storage.records import add, rated
from tests.versions import layers, publish_version, write_adapter

PROMPT = WORLD.sample("tool_call", 1, 99, "held_out")[0].prompt


@pytest.fixture(scope="module", params=["auto", "shared"])
def learned(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A store in which something was learned, into an adapter of a skill's own or into the shared one."""
    path = tmp_path_factory.mktemp(request.param) / "store"
    config = msgspec.structs.replace(SMALL, skills=SkillsConfig(mode=request.param))
    with open_small(path, config=config) as engine:
        record_task(engine, 60, seed=1)
        assert engine.learn().version == "v1"
    return path


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """v1 has two adapters, v2 has another one alone, and v3 none."""
    with Store.open(tmp_path / "store") as store:
        add(store, rated("ab"))
        publish_version(store, adapters={"s1": layers(1), "s2": layers(2)})
        publish_version(store, adapters={"s3": layers(3)}, without=["s1", "s2"])
        publish_version(store, without=["s3"])
        yield store


def export(store: Store, *arguments: Any) -> dict[str, Any]:
    export_peft(store, *arguments)
    about: dict[str, Any] = json.loads((arguments[1] / "sona.json").read_text())
    return about


@torch.no_grad()
def test_peft_gives_the_logits_of_the_served_version(learned: Path, tmp_path: Path) -> None:
    with open_small(learned) as engine:  # the export goes on beside a running agent
        with Store.open(learned, read_only=True) as reader:
            about = export(reader, "v1", tmp_path / "out")
        assert engine._engine._parts is not None
        model = engine._engine._parts.model
        assert model is not None
        reply = engine.generate(PROMPT, max_new_tokens=16)
        assert (reply.version, reply.adapter) == ("v1", about["adapter"])
        prompt, response = (np.asarray(ids, dtype=np.int32) for ids in (reply.prompt_ids, reply.token_ids))
        with model.response_states(prompt, response) as states:
            served = states.head(torch.from_numpy(states.hidden))
        fingerprint = model.fingerprint
    base = AutoModelForCausalLM.from_pretrained(model_path())
    untouched = base(torch.tensor([[*reply.prompt_ids, *reply.token_ids]])).logits[0]
    loaded: Any = PeftModel.from_pretrained(base, str(tmp_path / "out")).eval()
    logits = loaded(torch.tensor([[*reply.prompt_ids, *reply.token_ids]])).logits[0]
    begin, end = len(prompt) - 1, len(prompt) + len(response) - 1
    torch.testing.assert_close(logits[begin:end], served, rtol=1e-4, atol=1e-4)
    assert (untouched[begin:end] - served).abs().max() > 0.1, "else the adapter changed nothing"
    assert logits[begin:end].argmax(-1).tolist() == list(reply.token_ids)
    assert about["base_model"] == fingerprint


def test_the_folder_keeps_the_rules_of_the_servers(learned: Path, tmp_path: Path) -> None:
    with Store.open(learned, read_only=True) as store:
        about = export(store, "v1", tmp_path / "out")
        digest = store.versions()[-1].digest
    assert sorted(os.listdir(tmp_path / "out")) == ["adapter_config.json", "adapter_model.safetensors", "sona.json"]
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["bias"], config["modules_to_save"]) == (8, 16, "none", None)
    assert isinstance(config["target_modules"], list)
    for key in load_file(tmp_path / "out" / "adapter_model.safetensors"):
        assert key.startswith("base_model.model.")
        assert key.endswith((".lora_A.weight", ".lora_B.weight"))
        assert ".default." not in key
    assert (about["version"], about["digest"], about["rank"]) == ("v1", digest, 8)
    routed = about["adapter"] != "shared"
    assert (about["routed"], about["skills"]) == (routed, ["s1"] if routed else ["shared"])


def test_it_is_a_copy_that_may_be_changed(store: Store, tmp_path: Path) -> None:
    export(store, "v2", tmp_path / "new" / "out")
    for file in (tmp_path / "new" / "out").iterdir():
        assert file.stat().st_nlink == 1
        file.write_bytes(b"")
    Versions(store.path).verify(store.versions()[2])
    assert os.listdir(tmp_path / "new") == ["out"]


def test_the_record_tells_what_it_is_and_the_hashes_of_its_files(store: Store, tmp_path: Path) -> None:
    about = export(store, "v1", tmp_path / "out", "s2")
    assert (about["adapter"], about["parents"], about["base_model"]) == ("s2", ["v0"], None)
    for name, digest in about["files"].items():
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == digest
    folder = Versions(store.path).path("v1") / "skills" / "s2" / "adapter"
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == (
        folder / "adapter_model.safetensors"
    ).read_bytes()


def test_an_empty_folder_is_taken_and_any_other_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    export(store, "v2", tmp_path / "empty")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("empty", "file", "link"):
        with pytest.raises(InvalidInputError, match="exists and is no empty folder"):
            export(store, "v2", tmp_path / name)
    with pytest.raises(InvalidInputError, match="within the store"):
        export(store, "v2", store.path / "versions" / "out")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (("v9", None), UnknownIdError, "'v9' is not in"),
        (("v0", None), InvalidInputError, "the base model itself"),
        (("v1", None), InvalidInputError, "2 adapters; name one by --adapter: s1, s2"),
        (("v1", "s9"), UnknownIdError, "it has s1, s2"),
        (("v3", None), InvalidInputError, "has no adapter"),
        (("v3", "s1"), InvalidInputError, "has no adapter"),
    ],
)
def test_what_can_not_be_exported_is_a_typed_error(
    store: Store, tmp_path: Path, arguments: tuple[str, str | None], kind: type[SonaError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        export(store, arguments[0], tmp_path / "out", arguments[1])
    assert not (tmp_path / "out").exists()


def test_damaged_or_removed_files_are_not_exported(store: Store, tmp_path: Path) -> None:
    spoil(Versions(store.path).path("v1") / "bank.msgpack")  # another file than those that would go
    with pytest.raises(StoreCorruptError, match=r"'v1'.*damaged"):
        export(store, "v1", tmp_path / "out", "s1")
    shutil.rmtree(Versions(store.path).path("v2"))
    with pytest.raises(UnknownIdError, match="pruned"):
        export(store, "v2", tmp_path / "out")


@pytest.mark.parametrize(("number", "kind"), [(28, StoreFullError), (13, StoreReadOnlyError)])
def test_a_disk_that_does_not_take_it_keeps_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[SonaError]
) -> None:
    def refuse(source: Path, target: Path) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(number, "no")

    monkeypatch.setattr(shutil, "copyfile", refuse)
    with pytest.raises(kind):
        export(store, "v2", tmp_path / "exports" / "out")
    assert os.listdir(tmp_path / "exports") == []


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"bias": "all"}, "bias is 'all'"),
        ({"target_modules": "all-linear"}, "no list"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"use_dora": True}, "use_dora"),
        ({"use_rslora": True}, "use_rslora"),
        ({"rank_pattern": {"up": 2}}, "rank_pattern"),
        ({"peft_type": "LOHA"}, "peft_type 'LOHA'"),
        ({"r": "8"}, "rank '8'"),
    ],
)
def test_what_the_servers_would_not_take_is_refused(tmp_path: Path, config: dict[str, Any], why: str) -> None:
    folder = write_adapter(tmp_path / "adapter", layers(1), **config)
    with pytest.raises(ModelError, match=why):
        check_plain(folder, "adapter 's1'")


def test_keys_with_an_adapter_s_name_in_them_are_refused(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter", layers(1))
    for key in ("base_model.model.up.lora_A.default.weight", "base_model.model.up.bias"):
        save_file({key: np.ones((1, 2), np.float32)}, folder / "adapter_model.safetensors")
        with pytest.raises(ModelError, match="tensor"):
            check_plain(folder, "adapter 's1'")
    save_file({}, folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="no tensors"):
        check_plain(folder, "adapter 's1'")
    (folder / "adapter_config.json").write_text("no json")
    with pytest.raises(ModelError, match="can't be read"):
        check_plain(folder, "adapter 's1'")


def test_vllm_takes_a_rank_up_to_one_of_its_limits() -> None:
    assert [vllm_rank(rank) for rank in (1, 2, 8, 9, 300, 512, 513)] == [1, 8, 8, 16, 320, 512, None]


def test_a_plain_adapter_tells_its_rank(tmp_path: Path) -> None:
    assert check_plain(write_adapter(tmp_path / "adapter", layers(1, rank=3)), "adapter 's1'") == 3
