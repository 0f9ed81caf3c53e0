"""The exam: held-out queries, the answers that a version gives to them, and how many are right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean

from sona.sync import SyncEngine
from sona.tiny import AGENT_TASKS, SKILLS, AgentWorld, Example, sample

BATCH = 60
"""Queries answered together. The batches never change, so that float rounding can't: see ``generate_batch``."""

Exam = Mapping[str, tuple[Example, ...]]
"""Task or skill to its held-out queries; in a fixed order, the tasks first."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What one version answered to a whole exam."""

    version: str
    texts: Mapping[str, tuple[str, ...]]
    """Task or skill to the answers, in the exam's order."""
    token_ids: tuple[tuple[int, ...], ...]
    """Of all answers, in the exam's order."""
    accuracy: Mapping[str, float]
    """Task or skill to the share of its answers that are right, word for word."""

    @property
    def tasks(self) -> float:
        """Mean accuracy of the three tasks."""
        return fmean(self.accuracy[task] for task in AGENT_TASKS)

    @property
    def skills(self) -> float:
        """Mean accuracy of the skills that the model came with."""
        return fmean(self.accuracy[skill] for skill in SKILLS)


def make_exam(world: AgentWorld, size: int, seed: int) -> Exam:
    """Up to ``size`` different held-out queries of each task, and half as many of each skill."""
    exam = {task: _different(world.sample(task, 4 * size, seed, "held_out"), size) for task in AGENT_TASKS}
    half = max(size // 2, 1)
    return exam | {skill: _different(sample(skill, 4 * half, seed, "held_out"), half) for skill in SKILLS}


def take(engine: SyncEngine, exam: Exam, on_batch: Callable[[int], None] = lambda done: None) -> Answers:
    """Answer the whole exam with the version in force, greedily; nothing is recorded.

    Args:
        engine: with a model.
        exam: what to ask.
        on_batch: told how many answers there are so far.
    """
    texts: dict[str, tuple[str, ...]] = {}
    token_ids: list[tuple[int, ...]] = []
    for part, examples in exam.items():
        replies = []
        for start in range(0, len(examples), BATCH):
            replies += engine.generate_batch([example.prompt for example in examples[start : start + BATCH]])
            on_batch(len(token_ids) + len(replies))
        texts[part] = tuple(reply.text for reply in replies)
        token_ids += [reply.token_ids for reply in replies]
    return Answers(engine.version.id, texts, tuple(token_ids), _accuracy(exam, texts))


def _accuracy(exam: Exam, texts: Mapping[str, tuple[str, ...]]) -> dict[str, float]:
    return {
        part: fmean(text == example.response for text, example in zip(texts[part], examples, strict=True))
        for part, examples in exam.items()
    }


def _different(examples: list[Example], count: int) -> tuple[Example, ...]:
    return tuple({example.prompt: example for example in examples}.values())[:count]
