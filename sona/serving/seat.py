"""One answer that is being written, as the batch sees it."""

from __future__ import annotations

from dataclasses import dataclass, field

from sona.ports import FastRow
from sona.serving.adapters import Adapter
from sona.serving.choice import Chooser
from sona.serving.request import Request, Voice
from sona.types import Token


@dataclass(eq=False)
class Seat:
    """A request in the batch."""

    request: Request
    chooser: Chooser
    todo: list[int]
    """Tokens that the model has not read yet: of the prompt, then the last one chosen."""
    voice: Voice | None = None
    """None until it is its turn to be read."""
    slot: int = -1
    """Its place in the batch's cache."""
    read: int = 0
    """Tokens that the cache holds of it."""
    answer: list[Token] = field(default_factory=list)

    @property
    def adapter(self) -> Adapter | None:
        """Its adapter, once that is known."""
        return None if self.voice is None else self.voice.adapter

    @property
    def fast(self) -> FastRow | None:
        """Its fast weights, once they are known."""
        return None if self.voice is None else self.voice.fast

    @property
    def writing(self) -> bool:
        """Whether the prompt has been read."""
        return bool(self.answer)
