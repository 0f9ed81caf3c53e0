"""``/v1/chat/completions`` and ``/v1/completions``."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing

import anyio
import anyio.to_thread
import msgspec
import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sona.checks import Int32, check_id
from sona.errors import InvalidInputError, ModelError, SonaError
from sona.memory_spans import RESERVED, show
from sona.service.body import decode, read_body
from sona.service.formats import ChatFormat, CompletionFormat, Format
from sona.service.hub import Hub
from sona.service.problems import ProblemError, hidden, problem_of
from sona.service.requests import AnswerRequest, ChatRequest, CompletionRequest
from sona.service.sse import EventWriter, ReaderStalledError
from sona.service.writing import Question, Writing
from sona.types import Message, to_messages

log = logging.getLogger("sona.service")
Ask = Callable[[Hub, Request], Awaitable[tuple[AnswerRequest, Question]]]
"""Reads and checks a request."""


async def chat(hub: Hub, request: Request) -> Response:
    """One answer to a conversation."""
    return Answering(hub, request, ask_chat, ChatFormat)


async def completion(hub: Hub, request: Request) -> Response:
    """One answer to a text, or to token ids."""
    return Answering(hub, request, ask_completion, CompletionFormat)


async def ask_chat(hub: Hub, request: Request) -> tuple[ChatRequest, Question]:
    """What ``/v1/chat/completions`` was asked."""
    asked = decode(await read_body(request, hub.limits), ChatRequest)
    asked.check()
    hub.check_model(asked.model)
    source = source_of(request, asked)
    if any(key.startswith(RESERVED) for key in asked.metadata or ()):
        raise ProblemError(
            400,
            f"metadata: keys that begin with {RESERVED!r} are the server's own; give memories in the field memories",
            param="metadata",
            code="invalid_value",
        )
    try:
        given = to_messages(asked.conversation())
        # In a thread: texts of megabytes are searched for each memory.
        shown = await anyio.to_thread.run_sync(show, given, asked.memories) if asked.memories else show(given, None)
    except InvalidInputError as error:
        raise ProblemError(400, str(error), param="messages", code="invalid_value") from None
    return asked, Question(
        prompt=await _encoded(hub, shown.messages),
        question=await _encoded(hub, shown.question) if shown.spans else None,
        messages=shown.messages,
        sampling=asked.sampling(asked.limit),
        stops=asked.stops,
        top_logprobs=asked.top,
        source=source,
        metadata={**(asked.metadata or {}), **shown.metadata},
    )


async def ask_completion(hub: Hub, request: Request) -> tuple[CompletionRequest, Question]:
    """What ``/v1/completions`` was asked."""
    asked = decode(await read_body(request, hub.limits), CompletionRequest)
    asked.check()
    hub.check_model(asked.model)
    prompt = asked.text_or_ids()
    return asked, Question(
        prompt=await _encoded(hub, prompt) if isinstance(prompt, str) else np.asarray(prompt, dtype=np.int32),
        messages=(),
        sampling=asked.sampling(asked.max_tokens),
        stops=asked.stops,
        top_logprobs=asked.logprobs,
        source=source_of(request, asked),
    )


def source_of(request: Request, asked: AnswerRequest) -> str:
    """Who asks: the header ``x-sona-source``, or the field ``user``."""
    header = request.headers.get("x-sona-source")
    source = asked.user if header is None else header
    if not source:
        return "default"
    try:
        check_id(source, "source")
    except InvalidInputError as error:
        param = "user" if header is None else "x-sona-source"
        raise ProblemError(400, str(error), param=param, code="invalid_value") from None
    return source


async def _encoded(hub: Hub, prompt: tuple[Message, ...] | str) -> Int32:
    try:
        return await hub.answers.encode(prompt)
    except ModelError as error:
        raise ProblemError(422, str(error), param="messages", code="template_refused") from None


def check_prompt(hub: Hub, prompt: Int32, param: str) -> None:
    """Raises ProblemError where the prompt leaves no room for an answer, or is longer than is allowed."""
    most = hub.engine.model.max_tokens - 1
    if hub.limits.max_prompt_tokens:
        most = min(most, hub.limits.max_prompt_tokens)
    if not len(prompt):
        raise ProblemError(400, f"{param}: no tokens; send some text", param=param, code="invalid_value")
    if len(prompt) > most:
        raise ProblemError(
            400,
            f"the prompt has {len(prompt)} tokens; at most {most} are allowed",
            param=param,
            code="context_length_exceeded",
        )
    if int(prompt.max()) >= hub.engine.model.vocab_size:
        raise ProblemError(
            422,
            f"token id {int(prompt.max())}: this model knows 0 to {hub.engine.model.vocab_size - 1}",
            param=param,
            code="unknown_token",
        )


class Answering(Response):
    """Reads what is asked and answers it, as a whole or as a stream, until the client hangs up."""

    def __init__(self, hub: Hub, request: Request, ask: Ask, kind: type[ChatFormat | CompletionFormat]) -> None:
        self._hub, self._request, self._ask, self._kind = hub, request, ask, kind

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        with self._hub.answering.one():  # before the body is read: who is told to come again costs nothing
            asked, question = await self._ask(self._hub, self._request)
            check_prompt(self._hub, question.prompt, "messages" if question.messages else "prompt")
            writing = Writing(self._hub, question)
            told: Format = self._kind(
                writing,
                asked.model,
                ids=question.prompt.tolist() if asked.return_token_ids else None,
                probs=question.top_logprobs is not None,
                usage=asked.counts_usage,
            )
            if not asked.stream:
                await self._whole(writing, told, scope, receive, send)
                return
            writer = EventWriter(send, self._hub.limits.write_timeout_s)
            await self._stream(Telling(writing, told, writer, counts_usage=asked.counts_usage), receive)

    async def _whole(self, writing: Writing, told: Format, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._hub.work(receive):
            async with aclosing(writing.parts()) as coming:
                parts = [part async for part in coming]
            body = msgspec.json.encode(told.whole(parts))
            with anyio.move_on_after(self._hub.limits.write_timeout_s):
                await Response(body, 200, writing.headers, "application/json")(scope, receive, send)

    async def _stream(self, telling: Telling, receive: Receive) -> None:
        try:
            with telling.writer:
                try:
                    async with self._hub.work(receive):
                        await telling.run()
                except Exception as error:
                    if not telling.begun:
                        raise
                    await telling.break_off(error)
        except ReaderStalledError:
            log.info("a reader of a stream took nothing for %g s; it is given up", self._hub.limits.write_timeout_s)


class Telling:
    """One answer told as server-sent events."""

    def __init__(self, writing: Writing, told: Format, writer: EventWriter, *, counts_usage: bool) -> None:
        self._writing, self._format, self.writer = writing, told, writer
        self._counts_usage = counts_usage

    @property
    def begun(self) -> bool:
        """Whether status and headers are out."""
        return self.writer.begun

    async def run(self) -> None:
        """All of it. What is there at once is written at once."""
        async with aclosing(self._writing.parts()) as parts:
            async for part in parts:
                await self._open()
                self._hold(self._format.chunk(part))
                if not part.more:
                    await self.writer.flush()
        await self._open()
        self._hold(self._format.closing())
        if self._counts_usage:
            self._hold(self._format.usage())
        self._hold("[DONE]")
        await self.writer.end()

    async def _open(self) -> None:
        if not self.begun:
            await self.writer.begin(self._writing.headers)
            self._hold(self._format.opening())

    def _hold(self, chunk: object | None) -> None:
        if chunk is not None:
            self.writer.hold(chunk)

    async def break_off(self, error: Exception) -> None:
        """What went wrong is told as an event, and the stream ends without its mark."""
        problem = error if isinstance(error, ProblemError) else None
        if problem is None and isinstance(error, SonaError):
            problem = problem_of(error)
        if problem is None:
            log.error("a streamed answer failed", exc_info=error)
            problem = hidden()
        self.writer.hold(problem.body().decode())
        await self.writer.end()
