"""What clients ask for an answer with: OpenAI's requests, the fields that are served here.

A field of OpenAI's that changes nothing here (``store``, ``service_tier``) is taken and ignored; one that would change
the answer and can't (``tools``, ``logit_bias``) is refused where it is given, and so is a field that OpenAI does not
have, as OpenAI does. ``top_k`` and ``return_token_ids`` are vLLM's.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from sona.service.answers import Sampling
from sona.service.problems import ProblemError

Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Stop = Annotated[str, Meta(min_length=1, max_length=1000)]
Stops = Annotated[list[Stop], Meta(max_length=4)]


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all requests share: unknown fields refused."""


class StreamOptions(Request, frozen=True, kw_only=True):
    """How a stream is told."""

    include_usage: bool | None = None
    """A last chunk that counts the tokens."""
    include_obfuscation: bool | None = None
    """Ignored."""


class Function(Request, frozen=True, kw_only=True):
    """What a tool call calls."""

    name: str
    arguments: str = "{}"


class ToolCall(Request, frozen=True, kw_only=True):
    """A call in a message that was answered before."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: Function


class Part(msgspec.Struct, frozen=True):
    """A part of a message's content; only texts are taken."""

    type: str
    text: str | None = None
    refusal: str | None = None


class ChatMessage(Request, frozen=True, kw_only=True):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    """Ignored."""
    audio: None = None
    function_call: None = None


class AnswerRequest(Request, frozen=True, kw_only=True):
    """What both kinds of request may say."""

    model: str
    """``sona``, or ``sona:<id of the version in force>``."""
    max_tokens: Count | None = None
    """At most so many tokens; by default ``serve.max_new_tokens`` of the settings."""
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] | None = None
    """0 always takes the likeliest token; by default 1."""
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    """0: all tokens."""
    seed: Seed | None = None
    """The same seed, version and request give the same answer."""
    stop: Stop | Stops | None = None
    """The answer ends before the first of these."""
    n: int | None = None
    """1."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    """Kept as the trajectory's source, unless the header ``x-sona-source`` names another."""
    return_token_ids: bool | None = None
    """The prompt's and the answer's token ids as well."""
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None

    def check(self) -> None:
        """Raises ProblemError (400) for what can't be served."""
        if self.n not in (None, 1):
            raise unsupported("n", "1 is allowed; send the request again for another answer")
        if self.stream_options is not None and not self.stream:
            raise unsupported("stream_options", "allowed with stream: true alone")
        refuse("frequency_penalty", self.frequency_penalty)
        refuse("presence_penalty", self.presence_penalty)
        refuse("logit_bias", self.logit_bias)

    @property
    def stops(self) -> list[str]:
        """The stop strings."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    @property
    def counts_usage(self) -> bool:
        """Whether a stream ends with the tokens' counts."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def sampling(self, limit: int | None) -> Sampling:
        """How tokens are chosen, ``limit`` of them at most."""
        return Sampling(
            max_new_tokens=limit,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=self.top_k or 0,
            seed=self.seed,
        )


class ChatRequest(AnswerRequest, frozen=True, kw_only=True):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    max_completion_tokens: Count | None = None
    """The newer name of ``max_tokens``, and the one that counts."""
    logprobs: bool | None = None
    """Each token with its log-probability."""
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    """And so many of the likeliest at its place."""
    metadata: Annotated[dict[Annotated[str, Meta(min_length=1, max_length=64)], str], Meta(max_length=16)] | None = None
    """Kept in the trajectory."""
    memories: (
        Annotated[dict[Annotated[str, Meta(min_length=1, max_length=1000)], str], Meta(max_length=1024)] | None
    ) = None
    """Texts that are no part of the question, by names of yours: the model reads them, where they stand in the messages
    word for word, or else at the end of the system's message; which adapter answers is decided without them. An
    extension."""

    tools: list[Any] | None = None
    tool_choice: Any = None
    functions: list[Any] | None = None
    function_call: Any = None
    response_format: Any = None
    modalities: list[str] | None = None
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None
    moderation: Any = None

    store: bool | None = None
    service_tier: str | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: Any = None
    prompt_cache_retention: str | None = None

    def check(self) -> None:
        """Raises ProblemError (400) for what can't be served."""
        super().check()
        if self.top_logprobs is not None and not self.logprobs:
            raise unsupported("top_logprobs", "allowed with logprobs: true alone")
        for name in ("tools", "functions", "audio", "prediction", "web_search_options", "moderation"):
            refuse(name, getattr(self, name))
        refuse("tool_choice", self.tool_choice, ("none", "auto"))
        refuse("function_call", self.function_call, ("none", "auto"))
        refuse("response_format", self.response_format, ({"type": "text"},))
        refuse("modalities", self.modalities, (["text"],))

    @property
    def limit(self) -> int | None:
        """At most so many tokens."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def top(self) -> int | None:
        """How many of the likeliest tokens to tell; None: no log-probabilities at all."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def conversation(self) -> list[dict[str, Any]]:
        """The messages as the engine takes them."""
        rows: list[dict[str, Any]] = msgspec.to_builtins(self.messages)
        return [{key: value for key, value in row.items() if value is not None} for row in rows]


class CompletionRequest(AnswerRequest, frozen=True, kw_only=True):
    """``POST /v1/completions``."""

    prompt: str | list[Any]
    """A text, or token ids; as the only one of a list, too."""
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    """Each token with its log-probability, and so many of the likeliest at its place; the token itself is one of them,
    or one more."""
    best_of: int | None = None
    echo: bool | None = None
    suffix: str | None = None

    def check(self) -> None:
        """Raises ProblemError (400) for what can't be served."""
        super().check()
        if self.best_of not in (None, 1):
            raise unsupported("best_of", "1 is allowed")
        refuse("echo", self.echo)
        refuse("suffix", self.suffix)

    def text_or_ids(self) -> str | list[int]:
        """The one prompt.

        Raises:
            ProblemError: 400, none or several, or what is no prompt.
        """
        prompt: Any = self.prompt
        if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], (str, list)):
            prompt = prompt[0]
        if isinstance(prompt, str):
            return prompt
        if prompt and all(isinstance(item, (str, list)) for item in prompt):
            raise unsupported("prompt", f"{len(prompt)} prompts; one is allowed")
        return as_ids(prompt, "prompt")


def as_ids(value: list[Any], name: str) -> list[int]:
    """``value`` as token ids, or ProblemError (400)."""
    try:
        return msgspec.convert(value, TokenIds)
    except (msgspec.ValidationError, OverflowError):
        raise ProblemError(
            400, f"{name}: a list of token ids, from 0 to 2147483647, is allowed", param=name, code="invalid_type"
        ) from None


TokenIds = Annotated[list[Annotated[int, Meta(ge=0, le=2**31 - 1)]], Meta(min_length=1)]


def refuse(name: str, value: object, harmless: tuple[object, ...] = ()) -> None:
    """Raises ProblemError (400) where ``value`` asks for something, and is none of the ``harmless`` ones."""
    if value and value not in harmless:
        raise unsupported(name, "not served here; leave it out")


def unsupported(name: str, what: str) -> ProblemError:
    """400 for a field that is understood and can't be served."""
    return ProblemError(400, f"{name}: {what}", param=name, code="unsupported_value")
