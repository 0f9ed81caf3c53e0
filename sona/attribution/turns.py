"""What scoring tells of a turn: how much each of its responses depends on memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from sona.candidate import Candidate, Mattered
from sona.checks import Int32
from sona.types import Reply, Trajectory


@dataclass(frozen=True, eq=False)
class ScoredResponse:
    """One response of a turn, with its memories and without."""

    at_ns: int
    """When it was given, in nanoseconds since 1970; 0 where nobody knows."""
    divergence: float
    """Signed nats: log p(response | context) - log p(response | context without memories), summed over its tokens."""
    context_ids: Int32
    """(c,) the context with its memories, up to the opened assistant turn."""
    bare_ids: Int32
    """(b,) the same through the same chat template with all memories stripped."""
    continuation_ids: Int32
    """(t,) the response, with its end token."""
    response: str
    """Its text."""
    context_tail: str = ""
    """The end of the context as text, for a person."""
    entry: int = 0
    """Its place among the conversation's entries, from 0."""
    mattered: Sequence[Mattered] = ()
    """Memories above the scorer's bound, heaviest first."""

    def as_candidate(self, trajectory: Trajectory, tail: int) -> Candidate:
        """As a new candidate, with at most ``tail`` characters of the context.

        Raises:
            InvalidInputError: the time is missing, or a number or token id can't be stored.
        """
        return Candidate(
            trajectory_id=trajectory.id,
            at_ns=self.at_ns,
            divergence=self.divergence,
            tokens=len(self.continuation_ids),
            entry=self.entry,
            source=trajectory.source,
            response=self.response,
            context_tail=self.context_tail[-tail:] if tail else "",
            context_ids=self.context_ids,
            bare_ids=self.bare_ids,
            continuation_ids=self.continuation_ids,
            mattered=self.mattered,
        )


class TurnScorer(Protocol):
    """Scores recorded turns. Called from one thread."""

    @property
    def noise_floor(self) -> float:
        """Nats up to which its backend tells a divergence of nothing: what was measured, not what is hoped."""

    def score_turn(self, trajectory: Trajectory) -> Sequence[ScoredResponse]:
        """The responses of a turn that are new in it, with all memories stripped; [] where it has no memories, or no
        response. What it raises costs this turn alone.
        """


class Answering(Protocol):
    """The served model, as far as an alternate answer takes it."""

    def generate(
        self,
        prompt_ids: Int32,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
    ) -> Reply:
        """One answer."""
