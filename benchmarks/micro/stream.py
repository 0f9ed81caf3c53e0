"""What fast weights do to an agent's later answers: tasks that a few cycles have learned, with feedback in between."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import sona
from sona.config import Config, CycleConfig, MicroConfig, ServeConfig
from sona.sync import SyncEngine
from sona.tiny import AGENT_TASKS, SKILLS, AgentWorld, Example, sample

LEARNED = 60  # answers a task that its cycle had
EXAM = 60
OWN = 8  # of each skill that the base came with
MAX_TOKENS = 24
MIN_QUALITY_SHARE = 0.2  # wrong answers among those that a cycle had, so that a pattern's mean is not 1


@dataclass(frozen=True)
class Marks:
    """Shares of answers that are exactly right."""

    tasks: float
    """On questions of the tasks that no feedback is about."""
    own: float
    """On what the base could do from the start."""
    stream: float
    """In the stream itself, as it went."""
    touched: float
    """Share of the tasks' questions that fast weights took part in."""
    touched_own: float


def prepare(folder: Path, seed: int) -> AgentWorld:
    """A store in which a cycle for each task has learned."""
    world, rng = AgentWorld(3 + seed), Random(f"prepare/{seed}")
    with _open(folder, seed, fast=False) as engine:
        for task in AGENT_TASKS:
            for one in world.sample(task, LEARNED, 1 + seed):
                engine.record(sona.Trajectory(messages=one.prompt, response=one.response), quality=1.0)
                other = world.sample(task, 1, rng.randrange(2**31))[0].response
                if rng.random() < MIN_QUALITY_SHARE and other != one.response:
                    engine.record(sona.Trajectory(messages=one.prompt, response=other), quality=0.0)
            engine.learn()
    return world


def handle(prepared: Path, world: AgentWorld, seed: int, questions: int, *, fast: bool) -> Marks:
    """``questions`` of each task, shuffled: the model answers, a check rates it, and where it was wrong a person gives
    the right answer.
    """
    folder = prepared.with_name(f"{prepared.name}-{'on' if fast else 'off'}")
    shutil.copytree(prepared, folder)
    asked = [one for task in AGENT_TASKS for one in world.sample(task, questions, 500 + seed)]
    Random(f"stream/{seed}").shuffle(asked)
    with _open(folder, seed, fast=fast) as engine:
        right = sum(_answer(engine, one) for one in asked)
        exam = [one for task in AGENT_TASKS for one in world.sample(task, EXAM, 99, "held_out")]
        own = [one for skill in SKILLS for one in sample(skill, OWN, 9, "held_out")]
        (tasks, touched), (kept, touched_own) = _mark(engine, exam), _mark(engine, own)
        return Marks(tasks, kept, right / len(asked), touched, touched_own)


def _answer(engine: SyncEngine, one: Example) -> bool:
    with engine.trajectory(one.prompt) as t:
        right = t.generate(max_new_tokens=MAX_TOKENS).text == one.response
    engine.feedback(t.id, float(right))
    if not right:
        with engine.trajectory(one.prompt) as t:
            t.respond(one.response)
        engine.feedback(t.id, 1.0)
    while (counts := engine.status().micro) is not None and counts.waiting:
        time.sleep(0.0005)  # the next question is asked when the step is done, so that a run can be repeated
    return right


def _mark(engine: SyncEngine, exam: list[Example]) -> tuple[float, float]:
    """Shares that are right, and that fast weights took part in."""
    replies = engine.generate_batch([one.prompt for one in exam], max_new_tokens=MAX_TOKENS)
    right = sum(reply.text == one.response for reply, one in zip(replies, exam, strict=True))
    return right / len(exam), sum(reply.micro is not None for reply in replies) / len(exam)


def _open(folder: Path, seed: int, *, fast: bool) -> SyncEngine:
    config = Config(
        seed=seed,
        serve=ServeConfig(device="cpu", threads=1),
        micro=MicroConfig(enabled=fast),
        cycle=CycleConfig(min_trajectories=24, probes=128),
    )
    return sona.open_sync(folder, model="tiny", config=config)
