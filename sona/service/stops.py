"""Texts at which an answer ends."""

from __future__ import annotations

from collections.abc import Sequence


class StopFinder:
    """Passes on a text that comes piece by piece, up to the first of some stop strings.

    That is the one that is complete first, and of those that are so at the same character the longest: whatever the
    pieces are, the outcome is the same. What may be the beginning of a stop string is held back.

    >>> finder = StopFinder(["END"])
    >>> finder.feed("the E"), finder.feed("ND, it was"), finder.stopped
    ('the ', '', True)
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False
        """Whether a stop string was found: nothing more is passed on."""

    def feed(self, piece: str) -> str:
        """What is certain now."""
        if self.stopped:
            return ""
        text = self._held + piece
        ends = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            self.stopped, self._held = True, ""
            return text[: min(ends)[1]]
        kept = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def rest(self) -> str:
        """What is still held back when the text has ended."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of ``text`` begin ``stop``."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
