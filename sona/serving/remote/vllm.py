"""A vLLM server (``vllm serve --enable-lora``, with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment)."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from sona.checks import Float32
from sona.errors import RemoteRefusedError, RemoteUnclearError
from sona.http_client import HttpClient
from sona.serving.remote.server import ListedModels

NO_ROUTE = ("", "Not Found")  # what a path that is none is answered with, and no adapter ever


class _Logprob(msgspec.Struct):
    logprob: float


class _Choice(msgspec.Struct):
    prompt_logprobs: list[dict[str, _Logprob] | None] | None = None
    """By the position in the prompt, and there by token id: the prompt's own, and perhaps likelier ones before it. The
    first is null."""


class _Completion(msgspec.Struct):
    choices: list[_Choice]


class VllmServer:
    """An :class:`AdapterServer`, by https://docs.vllm.ai/en/latest/features/lora/ and the OpenAI server's own
    ``prompt_logprobs``.
    """

    def __init__(self, client: HttpClient) -> None:
        self._client, self._models = client, ListedModels(client)

    def load(self, name: str, folder: str) -> None:
        """See :meth:`AdapterServer.load`."""
        try:
            self._client.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": folder})
        except RemoteRefusedError as error:
            if error.status == 404 and error.said in NO_ROUTE:
                raise _told(
                    error,
                    "it does not load adapters at run time; start it with --enable-lora and "
                    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True",
                ) from None
            if error.status == 404:
                raise _told(error, "see that remote.path_prefix is where it sees the store's folder") from None
            self._models.settle(name, error, there=True)

    def unload(self, name: str) -> None:
        """See :meth:`AdapterServer.unload`."""
        try:
            self._client.post("/v1/unload_lora_adapter", {"lora_name": name})
        except RemoteRefusedError as error:
            self._models.settle(name, error, there=False)

    def names(self) -> frozenset[str]:
        """See :meth:`AdapterServer.names`."""
        return self._models.adapters()

    def prompt_logprobs(self, name: str | None, token_ids: Sequence[int]) -> Float32:
        """See :meth:`AdapterServer.prompt_logprobs`. A request that asks for them is never answered out of the prefix
        cache.
        """
        ids = [int(token) for token in token_ids]
        body = {
            "model": name or self._models.base(),
            "prompt": ids,
            "max_tokens": 1,  # at least one
            "temperature": 0,
            "prompt_logprobs": 0,
        }
        answer = self._client.post_json("/v1/completions", body, _Completion)
        found = answer.choices[0].prompt_logprobs if answer.choices else None
        if found is None or len(found) != len(ids):
            raise RemoteUnclearError(f"{self._client.url} gave no prompt_logprobs for {len(ids)} tokens; is it vLLM?")
        # By its id and never the first entry: with likelier tokens told too, the prompt's own may come last.
        said = [(at or {}).get(str(token)) for token, at in zip(ids[1:], found[1:], strict=True)]
        if any(one is None for one in said):
            raise RemoteUnclearError(f"{self._client.url} left out log-probabilities of the prompt's own tokens")
        return np.asarray([one.logprob for one in said if one is not None], dtype=np.float32)

    def close(self) -> None:
        """See :meth:`AdapterServer.close`."""
        self._client.close()


def _told(error: RemoteRefusedError, what: str) -> RemoteRefusedError:
    return RemoteRefusedError(f"{error}; {what}", status=error.status, said=error.said)
