"""``/v1/chat/completions`` and ``/v1/completions``."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import aclosing

import msgspec
import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sona.checks import Int32, check_id
from sona.errors import InvalidInputError, ModelError, SonaError
from sona.service.body import decode, read_body
from sona.service.formats import ChatFormat, CompletionFormat, Format
from sona.service.hub import Hub
from sona.service.problems import ProblemError, hidden, problem_of
from sona.service.requests import AnswerRequest, ChatRequest, CompletionRequest
from sona.service.sse import EventWriter
from sona.service.writing import Part, Question, Writing
from sona.types import Message, to_messages

log = logging.getLogger("sona.service")
MakeFormat = Callable[[Writing], Format]


async def chat(hub: Hub, request: Request) -> Response:
    """One answer to a conversation."""
    asked = decode(await read_body(request, hub.limits), ChatRequest)
    asked.check()
    hub.check_model(asked.model)
    source = source_of(request, asked)
    try:
        messages = to_messages(asked.conversation())
    except InvalidInputError as error:
        raise ProblemError(400, str(error), param="messages", code="invalid_value") from None
    question = Question(
        prompt=await _encoded(hub, messages),
        messages=messages,
        sampling=asked.sampling(asked.limit),
        stops=asked.stops,
        top_logprobs=asked.top,
        source=source,
        metadata=asked.metadata or {},
    )
    return Answering(hub, asked, question, ChatFormat)


async def completion(hub: Hub, request: Request) -> Response:
    """One answer to a text, or to token ids."""
    asked = decode(await read_body(request, hub.limits), CompletionRequest)
    asked.check()
    hub.check_model(asked.model)
    prompt = asked.text_or_ids()
    question = Question(
        prompt=await _encoded(hub, prompt) if isinstance(prompt, str) else np.asarray(prompt, dtype=np.int32),
        messages=(),
        sampling=asked.sampling(asked.max_tokens),
        stops=asked.stops,
        top_logprobs=asked.logprobs,
        source=source_of(request, asked),
    )
    return Answering(hub, asked, question, CompletionFormat)


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
    """Writes the answer to a question that is checked, as a whole or as a stream."""

    def __init__(
        self, hub: Hub, asked: AnswerRequest, question: Question, kind: type[ChatFormat | CompletionFormat]
    ) -> None:
        check_prompt(hub, question.prompt, "messages" if question.messages else "prompt")
        self._hub, self._asked = hub, asked
        self._writing = Writing(hub, question)
        self._format: Format = kind(
            self._writing,
            asked.model,
            ids=question.prompt.tolist() if asked.return_token_ids else None,
            probs=question.top_logprobs is not None,
            usage=asked.counts_usage,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, until the client hangs up."""
        with self._hub.answering.one():
            if self._asked.stream:
                await self._stream(receive, send)
            else:
                await self._whole(scope, receive, send)

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        parts: list[Part] = []
        async with self._hub.work(receive):
            async with aclosing(self._writing.parts()) as coming:
                parts = [part async for part in coming]
            body = msgspec.json.encode(self._format.whole(parts))
            await Response(body, 200, self._writing.headers, "application/json")(scope, receive, send)

    async def _stream(self, receive: Receive, send: Send) -> None:
        writer = EventWriter(send, self._hub.limits.write_timeout_s)
        try:
            async with self._hub.work(receive):
                await self._tell(writer)
        except TimeoutError:
            log.info("a reader of a stream took nothing for %g s; it is given up", self._hub.limits.write_timeout_s)
        except Exception as error:
            if not writer.begun:
                raise
            await self._break_off(writer, error)

    async def _tell(self, writer: EventWriter) -> None:
        async with aclosing(self._writing.parts()) as parts:
            async for part in parts:
                if not writer.begun:
                    await self._open(writer)
                if (chunk := self._format.chunk(part)) is not None:
                    await writer.data(chunk)
        if not writer.begun:
            await self._open(writer)
        await writer.data(self._format.closing())
        if self._asked.counts_usage:
            await writer.data(self._format.usage())
        await writer.data("[DONE]")
        await writer.end()

    async def _open(self, writer: EventWriter) -> None:
        await writer.begin(self._writing.headers)
        if (chunk := self._format.opening()) is not None:
            await writer.data(chunk)

    async def _break_off(self, writer: EventWriter, error: Exception) -> None:
        """Status and headers are out: what went wrong is told as an event, and the stream ends without its mark."""
        problem = error if isinstance(error, ProblemError) else None
        if problem is None and isinstance(error, SonaError):
            problem = problem_of(error)
        if problem is None:
            log.error("a streamed answer failed", exc_info=error)
            problem = hidden()
        await writer.data(problem.body().decode())
        await writer.end()
