"""The candidates of a store that is looked at from outside: read beside whoever writes, written a moment at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from sona.candidate import State
from sona.config import Config
from sona.errors import StoreLockedError
from sona.reviewed import Page, Sent, Shown
from sona.reviewing import Review
from sona.storage.lock import owner_of
from sona.storage.store import LOCK, Store

T = TypeVar("T")


class StoreReviewer:
    """A :class:`sona.reviewed.Reviewer` on a store's folder. Nothing is held in between: each change opens the store
    for writing, is durable, and lets go of it, so an engine may start at any time and nothing is lost at a Ctrl-C.
    """

    def __init__(self, path: Path, config: Config, reviewer: str) -> None:
        """Raises StoreError where there is no store, or it can't be read."""
        self.name = str(path)
        """What a person knows it by."""
        self._path, self._config, self._reviewer = path, config, reviewer
        self._reader = Store.open(path, read_only=True)

    def page(self) -> Page:
        """What there is now, also of what an engine beside it has just found."""
        page = self._on(self._reader).page()
        owner = owner_of(self._path / LOCK)
        activity = "nobody writes to the store" if owner is None else f"process {owner} writes to the store"
        return msgspec.structs.replace(page, activity=activity)

    def get(self, id: int) -> Shown:
        """One candidate; UnknownIdError where there is none of this number."""
        return self._on(self._reader).get(id)

    def change(self, ids: Sequence[int], state: State, note: str = "") -> list[Shown]:
        """Bring all into a state, or none.

        Raises:
            StoreLockedError: an engine has the store open; it says how to review beside it.
        """
        return self._write(lambda review: review.change(ids, state, note))

    def set_threshold(self, nats: float) -> float:
        """Keep a threshold; raises as :meth:`change`."""
        return self._write(lambda review: review.set_threshold(nats))

    def set_alternates(self, wanted: bool) -> None:
        """Keep whether alternates are wanted by the engine that opens the store next; raises as :meth:`change`."""
        self._write(lambda review: review.set_alternates(wanted))

    def send(self) -> Sent:
        """Send what is approved; no engine can take it meanwhile. Raises as :meth:`change`, and SendError."""
        return self._write(lambda review: review.send())

    def confirm(self, ids: Sequence[int], *, trained: bool, note: str = "") -> list[Shown]:
        """Say what came of sent ones; raises as :meth:`change`."""
        return self._write(lambda review: review.confirm(ids, trained=trained, note=note))

    def close(self) -> None:
        """Let go of the files."""
        self._reader.close()

    def _on(self, store: Store) -> Review:
        return Review(store, self._config.candidates, reviewer=self._reviewer)

    def _write(self, work: Callable[[Review], T]) -> T:
        try:
            with Store.open(self._path, config=self._config.store) as writer:
                return work(self._on(writer))
        except StoreLockedError as error:
            raise StoreLockedError(
                f"{error}; if 'sona serve' has it, review through that: sona review --store {self._path} "
                "--url http://127.0.0.1:8000, or in a browser at /review"
            ) from None
