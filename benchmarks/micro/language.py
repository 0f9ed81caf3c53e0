"""Micro-LoRA on the shipped language model: kinds of questions with opposite right answers, through bank and thread."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import numpy as np

from benchmarks.micro.episode import RIGHT, WRONG, Floats
from sona.bank.bank import Bank
from sona.bank.pattern import Member
from sona.checks import Int32
from sona.config import BankConfig, Config, MicroConfig, ServeConfig
from sona.learn.policy import response_log_prob
from sona.loops.micro import MicroLoop
from sona.ports import Stored
from sona.serving.local import LocalModel
from sona.tiny.lexicon import CLASSES
from sona.types import Feedback, Message, Trajectory, Version

ANSWERS = ("red", "blue")
CONTEXTS = (
    "please show me account {surname}",
    "what plan and region has {surname}",
    "account details for {surname}",
    "which plan is given to {surname}",
    "please set the lamp in the {room} to 3",
    "turn the fan to 4 in the {room}",
    "error {fault} in {service} after 2 retries",
    "{service} reports {fault} , tried 2 times",
)
"""Eight kinds of questions; the first answer is right for every other one."""
FILLERS = ("surname", "room", "fault", "service")
CONFIG = Config(serve=ServeConfig(device="cpu", threads=1), micro=MicroConfig(enabled=True))


def questions(context: int, count: int, rng: Random) -> list[str]:
    """Of one kind, with words drawn for its blanks."""
    return [CONTEXTS[context].format(**{name: rng.choice(CLASSES[name]) for name in FILLERS}) for _ in range(count)]


class Talked(NamedTuple):
    """What the feedbacks moved."""

    steps: list[tuple[int, int, bool]]
    """For each its context, 1 or -1 for likelier or less likely, and whether the answer was right."""
    moves: Floats
    """(feedbacks, contexts) by how many nats the answer became likelier on other questions of each context."""
    same: list[float]
    """By how many nats it became likelier, or less likely for a wrong one, on the very question."""
    chosen: tuple[float, float]
    """Share of the other questions on which the right answer is the likelier of the two, before and after."""
    errors: int


@dataclass(frozen=True)
class Probe:
    """A question that no feedback is about, with what each answer is made of."""

    context: int
    prompt: Int32
    embedding: Floats


class Desk:
    """A model, a bank that knows its traffic, and the loop that feedback moves."""

    def __init__(self, seed: int, queries: int) -> None:
        self.model = LocalModel("tiny", CONFIG.serve)
        self.stored: dict[str, Stored] = {}
        self.loop = MicroLoop(self.model, self.stored.__getitem__, CONFIG)
        version = Version(id="v0", parent=None, cycle=0, created_ns=0, digest="")
        self.bank = self._learned(seed)
        self.loop.put_in_force(version, self.bank, ())
        self.probes = [
            Probe(context, prompt, self.model.embed([prompt])[0])
            for context in range(len(CONTEXTS))
            for prompt in self.encoded(questions(context, queries, Random(f"probes/{seed}")))
        ]

    def _learned(self, seed: int) -> Bank:
        """A bank of earlier traffic, of which half was answered rightly."""
        rng = Random(f"earlier/{seed}")
        texts = [text for context in range(len(CONTEXTS)) for text in questions(context, 40, rng)]
        embeddings = self.model.embed(self.encoded(texts))
        members = [
            Member(str(place), row, RIGHT if place % 2 else WRONG, text, "")
            for place, (text, row) in enumerate(zip(texts, embeddings, strict=True))
        ]
        return Bank().learn(members, BankConfig(), cycle=1, seed=seed).bank

    def encoded(self, texts: list[str]) -> list[Int32]:
        return [self.model.encode_prompt([Message(role="user", content=text)]) for text in texts]

    def feed(self, text: str, answer: str, quality: float) -> None:
        """One feedback, and wait for its step."""
        trajectory = Trajectory(messages=text, response=answer)
        self.stored[trajectory.id] = Stored(seq=len(self.stored) + 1, trajectory=trajectory, quality=quality)
        self.loop.offer(Feedback(trajectory_id=trajectory.id, quality=quality))
        assert self.loop.settle(60.0)

    def nats(self, prompt: Int32, answer: str) -> float:
        """The answer's log-probability, with the fast weights that a request of this prompt gets."""
        response = self.model.encode_response(answer)
        with self.model.response_states(prompt, response) as states:
            (row,) = self.loop.rows(states.version, [states.adapter], self.model.embed([prompt]))
            hidden = states.hidden
            if row is not None:
                hidden = hidden + ((hidden @ row.A.T) @ row.B.T).astype(hidden.dtype, copy=False)
            return response_log_prob(states.head, response, self.model.vocab_size)(hidden).value

    def all_nats(self) -> Floats:
        """(answers, probes)"""
        return np.array([[self.nats(probe.prompt, answer) for probe in self.probes] for answer in ANSWERS])

    def by_context(self, values: Floats) -> Floats:
        """Means over the probes of each context."""
        owners = np.array([probe.context for probe in self.probes])
        return np.array([values[owners == context].mean() for context in range(len(CONTEXTS))])

    def choices(self, nats: Floats) -> float:
        """Share of the probes on which the right answer is the likelier of the two."""
        right = [
            nats[probe.context % 2, place] > nats[1 - probe.context % 2, place]
            for place, probe in enumerate(self.probes)
        ]
        return float(np.mean(right))


def talk(seed: int, feedbacks: int, queries: int) -> Talked:
    """``feedbacks`` in turn over the contexts, half of them on wrong answers; ``queries`` probes a context."""
    desk, rng = Desk(seed, queries), Random(f"micro/{seed}")
    before = desk.all_nats()
    start, steps, moves, same = before, [], [], []
    for place in range(feedbacks):
        context, is_right = place % len(CONTEXTS), rng.random() < 0.5
        which = context % 2 if is_right else 1 - context % 2
        (question,) = questions(context, 1, rng)
        (prompt,) = desk.encoded([question])
        was = desk.nats(prompt, ANSWERS[which])
        desk.feed(question, ANSWERS[which], RIGHT if is_right else WRONG)
        way = 1 if is_right else -1
        same.append(way * (desk.nats(prompt, ANSWERS[which]) - was))
        after = desk.all_nats()
        moves.append(desk.by_context(after[which] - before[which]))
        steps.append((context, way, is_right))
        before = after
    errors = desk.loop.counts().errors
    desk.loop.close()
    return Talked(steps, np.array(moves), same, (desk.choices(start), desk.choices(before)), errors)
