"""Conversations and answers as token ids, through the model's own chat template."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from sona.checks import Int32
from sona.errors import InvalidInputError, ModelError
from sona.ports import Spelled
from sona.types import Message

MARKER = "\u241e sona \u241e"  # stands in for a user's words, to find what the template puts around them


class ChatCodec:
    """Encodes for one model.

    A model without a chat template sees the messages' contents, a line each: that is what a plain language model can
    use.

    What a message says can't end its turn or begin another: where its text spells a special token ("<|assistant|>"),
    the model reads the letters, and only the template writes the token itself (``sanitize_control_tokens`` of
    transformers). Its limits: tokens that a tokenizer does not mark as special (Qwen's "<think>") stay tokens, for a
    conversation's own answers hold them too; so do those in a tool call's arguments that a template prints as keys or
    in Python's notation; and in an answer to learn, or where there is no template, a special token's text becomes the
    token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_id: int | None) -> None:
        self._tokenizer = tokenizer
        if getattr(tokenizer, "chat_control_tokens", None) is None:
            tokenizer.chat_control_tokens = []  # None means each added token that the template's text names
        added = tokenizer.added_tokens_decoder.values()
        self._controls = {token.content for token in added if token.special} | set(tokenizer.chat_control_tokens)
        self.end_id = end_id
        """The token that ends an answer, if the model has one."""

    def encode_prompt(self, messages: Sequence[Message]) -> Int32:
        """The conversation as int32 token ids (tokens,), with the template's opening of an answer at its end."""
        if not messages:
            raise InvalidInputError("messages: none; give at least one")
        if not self._plain and self._spells_control_token(messages):
            # Not for all conversations: by this way their texts are encoded in pieces.
            ids = self._apply_template(messages, tokenize=True, sanitize_control_tokens=True, return_dict=False)
        else:
            ids = self._encode(self.render(messages), special=self._plain)
        return np.asarray(ids, dtype=np.int32)

    def encode_response(self, text: str) -> Int32:
        """An answer as int32 token ids (tokens,), closed by the end token."""
        end = [] if self.end_id is None else [self.end_id]
        return np.asarray(self._encode(text, special=False) + end, dtype=np.int32)

    def encode_text(self, text: str) -> Int32:
        """A text to go on from, as int32 token ids (tokens,): no template; the start token, where the model has one.

        A special token that the text spells becomes the token: whoever sends it writes the whole prompt.
        """
        return np.asarray(self._encode(text, special=True), dtype=np.int32)

    def spell(self, token_id: int) -> str:
        """One token as text, a special one too; what is no whole character by itself is U+FFFD."""
        return str(self._tokenizer.decode([token_id], skip_special_tokens=False))

    def count_tokens(self, text: str) -> int:
        """How many tokens a text is, by itself: without a template, or a token that ends it."""
        return len(self._encode(text, special=False))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text without special tokens."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation as the text that the model reads."""
        if self._plain:
            return "\n".join(message.content for message in messages) + "\n"
        return str(self._apply_template(messages, tokenize=False))

    def _apply_template(self, messages: Sequence[Message], **options: Any) -> Any:
        try:
            plain = [_as_template_input(message) for message in messages]
            return self._tokenizer.apply_chat_template(plain, **{"add_generation_prompt": True, **options})
        except Exception as error:  # templates raise jinja2's or anything of their own (raise_exception)
            raise ModelError(f"the model's chat template refuses this conversation: {error}") from error

    def _spells_control_token(self, messages: Sequence[Message]) -> bool:
        texts = [text for message in messages for text in _texts(_as_template_input(message))]
        return any(token in text for token in self._controls for text in texts)

    def render_closed(self, messages: Sequence[Message]) -> str:
        """The conversation as the text that the model reads, no answer opened at its end."""
        if self._plain:
            return self.render(messages)
        return str(self._apply_template(messages, tokenize=False, add_generation_prompt=False))

    def spell_out(self, text: str, said: Sequence[tuple[int, int]]) -> Spelled:
        """A rendered conversation as tokens, with the characters that each stands for.

        Args:
            text: what :meth:`render_closed` gave.
            said: characters that messages hold, in order: where they spell a special token, it is encoded as letters.

        Raises:
            ModelError: the tokenizer can't tell which characters a token stands for.
        """
        ids, starts, ends = list[int](), list[int](), list[int]()
        for begin, end, plain in self._pieces(text, said):
            pieces = self._with_offsets(text[begin:end], plain=plain, first=begin == 0)
            for token, (start, stop) in pieces:
                ids.append(token)
                starts.append(begin + start)
                ends.append(begin + stop)
        as_array = [np.asarray(values, dtype=np.int32) for values in (ids, starts, ends)]
        return Spelled(*as_array)

    def _pieces(self, text: str, said: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, bool]]:
        """Stretches of the text, and whether they are special tokens that a message spells: one unless there are."""
        reached = 0
        if not self._plain and self._controls:
            pattern = re.compile("|".join(re.escape(token) for token in sorted(self._controls, key=len, reverse=True)))
            for begin, end in said:
                for found in pattern.finditer(text, begin, end):
                    if reached < found.start():
                        yield reached, found.start(), False
                    yield found.start(), found.end(), True
                    reached = found.end()
        if reached < len(text):
            yield reached, len(text), False

    def _with_offsets(self, text: str, *, plain: bool, first: bool) -> list[tuple[int, tuple[int, int]]]:
        lead = "" if first else "\n"  # as transformers encodes pieces: no start of a text in the middle of one
        options: dict[str, Any] = {"return_offsets_mapping": True, "split_special_tokens": plain, "verbose": False}
        try:
            if lead:
                newline = self._tokenizer(lead, add_special_tokens=False)["input_ids"]
                out = self._tokenizer(lead + text, add_special_tokens=False, **options)
                if out["input_ids"][: len(newline)] == newline:
                    rows = list(zip(out["input_ids"], out["offset_mapping"], strict=True))[len(newline) :]
                    return [(token, (max(0, start - 1), max(0, end - 1))) for token, (start, end) in rows]
            out = self._tokenizer(text, add_special_tokens=self._plain, **options)
        except NotImplementedError as error:  # what tokenizers written in Python raise
            raise ModelError(
                f"{type(self._tokenizer).__name__} does not tell which characters its tokens stand for; use a model "
                "with a tokenizer.json"
            ) from error
        return list(zip(out["input_ids"], out["offset_mapping"], strict=True))

    def user_frame(self) -> tuple[Int32, Int32]:
        """What the template puts before a user's words and after them, up to the answer, as token ids.

        A model without a template has its start token, if any, before and nothing after.
        """
        if self._plain:
            start = self._tokenizer.bos_token_id
            return np.asarray([] if start is None else [start], dtype=np.int32), np.asarray([], dtype=np.int32)
        before, found, after = self.render([Message(role="user", content=MARKER)]).partition(MARKER)
        if not found:
            raise ModelError(
                "the model's chat template alters the user's words, so no probes can be made; set cycle.probes = 0"
            )
        ids = [np.asarray(self._encode(part, special=False), dtype=np.int32) for part in (before, after)]
        return ids[0], ids[1]

    @property
    def _plain(self) -> bool:
        return not self._tokenizer.chat_template

    def _encode(self, text: str, *, special: bool) -> list[int]:
        # The rendered template already holds the start token, so special tokens are added to plain text alone.
        return list(self._tokenizer.encode(text, add_special_tokens=special, verbose=False)) if text else []


def _texts(value: object) -> Iterator[str]:
    """All texts in what a template reads; in a tool call's arguments, JSON may have hidden them behind escapes."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _as_template_input(message: Message) -> dict[str, Any]:
    row: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name is not None:
        row["name"] = message.name
    if message.tool_call_id is not None:
        row["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        row["tool_calls"] = [
            {
                "type": "function",
                **({"id": call.id} if call.id is not None else {}),
                "function": {"name": call.name, "arguments": _arguments(call.arguments)},
            }
            for call in message.tool_calls
        ]
    return row


def _arguments(text: str) -> object:
    """Templates iterate over the arguments as a mapping; what is no JSON stays text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
