"""What ``sona score`` scores: a recorded trajectory, or a conversation in a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from sona.errors import InvalidInputError, UnknownIdError
from sona.wording import wrong

if TYPE_CHECKING:
    from sona.attribution.context import Context
    from sona.types import Trajectory

MAX_BYTES = 64 * 1024 * 1024
"""Of a conversation in JSON."""
HOW_TO_MARK = (
    "an agent marks them with t.generate(memories={'key': 'text'}), or give a file with "
    '{"messages": [...], "memories": {"key": "text"}}'
)


class _Conversation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file holds."""

    messages: list[dict[str, Any]]
    memories: dict[str, str]


def context_of(what: str, store: Path | None) -> Context:
    """The conversation, with its memories and responses.

    Raises:
        UnknownIdError: it is neither a trajectory of the store nor a file.
        InvalidInputError: no memory or response in it, or the file is no such JSON.
        StoreError: the store can't be read.
    """
    if store is not None and what != "-" and _is_text(what):
        from sona.storage.store import Store

        with Store.open(store, read_only=True) as opened:
            if what in opened:
                return _of_trajectory(opened.get(what).trajectory)
    if what == "-" or Path(what).is_file():
        return _of_json(what)
    if store is None:
        raise UnknownIdError(f"{what!r}: no such file; with --store it may be the id of a trajectory")
    raise UnknownIdError(
        f"{what!r}: no trajectory of {store} has this id, and no file is called so; one that was recorded just now may "
        "still be in the journal of the agent"
    )


def _is_text(what: str) -> bool:
    """Whether it may be an id: a path may hold bytes that are no text."""
    try:
        what.encode()
    except UnicodeEncodeError:
        return False
    return True


def _of_trajectory(trajectory: Trajectory) -> Context:
    from sona.attribution.marked import from_trajectory

    context = from_trajectory(trajectory)
    if not context.keys:
        raise InvalidInputError(f"trajectory {trajectory.id!r}: no memories are marked in it; {HOW_TO_MARK}")
    return context


def _of_json(what: str) -> Context:
    from sona.attribution.marked import from_messages

    try:
        given = msgspec.json.decode(_read(what), type=_Conversation)
    except msgspec.DecodeError as error:
        why = wrong(error, _Conversation).message if isinstance(error, msgspec.ValidationError) else error
        raise InvalidInputError(
            f'{what!r}: {why}; {{"messages": [...], "memories": {{"key": "text"}}}} is allowed'
        ) from None
    context = from_messages(given.messages, given.memories)
    if lost := [key for key in given.memories if key not in context.keys]:
        raise InvalidInputError(
            f"memory {lost[0]!r}: its text stands nowhere in the messages, word for word; what the assistant says and "
            "what lies within another memory do not count. Put it where the model was shown it, or leave it out"
        )
    if not context.keys:
        raise InvalidInputError(f"{what!r}: no memories; {HOW_TO_MARK}")
    if not context.responses:
        raise InvalidInputError(f"{what!r}: no message of the assistant's; there is nothing to score")
    return context


def _read(what: str) -> bytes:
    try:
        if what == "-":
            data = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with Path(what).open("rb") as file:
                data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InvalidInputError(f"{what!r}: it can't be read ({error.strerror}); name a file you may read") from None
    if len(data) > MAX_BYTES:
        raise InvalidInputError(f"{what!r}: more than {MAX_BYTES} bytes; score a part of the conversation")
    return data
