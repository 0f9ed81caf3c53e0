"""vLLM and SGLang are spoken to as their documentation says, and what they refuse is told with what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from sona.errors import RemoteRefusedError, RemoteUnclearError, SwapError, UnreachableError
from sona.http_client import HttpClient, Secret
from sona.loops.version_files import PROOF, adapter_root
from sona.serving.local import LocalModel
from sona.serving.proof import Proof, probe_ids, read_proof
from sona.serving.remote.attest import attest
from sona.serving.remote.server import AdapterServer
from sona.serving.remote.sglang import SglangServer
from sona.serving.remote.vllm import VllmServer
from sona.storage.store import Store
from sona.storage.versions import Versions
from tests.remote.elsewhere import BASE, Elsewhere, Weights

KINDS = ["vllm", "sglang"]
IDS = list(range(5, 21))


@contextmanager
def asked(kind: str, weights: Weights, secret: Secret | None = None, **faults: Any) -> Iterator[tuple[Elsewhere, Any]]:
    with Elsewhere(kind, weights, **faults) as elsewhere:
        client = HttpClient(elsewhere.url, secret, timeout_s=10.0, tries=2, backoff_s=0.01)
        server: AdapterServer = VllmServer(client) if kind == "vllm" else SglangServer(client)
        try:
            yield elsewhere, server
        finally:
            server.close()


def adapter_of(store: Store, version: str, name: str = "s1") -> Path:
    return adapter_root(Versions(store.path).path(version), name) / "adapter"


def proof_of(store: Store, version: str) -> Proof:
    return read_proof((Versions(store.path).path(version) / PROOF).read_bytes())


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_loaded_asked_and_unloaded(kind: str, weights: Weights, store: Store, model: LocalModel) -> None:
    with asked(kind, weights) as (_, server):
        assert server.names() == frozenset()
        server.load("sona-v1-s1-0", str(adapter_of(store, "v1")))
        assert server.names() == {"sona-v1-s1-0"}
        proof, ids = proof_of(store, "v1"), probe_ids(model.vocab_size)[0].tolist()
        np.testing.assert_allclose(server.prompt_logprobs("sona-v1-s1-0", ids), proof.adapters["s1"][0], atol=1e-3)
        np.testing.assert_allclose(server.prompt_logprobs(None, ids), proof.base[0], atol=1e-3)
        server.unload("sona-v1-s1-0")
        assert server.names() == frozenset()
        server.unload("sona-v1-s1-0")  # nothing is there any more, which is what was wanted


def test_vllm_is_asked_as_it_documents(weights: Weights, store: Store) -> None:
    with asked("vllm", weights) as (elsewhere, server):
        path = str(adapter_of(store, "v1"))
        server.load("a", path)
        server.prompt_logprobs("a", IDS)
        server.prompt_logprobs(None, IDS)
        server.unload("a")
        assert elsewhere.posted("/v1/load_lora_adapter") == [{"lora_name": "a", "lora_path": path}]
        body = {"prompt": IDS, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
        assert elsewhere.posted("/v1/completions") == [{"model": "a", **body}, {"model": BASE, **body}]
        assert elsewhere.posted("/v1/unload_lora_adapter") == [{"lora_name": "a"}]


def test_sglang_is_asked_as_it_documents(weights: Weights, store: Store) -> None:
    with asked("sglang", weights) as (elsewhere, server):
        path = str(adapter_of(store, "v1"))
        server.load("a", path)
        server.prompt_logprobs("a", IDS)
        server.prompt_logprobs(None, IDS)
        server.unload("a")
        assert elsewhere.posted("/load_lora_adapter") == [{"lora_name": "a", "lora_path": path}]
        body = {
            "input_ids": IDS,
            "sampling_params": {"max_new_tokens": 1, "temperature": 0},
            "return_logprob": True,
            "logprob_start_len": 0,
        }
        assert elsewhere.posted("/generate") == [{**body, "lora_path": "a"}, body]
        assert elsewhere.posted("/unload_lora_adapter") == [{"lora_name": "a"}]


def test_a_prompt_s_own_token_is_looked_up_by_its_id() -> None:
    likelier = {"9": {"logprob": -0.1}}
    told = {"choices": [{"prompt_logprobs": [None, likelier | {"6": {"logprob": -1.5}}, {"7": {"logprob": -2.5}}]}]}
    assert VllmServer(Told(told)).prompt_logprobs("a", [5, 6, 7]).tolist() == [-1.5, -2.5]  # type: ignore[arg-type]


def test_a_vllm_that_loads_nothing_at_run_time_is_told_so(weights: Weights, store: Store) -> None:
    with (
        asked("vllm", weights, runtime=False) as (_, server),
        pytest.raises(RemoteRefusedError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
    ):
        server.load("a", str(adapter_of(store, "v1")))


def test_a_sglang_without_adapters_says_so_itself(weights: Weights, store: Store) -> None:
    with (
        asked("sglang", weights, runtime=False) as (_, server),
        pytest.raises(RemoteRefusedError, match="Please set `--enable-lora`"),
    ):
        server.load("a", str(adapter_of(store, "v1")))


def test_a_folder_that_vllm_does_not_see_is_told_with_the_setting(weights: Weights) -> None:
    with (
        asked("vllm", weights) as (_, server),
        pytest.raises(RemoteRefusedError, match=r"No adapter found for /elsewhere; see that remote\.path_prefix"),
    ):
        server.load("a", "/elsewhere")


@pytest.mark.parametrize("kind", KINDS)
def test_a_rank_beyond_the_server_s_is_told_in_its_words(kind: str, weights: Weights, store: Store) -> None:
    with asked(kind, weights, max_rank=1) as (_, server):
        with pytest.raises(RemoteRefusedError, match="rank 2") as refused:
            server.load("a", str(adapter_of(store, "v1")))
        assert refused.value.status == 400


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_that_is_loaded_already_was_loaded_by_a_try_whose_answer_was_lost(
    kind: str, weights: Weights, store: Store
) -> None:
    with asked(kind, weights) as (_, server):
        server.load("a", str(adapter_of(store, "v1")))
        server.load("a", str(adapter_of(store, "v1")))
        assert server.names() == {"a"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_token_is_a_401(kind: str, weights: Weights) -> None:
    with asked(kind, weights, Secret("right"), token="right") as (_, server):
        assert server.names() == frozenset()
    with asked(kind, weights, Secret("wrong"), token="right") as (_, server):
        for ask in (server.names, lambda: server.load("a", "/x"), lambda: server.prompt_logprobs("a", IDS)):
            with pytest.raises(RemoteRefusedError, match="status 401: Unauthorized"):
                ask()


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_of_the_other_kind_is_found_out(kind: str, weights: Weights) -> None:
    other = "sglang" if kind == "vllm" else "vllm"
    with Elsewhere(other, weights) as elsewhere:
        client = HttpClient(elsewhere.url, tries=1)
        server: AdapterServer = VllmServer(client) if kind == "vllm" else SglangServer(client)
        with pytest.raises(RemoteRefusedError, match="404"):
            server.prompt_logprobs(None, IDS)
        with pytest.raises(RemoteRefusedError, match="404"):
            server.load("a", "/x")
        server.close()


class Told:
    """A server that says what a test wants."""

    def __init__(self, said: Any) -> None:
        self.said, self.url = said, "http://told"

    def get_json(self, path: str, kind: type[Any]) -> Any:
        raise UnreachableError("not here")

    def post_json(self, path: str, body: object, kind: type[Any]) -> Any:
        return msgspec.convert(self.said, kind)


@pytest.mark.parametrize(
    "told",
    [
        {"choices": []},
        {"choices": [{}]},
        {"choices": [{"prompt_logprobs": None}]},
        {"choices": [{"prompt_logprobs": [None, {"6": {"logprob": -1.0}}]}]},
        {"choices": [{"prompt_logprobs": [None, {"6": {"logprob": -1.0}}, {"8": {"logprob": -1.0}}]}]},
        {"choices": [{"prompt_logprobs": [None, {"6": {"logprob": -1.0}}, None]}]},
    ],
)
def test_log_probabilities_that_are_not_there_are_told_of_vllm(told: Any) -> None:
    with pytest.raises(RemoteUnclearError):
        VllmServer(Told(told)).prompt_logprobs("a", [5, 6, 7])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "said",
    [
        None,
        [],
        [[None, 5, None], [-1.0, 6, None]],
        [[None, 5, None], [-1.0, 6, None], [-1.0, 8, None]],
        [[None, 5, None], [-1.0, 6, None], [None, 7, None]],
        [[None, 5, None], [-1.0, 6, None], ["x", 7, None]],
        [[None, 5, None], [-1.0, 6, None], []],
    ],
)
def test_log_probabilities_that_are_not_there_are_told_of_sglang(said: Any) -> None:
    with pytest.raises(RemoteUnclearError):
        SglangServer(Told({"meta_info": {"input_token_logprobs": said}})).prompt_logprobs("a", [5, 6, 7])  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------ attestation


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_server_says_is_compared_with_the_proof(
    kind: str, weights: Weights, store: Store, model: LocalModel
) -> None:
    with asked(kind, weights) as (_, server):
        server.load("a", str(adapter_of(store, "v1")))
        found = attest(server, "v1", {"s1": "a"}, proof_of(store, "v1"), model.vocab_size, 0.001)
        assert found.difference is not None
        assert found.difference < 0.001
        assert found.moved["s1"] > 0.5
        with pytest.raises(SwapError, match="adapter 's1' does not answer on the server as when it was published"):
            attest(server, "v2", {"s1": "a"}, proof_of(store, "v2"), model.vocab_size, 0.25)
        with pytest.raises(SwapError, match="was proved with the adapters"):
            attest(server, "v1", {"s2": "a"}, proof_of(store, "v1"), model.vocab_size, 0.25)


def test_another_base_model_is_found_out(weights: Weights, store: Store, model: LocalModel) -> None:
    proof = proof_of(store, "v1")
    other = Proof(
        form=proof.form,
        dtype=proof.dtype,
        base=[[value - 1.0 for value in row] for row in proof.base],
        adapters=proof.adapters,
    )
    with asked("vllm", weights) as (_, server):
        server.load("a", str(adapter_of(store, "v1")))
        with pytest.raises(SwapError, match="the base model does not answer"):
            attest(server, "v1", {"s1": "a"}, other, model.vocab_size, 0.25)


def test_a_server_that_leaves_an_adapter_out_is_found_out_whatever_the_tolerance(
    weights: Weights, store: Store, model: LocalModel
) -> None:
    with asked("vllm", weights, deaf=True) as (_, server):
        server.load("a", str(adapter_of(store, "v1")))
        with pytest.raises(SwapError, match="the server says what it says without"):
            attest(server, "v1", {"s1": "a"}, proof_of(store, "v1"), model.vocab_size, 100.0)
        server.load("b", str(adapter_of(store, "v4")))  # an empty one may say so
        assert attest(server, "v4", {"s1": "b"}, proof_of(store, "v4"), model.vocab_size, 0.01).moved == {"s1": 0.0}
