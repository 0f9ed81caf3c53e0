"""vLLM and SGLang as their documentation and sources say that they answer, around the shipped model and PEFT: paths,
fields, status codes and words are theirs, and the log-probabilities are real.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import anyio
import torch
import uvicorn
from peft import PeftModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from transformers import AutoModelForCausalLM

from sona.tiny import model_path

BASE = "tiny-base"
FILES = ("adapter_config.json", "adapter_model.safetensors")


class Weights:
    """The base model, and adapters beside it as PEFT loads and applies them."""

    def __init__(self) -> None:
        self._model: Any = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)  # in eval mode
        self._made: dict[bytes, str] = {}
        self._said: dict[tuple[str | None, tuple[int, ...]], list[float]] = {}
        self._lock = threading.Lock()

    def load(self, folder: str) -> str:
        """A key for :meth:`logprobs`."""
        content = b"".join((Path(folder) / name).read_bytes() for name in FILES)
        with self._lock:
            if content in self._made:  # PEFT takes a while for each
                return self._made[content]
            key = self._made[content] = f"a{len(self._made)}"
            if isinstance(self._model, PeftModel):
                self._model.load_adapter(folder, adapter_name=key)
            else:
                self._model = PeftModel.from_pretrained(self._model, folder, adapter_name=key)
            return key

    def logprobs(self, key: str | None, ids: list[int]) -> list[float]:
        """Of each token but the first."""
        with self._lock:
            asked = (key, tuple(ids))
            if asked not in self._said:  # the same prompts come again and again
                with torch.no_grad(), self._only(key):
                    said = torch.log_softmax(self._model(torch.tensor([ids])).logits[0, :-1].float(), dim=-1)
                self._said[asked] = said.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
            return self._said[asked]

    def _only(self, key: str | None) -> AbstractContextManager[Any]:
        if not isinstance(self._model, PeftModel):
            return nullcontext()
        if key is None:
            return self._model.disable_adapter()
        self._model.set_adapter(key)
        return nullcontext()


Routes = dict[str, Callable[[Any], Response]]


class Elsewhere:
    """One server on loopback, for a ``with`` block; started again it has no adapters any more."""

    def __init__(self, kind: str, weights: Weights, **faults: Any) -> None:
        """Of ``faults``: ``runtime`` (False: no adapters at run time), ``max_rank``, ``token``, ``stale`` (True: every
        name has the weights of the first adapter that was loaded), ``deaf`` (True: names have the base's), ``sees``
        (where it sees another folder), ``delay_s`` before each answer.
        """
        self.kind, self.weights = kind, weights
        self.runtime, self.max_rank = faults.get("runtime", True), faults.get("max_rank", 64)
        self.token, self.stale, self.deaf = faults.get("token"), faults.get("stale", False), faults.get("deaf", False)
        self.delay_s = faults.get("delay_s", 0.0)
        self.sees: tuple[str, str] | None = faults.get("sees")
        self.before: Callable[[str], None] = lambda path: None
        """Called with the path of each request."""
        self.loaded: dict[str, tuple[str, str | None]] = {}
        """By name the path and the key of its weights."""
        self.asked: list[tuple[str, Any]] = []
        self._first: str | None = None
        self._socket = _listening(0)
        self.port = self._socket.getsockname()[1]
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        self.loaded, self._first = {}, None
        if self._socket.fileno() < 0:
            self._socket = _listening(self.port)
        config = uvicorn.Config(self._app(), log_level="error", lifespan="off", ws="none", loop="asyncio")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=asyncio.run, args=(_serve(self._server, self._socket),))
        self._thread.start()
        while not self._server.started:
            time.sleep(0.002)

    def stop(self) -> None:
        server, thread, self._server, self._thread = self._server, self._thread, None, None
        if server is not None and thread is not None:
            server.should_exit = server.force_exit = True
            thread.join(10)
            assert not thread.is_alive()
        self._socket.close()

    def die(self) -> None:
        """At once, out of a request."""
        if self._server is not None:
            self._server.should_exit = self._server.force_exit = True

    def posted(self, path: str) -> list[Any]:
        """The bodies that came to a path."""
        return [body for asked, body in self.asked if asked == path]

    # -------------------------------------------------------------------------------------------------- adapters

    def _app(self) -> Starlette:
        routes: Routes = {"/v1/models": self._models} | (self._vllm() if self.kind == "vllm" else self._sglang())
        return Starlette(
            routes=[Route(path, self._guarded(path, to), methods=["GET", "POST"]) for path, to in routes.items()]
        )

    def _vllm(self) -> Routes:
        always: Routes = {"/v1/completions": self._completions}
        updating: Routes = {"/v1/load_lora_adapter": self._vllm_load, "/v1/unload_lora_adapter": self._vllm_unload}
        return always | (updating if self.runtime else {})

    def _sglang(self) -> Routes:
        return {
            "/generate": self._generate,
            "/load_lora_adapter": self._sglang_load,
            "/unload_lora_adapter": self._sglang_unload,
        }

    def _guarded(self, path: str, answer: Callable[[Any], Response]) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            body = json.loads(await request.body() or b"null")
            self.asked.append((path, body))
            self.before(path)
            await anyio.sleep(self.delay_s)
            if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
                return JSONResponse({"error": "Unauthorized"}, 401)
            return await anyio.to_thread.run_sync(answer, body)

        return handle

    def _load(self, name: str, path: str) -> str | None:
        """Why not."""
        here = path if self.sees is None else path.replace(*self.sees, 1)
        folder = Path(here)
        if not (folder / "adapter_config.json").is_file():
            return "no folder"
        rank = json.loads((folder / "adapter_config.json").read_text())["r"]
        if rank > self.max_rank:
            return f"rank {rank}"
        key = None if self.deaf else self.weights.load(here)
        self._first = self._first or key
        self.loaded[name] = (path, self._first if self.stale else key)
        return None

    def _models(self, _: Any) -> Response:
        cards = [{"id": BASE, "object": "model", "root": "/models/tiny", "parent": None}]
        cards += [{"id": name, "object": "model", "root": at, "parent": BASE} for name, (at, _) in self.loaded.items()]
        return JSONResponse({"object": "list", "data": cards})

    # ------------------------------------------------------------------------------------------------------ vLLM

    def _vllm_load(self, body: Any) -> Response:
        name, path = body["lora_name"], body["lora_path"]
        if name in self.loaded:
            why = f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set"
            return _vllm_error(400, "InvalidUserInput", f"{why} 'load_inplace' to True.")
        why_not = self._load(name, path)
        if why_not == "no folder":
            return _vllm_error(404, "NotFoundError", f"Loading lora {name} failed: No adapter found for {path}")
        if why_not:
            said = f"LoRA {why_not} is greater than max_lora_rank {self.max_rank}."
            return _vllm_error(400, "BadRequestError", said)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    def _vllm_unload(self, body: Any) -> Response:
        name = body["lora_name"]
        if name not in self.loaded:
            return _vllm_error(404, "NotFoundError", f"The lora adapter '{name}' cannot be found.")
        del self.loaded[name]
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    def _completions(self, body: Any) -> Response:
        if body["model"] != BASE and body["model"] not in self.loaded:
            return _vllm_error(404, "NotFoundError", f"The model `{body['model']}` does not exist.")
        key = None if body["model"] == BASE else self.loaded[body["model"]][1]
        said = self.weights.logprobs(key, body["prompt"])
        told: list[Any] = [None]
        for token, own in zip(body["prompt"][1:], said, strict=True):
            told.append({str(token): {"logprob": own, "rank": 2, "decoded_token": "x"}})
        choice = {"index": 0, "text": "x", "finish_reason": "length", "prompt_logprobs": told}
        return JSONResponse({"id": "cmpl-1", "object": "text_completion", "model": body["model"], "choices": [choice]})

    # ---------------------------------------------------------------------------------------------------- SGLang

    def _updated(self, why: str | None) -> Response:
        loaded = {name: path for name, (path, _) in self.loaded.items()}
        told = {"success": why is None, "error_message": why, "loaded_adapters": loaded}
        return JSONResponse(told, 200 if why is None else 400)

    def _sglang_load(self, body: Any) -> Response:
        name = body["lora_name"]
        if not self.runtime:
            return self._updated("LoRA is not enabled. Please set `--enable-lora` to enable LoRA.")
        if name in self.loaded:
            return self._updated(f"LoRA with name {name} already exists. Loaded LoRAs: {list(self.loaded)}")
        why = self._load(name, body["lora_path"])
        return self._updated(why and f"Failed to load LoRA adapter {name}: incompatible, {why}")

    def _sglang_unload(self, body: Any) -> Response:
        if body["lora_name"] not in self.loaded:
            return self._updated(
                f"LoRA with name {body['lora_name']} does not exist. Loaded LoRAs: {list(self.loaded)}"
            )
        del self.loaded[body["lora_name"]]
        return self._updated(None)

    def _generate(self, body: Any) -> Response:
        name, ids = body.get("lora_path"), body["input_ids"]
        if name is not None and name not in self.loaded:
            said = (
                f"The following requested LoRA adapters are not loaded: {name}\nLoaded adapters: {list(self.loaded)}."
            )
            return JSONResponse({"error": {"message": said}}, 400)
        said_of = self.weights.logprobs(None if name is None else self.loaded[name][1], ids)
        told: list[list[Any]] = [[None, ids[0], None]]
        told += [[own, token, None] for token, own in zip(ids[1:], said_of, strict=True)]
        meta = {
            "id": "1",
            "finish_reason": {"type": "length", "length": 1},
            "prompt_tokens": len(ids),
            "input_token_logprobs": told[body["logprob_start_len"] :] if body["return_logprob"] else None,
            "output_token_logprobs": [[-0.5, 7, None]],
        }
        return JSONResponse({"text": "x", "output_ids": [7], "meta_info": meta})


async def _serve(server: uvicorn.Server, listening: socket.socket) -> None:
    """Until it is to end; what is open then is closed, as where a process has died."""
    await server.serve([listening])
    for connection in list(server.server_state.connections):
        connection.transport.abort()
    await asyncio.sleep(0)


def _listening(port: int) -> socket.socket:
    """Its protocol is named: only where it is asyncio switches Nagle's algorithm off, and no answer waits 40 ms."""
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("127.0.0.1", port))
    return made


def _vllm_error(status: int, kind: str, message: str) -> Response:
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": status}}, status)
