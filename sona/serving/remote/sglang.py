"""An SGLang server, launched with --enable-lora, --max-lora-rank and --lora-target-modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from sona.checks import Float32
from sona.errors import RemoteRefusedError, RemoteUnclearError
from sona.http_client import HttpClient
from sona.serving.remote.server import ListedModels


class _Updated(msgspec.Struct):
    """Of loading and unloading: SGLang's LoRAUpdateOutput."""

    success: bool
    error_message: str | None = None


class _Meta(msgspec.Struct):
    input_token_logprobs: list[list[Any]] | None = None
    """By the position in the prompt [log-probability, token id, text]; the first one's log-probability is null."""


class _Generated(msgspec.Struct):
    meta_info: _Meta


class SglangServer:
    """An :class:`AdapterServer`, by https://docs.sglang.io/docs/advanced_features/lora and its native API."""

    def __init__(self, client: HttpClient) -> None:
        self._client, self._models = client, ListedModels(client)

    def load(self, name: str, folder: str) -> None:
        """See :meth:`AdapterServer.load`."""
        try:
            self._update("/load_lora_adapter", {"lora_name": name, "lora_path": folder})
        except RemoteRefusedError as error:
            self._models.settle(name, error, there=True)

    def unload(self, name: str) -> None:
        """See :meth:`AdapterServer.unload`. The server answers when no request has the adapter any more."""
        try:
            self._update("/unload_lora_adapter", {"lora_name": name})
        except RemoteRefusedError as error:
            self._models.settle(name, error, there=False)

    def names(self) -> frozenset[str]:
        """See :meth:`AdapterServer.names`."""
        return self._models.adapters()

    def prompt_logprobs(self, name: str | None, token_ids: Sequence[int]) -> Float32:
        """See :meth:`AdapterServer.prompt_logprobs`."""
        ids = [int(token) for token in token_ids]
        body = {
            "input_ids": ids,
            "sampling_params": {"max_new_tokens": 1, "temperature": 0},
            "return_logprob": True,
            "logprob_start_len": 0,
            **({} if name is None else {"lora_path": name}),
        }
        found = self._client.post_json("/generate", body, _Generated).meta_info.input_token_logprobs
        if found is None or [entry[1] if len(entry) > 1 else None for entry in found] != ids:
            raise RemoteUnclearError(
                f"{self._client.url} gave no input_token_logprobs of the {len(ids)} tokens that it was asked about; is "
                "it SGLang?"
            )
        said = [entry[0] for entry in found[1:]]
        if not all(isinstance(one, (int, float)) for one in said):
            raise RemoteUnclearError(f"{self._client.url} left out log-probabilities of the prompt's own tokens")
        return np.asarray(said, dtype=np.float32)

    def close(self) -> None:
        """See :meth:`AdapterServer.close`."""
        self._client.close()

    def _update(self, path: str, body: dict[str, str]) -> None:
        done = self._client.post_json(path, body, _Updated)
        if not done.success:  # it comes with status 400; whatever comes with 200 is read as well
            said = done.error_message or "no reason given"
            raise RemoteRefusedError(f"{self._client.url}{path}: refused: {said}", status=400, said=said)
