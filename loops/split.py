"""Which new trajectories are kept from training, to judge by."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from sona.loops.screen import Ready
from sona.memory_spans import question_of
from sona.types import Trajectory


class Split(NamedTuple):
    """A partition of what can be trained on."""

    train: list[Ready]
    held_out: list[Ready]


def split(ready: Sequence[Ready], share: float) -> Split:
    """About ``share`` of the questions are held out.

    A hash of the question decides, so that the same one never stands on both sides, in this cycle or any other,
    whatever the settings say.
    """
    parts = Split([], [])
    for item in ready:
        unit = int.from_bytes(question_key(item.stored.trajectory), "little") / 2**64  # in [0, 1)
        (parts.held_out if unit < share else parts.train).append(item)
    return parts


def question_key(trajectory: Trajectory) -> bytes:
    """8 bytes that two trajectories share if they ask the same.

    The words count rather than the tokens; the system's don't, nor memories: templates and system prompts tell the
    date.
    """
    asked = [
        (message.role, message.content)
        for message in question_of(trajectory)
        if message.role not in ("system", "developer")
    ]
    material = msgspec.json.encode(asked) if asked else trajectory.prompt_ids or trajectory.id.encode()
    return hashlib.blake2b(material, digest_size=8).digest()


def questions(items: Sequence[Ready]) -> int:
    """How many different questions there are."""
    return len({question_key(item.stored.trajectory) for item in items})
