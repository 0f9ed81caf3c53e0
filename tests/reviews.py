"""Turns with memories, what they depend on, and candidates: in as few words as a test can bear."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from sona.attribution.turns import ScoredResponse
from sona.candidate import Candidate, Mattered
from sona.checks import Int32
from sona.serving.local import LocalModel
from sona.tiny.lexicon import CLASSES
from sona.types import Message, Trajectory

NOW = 1_700_000_000_000_000_000
PEOPLE, PLACES = CLASSES["person"] + CLASSES["surname"], CLASSES["country"]


def fact(place: int) -> tuple[str, str]:
    """A person, and the country that only the memories say they visit."""
    return PEOPLE[place], PLACES[(7 * place + 3) % len(PLACES)]


def turn(place: int, source: str = "agent") -> Trajectory:
    """A question about a fact, with the memory that says it and one that does not, and the right answer."""
    (who, where), (other, elsewhere) = fact(place), fact((place + 11) % len(PEOPLE))
    told = f"{who} visits {where} , {other} visits {elsewhere}"
    return Trajectory(
        id=f"turn-{place}",
        source=source,
        created_ns=NOW + place,
        messages=[Message(role="system", content=told), Message(role="user", content=f"what is visited by {who}")],
        response=where,
    )


def candidate(place: int = 0, **more: object) -> Candidate:
    """Made up, without a model."""
    fields = {
        "trajectory_id": f"turn-{place}",
        "at_ns": NOW + place,
        "divergence": 1.0 + place,
        "tokens": 2,
        "source": "agent",
        "response": f"answer {place}",
        "context_tail": f"question {place}",
        "context_ids": [1, 2, 3],
        "bare_ids": [1, 3],
        "continuation_ids": [4, 5],
        "mattered": [Mattered(key=f"memory-{place}", nats=0.5)],
    }
    return Candidate(**{**fields, **more})  # type: ignore[arg-type]


class ModelScorer:
    """Scores a turn's answer by the served model itself; its memories are its system message."""

    noise_floor = 1e-4

    def __init__(self, model: LocalModel) -> None:
        self._model = model

    def score_turn(self, trajectory: Trajectory) -> Sequence[ScoredResponse]:
        bare = [message for message in trajectory.messages if message.role != "system"]
        response = self._model.encode_response(trajectory.response)
        with_ids, without_ids = (self._model.encode_prompt(messages) for messages in (trajectory.messages, bare))
        nats = self.log_prob(with_ids, response) - self.log_prob(without_ids, response)
        return [
            ScoredResponse(
                at_ns=trajectory.created_ns,
                divergence=nats,
                context_ids=with_ids,
                bare_ids=without_ids,
                continuation_ids=response,
                response=trajectory.response,
                context_tail=" / ".join(message.content for message in trajectory.messages),
                mattered=[Mattered(key=trajectory.messages[0].content, nats=nats)],
            )
        ]

    def log_prob(self, prompt: Int32, response: Int32) -> float:
        """Nats of the response."""
        ids = np.concatenate([prompt, response])
        places = range(len(prompt), len(ids))
        return float(self._model.score(ids, places, prompt_tokens=len(prompt)).log_probs.sum())


class ToldScorer:
    """Says what a test says, by the turn's id."""

    noise_floor = 0.01

    def __init__(self, says: Callable[[Trajectory], Sequence[ScoredResponse]]) -> None:
        self.score_turn = says


def dependence(place: int = 0, nats: float = 1.0, at_ns: int | None = None) -> ScoredResponse:
    """Made up, without a model."""
    return ScoredResponse(
        at_ns=NOW + place if at_ns is None else at_ns,
        divergence=nats,
        context_ids=np.asarray([1, 2, 3], np.int32),
        bare_ids=np.asarray([1, 3], np.int32),
        continuation_ids=np.asarray([4, 5], np.int32),
        response=f"answer {place}",
    )
