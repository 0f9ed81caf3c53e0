"""Conversations that grow turn by turn, each with what was read of it before, in a bounded amount of memory."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import msgspec
from msgspec.structs import replace

from sona.attribution.context import Context, Segment
from sona.attribution.leave_one_out import LeaveOneOut
from sona.attribution.live import LiveScorer
from sona.attribution.memories import WINDOW, responses_after

MOST = 1000
"""Conversations that are kept, however little each takes."""


class Conversation:
    """One that grows: what was read of it, and what its memories did to each response when that was new.

    Args:
        scorer: the model.
        most_bytes: keys and values that are kept between turns.
    """

    def __init__(self, scorer: LeaveOneOut, most_bytes: int) -> None:
        self.live = LiveScorer(scorer, live_bytes=most_bytes)
        """Goes on from what was read."""
        self._seen, self._digest = 0, digest_of(())  # segments that were noted, by their count and hash: no text
        self._nats: dict[str, dict[int, float]] = {}  # by memory and response

    def note(self, context: Context, response: int, nats: Mapping[str, float]) -> None:
        """What the memories of ``context``, by key, did to the response of this segment."""
        if digest_of(context.segments[: self._seen]) != self._digest:
            self._nats = {}
        self._seen, self._digest = len(context.segments), digest_of(context.segments)
        for key, value in nats.items():
            if response in responses_after(context, key)[:WINDOW]:  # nobody asks for others
                self._nats.setdefault(key, {})[response] = value

    def worth(self, context: Context) -> dict[str, float]:
        """What :func:`sona.attribution.memories.score_memory` would give of the memories for which each response of its
        window was noted: nats, by key.
        """
        found = {}
        for key in context.keys:
            following, nats = responses_after(context, key)[:WINDOW], self._nats.get(key, {})
            if following and all(response in nats for response in following):
                found[key] = sum(max(0.0, nats[response]) for response in following)
        return found


def digest_of(segments: Sequence[Segment]) -> bytes:
    """SHA-256 of segments but for their times, which who tells them later does not have."""
    return hashlib.sha256(msgspec.msgpack.encode([replace(one, at_ns=None) for one in segments])).digest()


class LiveConversations:
    """The conversations that were scored last. Safe to call from several threads; one at a time scores.

    Args:
        scorer: the model.
        most_bytes: keys and values that are kept between turns, of all conversations together; those of the one that
            was scored longest ago go first. While a conversation is scored, as much may come on top.
    """

    def __init__(self, scorer: LeaveOneOut, most_bytes: int) -> None:
        self._scorer, self._most_bytes = scorer, most_bytes
        self._known: OrderedDict[str, Conversation] = OrderedDict()  # the one that was scored last at the end
        self._using = threading.Lock()
        self._is_stale = False

    @contextmanager
    def of(self, name: str) -> Iterator[Conversation]:
        """The conversation of this name, for one thread until the block ends; what is scored in it is kept. Where it
        does not go on as it began it is read anew, and scored rightly.
        """
        try:
            with self._using:
                self._drop_stale()
                found = self._known.pop(name, None) or Conversation(self._scorer, self._most_bytes)
                self._known[name] = found
                try:
                    yield found
                finally:
                    self._shrink()
        finally:
            self._tidy()

    def forget(self) -> None:
        """Keep nothing of what was read so far. It never waits: what is being scored goes as that ends."""
        self._is_stale = True
        self._tidy()

    @property
    def kept_bytes(self) -> int:
        """Of all conversations."""
        return sum(one.live.kept_bytes for one in list(self._known.values()))

    def __len__(self) -> int:
        return len(self._known)

    def _tidy(self) -> None:
        """Who has it drops what is stale when it is done; if nobody has, it is dropped here."""
        while self._is_stale and self._using.acquire(blocking=False):
            try:
                self._drop_stale()
            finally:
                self._using.release()

    def _drop_stale(self) -> None:
        if self._is_stale:
            self._is_stale = False
            self._known.clear()

    def _shrink(self) -> None:
        while self._known and (len(self._known) > MOST or self.kept_bytes > self._most_bytes):
            self._known.popitem(last=False)
