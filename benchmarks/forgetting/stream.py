"""Hours of recorded trajectories: base traffic, then task after task, some of the answers wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from benchmarks.forgetting.vocabulary import SPECIALS, VOCABULARY
from benchmarks.forgetting.world import (
    BASE,
    Question,
    World,
    drift_world,
    many_world,
    overlap_world,
    plain_world,
)


class Recorded(NamedTuple):
    """A prompt as the agent answered it."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    reward: float
    """1.0 where the response is right, 0.0 where it is not."""
    task: str
    """The truth about where it came from. Nothing that learns hour by hour may read it."""


Hour = Sequence[Recorded]


@dataclass(frozen=True)
class StreamSize:
    """How much of everything there is."""

    per_hour: int = 96
    """Trajectories."""
    base_hours: int = 2
    hours: int = 5
    """Of a task."""
    jitter: int = 1
    """A task's hours are this many more or fewer, or neither."""
    tasks: int = 100
    """The first ones alone; there are fewer in every world."""
    exam: int = 150
    """Questions a task, drawn apart from the stream."""
    base_exam: int = 250
    failed: float = 0.15
    """Share of the answers in which a token or two are replaced by others."""
    earlier: float = 0.0
    """Share of a task's hours that comes from the base skills or an earlier task."""


@dataclass(frozen=True)
class Segment:
    """The hours in which one task arrives."""

    task: str
    hours: tuple[Hour, ...]


@dataclass(frozen=True)
class Stream:
    """What arrives, in order, and what is asked."""

    name: str
    seed: int
    segments: tuple[Segment, ...]
    """The base skills' first."""
    exams: dict[str, list[Question]]
    """By task, and those of the base skills. Of a task that changes, both what was and what is right."""
    judged: tuple[str, ...]
    """The tasks whose answers are right at the end, in the order of their arrival."""

    @property
    def hours(self) -> list[Hour]:
        """All hours, in order."""
        return [hour for segment in self.segments for hour in segment.hours]

    @property
    def starts(self) -> dict[str, int]:
        """The hour, from 0, in which each segment begins."""
        starts, at = {}, 0
        for segment in self.segments:
            starts[segment.task] = at
            at += len(segment.hours)
        return starts


WORLDS: dict[str, Callable[[int], World]] = {
    "plain": plain_world,
    "overlap": overlap_world,
    "drift": drift_world,
    "many": many_world,
    "mixed": plain_world,
}
"""The streams by name, and the world of each."""
SIZES = {
    "many": StreamSize(hours=2, jitter=0, exam=60),
    "mixed": StreamSize(earlier=0.3),
}
"""Those that differ from the usual size."""


def make_stream(name: str, seed: int, size: StreamSize | None = None) -> Stream:
    """The stream of this name; everything in it follows from the seed."""
    size = size or SIZES.get(name, StreamSize())
    world = WORLDS[name](seed)
    tasks = list(world.tasks)[: size.tasks]
    drawer = _Drawer(world, size, Random(f"stream/{name}/{seed}"))
    segments = [drawer.segment(BASE, [], size.base_hours)]
    for place, task in enumerate(tasks):
        hours = size.hours + drawer.rng.randint(-size.jitter, size.jitter)
        segments.append(drawer.segment(task, [BASE, *tasks[:place]], hours))
    exams = {task: world.sample(task, size.exam, "exam") for task in tasks}
    exams[BASE] = world.sample(BASE, size.base_exam, "exam")
    judged = tuple(task for task in tasks if f"new {task}" not in tasks)
    return Stream(name, seed, tuple(segments), exams, judged)


class _Drawer:
    """Draws hours; the questions of a task go on from hour to hour."""

    def __init__(self, world: World, size: StreamSize, rng: Random) -> None:
        self.world, self.size, self.rng = world, size, rng

    def segment(self, task: str, earlier: Sequence[str], hours: int) -> Segment:
        return Segment(task, tuple(self._hour(task, earlier, f"hour {hour}") for hour in range(hours)))

    def _hour(self, task: str, earlier: Sequence[str], key: str) -> Hour:
        hour = []
        for question in self.world.sample(task, self.size.per_hour, key):
            source, asked = task, question
            if earlier and self.rng.random() < self.size.earlier:
                source = self.rng.choice(earlier)
                (asked,) = self.world.sample(source, 1, f"earlier {self.rng.random()}")
            hour.append(self._answered(asked, source))
        return hour

    def _answered(self, asked: Question, task: str) -> Recorded:
        if self.rng.random() >= self.size.failed:
            return Recorded(asked.prompt, asked.answer, 1.0, task)
        response = list(asked.answer)
        for place in self.rng.sample(range(len(response) - 1), min(self.rng.randint(1, 2), len(response) - 1)):
            others = [token for token in range(len(SPECIALS), len(VOCABULARY)) if token != response[place]]
            response[place] = self.rng.choice(others)
        return Recorded(asked.prompt, tuple(response), 0.0, task)
