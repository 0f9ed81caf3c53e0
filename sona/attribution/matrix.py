"""Memories x responses: how much each memory that was left out took from each response."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
IMPORTANT, HEAVY = 0.01, 0.1  # nats
HEAVIEST = 5
T = TypeVar("T")


@dataclass(frozen=True)
class Response:
    """A column."""

    index: int
    """Its segment in the context."""
    tokens: int
    """Without thinking."""
    at_ns: int | None = None
    """When it was given, in nanoseconds since 1970."""


@dataclass(frozen=True, eq=False)
class Row:
    """One memory, done or failed."""

    key: str
    nats: Float64
    """Signed, float64 (responses,): 0 where the memory came after the response or stands in another chunk of a long
    context, NaN where there is no score."""
    failure: str = ""
    """Why there are none, or not all; empty where there are."""


@dataclass(frozen=True)
class Weighed:
    """One of the heaviest memories."""

    key: str
    weight: float
    """Nats over all responses."""
    responses: tuple[tuple[int, float], ...]
    """Columns and nats of those that it changed by more than :data:`HEAVY`, the most first."""


@dataclass(frozen=True, eq=False)
class MemoryMatrix:
    """What is known by now. Rows that failed or were not reached are NaN, never zeros."""

    keys: tuple[str, ...]
    """The memories, in the order in which they surface."""
    responses: tuple[Response, ...]
    rows: Mapping[str, Row]
    """By key: those that are done or have failed."""
    noise_floor: float = 0.0
    """In nats: nothing below it is a finding."""
    cancelled: bool = False
    """Whether it was told to stop before all rows were done."""
    strip_all: Row | None = None
    """All memories left out at once, where that was asked for."""
    version: str = ""
    """The version of the model that scored all of it; empty where it has none, or nobody knows."""

    @property
    def signed(self) -> Float64:
        """Nats, float64 (memories, responses): above 0 the memory made the response likelier."""
        blank = np.full(len(self.responses), np.nan)
        rows = [self.rows[key].nats if key in self.rows else blank for key in self.keys]
        return np.stack(rows) if rows else np.zeros((0, len(self.responses)))

    @property
    def divergence(self) -> Float64:
        """Nats, float64 (memories, responses): negative totals are 0."""
        return np.maximum(self.signed, 0.0)  # NaN stays

    @property
    def nats_per_token(self) -> Float64:
        """Signed, float64 (memories, responses)."""
        return self.signed / np.asarray([response.tokens for response in self.responses], dtype=np.float64)

    @property
    def weights(self) -> Float64:
        """The memories' weights in nats, float64 (memories,): the row sums; NaN where a row is not whole."""
        return np.asarray(self.divergence.sum(axis=1), dtype=np.float64)

    @property
    def dependence(self) -> Float64:
        """The responses' dependence on memories in nats, float64 (responses,): the column sums of what is known."""
        return np.asarray(np.nansum(self.divergence, axis=0), dtype=np.float64)

    @property
    def unexplained(self) -> Float64 | None:
        """Nats, float64 (responses,): what leaving out all memories takes beyond the sum of what each takes by itself.
        Much above the noise floor there are memories that say the same: without one of them the other still helps.
        None where ``strip_all`` was not asked for.
        """
        if self.strip_all is None:
            return None
        return np.maximum(self.strip_all.nats, 0.0) - self.dependence

    @property
    def failed(self) -> dict[str, str]:
        """Why, by key."""
        return {key: row.failure for key, row in self.rows.items() if row.failure}

    @property
    def missing(self) -> tuple[str, ...]:
        """Memories that were not reached."""
        return tuple(key for key in self.keys if key not in self.rows)

    def important_memories(self, response: int, above: float = IMPORTANT) -> list[tuple[str, float]]:
        """The memories that gave a response more than ``above`` nats, and more than the noise floor, the most first.

        Args:
            response: which column.
            above: in nats.
        """
        column = self.divergence[:, response]
        return _sorted(self.keys, column, max(above, self.noise_floor))

    def heaviest(self, count: int = HEAVIEST, above: float = HEAVY) -> list[Weighed]:
        """The memories of the largest weights, the heaviest first, each with the responses that it gave more than
        ``above`` nats; none whose weight is within the noise.
        """
        ranked = _sorted(self.keys, self.weights, self.noise_floor)[:count]
        divergence, columns = self.divergence, range(len(self.responses))
        return [
            Weighed(
                key, weight, tuple(_sorted(columns, divergence[self.keys.index(key)], max(above, self.noise_floor)))
            )
            for key, weight in ranked
        ]


def _sorted(names: Sequence[T], values: Float64, above: float) -> list[tuple[T, float]]:
    chosen = [(name, float(value)) for name, value in zip(names, values, strict=True) if value > above]
    return sorted(chosen, key=lambda pair: -pair[1])
