"""The fast loop: a record is checked and handed over in microseconds; nothing here waits for disk, model or
training.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from sona.checks import largest_token
from sona.errors import DimensionMismatchError, UnknownTokenError
from sona.types import Feedback, Trajectory


class Inbox(Protocol):
    """The way into the store; :class:`sona.storage.writer.Writer` is one."""

    @property
    def last_s(self) -> float:
        """When a record last came or waited, by the monotonic clock."""

    def put(self, record: Trajectory | Feedback, feedback: Feedback | None = None) -> bool:
        """Hand over without waiting, both or none; False where the bound on what is not yet durable is reached."""


class FastLoop:
    """Checks against what only this store and model know, then hands over. Safe to call from any thread.

    Args:
        inbox: takes the records.
        width: of the store's embeddings; None until one has come.
        vocab_size: of the served model; None without one, when token ids can't be checked.
    """

    def __init__(self, inbox: Inbox, *, width: int | None, vocab_size: int | None) -> None:
        self._inbox, self._vocab_size = inbox, vocab_size
        self.width = width
        """Of the store's embeddings; None until one has come."""
        self._last_asked_s = time.monotonic()
        self.on_feedback: Callable[[Feedback], None] | None = None
        """Told of each feedback that was taken; must neither wait nor raise."""
        self._on_trajectory: Callable[[Trajectory], None] | None = None

    def tell_trajectories(self, listener: Callable[[Trajectory], None]) -> None:
        """From now on ``listener`` is told of each trajectory that was taken; it must neither wait nor raise."""
        self._on_trajectory = listener

    def asked(self) -> None:
        """The host asks the model."""
        self._last_asked_s = time.monotonic()

    @property
    def quiet_s(self) -> float:
        """For how long the host has neither recorded, rated nor asked: seconds."""
        last_s = max(self._last_asked_s, self._inbox.last_s)
        return time.monotonic() - last_s

    def record(self, trajectory: Trajectory, quality: Feedback | None = None, is_news: bool = True) -> bool:
        """Hand a trajectory over, with its feedback if there is one already: both or none. Of a feedback that is no
        news, such as an imported one, the listener is not told.

        Returns:
            Whether it was taken. False where more is waiting for the disk than the bound allows: recording never blocks
            the host.

        Raises:
            DimensionMismatchError: its embedding has another width than those before it.
            UnknownTokenError: a token id is outside the served model's vocabulary.
        """
        embedding, width = trajectory.embedding, None
        if embedding is not None:
            width = len(embedding) // 4
            if width != self.width and self.width is not None:
                raise _other_width(width, self.width)
        # Told by the trajectory: a look at the ids, in numpy, was a third of a call whose code is in no cache (ADR 6).
        if self._vocab_size is not None and trajectory.largest_token >= self._vocab_size:
            raise _unknown_token(trajectory, self._vocab_size)
        taken = self._inbox.put(trajectory, quality)
        if taken and width is not None:
            self.width = width
        if taken and self._on_trajectory is not None:
            self._on_trajectory(trajectory)
        if taken and is_news and quality is not None and self.on_feedback is not None:
            self.on_feedback(quality)
        return taken

    def feedback(self, feedback: Feedback) -> bool:
        """Hand a feedback over; as :meth:`record`."""
        taken = self._inbox.put(feedback)
        if taken and self.on_feedback is not None:
            self.on_feedback(feedback)
        return taken


def _other_width(width: int, expected: int) -> DimensionMismatchError:
    return DimensionMismatchError(
        f"embedding of width {width}; this store's have {expected}: use the same embedder, or another store"
    )


def _unknown_token(trajectory: Trajectory, vocab_size: int) -> UnknownTokenError:
    name = "prompt_ids"
    if trajectory.prompt_ids is None or largest_token(trajectory.prompt_ids) < vocab_size:
        name = "response_ids"
    return UnknownTokenError(
        f"{name}: id {trajectory.largest_token}; this model knows 0 to {vocab_size - 1}: use its own tokenizer"
    )
