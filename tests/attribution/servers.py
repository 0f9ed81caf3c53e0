"""Servers that answer as vLLM, SGLang and sona do, with the shipped model's own numbers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from sona.attribution.leave_one_out import LeaveOneOut, OwnTree
from sona.checks import Float32, Int32
from sona.serving.chat import ChatCodec
from sona.tiny import model_path

Body = dict[str, Any]
MAX_TOKENS = 512


@cache
def codec() -> ChatCodec:
    from transformers import AutoTokenizer

    return ChatCodec(AutoTokenizer.from_pretrained(model_path()), None)


@cache
def own() -> LeaveOneOut:
    """The shipped model in this process."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_path())
    return LeaveOneOut(OwnTree(model, MAX_TOKENS), way="plain")


def values(ids: list[int]) -> Float32:
    """float32 (tokens - 1,) of all tokens but the first."""
    return _values(tuple(ids))


@cache
def _values(ids: tuple[int, ...]) -> Float32:
    return own().score(np.asarray(ids, dtype=np.int32), [(1, len(ids))])[0]


def text_of(ids: Int32) -> str:
    return str(codec()._tokenizer.decode(ids.tolist(), skip_special_tokens=False))


def spelled(text: str) -> list[int]:
    return list(codec().spell_out(text, ()).ids.tolist())


class RefusedError(Exception):
    """An error status, with what the server says."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(said)
        self.status, self.said = status, said


@dataclass
class Server:
    """One server; ``answers`` gives by path what it says to a body."""

    answers: dict[str, Callable[[Body], object]]
    asked: list[Body] = field(default_factory=list)
    dies_after: int | None = None
    """Requests; then it hangs up on every one."""
    changes: Callable[[Any], Any] = lambda said: said
    """Of what it would say."""
    url: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def respond(self, path: str, body: Body) -> tuple[int, bytes] | None:
        with self._lock:
            self.asked.append({"path": path, **body})
            if self.dies_after is not None and len(self.asked) > self.dies_after:
                return None
        try:
            said = self.changes(self.answers[path](body))
        except RefusedError as error:
            return error.status, json.dumps({"error": {"message": error.said}}).encode()
        except KeyError:
            return 404, b'{"detail":"Not Found"}'
        return 200, json.dumps(said).encode()


def models(_: Body) -> object:
    return {"object": "list", "data": [{"id": "tiny", "object": "model", "max_model_len": MAX_TOKENS}]}


def vllm_prompt(ids: list[int], body: Body) -> tuple[list[int], list[Body | None]]:
    """The prompt's tokens and their entries: a likelier token may stand first, as vLLM writes it from 1 on."""
    found: list[Body | None] = [None]
    for token, value in zip(ids[1:], values(ids), strict=True):
        likelier = {str((token + 1) % 300): {"logprob": -0.01, "rank": 1, "decoded_token": "?"}}
        one = {str(token): {"logprob": float(value), "rank": 7, "decoded_token": "!"}}
        found.append({**likelier, **one} if body["prompt_logprobs"] == 1 or token % 2 else one)
    return ids, found


def completions(body: Body) -> object:
    prompt = body["prompt"]
    if body.get("priority", 0):
        raise RefusedError(400, f"Got priority {body['priority']} but Priority scheduling is not enabled.")
    ids, entries = vllm_prompt(spelled(prompt) if isinstance(prompt, str) else prompt, body)
    choice = {"index": 0, "text": "x", "prompt_logprobs": entries}
    return {"id": "cmpl-1", "choices": [{**choice, "prompt_token_ids": ids} if body["return_token_ids"] else choice]}


def chat_completions(body: Body) -> object:
    assert body["chat_template"] == "{{ messages[0]['content'] }}"
    ids, entries = vllm_prompt(spelled(body["messages"][0]["content"]), body)
    message = {"index": 0, "message": {"role": "assistant", "content": "x"}}
    return {"id": "chat-1", "choices": [message], "prompt_logprobs": entries, "prompt_token_ids": ids}


def generate(body: Body) -> object:
    ids = spelled(body["text"]) if "text" in body else body["input_ids"]
    if "text" not in body and max(ids) >= 10_000:
        raise RefusedError(400, "The input_ids contain values greater than the vocab size")
    start = body["logprob_start_len"]
    assert body["return_logprob"]
    entries = [[float(value), token, None] for token, value in zip(ids[1:], values(ids), strict=True)][start:]
    return {"text": "x", "meta_info": {"id": "1", "input_token_logprobs": [[None, ids[start], None], *entries]}}


def sona_score(body: Body) -> object:
    found = values(body["prompt"])
    scores = [{"total_logprob": float(found[a - 1 : b - 1].sum()), "tokens": b - a} for a, b in body["score_ranges"]]
    return {"scores": scores, "version": "v0", "digest": "d" * 64, "adapter": None}


VLLM: dict[str, Callable[[Body], object]] = {
    "/v1/models": models,
    "/v1/completions": completions,
    "/v1/chat/completions": chat_completions,
}
SGLANG: dict[str, Callable[[Body], object]] = {"/v1/models": models, "/generate": generate}
SONA: dict[str, Callable[[Body], object]] = {"/score": sona_score}


@contextmanager
def served(answers: dict[str, Callable[[Body], object]]) -> Iterator[Server]:
    server = Server(dict(answers))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 5

        def do_GET(self) -> None:
            self.answer({})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if body:  # else its sender has hung up
                self.answer(json.loads(body))

        def answer(self, body: Body) -> None:
            said = server.respond(self.path, body)
            if said is None:
                self.close_connection = True
                return
            self.send_response(said[0])
            self.send_header("content-length", str(len(said[1])))
            self.end_headers()
            self.wfile.write(said[1])

        def log_message(self, format: str, *args: Any) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.daemon_threads = True
    listening.block_on_close = False
    thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
    thread.start()
    server.url = f"http://127.0.0.1:{listening.server_port}"
    try:
        yield server
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()
