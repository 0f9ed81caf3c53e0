"""A version is served only if it answers as it did when it was published."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

import sona
from sona.config import ServeConfig
from sona.errors import SwapError
from sona.ports import Served
from sona.serving.local import LocalModel
from sona.serving.proof import PROMPTS, TOKENS, Proof
from tests.engine.small import open_small, record_task
from tests.serving.noisy_adapter import one, write_noisy_adapter

WEIGHTS = "adapter_model.safetensors"


def loaded(dtype: str = "float32") -> LocalModel:
    return LocalModel("tiny", ServeConfig(device="cpu", threads=1, dtype=dtype))  # type: ignore[arg-type]


@pytest.fixture
def model() -> LocalModel:
    return loaded()


@pytest.fixture
def folder(model: LocalModel, tmp_path: Path) -> Path:
    return write_noisy_adapter(model, tmp_path / "a", 1)


def proved(model: LocalModel, folder: Path) -> Served:
    return replace(one(folder), proof=model.prove(one(folder)))


def changed(served: Served, **fields: object) -> Served:
    assert served.proof is not None
    return replace(served, proof=msgspec.json.encode(msgspec.structs.replace(proof_of(served), **fields)))


def proof_of(served: Served) -> Proof:
    assert served.proof is not None
    return msgspec.json.decode(served.proof, type=Proof)


def scaled(folder: Path, target: Path, factor: float) -> Path:
    shutil.copytree(folder, target)
    tensors = {
        name: value * (factor if "lora_B" in name else 1.0) for name, value in load_file(folder / WEIGHTS).items()
    }
    save_file(tensors, target / WEIGHTS, metadata={"format": "pt"})
    return target


def test_what_was_proved_is_served_and_says_what_was_compared(model: LocalModel, folder: Path) -> None:
    served = proved(model, folder)
    assert model.version == "v0"
    assert len(model._adapters) == 0, "proving serves nothing"
    model.swap("v1", served)
    told = model.attest()
    assert (told.version, told.adapters, told.difference) == ("v1", ("skill",), 0.0)
    assert (told.prompts, told.tokens) == (PROMPTS, PROMPTS * (TOKENS - 1))
    assert told.moved["skill"] > 1.0
    model.swap("v0", one(None))
    assert model.attest().difference is None


@pytest.mark.parametrize("factor", [0.99, -1.0, 0.0])
def test_another_adapter_than_was_proved_is_refused(
    model: LocalModel, folder: Path, tmp_path: Path, factor: float
) -> None:
    served = proved(model, folder)
    other = scaled(folder, tmp_path / "other", factor)
    model.swap("v1", served)
    before = model.generate(model.encode_prompt(sona.types.to_messages("echo a")), max_new_tokens=4)
    with pytest.raises(SwapError, match=r"'skill' does not answer as when it was published"):
        model.swap("v2", Served({"skill": other}, proof=served.proof))
    assert model.version == "v1"
    assert model.generate(model.encode_prompt(sona.types.to_messages("echo a")), max_new_tokens=4) == before
    assert len(model._adapters) == 1


def test_another_base_is_refused(model: LocalModel, folder: Path) -> None:
    served = proved(model, folder)
    base = [[value - 1.0 for value in row] for row in proof_of(served).base]
    with pytest.raises(SwapError, match="the base model does not answer"):
        model.swap("v1", changed(served, base=base))


def test_other_adapters_than_were_proved_are_refused(model: LocalModel, folder: Path) -> None:
    with pytest.raises(SwapError, match=r"published with the adapters \[\]"):
        model.swap("v1", changed(proved(model, folder), adapters={}))


@pytest.mark.parametrize("raw", [b"", b"{}", b"[1]", b'{"form":2,"dtype":"float32","base":[],"adapters":{}}'])
def test_what_is_no_proof_is_refused(model: LocalModel, folder: Path, raw: bytes) -> None:
    with pytest.raises(SwapError, match="can't be read"):
        model.swap("v1", replace(one(folder), proof=raw))
    assert model.version == "v0"


def test_an_adapter_that_says_what_the_base_says_must_be_empty(
    model: LocalModel, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = proved(model, scaled(folder, tmp_path / "empty", 0.0))
    model.swap("v1", empty)
    assert model.attest().moved == {"skill": 0.0}
    with monkeypatch.context() as patch:  # as where adapters are loaded and never asked
        patch.setattr("sona.serving.adapted.AdaptedModel.set_rows", lambda *_: None)
        served = proved(model, folder)
        with pytest.raises(SwapError, match="says what it says without"):
            model.swap("v2", served)
    assert model.version == "v1"


@pytest.mark.parametrize(("made", "read"), [("float32", "bfloat16"), ("bfloat16", "float32"), ("bfloat16", "bfloat16")])
def test_another_precision_is_told_from_another_adapter(folder: Path, tmp_path: Path, made: str, read: str) -> None:
    served = proved(loaded(made), folder)
    model = loaded(read)
    model.swap("v1", served)
    told = model.attest()
    assert told.difference is not None
    assert 0.0 <= told.difference < told.tolerance / 2
    with pytest.raises(SwapError, match="does not answer"):
        model.swap("v2", Served({"skill": scaled(folder, tmp_path / "other", 0.5)}, proof=served.proof))


def test_a_version_without_a_proof_is_served_and_that_is_told(
    model: LocalModel, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "sona.serving"):
        model.swap("v1", one(folder))
    assert "v1 stores no proof" in caplog.text
    assert model.attest().difference is None


def test_a_cycle_s_version_attests_and_again_after_a_restart(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with open_small(tmp_path / "store") as engine:
        record_task(engine, 60, 0)
        assert engine.learn().status == "published"
        told = engine.attest()
        assert (told.version, told.difference) == ("v1", 0.0)
        assert all(value > 0.0 for value in told.moved.values())
        folder = engine._engine._started().folders.path("v1")
        assert (folder / "proof.json").is_file()
    with open_small(tmp_path / "store") as engine:
        assert engine.attest() == told
        engine.roll_back()
        assert engine.attest().adapters == ()
