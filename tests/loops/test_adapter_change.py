"""How far adapters have moved: against the products themselves, formed and subtracted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from sona.errors import StoreCorruptError
from sona.loops.adapter_change import Product, layer_changes, read_products
from tests.versions import Layers, layers, write_adapter

NAMES = ("model.layers.0.up", "model.layers.1.up")


def dense(held: Layers, name: str, scale: float) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    B, A = held[name]
    return scale * B.astype(np.float64) @ A.astype(np.float64)


def test_norms_are_those_of_the_products(tmp_path: Path) -> None:
    before, now = layers(1, rank=4), layers(2, rank=2)
    folders = write_adapter(tmp_path / "a", before, alpha=16), write_adapter(tmp_path / "b", now, alpha=8)
    for change in layer_changes(*folders):
        old, new = dense(before, change.name, 16 / 4), dense(now, change.name, 8 / 2)
        assert change.norm_before == pytest.approx(np.linalg.norm(old), rel=1e-12)
        assert change.norm_now == pytest.approx(np.linalg.norm(new), rel=1e-12)
        assert change.norm_change == pytest.approx(np.linalg.norm(new - old), rel=1e-12)


def test_a_change_is_that_of_the_product_and_not_of_its_factors(tmp_path: Path) -> None:
    """B R and R⁻¹ A add the same to the model as B and A."""
    held = layers(1)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4))).Q
    turned = {name: ((B @ turn).astype(np.float32), (turn.T @ A).astype(np.float32)) for name, (B, A) in held.items()}
    first, second = write_adapter(tmp_path / "a", held), write_adapter(tmp_path / "b", turned)
    for change in layer_changes(first, second):
        assert change.norm_change < 1e-5 * change.norm_before


def test_a_small_change_keeps_its_digits() -> None:
    """The trace of BᵀB AAᵀ would be a difference of numbers that agree in all of theirs."""
    rng = np.random.default_rng(0)
    B, A, small = rng.normal(size=(50, 4)), rng.normal(size=(4, 60)), 1e-10 * rng.normal(size=(50, 4))
    change = Product(B + small, A).minus(Product(B, A)).norm()
    assert change == pytest.approx(np.linalg.norm(small @ A), rel=1e-4)


def test_of_no_adapter_all_is_new(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", layers(1))
    for old, new in ((None, folder), (folder, None)):
        for change in layer_changes(old, new):
            assert (change.norm_before, change.norm_now) == (
                (0.0, change.norm_change) if old is None else (change.norm_change, 0.0)
            )
            assert change.norm_change > 0
    assert layer_changes(None, None) == ()


def test_a_layer_that_only_one_adapts_is_all_change(tmp_path: Path) -> None:
    one = write_adapter(tmp_path / "a", layers(1, names=NAMES[:1]))
    both = write_adapter(tmp_path / "b", layers(1, names=NAMES))
    first, second = layer_changes(one, both)
    assert (first.name, second.name) == NAMES
    assert first.norm_change < 1e-12 * first.norm_now
    assert second.norm_before == 0.0 < second.norm_change == second.norm_now


def test_adapters_of_two_base_models_are_a_typed_error(tmp_path: Path) -> None:
    wide = {NAMES[0]: (np.ones((7, 4), np.float32), np.ones((4, 6), np.float32))}
    folders = write_adapter(tmp_path / "a", layers(1)), write_adapter(tmp_path / "b", wide)
    with pytest.raises(StoreCorruptError, match="two base models"):
        layer_changes(*folders)


@pytest.mark.parametrize("harm", ["config", "weights", "half", "rank"])
def test_a_folder_that_holds_no_adapter_is_a_typed_error(tmp_path: Path, harm: str) -> None:
    folder = write_adapter(tmp_path / "a", layers(1))
    if harm == "config":
        (folder / "adapter_config.json").write_text("[]")
    elif harm == "rank":
        (folder / "adapter_config.json").write_text('{"lora_alpha": 1, "r": 0}')
    elif harm == "weights":
        (folder / "adapter_model.safetensors").write_bytes(b"no tensors")
    else:
        half = {"base_model.model.x.lora_A.weight": np.ones((1, 2), np.float32)}
        save_file(half, folder / "adapter_model.safetensors")
    with pytest.raises(StoreCorruptError, match="can't be read"):
        read_products(folder)
