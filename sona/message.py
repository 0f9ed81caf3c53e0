"""Messages of a conversation, and what is taken for one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

import msgspec

from sona.checks import check_id, check_one_of, check_text, did_you_mean, shown, tuple_of
from sona.errors import InvalidInputError
from sona.record import Record
from sona.wording import wrong

ROLES = ("system", "developer", "user", "assistant", "tool")
MESSAGE_KEYS = ("role", "content", "name", "tool_calls", "tool_call_id", "refusal", "annotations")
"""What a message that is no Message may hold; of the last, which says where in the text a citation stands, nothing is
kept."""
TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
_set = msgspec.structs.force_setattr


class ToolCall(Record, kw_only=True):
    """One call that an assistant's message makes."""

    name: str
    """The tool's name."""
    arguments: str = "{}"
    """Its arguments as JSON text, as the model wrote it."""
    id: str | None = None
    """The call's own id, by which the tool's message refers to it."""

    def __post_init__(self) -> None:
        check_id(self.name, "tool call name")
        if self.id is not None:
            check_id(self.id, "tool call id")
        check_text(self.arguments, "tool call arguments", empty=True)


class Message(Record, kw_only=True):
    """One message of a conversation."""

    role: str
    """One of ``system``, ``developer``, ``user``, ``assistant``, ``tool``."""
    content: str = ""
    """Its text; may be empty only where ``tool_calls`` are given, or for a tool's empty result."""
    name: str | None = None
    """Who speaks, where the role alone does not say it (a tool's name)."""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    """The id of the call that a tool's message answers."""

    def __post_init__(self) -> None:
        check_one_of(self.role, ROLES, "message role")
        _set(self, "tool_calls", tuple_of(self.tool_calls, ToolCall, "tool_calls"))
        check_text(self.content, f"{self.role} message", empty=bool(self.tool_calls) or self.role == "tool")
        if self.name is not None:
            check_id(self.name, "message name")
        if self.tool_call_id is not None:
            check_id(self.tool_call_id, "message tool_call_id")


def to_messages(value: object) -> tuple[Message, ...]:
    """A conversation from messages or plain ``{"role": ..., "content": ...}`` mappings; a text is one user message.

    Raises:
        InvalidInputError: an unknown role or key, an empty text, a part that is no text, or no conversation at all.
    """
    if isinstance(value, str):
        return (Message(role="user", content=value),)
    # Asked of tuples and lists first: the abstract classes take as long as a whole message.
    if type(value) is tuple:
        for item in value:
            if type(item) is not Message:
                break
        else:
            return value
    elif not isinstance(value, (tuple, list)) and (
        isinstance(value, (bytes, Mapping)) or not isinstance(value, Iterable)
    ):
        raise InvalidInputError(f"messages: {type(value).__name__}; a text or a list of messages is allowed")
    return tuple([_to_message(item, index) for index, item in enumerate(value)])


def _to_message(item: object, index: int) -> Message:
    if type(item) is Message:
        return item
    if not isinstance(item, Mapping):
        raise InvalidInputError(f"messages[{index}]: {type(item).__name__}; a Message or a mapping is allowed")
    fields = {key: value for key, value in item.items() if value is not None}
    for key in fields:
        if key not in MESSAGE_KEYS:
            raise InvalidInputError(
                f"messages[{index}]: {shown(key)} is no key of a message{did_you_mean(key, MESSAGE_KEYS) or ';'} "
                f"({', '.join(MESSAGE_KEYS[:-1])} are allowed)"
            )
    calls = fields.pop("tool_calls", ())
    refusal = fields.pop("refusal", "")  # OpenAI's place for the text of an answer that declines
    fields.pop("annotations", None)
    try:
        fields["content"] = _joined(fields.get("content") or refusal)
        return msgspec.convert({**fields, "tool_calls": [_flat_call(call) for call in calls]}, Message)
    except msgspec.ValidationError as error:
        found = wrong(error, Message)
        raise InvalidInputError(f"messages[{index}]{'.' if found.path else ': '}{found.message}") from None
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"messages[{index}]: {error}") from None


def _joined(content: object) -> object:
    """OpenAI writes a content as a text, or as a list of parts; several texts are read on lines of their own."""
    if not isinstance(content, (list, tuple)):
        return content
    return "\n".join(_part_text(part) for part in content)


def _part_text(part: object) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    text = part.get("refusal" if kind == "refusal" else "text") if isinstance(part, Mapping) else None
    if kind not in TEXT_PARTS or not isinstance(text, str):
        raise InvalidInputError(f"content part: {shown(kind or part)}; text only, so leave out images, audio and files")
    return text


def _flat_call(call: object) -> object:
    """OpenAI nests a call's name and arguments under ``function``; we keep the two, and the call's id."""
    if not isinstance(call, Mapping):
        return call
    function = call.get("function")
    said = {**call, **function} if isinstance(function, Mapping) else call
    kept = {key: said[key] for key in ("id", "name", "arguments") if said.get(key) is not None}
    if isinstance(kept.get("arguments"), Mapping):  # as chat templates and some logs have them
        kept["arguments"] = json.dumps(kept["arguments"], ensure_ascii=False)
    return kept
