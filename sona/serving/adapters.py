"""LoRA adapters in memory, each there once however many versions answer with it."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.lora import Linear, LoraLayer
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from sona.errors import SwapError
from sona.serving.generation import base_of

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
NAME = "served"  # what PEFT calls the adapter while it loads it

# Settings of PEFT's that reach beyond a pair of matrices beside a linear layer. "bias" would even write into the base
# model's own tensors, which all versions share; DoRA and whole modules can't be mixed in a batch.
NOT_PLAIN = (
    "bias",
    "lora_bias",
    "modules_to_save",
    "trainable_token_indices",
    "target_parameters",
    "use_dora",
    "alora_invocation_tokens",
)


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

    It holds none itself: an adapter is here while a version that is served, or may be at once, has it. PEFT loads them,
    each into a module tree of its own, so that nothing that answers meanwhile is touched. One thread loads at a time.
    """

    def __init__(self, base: PreTrainedModel) -> None:
        self._base = base
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
            _check_plain(folder)
            wanted = load_file(folder / WEIGHTS_FILE)
            tree = self._tree(folder)
            _fill(tree, wanted)
            if not _holds(tree, wanted):
                raise ValueError("in memory it differs from its files")
            return Adapter(key, _pairs(tree))
        except Exception as error:  # what a damaged or foreign folder makes PEFT raise has no common base
            raise _refused(folder, error) from error

    def _tree(self, folder: Path) -> PeftModel:
        # "Low memory" as PEFT would otherwise draw initial weights from torch's global generator, which is the host's.
        options: dict[str, Any] = {"low_cpu_mem_usage": True, "torch_device": str(self._base.device)}
        return PeftModel.from_pretrained(sharing_copy(self._base), str(folder), adapter_name=NAME, **options)


def _fill(tree: PeftModel, wanted: dict[str, Tensor]) -> None:
    """Give it tensors of its own. PEFT's "low memory" leaves them in the mapped file, so that whoever writes to it
    changes answers; and beside a half-precision layer it rounds them.
    """
    for name, parameter in tree.named_parameters():
        if f".{NAME}" in name:
            saved = wanted[name.replace(f".{NAME}", "")]
            parameter.data = saved.to(parameter.device, parameter.dtype, copy=True)


def _holds(tree: PeftModel, wanted: dict[str, Tensor]) -> bool:
    held = get_peft_model_state_dict(tree, adapter_name=NAME)
    return wanted.keys() == held.keys() and all(
        torch.equal(value.to(held[name].dtype), held[name].cpu()) for name, value in wanted.items()
    )


def _pairs(tree: PeftModel) -> dict[str, Pair]:
    """What PEFT has made of the folder, by the layers' paths in the base model."""
    pairs: dict[str, Pair] = {}
    for path, module in base_of(tree).named_modules():
        if isinstance(module, LoraLayer):
            if not isinstance(module, Linear) or module.lora_variant:
                raise ValueError(f"{path} is no plain pair of matrices beside a linear layer")
            A, B = (pair[NAME].weight for pair in (module.lora_A, module.lora_B))
            assert isinstance(A, Tensor)
            assert isinstance(B, Tensor)
            pairs[path] = Pair(A.detach(), B.detach(), float(module.scaling[NAME]))
    return pairs


def _check_plain(folder: Path) -> None:
    """Raises ValueError or OSError where ``folder`` holds anything but pairs of LoRA matrices."""
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ValueError("it describes no LoRA adapter")
    for name in NOT_PLAIN:
        if config.get(name) not in (None, False, "none", []):
            raise ValueError(f"{name} is {config[name]!r}; only plain LoRA is served")


def _refused(folder: Path, error: Exception) -> SwapError:
    return SwapError(f"adapter in {folder} can't be loaded: {error}; its version is not served")
