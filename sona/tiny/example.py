"""One question with its right answer, and the rule that says which questions are kept for testing."""

from dataclasses import dataclass
from typing import Literal
from zlib import crc32

Split = Literal["train", "held_out"]

_HELD_OUT_ONE_IN = 5


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt, the one response that counts as right, and the skill that it asks for."""

    prompt: str
    """What the user says: lower-case words with single spaces."""
    response: str
    """The whole right answer, without the end marker."""
    skill: str
    """The skill or agent task that drew it."""


def split_of(prompt: str) -> Split:
    """Return the split that a prompt belongs to, for ever and on every machine: one in five is held out."""
    return "held_out" if crc32(prompt.encode()) % _HELD_OUT_ONE_IN == 0 else "train"
