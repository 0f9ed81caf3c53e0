"""Scoring by vLLM's OpenAI-compatible server: the ``prompt_logprobs`` of a completion or of a chat completion. Its own
``/score`` is something else, a similarity of two texts.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from sona.attribution.remote import RemoteScorer, Values, length_of, served_model
from sona.attribution.scorer import Passage
from sona.checks import Int32
from sona.errors import ScoringError
from sona.http_client import HttpClient

AS_GIVEN = "{{ messages[0]['content'] }}"
"""A chat template that adds nothing: the content is the whole text, turns and all."""


class Logprob(msgspec.Struct, frozen=True):
    """One token's."""

    logprob: float


PromptLogprobs = list[dict[str, Logprob] | None]
"""Of each token of the prompt, by ids as text: its own and perhaps likelier ones, in no order to rely on. The first
one's is null."""


class Choice(msgspec.Struct, frozen=True):
    """A completion's."""

    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_ids: list[int] | None = None


class Completion(msgspec.Struct, frozen=True):
    """... which hold what was asked for."""

    choices: list[Choice]


class _VLLM(RemoteScorer):
    """What both ways share."""

    def __init__(self, *args: Any, model: str | None = None, **more: Any) -> None:
        super().__init__(*args, **more)
        self._model = model

    def _ask(self, client: HttpClient, passage: Passage) -> Values:
        ids = passage.ids[: passage.ranges[-1][1]]
        found = self._entries(client, ids)
        if found.prompt_token_ids is not None:
            self.check_echo(Passage(ids, passage.ranges), 0, found.prompt_token_ids)
        entries = found.prompt_logprobs
        if entries is None or len(entries) != len(ids):
            told = "none" if entries is None else len(entries)
            raise ScoringError(f"{self.name}: {told} prompt_logprobs for {len(ids)} tokens; they must be as many")

        def value(at: int) -> float | None:
            entry = (entries[at] or {}).get(str(int(ids[at])))
            return None if entry is None else entry.logprob

        return Values(self.values_of(passage, value))

    def _common(self, client: HttpClient) -> dict[str, Any]:
        if self._model is None:
            self._model = served_model(client).id
        return {
            "model": self._model,
            "max_tokens": 1,
            "temperature": 0.0,
            "prompt_logprobs": 0,
            "return_token_ids": True,
            "add_special_tokens": False,
            **({} if self._priority is None else {"priority": self._priority}),
        }

    def _ask_max_tokens(self, client: HttpClient) -> int:
        model = served_model(client, self._model)
        self._model = model.id
        return length_of(model, self.name) - 1  # one token is generated

    @abstractmethod
    def _entries(self, client: HttpClient, ids: Int32) -> Choice:
        """What it says about the tokens."""


class VLLMCompletions(_VLLM):
    """``POST /v1/completions`` with token ids. See :class:`sona.attribution.remote.RemoteScorer`.

    Args:
        *args: as there.
        model: by the server's name; None: the first that it serves. An adapter's name scores with it.
        **more: as there.
    """

    kind = "vLLM"

    def _entries(self, client: HttpClient, ids: Int32) -> Choice:
        return self._completed(client, ids.tolist())

    def _completed(self, client: HttpClient, prompt: Sequence[int] | str) -> Choice:
        choices = client.post_json("/v1/completions", {**self._common(client), "prompt": prompt}, Completion).choices
        if not choices:
            raise ScoringError(f"{self.name}: its answer has no choices")
        return choices[0]

    def _spell(self, client: HttpClient, text: str) -> list[int] | None:
        return self._completed(client, text).prompt_token_ids


class VLLMChat(_VLLM):
    """``POST /v1/chat/completions``, for a server that offers nothing else. It takes no token ids, so the text that
    they spell goes through a template that adds nothing, which the server must allow
    (``--trust-request-chat-template``); it must read the same tokens in it, or the passage is refused.

    Args:
        url: as for :class:`sona.attribution.remote.RemoteScorer`.
        known: as there.
        text_of: token ids (tokens,) as text, special tokens too.
        model: by the server's name; None: the first that it serves.
        **more: as there.
    """

    kind = "vLLM chat"

    def __init__(
        self, url: str, known: Any, text_of: Callable[[Int32], str], *, model: str | None = None, **more: Any
    ) -> None:
        super().__init__(url, known, model=model, **more)
        self._text_of = text_of

    def _entries(self, client: HttpClient, ids: Int32) -> Choice:
        found = self._chatted(client, self._text_of(ids))
        if found.prompt_token_ids is None:
            raise ScoringError(f"{self.name}: it does not tell which tokens it read; a newer vLLM does")
        return found

    def _chatted(self, client: HttpClient, text: str) -> Choice:
        body = {
            **self._common(client),
            "messages": [{"role": "user", "content": text}],
            "chat_template": AS_GIVEN,
            "add_generation_prompt": False,
        }
        return client.post_json("/v1/chat/completions", body, Choice)  # both fields are at the top level here

    def _spell(self, client: HttpClient, text: str) -> list[int] | None:
        return self._chatted(client, text).prompt_token_ids
