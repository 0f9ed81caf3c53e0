"""The filter that a reviewer types: ``source:agent memory:k1 nats>2.5 state:new word``."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from sona.candidate import STATES, State
from sona.checks import did_you_mean
from sona.errors import InvalidInputError
from sona.reviewed import Shown

FIELDS = ("source", "memory", "state", "trajectory", "nats")
_NATS = re.compile(r"nats(>=|<=|>|<)(.*)")
_FIELD = re.compile(r"([a-z]+):(.*)", re.DOTALL)


@dataclass(frozen=True)
class Filter:
    """Which candidates are meant: those that fit all of it. The empty one is all."""

    source: str | None = None
    memory: str | None = None
    """A memory that mattered, by its key."""
    state: State | None = None
    trajectory: str | None = None
    above: float = -math.inf
    """Nats that the divergence must reach."""
    below: float = math.inf
    """Nats that it must not exceed."""
    words: tuple[str, ...] = ()
    """Each is in the response, the context's end or the alternate, whatever its case."""

    def fits(self, one: Shown) -> bool:
        """Whether a candidate is meant."""
        if self.source is not None and one.source != self.source:
            return False
        if self.trajectory is not None and one.trajectory_id != self.trajectory:
            return False
        if self.state is not None and one.state != self.state:
            return False
        if self.memory is not None and all(each.key != self.memory for each in one.mattered):
            return False
        text = f"{one.response}\n{one.context_tail}\n{one.alternate or ''}".casefold()
        return self.above <= one.divergence <= self.below and all(word.casefold() in text for word in self.words)

    def of(self, shown: Sequence[Shown]) -> list[Shown]:
        """Those that are meant."""
        return [one for one in shown if self.fits(one)]


def parse_filter(text: str) -> Filter:
    """A filter from its words, which may be quoted.

    Raises:
        InvalidInputError: an unknown field (the nearest known one is named), a number that is none, an open quote.
    """
    try:
        parts = shlex.split(text)
    except ValueError as error:
        raise InvalidInputError(f"filter {text!r}: {error}; close the quote") from None
    found: dict[str, str] = {}
    bounds = {"above": -math.inf, "below": math.inf}
    words: list[str] = []
    for part in parts:
        if (nats := _NATS.fullmatch(part)) is not None:
            bounds["above" if nats[1].startswith(">") else "below"] = _number(nats[2], part)
        elif (field := _FIELD.fullmatch(part)) is not None:
            found[_known(field[1], part)] = field[2]
        else:
            words.append(part)
    state = found.get("state")
    if state is not None and state not in STATES:
        raise InvalidInputError(f"filter state:{state}; one of {', '.join(STATES)} is allowed")
    return Filter(
        source=found.get("source"),
        memory=found.get("memory"),
        trajectory=found.get("trajectory"),
        state=state,
        above=bounds["above"],
        below=bounds["below"],
        words=tuple(words),
    )


def _known(name: str, part: str) -> str:
    if name not in FIELDS[:-1]:
        raise InvalidInputError(
            f"filter {part!r}: no such field{did_you_mean(name, FIELDS) or ';'} source:, memory:, trajectory:, state:, "
            "nats> and nats< are allowed; a word with a colon goes in none of them, so leave its colon out"
        )
    return name


def _number(text: str, part: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise InvalidInputError(f"filter {part!r}: a number of nats is needed, such as nats>2.5")
    return number
