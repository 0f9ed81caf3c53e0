"""The served model as whoever scores an answer has to ask it: with the adapter that answered.

A router is shown the question, which memories are no part of (:mod:`sona.memory_spans`). So every variant of a context
is scored by the adapter that its question is like, whatever memories the variant has.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager as Block
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sona.attribution.context import ALL_MEMORIES, Context
from sona.attribution.layout import lay_out
from sona.checks import Int32
from sona.ports import ModelTree

if TYPE_CHECKING:
    from sona.serving.held import HeldModel
    from sona.serving.local import LocalModel


class AskedModel:
    """Lends the model's tree to :class:`sona.attribution.leave_one_out.LeaveOneOut`."""

    def __init__(self, model: LocalModel) -> None:
        self._model = model
        self._asked = threading.local()

    @property
    def max_tokens(self) -> int:
        """The longest passage that it takes."""
        return self._model.max_tokens

    @property
    def vocab_size(self) -> int:
        """How many tokens it knows."""
        return self._model.vocab_size

    def lend_tree(self, prompt: Int32) -> Block[ModelTree]:
        """See :meth:`sona.serving.local.LocalModel.lend_tree`."""
        question = getattr(self._asked, "question", None)
        return self._model.lend_tree(prompt if question is None else question)

    @contextmanager
    def hold(self) -> Iterator[HeldAsked]:
        """The same of the version that is in force now, until the block ends."""
        with self._model.hold() as source:
            yield HeldAsked(self._asked, source)

    @contextmanager
    def asked(self, context: Context) -> Iterator[None]:
        """In the block this thread's passages are of this context.

        Raises:
            ModelError: the chat template refuses the question.
        """
        self._asked.question = question_tokens(context, self._model)
        try:
            yield
        finally:
            self._asked.question = None


class HeldAsked:
    """An :class:`AskedModel` of one version; a thread's passages are of the context that it has asked."""

    def __init__(self, asked: threading.local, source: HeldModel) -> None:
        self._asked, self._source = asked, source
        self.max_tokens, self.vocab_size, self.version = source.max_tokens, source.vocab_size, source.version

    def lend_tree(self, prompt: Int32) -> Block[ModelTree]:
        """See :meth:`AskedModel.lend_tree`."""
        question = getattr(self._asked, "question", None)
        return self._source.lend_tree(prompt if question is None else question)


def question_tokens(context: Context, model: LocalModel) -> Int32 | None:
    """What stands before the last response, without memories (tokens,); None where nothing does."""
    messages = [one.message for one in lay_out(context, ALL_MEMORIES)]
    ends = [place for place, message in enumerate(messages) if message.role == "assistant"]
    asked = messages[: ends[-1]] if ends else messages
    return model.encode_prompt(asked) if asked else None
