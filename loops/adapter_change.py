"""How far one adapter has moved from another: norms of what they add to each layer, without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file

from sona.errors import StoreCorruptError
from sona.types import Record

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_A, _B = ".lora_A.weight", ".lora_B.weight"
_PREFIX = "base_model.model."

Matrix = npt.NDArray[np.float64]


class Product(NamedTuple):
    """What an adapter adds to one layer's weight: ``B @ A``, (out, in), never formed."""

    B: Matrix
    """(out, r), scaled by alpha / r."""
    A: Matrix
    """(r, in)"""

    def minus(self, other: Product) -> Product:
        """The difference of the two, of rank r + r'."""
        return Product(np.hstack([self.B, -other.B]), np.vstack([self.A, other.A]))

    def norm(self) -> float:
        """Frobenius norm. With thin QR factorisations B = Q R and Aᵀ = P S it is that of R Sᵀ, as Q and P have
        orthonormal columns; unlike the trace of BᵀB AAᵀ that keeps all digits where two adapters are nearly the same.
        """
        outer, inner = np.linalg.qr(self.B).R, np.linalg.qr(self.A.T).R
        return float(np.linalg.norm(outer @ inner.T))


class LayerChange(Record, kw_only=True):
    """One layer, by Frobenius norms of what is added to its weight."""

    name: str
    """Within the base model, such as ``model.layers.0.mlp.down_proj``."""
    norm_before: float
    norm_now: float
    norm_change: float
    """Of the difference of the two products."""


def layer_changes(before: Path | None, now: Path | None) -> tuple[LayerChange, ...]:
    """Of each layer that one of two adapters adds to, by its name. None stands for no adapter, which adds nothing.

    Args:
        before: a PEFT folder.
        now: another one, for the same base model; the ranks may differ.

    Raises:
        StoreCorruptError: a folder holds no LoRA adapter, or they are for different base models.
    """
    old, new = (read_products(folder) if folder is not None else {} for folder in (before, now))
    return tuple(_change(name, old.get(name), new.get(name)) for name in sorted({*old, *new}))


def _change(name: str, before: Product | None, now: Product | None) -> LayerChange:
    norms = [0.0 if one is None else one.norm() for one in (before, now)]
    change = max(norms)  # where one adds nothing, all of the other
    if before is not None and now is not None:
        if (len(before.B), before.A.shape[1]) != (len(now.B), now.A.shape[1]):
            raise StoreCorruptError(f"{name}: the adapters are for layers of different sizes, so for two base models")
        change = now.minus(before).norm()
    return LayerChange(name=name, norm_before=norms[0], norm_now=norms[1], norm_change=change)


def read_products(folder: Path) -> dict[str, Product]:
    """By the name of each layer what the adapter in a PEFT folder adds to it.

    Raises:
        StoreCorruptError: there is no LoRA adapter in it.
    """
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        scale = float(config["lora_alpha"]) / float(config["r"])
        tensors = load_file(folder / WEIGHTS_FILE)
        return {
            name.removesuffix(_A).removeprefix(_PREFIX): _product(tensors, name.removesuffix(_A), scale)
            for name in tensors
            if name.endswith(_A)
        }
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError, SafetensorError) as error:
        raise StoreCorruptError(f"adapter in {folder}: it can't be read ({error}); see 'sona doctor'") from None


def _product(tensors: Mapping[str, npt.NDArray[np.float32]], layer: str, scale: float) -> Product:
    return Product(tensors[layer + _B].astype(np.float64) * scale, tensors[layer + _A].astype(np.float64))
