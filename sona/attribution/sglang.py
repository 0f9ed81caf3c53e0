"""Scoring by SGLang's ``/generate``: https://docs.sglang.io/basic_usage/native_api.html."""

from __future__ import annotations

from typing import Any

import msgspec

from sona.attribution.remote import RemoteScorer, Values, length_of, served_model
from sona.attribution.scorer import Passage
from sona.errors import ScoringError
from sona.http_client import HttpClient


class MetaInfo(msgspec.Struct, frozen=True):
    """What came beside the text."""

    input_token_logprobs: list[tuple[int | float | str | None, ...]] | None = None
    """Of each token from ``logprob_start_len`` on its log-probability, its id and perhaps its text; the first one's
    log-probability is null."""


class Generated(msgspec.Struct, frozen=True):
    """One answer."""

    meta_info: MetaInfo


class SGLang(RemoteScorer):
    """See :class:`sona.attribution.remote.RemoteScorer`.

    Of its priorities the larger come first unless it was started with ``--schedule-low-priority-values-first``, the
    other way round than vLLM's: ours is sent with its sign turned. Without ``--enable-priority-scheduling`` it is
    ignored.
    """

    kind = "SGLang"

    def _ask(self, client: HttpClient, passage: Passage) -> Values:
        end = passage.ranges[-1][1]
        start = passage.ranges[0][0] - 1
        values, ids = self._entries(client, {"input_ids": passage.ids[:end].tolist()}, start)
        self.check_echo(Passage(passage.ids[:end], passage.ranges), start, ids)
        return Values(self.values_of(passage, lambda at: values[at - start]))

    def _entries(self, client: HttpClient, prompt: dict[str, Any], start: int) -> tuple[list[float | None], list[int]]:
        """The log-probabilities and the ids of the tokens from ``start`` on."""
        body = {
            **prompt,
            "sampling_params": {"temperature": 0.0, "max_new_tokens": 1},
            "return_logprob": True,
            "logprob_start_len": start,
            **({} if self._priority is None else {"priority": -self._priority}),
        }
        entries = client.post_json("/generate", body, Generated).meta_info.input_token_logprobs
        if entries is None:
            raise ScoringError(f"{self.name}: its answer has no input_token_logprobs; a newer SGLang gives them")
        try:
            values = msgspec.convert([entry[0] for entry in entries], list[float | None])
            return values, msgspec.convert([entry[1] for entry in entries], list[int])
        except (IndexError, msgspec.ValidationError) as error:
            raise ScoringError(
                f"{self.name}: its input_token_logprobs are no pairs of value and id: {error}"
            ) from error

    def _ask_max_tokens(self, client: HttpClient) -> int:
        return length_of(served_model(client), self.name) - 1  # one token is generated

    def _spell(self, client: HttpClient, text: str) -> list[int] | None:
        return self._entries(client, {"text": text}, 0)[1]
