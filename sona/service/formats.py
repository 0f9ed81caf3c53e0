"""An answer as OpenAI's objects: one class for each of the two endpoints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from msgspec import UNSET, UnsetType

from sona.service.answers import TokenLogProb
from sona.service.responses import (
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    Delta,
    Origin,
    TokenLogprob,
    TopLogprob,
    Usage,
)
from sona.service.writing import Part, Writing


class Format(Protocol):
    """How an answer is told: whole, or in chunks."""

    def whole(self, parts: Sequence[Part]) -> object:
        """All of it."""

    def opening(self) -> object | None:
        """The chunk before the first part, if there is one."""

    def chunk(self, part: Part) -> object | None:
        """One part; None where it has nothing to tell."""

    def closing(self) -> object:
        """The last chunk of the answer."""

    def usage(self) -> object:
        """The chunk that counts the tokens."""


class ChatFormat:
    """``/v1/chat/completions``."""

    def __init__(self, writing: Writing, model: str, *, ids: Sequence[int] | None, probs: bool, usage: bool) -> None:
        self._writing, self._model, self._prompt_ids, self._probs = writing, model, ids, probs
        self._told_usage: UnsetType | None = None if usage else UNSET

    def whole(self, parts: Sequence[Part]) -> ChatCompletion:
        """See :class:`Format`."""
        writing = self._writing
        choice = ChatChoice(
            message=AssistantMessage(content=writing.text),
            logprobs=self._logprobs(parts),
            finish_reason=writing.finish,
            token_ids=_given(writing.token_ids, self._prompt_ids),
        )
        return ChatCompletion(
            id=f"chatcmpl-{writing.trajectory}",
            created=writing.created,
            model=self._model,
            choices=[choice],
            usage=writing.usage,
            system_fingerprint=writing.fingerprint,
            prompt_token_ids=_given(self._prompt_ids, self._prompt_ids),
            sona=writing.origin,
        )

    def opening(self) -> ChatChunk:
        """See :class:`Format`."""
        first = ChatChunkChoice(delta=Delta(role="assistant", content=""))
        return self._chunk([first], prompt_ids=_given(self._prompt_ids, self._prompt_ids))

    def chunk(self, part: Part) -> ChatChunk | None:
        """See :class:`Format`."""
        logprobs = self._logprobs([part])
        told = _given(part.token_ids, self._prompt_ids)
        if not part.text and not told and not (logprobs and logprobs.content):
            return None
        return self._chunk([ChatChunkChoice(delta=Delta(content=part.text), logprobs=logprobs, token_ids=told)])

    def closing(self) -> ChatChunk:
        """See :class:`Format`."""
        last = ChatChunkChoice(delta=Delta(), finish_reason=self._writing.finish)
        return self._chunk([last], origin=self._writing.origin)

    def usage(self) -> ChatChunk:
        """See :class:`Format`."""
        return self._chunk([], usage=self._writing.usage, origin=self._writing.origin)

    def _chunk(
        self,
        choices: list[ChatChunkChoice],
        usage: Usage | None = None,
        prompt_ids: list[int] | UnsetType = UNSET,
        origin: Origin | UnsetType = UNSET,
    ) -> ChatChunk:
        return ChatChunk(
            id=f"chatcmpl-{self._writing.trajectory}",
            created=self._writing.created,
            model=self._model,
            choices=choices,
            usage=self._told_usage if usage is None else usage,
            system_fingerprint=self._writing.fingerprint,
            prompt_token_ids=prompt_ids,
            sona=origin,
        )

    def _logprobs(self, parts: Iterable[Part]) -> ChatLogprobs | None:
        if not self._probs:
            return None
        return ChatLogprobs(
            content=[
                TokenLogprob(
                    token=one.text,
                    logprob=one.log_prob,
                    bytes=_bytes(one.text),
                    top_logprobs=[TopLogprob(token=text, logprob=value, bytes=_bytes(text)) for text, value in one.top],
                )
                for one in _told_probs(parts, all_ids=self._prompt_ids is not None)
            ]
        )


class CompletionFormat:
    """``/v1/completions``."""

    def __init__(self, writing: Writing, model: str, *, ids: Sequence[int] | None, probs: bool, usage: bool) -> None:
        self._writing, self._model, self._prompt_ids, self._probs = writing, model, ids, probs
        self._told_usage: UnsetType | None = None if usage else UNSET
        self._offset = 0

    def whole(self, parts: Sequence[Part]) -> Completion:
        """See :class:`Format`."""
        writing = self._writing
        choice = CompletionChoice(
            text=writing.text,
            logprobs=self._logprobs(parts),
            finish_reason=writing.finish,
            token_ids=_given(writing.token_ids, self._prompt_ids),
            prompt_token_ids=_given(self._prompt_ids, self._prompt_ids),
        )
        return self._completion([choice], writing.usage, writing.origin)

    def opening(self) -> Completion | None:
        """See :class:`Format`."""
        if self._prompt_ids is None:
            return None
        ids = _given(self._prompt_ids, self._prompt_ids)
        return self._completion([CompletionChoice(text="", logprobs=None, finish_reason=None, prompt_token_ids=ids)])

    def chunk(self, part: Part) -> Completion | None:
        """See :class:`Format`."""
        logprobs = self._logprobs([part])
        told = _given(part.token_ids, self._prompt_ids)
        if not part.text and not told and not (logprobs and logprobs.tokens):
            return None
        return self._completion(
            [CompletionChoice(text=part.text, logprobs=logprobs, finish_reason=None, token_ids=told)]
        )

    def closing(self) -> Completion:
        """See :class:`Format`."""
        last = CompletionChoice(text="", logprobs=None, finish_reason=self._writing.finish)
        return self._completion([last], origin=self._writing.origin)

    def usage(self) -> Completion:
        """See :class:`Format`."""
        return self._completion([], self._writing.usage, self._writing.origin)

    def _completion(
        self, choices: list[CompletionChoice], usage: Usage | None = None, origin: Origin | UnsetType = UNSET
    ) -> Completion:
        return Completion(
            id=f"cmpl-{self._writing.trajectory}",
            created=self._writing.created,
            model=self._model,
            choices=choices,
            usage=self._told_usage if usage is None else usage,
            system_fingerprint=self._writing.fingerprint,
            sona=origin,
        )

    def _logprobs(self, parts: Iterable[Part]) -> CompletionLogprobs | None:
        if not self._probs:
            return None
        told = list(_told_probs(parts, all_ids=self._prompt_ids is not None))
        offsets = []
        for one in told:
            offsets.append(self._offset)
            self._offset += len(one.text)
        return CompletionLogprobs(
            tokens=[one.text for one in told],
            token_logprobs=[one.log_prob for one in told],
            top_logprobs=[{one.text: one.log_prob, **dict(one.top)} for one in told],
            text_offset=offsets,
        )


def _told_probs(parts: Iterable[Part], *, all_ids: bool) -> Iterable[TokenLogProb]:
    """Those of the text's tokens; of all tokens, so that they go with the ids, where the ids are told."""
    for part in parts:
        yield from part.log_probs if all_ids else part.log_probs[: part.of_text]


def _given(ids: Sequence[int] | None, asked: Sequence[int] | None) -> list[int] | UnsetType:
    """``ids`` where the request asked for ids."""
    return UNSET if asked is None or ids is None else list(ids)


def _bytes(text: str) -> list[int] | None:
    return None if "\ufffd" in text else list(text.encode())
