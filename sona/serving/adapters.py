"""LoRA adapters in memory, each there once however many versions answer with it."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers import PreTrainedModel

from sona.errors import SwapError

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
BASE = "__base__"  # PEFT's word for a row without an adapter

# Settings of PEFT's that reach beyond a pair of matrices beside a linear layer. "bias" would even write into the base
# model's own tensors, which all versions share; DoRA and whole modules can't be mixed in a batch.
NOT_PLAIN = (
    "bias",
    "modules_to_save",
    "trainable_token_indices",
    "target_parameters",
    "use_dora",
    "alora_invocation_tokens",
)


class RowsLostError(Exception):
    """A layer sees tokens without telling which prompt each belongs to, so a batch can't mix adapters in this model."""


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

    All in it are whole and verified. Its owner holds a lock for all but :meth:`__len__` and ``in``.
    """

    def __init__(self, base: PreTrainedModel) -> None:
        self._base = base
        self._tree: PeftModel | None = None
        self._keys: set[str] = set()
        self._active: str | None = None  # None after the tree changed: PEFT may have made another one active

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def load(self, folders: Mapping[str, Path]) -> None:
        """Put the adapters of ``folders``, by content key, beside the others: all, or none of those that are new.

        Those in memory already are left as they are. What has come into memory is compared with its files.

        Raises:
            SwapError: a folder holds no plain LoRA adapter for this model, or it did not arrive whole.
        """
        before = set(self._keys)
        try:
            for key, folder in folders.items():
                if key not in self._keys:
                    self._load(key, folder)
        except BaseException:
            self.keep(before)
            raise

    def _load(self, key: str, folder: Path) -> None:
        try:
            _check_plain(folder)
            wanted = load_file(folder / WEIGHTS_FILE)
            self._put(key, folder)
            self._fill(key, wanted)
            if not self._holds(key, wanted):
                raise ValueError("in memory it differs from its files")
            self._keys.add(key)
        except Exception as error:  # what a damaged or foreign folder makes PEFT raise has no common base
            raise _refused(folder, error) from error
        finally:
            if key not in self._keys:  # PEFT makes room for an adapter before it reads its weights
                self._take_out(key)

    def _put(self, key: str, folder: Path) -> None:
        # "Low memory" as PEFT would otherwise draw initial weights from torch's global generator, which is the host's.
        self._active = None
        options: dict[str, Any] = {"low_cpu_mem_usage": True, "torch_device": str(self._base.device)}
        if self._tree is None:
            self._tree = PeftModel.from_pretrained(sharing_copy(self._base), str(folder), adapter_name=key, **options)
        else:
            self._tree.load_adapter(str(folder), adapter_name=key, **options)

    def _fill(self, key: str, wanted: dict[str, torch.Tensor]) -> None:
        """Give it tensors of its own. PEFT's "low memory" leaves them in the mapped file, so that whoever writes to it
        changes answers; and beside a half-precision layer it rounds them.
        """
        assert self._tree is not None
        for name, parameter in self._tree.named_parameters():
            if key in name:
                saved = wanted[name.replace(f".{key}", "")]
                parameter.data = saved.to(parameter.device, parameter.dtype, copy=True)

    def _holds(self, key: str, wanted: dict[str, torch.Tensor]) -> bool:
        held = get_peft_model_state_dict(self._tree, adapter_name=key)
        return wanted.keys() == held.keys() and all(
            torch.equal(value.to(held[name].dtype), held[name].cpu()) for name, value in wanted.items()
        )

    def module(self, key: str) -> PeftModel:
        """The model that answers with this adapter, made active."""
        assert self._tree is not None
        if key != self._active:  # PEFT walks through all modules
            self._tree.set_adapter(key, inference_mode=True)
            self._active = key
        return self._tree

    @contextmanager
    def mixed(self, keys: Sequence[str | None]) -> Iterator[PeftModel]:
        """Until the block ends, a model that answers row n of a batch of ``len(keys)`` with the adapter ``keys[n]``;
        None: the base.

        It is PEFT's ``adapter_names``, given to the layers themselves: after an exception PEFT leaves them with the
        names of the batch that failed. A row's numbers are those that its adapter gives alone but for float rounding,
        of which a half-precision base has one more.

        Raises:
            RowsLostError: from within the model, where a layer of it gets tokens of all rows in one heap.
        """
        assert self._tree is not None
        names = [BASE if key is None else key for key in keys]

        def name_rows(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            if args[0].dim() < 3 or len(args[0]) != len(names):
                raise RowsLostError(f"{type(module).__name__}: an input of {tuple(args[0].shape)}")
            return args, kwargs | {"adapter_names": names}

        layers = [module for module in self._tree.modules() if isinstance(module, LoraLayer)]
        hooks = [layer.register_forward_pre_hook(name_rows, with_kwargs=True) for layer in layers]
        try:
            yield self._tree
        finally:
            for hook in hooks:
                hook.remove()

    def keep(self, keys: set[str]) -> None:
        """Drop all others."""
        for key in self._keys - keys:
            self._keys.discard(key)
            self._take_out(key)

    def _take_out(self, key: str) -> None:
        """Free one adapter that is no longer, or not yet, among the whole ones."""
        self._active = None
        if not self._keys:  # PEFT keeps at least one adapter in a model
            self._tree = None
        elif self._tree is not None and key in self._tree.peft_config:
            self._tree.set_adapter(next(iter(self._keys)), inference_mode=True)  # PEFT warns when the active one goes
            self._tree.delete_adapter(key)


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
