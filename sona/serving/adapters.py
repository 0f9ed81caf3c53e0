"""Which versions' adapters are in memory, and which may leave."""

from __future__ import annotations

import copy
from collections import OrderedDict
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
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


class ResidentAdapters:
    """The adapters that one served model holds, by version id.

    ``in`` may be asked from any thread. For all else its owner holds a lock.
    """

    def __init__(self, base: PreTrainedModel) -> None:
        self._base = base
        self._tree: PeftModel | None = None
        self._versions: OrderedDict[str, None] = OrderedDict()  # least recently used first; all whole and verified

    def __contains__(self, version: str) -> bool:
        return version in self._versions

    def __len__(self) -> int:
        return len(self._versions)

    def load(self, version: str, folder: Path) -> None:
        """Put the adapter of ``folder`` beside the others, and check that what is in memory is what the files say.

        One that is in memory already is left as it is: a version's files never change.

        Raises:
            SwapError: the folder holds no adapter for this model, or it did not arrive whole.
        """
        if version in self._versions:
            return
        try:
            wanted = load_file(folder / "adapter_model.safetensors")
            self._put(version, folder)
            if not self._holds(version, wanted):
                raise ValueError("in memory it differs from its files")
            self._versions[version] = None
        except Exception as error:  # what a damaged or foreign folder makes PEFT raise has no common base
            raise SwapError(f"adapter of {version} in {folder} can't be loaded: {error}; it is not served") from error
        finally:
            if version not in self._versions:  # PEFT makes room for an adapter before it reads its weights
                self._take_out(version)

    def _put(self, version: str, folder: Path) -> None:
        if self._tree is None:
            self._tree = PeftModel.from_pretrained(sharing_copy(self._base), str(folder), adapter_name=version)
        else:
            self._tree.load_adapter(str(folder), adapter_name=version)

    def _holds(self, version: str, wanted: dict[str, torch.Tensor]) -> bool:
        held = get_peft_model_state_dict(self._tree, adapter_name=version)
        return wanted.keys() == held.keys() and all(
            torch.equal(value.to(held[name].dtype), held[name].cpu()) for name, value in wanted.items()
        )

    def module(self, version: str) -> torch.nn.Module:
        """The model that answers with this version's adapter, made active."""
        assert self._tree is not None
        self._versions.move_to_end(version)
        self._tree.set_adapter(version, inference_mode=True)
        return self._tree.eval()

    def evict(self, keep: set[str]) -> None:
        """Drop the least recently used ones beyond the resident number, but none of ``keep``."""
        spare = [version for version in self._versions if version not in keep]
        for version in spare[: max(len(self._versions) - RESIDENT, 0)]:
            del self._versions[version]
            self._take_out(version)

    def _take_out(self, version: str) -> None:
        """Free one adapter that is no longer, or not yet, among the versions."""
        if not self._versions:  # PEFT keeps at least one adapter in a model
            self._tree = None
        elif self._tree is not None and version in self._tree.peft_config:
            self._tree.set_adapter(
                next(reversed(self._versions)), inference_mode=True
            )  # PEFT warns when the active one goes
            self._tree.delete_adapter(version)
