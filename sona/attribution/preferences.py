"""What a reviewer has set, and what scoring has seen: kept in the store, so that any process can show it."""

from __future__ import annotations

import math
from typing import Protocol

import msgspec

from sona.checks import check_number
from sona.errors import StoreCorruptError
from sona.types import Record

THRESHOLD, FLOOR, ALTERNATES, SEEN = "review/threshold", "review/floor", "review/alternates", "review/seen"
LEAST, MOST = 1e-12, 1e12
"""Nats between which a threshold lies."""


class StateStore(Protocol):
    """Values kept beside the records."""

    def read_state(self, name: str) -> bytes | None:
        """A value; None where there is none."""

    def write_state(self, name: str, value: bytes) -> None:
        """Replace it, durably."""


class Seen(Record, kw_only=True, omit_defaults=False):
    """What background scoring has seen since the engine was opened."""

    turns: int = 0
    """Turns that were scored."""
    responses: int = 0
    """Responses in them."""
    above: int = 0
    """... whose divergence was at least the threshold."""
    known: int = 0
    """... of these, candidates already."""
    timeless: int = 0
    """... without a time, which can't become candidates."""
    largest: float | None = None
    """The largest divergence, in nats; None before the first."""
    failed: int = 0
    """Turns that could not be scored."""
    dropped: int = 0
    """Turns that were not scored, as too many waited."""
    failed_alternates: int = 0
    last_error: str = ""
    waiting: int = 0
    """Turns that wait."""


class Preferences:
    """The threshold, and whether alternates are asked for."""

    def __init__(self, store: StateStore) -> None:
        self._store = store

    @property
    def floor(self) -> float | None:
        """The noise floor that the last scorer measured, in nats; None where none ever ran on this store."""
        return self._number(FLOOR)

    def set_floor(self, nats: float) -> None:
        """Keep what a scorer measured, durably; nothing is written where it is the same."""
        nats = check_number(nats, "noise floor", 0.0)
        if self.floor != nats:
            self._store.write_state(FLOOR, repr(nats).encode())

    @property
    def threshold(self) -> float:
        """Nats from which a response is a candidate: what was set, or else the noise floor, or else 0."""
        own = self._number(THRESHOLD)
        return own if own is not None else self.floor or 0.0

    def set_threshold(self, nats: float) -> float:
        """Keep a threshold, durably, within its bounds; returns it."""
        nats = min(max(check_number(nats, "threshold", 0.0), LEAST), MOST)
        self._store.write_state(THRESHOLD, repr(nats).encode())
        return nats

    def scale_threshold(self, tenfold: int) -> float:
        """Multiply the threshold by ten so many times, and keep it; one of 0 begins at 1e-3 nats."""
        return self.set_threshold((self.threshold or 1e-3) * 10.0**tenfold)

    @property
    def alternates(self) -> bool:
        """Whether new candidates get an answer without memories."""
        return self._store.read_state(ALTERNATES) == b"on"

    def set_alternates(self, wanted: bool) -> None:
        """Keep that, durably."""
        self._store.write_state(ALTERNATES, b"on" if wanted else b"off")

    @property
    def seen(self) -> Seen:
        """What scoring has seen."""
        value = self._store.read_state(SEEN)
        try:
            return Seen() if value is None else msgspec.json.decode(value, type=Seen)
        except msgspec.DecodeError as error:
            raise StoreCorruptError(f"state {SEEN!r}: {error}; a newer sona wrote it, or it is damaged") from None

    def keep_seen(self, seen: Seen) -> None:
        """Keep it, durably."""
        self._store.write_state(SEEN, msgspec.json.encode(seen))

    def _number(self, name: str) -> float | None:
        value = self._store.read_state(name)
        if value is None:
            return None
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not 0.0 <= number < math.inf:
            raise StoreCorruptError(f"state {name!r}: {value!r} is no number of nats; set the threshold anew")
        return number
