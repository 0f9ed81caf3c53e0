"""What a model server elsewhere can do with adapters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from sona.checks import Float32
from sona.errors import RemoteRefusedError, RemoteUnclearError
from sona.http_client import HttpClient


class AdapterServer(Protocol):
    """Answers with a base model and, by name, with LoRA adapters beside it.

    Every method raises UnreachableError, RemoteRefusedError or RemoteUnclearError where the server does not do it.
    """

    def load(self, name: str, folder: str) -> None:
        """Answer to ``name`` with the PEFT adapter in ``folder``, a path as the server sees it. The name must be one
        that it never had: with a name a server may keep what it has worked out under it (its prefix cache).
        """

    def unload(self, name: str) -> None:
        """Let go of the adapter; nothing happens where there is none of the name."""

    def names(self) -> frozenset[str]:
        """The adapters that are there."""

    def prompt_logprobs(self, name: str | None, token_ids: Sequence[int]) -> Float32:
        """The log-probability of each of ``token_ids`` but the first, given those before it: float32 (tokens - 1,), in
        nats, at temperature 1.

        Args:
            name: of an adapter; None: the base model.
            token_ids: at least two.
        """

    def close(self) -> None:
        """End it; what is under way in other threads fails at once."""


class _Card(msgspec.Struct):
    """A model of ``GET /v1/models``."""

    id: str
    parent: str | None = None
    """Of an adapter its base."""


class _Models(msgspec.Struct):
    data: list[_Card]


class ListedModels:
    """``GET /v1/models``, as vLLM and SGLang both answer it: the base model, then its adapters."""

    def __init__(self, client: HttpClient) -> None:
        self._client = client

    def adapters(self) -> frozenset[str]:
        """The names of the adapters."""
        return frozenset(card.id for card in self._cards() if card.parent is not None)

    def base(self) -> str:
        """The name of the base model, the first one that the server lists.

        Raises:
            RemoteUnclearError: it lists none.
        """
        for card in self._cards():
            if card.parent is None:
                return card.id
        raise RemoteUnclearError(f"{self._client.url}/v1/models lists no model that is no adapter; see what it serves")

    def settle(self, name: str, error: RemoteRefusedError, *, there: bool) -> None:
        """Raise ``error`` unless ``name`` is among the adapters (or is not) all the same: an earlier try, whose answer
        was lost, may have done it, and each server says that in words of its own.
        """
        if error.status not in (400, 404, 409) or (name in self.adapters()) is not there:
            raise error

    def _cards(self) -> list[_Card]:
        return self._client.get_json("/v1/models", _Models).data
