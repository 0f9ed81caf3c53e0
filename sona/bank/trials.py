"""Trials of lessons: each rated trajectory that had recalled one says whether it helped.

It helped where the trajectory went at least as well as is usual for its pattern, and was no failure; else it harmed.
That is no proof for a single one, as what is recalled beside it shares the credit; over many the useful and the useless
part.

A trajectory counts once, with its latest quality: where a later feedback has it collected again, the counter that it
had moved before is put back. For that a lesson keeps the newest trials; one that is corrected after
:data:`REMEMBERED` others counts twice.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import NamedTuple

import msgspec
import numpy as np

from sona.bank.pattern import Member
from sona.patterns import Lesson

REMEMBERED = 512
"""Trials that a lesson keeps: 8 bytes each."""
FAILS = 0.5
"""A trajectory below this quality helped nobody, however bad its pattern usually is."""
ROUNDING = 1e-9
"""Of a mean: that of equal qualities may lie above them by so much."""
USELESS = 0.5
"""A lesson is dropped where the share of those that it helps lies below this, by 90 %."""


class Trial(NamedTuple):
    """What one trajectory says of one lesson."""

    lesson: str
    trajectory: str
    helped: bool


def trials_of(
    members: Sequence[Member], pattern_ids: Sequence[str], usual: Callable[[str], float], lessons: Container[str]
) -> list[Trial]:
    """The trials that a cycle brings.

    Args:
        members: the cycle's trajectories.
        pattern_ids: of the patterns that they lie in.
        usual: what was the usual quality of a pattern, by its id, before this cycle; of "" for what lies in none.
        lessons: ids of those that there are.
    """
    return [
        Trial(name, member.trajectory_id, member.quality >= max(usual(pattern) - ROUNDING, FAILS))
        for member, pattern in zip(members, pattern_ids, strict=True)
        if member.quality is not None
        for name in dict.fromkeys(member.recalled)
        if name in lessons
    ]


def tried(lesson: Lesson, trials: Iterable[Trial]) -> Lesson:
    """``lesson`` after these trials of it."""
    before = _read(lesson.trials)
    helpful, harmful = lesson.helpful, lesson.harmful
    for trial in trials:
        key = _key(trial.trajectory)
        taken_back = before.pop(key, None)
        helpful += trial.helped - (taken_back is True)
        harmful += (not trial.helped) - (taken_back is False)
        before[key] = trial.helped  # at the end, as the newest
    return msgspec.structs.replace(lesson, helpful=helpful, harmful=harmful, trials=_written(before))


def is_useless(lesson: Lesson) -> bool:
    """Whether it helps less often than not, beyond doubt."""
    return lesson.help_interval[1] < USELESS


def _key(trajectory: str) -> int:
    """63 bits that stand for a trajectory: its id itself would stay here after it is erased."""
    return int.from_bytes(blake2b(trajectory.encode(), digest_size=8).digest(), "little") >> 1


def _read(trials: bytes) -> dict[int, bool]:
    """By key whether it helped, the oldest first. The lowest bit of each number says so, the others are the key."""
    return {number >> 1: bool(number & 1) for number in np.frombuffer(trials, dtype="<u8").tolist()}


def _written(trials: Mapping[int, bool]) -> bytes:
    newest = list(trials.items())[-REMEMBERED:]
    return np.asarray([key << 1 | helped for key, helped in newest], dtype="<u8").tobytes()
