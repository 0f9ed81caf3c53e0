"""One version of the served model, held for work that takes longer than a request."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from sona.checks import Int32
from sona.ports import ModelTree
from sona.serving.versions import ServedVersion

if TYPE_CHECKING:
    from sona.serving.local import LocalModel


class HeldModel:
    """Lends the tree of one version, whatever is in force meanwhile; see :meth:`LocalModel.hold`."""

    def __init__(self, model: LocalModel, version: ServedVersion) -> None:
        self._model, self._version = model, version
        self.max_tokens, self.vocab_size = model.max_tokens, model.vocab_size

    @property
    def version(self) -> str:
        """Its id."""
        return self._version.id

    def lend_tree(self, prompt: Int32) -> AbstractContextManager[ModelTree]:
        """See :meth:`LocalModel.lend_tree`."""
        return self._model.lend_tree(prompt, self._version)
