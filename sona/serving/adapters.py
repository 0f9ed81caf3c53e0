"""LoRA adapters in memory, each there once however many versions answer with it."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sona.errors import SwapError

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
# Settings of PEFT's that a pair of matrices beside a linear layer may have, and those that only its training had. With
# any other that is set an adapter is more than that: "bias" would even write into the base model's own tensors, which
# all versions share, and DoRA and whole modules can't be mixed in a batch.
PLAIN = {"r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "peft_type"}
WHERE = {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"}
ABOUT = {"task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"}
TRAINED = {"lora_dropout", "init_lora_weights", "megatron_core", "qalora_group_size"}
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # initialisations that take a part out of the base


@dataclass(frozen=True, eq=False)
class Pair:
    """What an adapter adds to one linear layer: x becomes W x + scaling B A x (Hu et al. 2021, arXiv:2106.09685)."""

    A: Tensor
    """(r, in)"""
    B: Tensor
    """(out, r)"""
    scaling: float


@dataclass(frozen=True, eq=False)
class Adapter:
    """One adapter, whole and verified. It stays in memory for as long as a version, or a request, holds it."""

    key: str
    """The :func:`content_key` of its folder."""
    pairs: Mapping[str, Pair]
    """By the path of the linear layer in the base model."""

    @property
    def empty(self) -> bool:
        """Whether it changes nothing: every product B A is zero."""
        return not any(bool(pair.A.any()) and bool(pair.B.any()) for pair in self.pairs.values())


def sharing_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A module tree of its own over the very tensors of ``model``: an adapter can be put into it and cost only
    itself.
    """
    tensors = [*model.parameters(), *model.buffers()]
    copied = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    assert isinstance(copied, PreTrainedModel)
    return copied


def content_key(folder: Path) -> str:
    """Hex SHA-256 of an adapter's two files: equal for equal adapters, wherever they lie.

    Raises:
        SwapError: a file can't be read.
    """
    digest = hashlib.sha256()
    try:
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            with open(folder / name, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
        raise _refused(folder, error) from error
    return digest.hexdigest()


class ResidentAdapters:
    """The adapters that one served model holds, by the :func:`content_key` of their folders.

    It holds none itself: an adapter is here while a version that is served, or may be at once, has it. The folders are
    PEFT's, and read without building its modules: that took 25 ms of Python in the shipped model, and left cycles of
    objects whose collection stopped every thread for 150 ms. One thread loads at a time.
    """

    def __init__(self, base: PreTrainedModel) -> None:
        self._device = base.device
        self._layers = {
            path: module for path, module in base.named_modules() if not isinstance(module, PreTrainedModel)
        }
        self._known: WeakValueDictionary[str, Adapter] = WeakValueDictionary()

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __len__(self) -> int:
        return len(self._known)

    def load(self, folders: Mapping[str, Path]) -> dict[str, Adapter]:
        """The adapters of ``folders``, by the same names; those in memory already are not read again. What has come
        into memory is compared with its files.

        Raises:
            SwapError: a folder holds no plain LoRA adapter for this model, or it did not arrive whole.
        """
        found = {name: self._get(folder) for name, folder in folders.items()}
        for adapter in found.values():  # all or none of those that are new
            self._known[adapter.key] = adapter
        return found

    def _get(self, folder: Path) -> Adapter:
        key = content_key(folder)
        return self._known.get(key) or self._load(key, folder)

    def _load(self, key: str, folder: Path) -> Adapter:
        try:
            shape, saved = _plain_config(folder), load_file(folder / WEIGHTS_FILE)
            # Tensors of its own: those of the file are mapped, so that whoever writes to it would change answers.
            held = {name: value.to(self._device, _served_dtype(value), copy=True) for name, value in saved.items()}
            if not _holds(held, saved):
                raise ValueError("in memory it differs from its files")
            return Adapter(key, _pairs(held, shape, self._layers))
        except Exception as error:  # what a damaged or foreign folder makes PEFT raise has no common base
            raise _refused(folder, error) from error


def _served_dtype(value: Tensor) -> torch.dtype:
    """As PEFT does: an adapter beside a half-precision layer is computed in float32."""
    return torch.float32 if value.dtype in (torch.float16, torch.bfloat16) else value.dtype


def _holds(held: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(held[name].cpu(), value.to(held[name].dtype)) for name, value in saved.items())


def _pairs(tensors: Mapping[str, Tensor], shape: LoraConfig, layers: Mapping[str, torch.nn.Module]) -> dict[str, Pair]:
    """The tensors as pairs, by the paths of the layers that ``shape`` names.

    Raises:
        ValueError: they are not the pairs that it names, or do not fit these layers.
    """
    named = {path: layer for path, layer in layers.items() if check_target_module_exists(shape, path)}
    wanted = {f"base_model.model.{path}.lora_{side}.weight" for path in named for side in "AB"}
    if not named or wanted != tensors.keys():
        odd = sorted(wanted ^ tensors.keys())[:1] or ["none at all"]
        raise ValueError(f"its config names {len(named)} layers of this model, and its tensors are others ({odd[0]})")
    return {path: _pair(path, layer, tensors, shape) for path, layer in named.items()}


def _pair(path: str, layer: torch.nn.Module, tensors: Mapping[str, Tensor], shape: LoraConfig) -> Pair:
    if not isinstance(layer, (torch.nn.Linear, Conv1D)):
        raise ValueError(f"{path} is no linear layer")
    A, B = (tensors[f"base_model.model.{path}.lora_{side}.weight"] for side in "AB")
    rank = _of(shape.rank_pattern, path, shape.r)
    out, width = layer.weight.shape if isinstance(layer, torch.nn.Linear) else reversed(layer.weight.shape)
    if (tuple(A.shape), tuple(B.shape)) != ((rank, width), (out, rank)):
        raise ValueError(f"{path}: {tuple(A.shape)} and {tuple(B.shape)} are no rank {rank} beside ({out}, {width})")
    alpha = _of(shape.alpha_pattern, path, shape.lora_alpha)
    return Pair(A, B, alpha / (math.sqrt(rank) if shape.use_rslora else rank))


def _of(pattern: Mapping[str, Any] | None, path: str, usual: Any) -> Any:
    """A setting that may be another one for some layers."""
    return (pattern or {}).get(get_pattern_key(list(pattern or ()), path), usual)


def _plain_config(folder: Path) -> LoraConfig:
    """What shape the adapter has; ValueError or OSError where ``folder`` holds anything but pairs of LoRA matrices."""
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ValueError("it describes no LoRA adapter")
    for name in config.keys() - PLAIN - WHERE - ABOUT - TRAINED:
        if config[name] not in (None, False, "none", [], {}):
            raise ValueError(f"{name} is {config[name]!r}; only plain LoRA is served")
    if str(config.get("init_lora_weights")).lower().startswith(CHANGES_BASE):
        raise ValueError(f"init_lora_weights is {config['init_lora_weights']!r}, which changes the base model")
    return LoraConfig(**{name: config[name] for name in (PLAIN | WHERE) - {"peft_type"} if name in config})


def _refused(folder: Path, error: Exception) -> SwapError:
    return SwapError(f"adapter in {folder} can't be loaded: {error}; its version is not served")
