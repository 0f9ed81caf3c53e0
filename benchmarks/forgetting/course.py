"""A learner's way through a stream: it learns hour after hour, and is examined after each segment."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from benchmarks.forgetting.score import AccuracyMatrix
from benchmarks.forgetting.stream import Hour, Stream
from benchmarks.forgetting.world import Question


class Examined(Protocol):
    """What answers questions."""

    def share_right(self, questions: Sequence[Question]) -> float:
        """The share answered right to the last token, greedily."""


class Learner(Examined, Protocol):
    """What learns hour by hour."""

    def learn(self, hour: Hour) -> None:
        """Take an hour's trajectories in."""

    def end_task(self) -> None:
        """Told at each true boundary, for those that can't do without."""


class LearnsAtOnce(Examined, Protocol):
    """What sees the whole stream before it learns."""

    def learn_all(self, stream: Stream) -> None:
        """Take all of it in."""


@dataclass(frozen=True)
class Course:
    """What a learner came to."""

    matrix: AccuracyMatrix
    cpu_s: float
    """CPU time of all threads for learning; examining and loading the model are not in it."""


def travel(stream: Stream, learner: Learner, progress: Callable[[str], None] = lambda line: None) -> Course:
    """Go through the stream in its order."""
    rows, cpu_s = [_examined(learner, stream)], 0.0
    for segment in stream.segments:
        began = time.process_time()
        for hour in segment.hours:
            learner.learn(hour)
        learner.end_task()
        cpu_s += time.process_time() - began
        rows.append(_examined(learner, stream))
        progress(f"{segment.task}: {' '.join(f'{task} {share:.2f}' for task, share in rows[-1].items())}")
    return Course(AccuracyMatrix(tuple(rows), _tasks(stream), stream.judged), cpu_s)


def travel_at_once(stream: Stream, learner: LearnsAtOnce) -> Course:
    """Learn the whole stream in one go.

    That has no order, so the row after each segment is that of the end: the learning accuracy is the accuracy, backward
    transfer is 0, and forward transfer means nothing.
    """
    before = _examined(learner, stream)
    began = time.process_time()
    learner.learn_all(stream)
    cpu_s = time.process_time() - began
    rows = [before, *[_examined(learner, stream)] * len(stream.segments)]
    return Course(AccuracyMatrix(tuple(rows), _tasks(stream), stream.judged), cpu_s)


def _examined(learner: Examined, stream: Stream) -> dict[str, float]:
    return {task: learner.share_right(questions) for task, questions in stream.exams.items()}


def _tasks(stream: Stream) -> tuple[str, ...]:
    return tuple(segment.task for segment in stream.segments)
