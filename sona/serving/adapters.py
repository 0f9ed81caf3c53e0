"""Which versions' adapters are in memory, and which may leave."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel

from sona.errors import SwapError

RESIDENT = 2  # versions kept beside those in use: the current one, and the one that a rollback would bring back


def sharing_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A module tree of its own over the very tensors of ``model``: an adapter can be put into it and cost only
    itself.
    """
    tensors = [*model.parameters(), *model.buffers()]
    copied = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    assert isinstance(copied, PreTrainedModel)
    return copied


class AdapterRack:
    """The adapters that one served model holds, by version id. Not safe for threads: its owner holds a lock."""

    def __init__(self, base: PreTrainedModel) -> None:
        self._base = base
        self._tree: PeftModel | None = None
        self._resident: list[str] = []  # least recently used first

    def __contains__(self, version: str) -> bool:
        return version in self._resident

    def load(self, version: str, folder: Path) -> None:
        """Put the adapter of ``folder`` beside the others, and check that what is in memory is what the files say.

        Raises:
            SwapError: the folder holds no adapter for this model, or it did not arrive whole.
        """
        try:
            wanted = load_file(folder / "adapter_model.safetensors")
            self._put(version, folder)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
            self._take_out(version)  # PEFT makes room for an adapter before it reads its weights
            raise SwapError(f"adapter of {version} in {folder} can't be loaded: {error}") from error
        self._resident.append(version)
        if not self._holds(version, wanted):
            self.drop(version)
            raise SwapError(f"adapter of {version} in memory differs from its files in {folder}; it is not served")

    def _put(self, version: str, folder: Path) -> None:
        if self._tree is None:
            self._tree = PeftModel.from_pretrained(sharing_copy(self._base), str(folder), adapter_name=version)
        else:
            self._tree.load_adapter(str(folder), adapter_name=version)

    def _take_out(self, version: str) -> None:
        if self._tree is not None and version in self._tree.peft_config:
            self._tree.delete_adapter(version)

    def _holds(self, version: str, wanted: dict[str, torch.Tensor]) -> bool:
        held = get_peft_model_state_dict(self._tree, adapter_name=version)
        return wanted.keys() == held.keys() and all(
            torch.equal(value.to(held[name].dtype), held[name].cpu()) for name, value in wanted.items()
        )

    def module(self, version: str) -> torch.nn.Module:
        """The model that answers with this version's adapter, made active."""
        assert self._tree is not None
        self._resident.remove(version)
        self._resident.append(version)
        self._tree.set_adapter(version, inference_mode=True)
        return self._tree.eval()

    def evict(self, keep: set[str]) -> None:
        """Drop the least recently used ones beyond the resident number, but none of ``keep``."""
        for version in [name for name in self._resident if name not in keep][: max(len(self._resident) - RESIDENT, 0)]:
            self.drop(version)

    def drop(self, version: str) -> None:
        """Free one adapter."""
        assert self._tree is not None
        self._resident.remove(version)
        if self._resident:
            self._tree.set_adapter(self._resident[-1], inference_mode=True)  # PEFT warns when the active one goes
            self._tree.delete_adapter(version)
        else:  # PEFT keeps at least one adapter in a model
            self._tree = None
