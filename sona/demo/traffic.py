"""The agent at work: queries come in, the model answers, a check judges, and a person helps out."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from sona.demo.options import DemoSize
from sona.sync import SyncEngine
from sona.tiny import AGENT_TASKS, SKILLS, AgentWorld, Example, sample

PERSON_IS_RIGHT = 0.85
"""Share of a person's answers that are right; the others answer another query than the one that was asked."""


@dataclass(frozen=True, slots=True)
class Handled:
    """What became of one query."""

    query: Example
    right: bool
    """The model's own answer passed the check."""
    asked_person: bool


def queries(world: AgentWorld, cycle: int, size: DemoSize, seed: int) -> list[Example]:
    """The traffic of cycle 0, 1 or 2, shuffled: its new task, some of the tasks before, and everyday requests.

    All are of the ``train`` split, so that none of them turns up in the exam.
    """
    drawn = list(world.sample(AGENT_TASKS[cycle], size.new, seed + cycle))
    for task in AGENT_TASKS[:cycle]:
        drawn += world.sample(task, size.earlier, seed + cycle)
    for skill in SKILLS:
        drawn += sample(skill, size.everyday, seed + cycle)
    Random(f"order/{seed}/{cycle}").shuffle(drawn)
    return drawn


class Agent:
    """Handles queries with an engine's model and records what happens."""

    def __init__(self, engine: SyncEngine, world: AgentWorld, seed: int) -> None:
        self._engine, self._world = engine, world
        self._chance = Random(f"person/{seed}")

    def handle(self, query: Example) -> Handled:
        """Let the model answer and check it. Where one of the agent's own tasks went wrong a person answers too.

        Each answer is a trajectory of its own with the quality that its check gave it; a wrong everyday answer stays as
        it is, for nobody takes the trouble.
        """
        with self._engine.trajectory(query.prompt, source="agent", metadata={"kind": query.skill}) as t:
            answer = t.generate().text
            right = answer == query.response
            t.step("check", reward=float(right))
        self._engine.feedback(t.id, float(right), giver="check")
        asks_person = not right and query.skill in AGENT_TASKS
        if asks_person:
            self._ask_person(query)
        return Handled(query, right, asks_person)

    def _ask_person(self, query: Example) -> None:
        answer = query.response if self._chance.random() < PERSON_IS_RIGHT else self._slip(query)
        right = answer == query.response
        with self._engine.trajectory(query.prompt, source="human", metadata={"kind": query.skill}) as t:
            t.respond(answer)
            t.step("check", reward=float(right))
        self._engine.feedback(t.id, float(right), giver="check")

    def _slip(self, query: Example) -> str:
        """The answer to another query of the same task."""
        while True:
            [other] = self._world.sample(query.skill, 1, self._chance.randrange(2**31))
            if other.response != query.response:
                return other.response
