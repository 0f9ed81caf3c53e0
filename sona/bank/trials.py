"""Trials of lessons: each rated trajectory that had recalled one says whether queries go better with it.

What it says is d = q - u: its quality, less what was usual for its pattern before the cycle. That is no proof for a
single one, as what is recalled beside it shares the credit; over many the useful and the useless part.

A lesson keeps the sum of d, its gain, and the variance that this sum has where the lesson changes nothing, its noise:
a quality in [0, 1] of mean u varies by u(1 - u) at most (Bhatia & Davis 2000, doi:10.2307/2589180), and u is itself a
mean of n qualities. Of k trials of one cycle, which share their u, each counts for u(1 - u)(1 + k / n); what later
cycles add is uncorrelated with it (recursive residuals: Brown, Durbin & Evans 1975,
doi:10.1111/j.2517-6161.1975.tb01532.x). A lesson is dropped where the gain lies so far below 0 that noise hardly ever
makes it (a score test of "no effect").

A trajectory counts once, with its latest quality: where a later feedback has it collected again, the d that it had
before is taken back. For that a lesson keeps the newest trials; one that is corrected after :data:`REMEMBERED` others
counts twice.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import NamedTuple

import msgspec
import numpy as np

from sona.bank.pattern import Member
from sona.patterns import Lesson

REMEMBERED = 512
"""Trials that a lesson keeps: 8 bytes each."""
STEPS = 127
"""A d is told by so many steps on each side of 0, for it to fit into a byte: half a step is rounding."""
LEAST_VARIANCE = 0.05
"""Of a quality: what went well 20 times may yet go wrong."""
Z = 3.0
"""A lesson is dropped where its gain lies so many standard deviations below 0, rather than the 1.6 of a test at 95 %:
it is looked at after every cycle."""
ONE_MORE = 1.0
"""... and by one trial more. What mostly goes well fails rarely, but then by nearly 1, which few trials do not average
out to a normal distribution: without it about 4 % of the lessons that change nothing at a quality of 0.9 would go,
rather than 2 %."""


class Usual(NamedTuple):
    """What was usual for a pattern."""

    quality: float
    rated: int
    """Trajectories that this is the mean of."""


class Trial(NamedTuple):
    """What one trajectory says of one lesson."""

    lesson: str
    trajectory: str
    effect: float
    """d, by whole steps."""
    noise: float
    """The variance that d has where the lesson changes nothing, and its share of that of what was usual."""

    @property
    def helped(self) -> bool:
        """Whether it went at least as well as usual."""
        return self.effect >= 0


def trials_of(
    members: Sequence[Member], pattern_ids: Sequence[str], usual: Callable[[str], Usual], lessons: Container[str]
) -> list[Trial]:
    """The trials that a cycle brings.

    Args:
        members: the cycle's trajectories.
        pattern_ids: of the patterns that they lie in.
        usual: what was usual for a pattern, by its id, before this cycle; for "" for what lies in none.
        lessons: ids of those that there are.
    """
    found = [
        (name, pattern, member.trajectory_id, member.quality)
        for member, pattern in zip(members, pattern_ids, strict=True)
        if member.quality is not None
        for name in dict.fromkeys(member.recalled)
        if name in lessons
    ]
    together = Counter((name, pattern) for name, pattern, _, _ in found)
    return [
        _trial(name, trajectory, quality, usual(pattern), together[name, pattern])
        for name, pattern, trajectory, quality in found
    ]


def _trial(lesson: str, trajectory: str, quality: float, usual: Usual, together: int) -> Trial:
    variance = max(usual.quality * (1 - usual.quality), LEAST_VARIANCE)
    effect = round(STEPS * (quality - usual.quality)) / STEPS
    return Trial(lesson, trajectory, effect, variance * (1 + together / usual.rated))


def tried(lesson: Lesson, trials: Iterable[Trial]) -> Lesson:
    """``lesson`` after these trials of it."""
    before = _read(lesson.trials)
    helpful, harmful, gain, noise = lesson.helpful, lesson.harmful, lesson.gain, lesson.noise
    for trial in trials:
        key = _key(trial.trajectory)
        taken_back = before.pop(key, None)
        if taken_back is None:
            noise += trial.noise
        else:
            helpful -= taken_back >= 0
            harmful -= taken_back < 0
            gain -= taken_back
        helpful += trial.helped
        harmful += not trial.helped
        gain += trial.effect
        before[key] = trial.effect  # at the end, as the newest
    return msgspec.structs.replace(
        lesson, helpful=helpful, harmful=harmful, gain=gain, noise=noise, trials=_written(before)
    )


def is_useless(lesson: Lesson) -> bool:
    """Whether queries go worse with it than without, beyond doubt."""
    return lesson.gain < -(ONE_MORE + Z * math.sqrt(lesson.noise))


def _key(trajectory: str) -> int:
    """56 bits that stand for a trajectory: its id itself would stay here after it is erased."""
    return int.from_bytes(blake2b(trajectory.encode(), digest_size=7).digest(), "little")


def _read(trials: bytes) -> dict[int, float]:
    """By key the d, the oldest first. The lowest byte of each number holds it, the others are the key."""
    numbers = np.frombuffer(trials, dtype="<u8").tolist()
    return {number >> 8: ((number & 0xFF) - STEPS) / STEPS for number in numbers}


def _written(trials: Mapping[int, float]) -> bytes:
    newest = list(trials.items())[-REMEMBERED:]
    return np.asarray([key << 8 | round(STEPS * d) + STEPS for key, d in newest], dtype="<u8").tobytes()
