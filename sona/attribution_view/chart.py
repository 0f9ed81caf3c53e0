"""What the table and the pictures show: memories x responses, in whichever way they were scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from sona.attribution.ablate import Ablated
from sona.attribution.context import Context
from sona.attribution.matrix import HEAVIEST, HEAVY, Float64, MemoryMatrix, Weighed
from sona.attribution.redundancy import Redundancy, redundancies
from sona.attribution.totals import Totals

Method = Literal["loo", "strip_all", "ablate"]
State = Literal["value", "noise", "after", "failed"]
TITLES: dict[Method, str] = {
    "loo": "each memory left out by itself",
    "strip_all": "all memories left out at once",
    "ablate": "memories left out at random",
}
NOT_REACHED = "not reached"


@dataclass(frozen=True)
class Column:
    """A response."""

    number: int
    """Among the responses of the context, from 1."""
    index: int
    """Its segment in the context."""
    text: str
    tokens: int
    """Without thinking, at least 1."""


@dataclass(frozen=True, eq=False)
class Line:
    """A memory, or all of them at once."""

    key: str
    """Empty: all memories at once."""
    text: str
    nats: Float64
    """Signed, float64 (responses,): above 0 it made the response likelier; NaN where there is no score."""
    before: npt.NDArray[np.bool_]
    """(responses,) whether it stands before the response, so that it can have changed it at all."""
    failure: str = ""
    """Why there are no scores, or not all."""

    @property
    def weight(self) -> float:
        """Nats: the sum over the responses, negative ones left out; NaN where a score is missing."""
        return float(np.maximum(self.nats, 0.0).sum())


@dataclass(frozen=True, eq=False)
class Chart:
    """Every memory and every response."""

    method: Method
    unit: str
    """Of the values, for a person."""
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    """The memories, in the order in which they surface; none where all were left out at once."""
    together: Line | None
    """All memories at once, where that was asked for."""
    floors: Float64
    """float64 (responses,): nothing below it is a finding."""
    warnings: tuple[Redundancy, ...] = ()
    """Responses where single memories explain too little."""
    note: str = ""
    """What is missing because it was stopped; empty where nothing is."""

    @property
    def floor(self) -> float:
        """The highest of the noise floors, in nats; 0 without responses."""
        return float(self.floors.max(initial=0.0))

    @property
    def most(self) -> float:
        """The largest value, whatever its sign, of all that is no noise; 0 where there is none."""
        values = np.abs(np.stack([line.nats for line in self.all_lines]))
        found = values[np.isfinite(values) & (values > self.floors)]
        return float(found.max(initial=0.0))

    @property
    def all_lines(self) -> tuple[Line, ...]:
        """The memories, and last all of them at once."""
        return self.lines if self.together is None else (*self.lines, self.together)

    @property
    def failed(self) -> tuple[Line, ...]:
        """Those that failed, rather than were not reached."""
        return tuple(line for line in self.all_lines if line.failure not in ("", NOT_REACHED))

    @property
    def ranked(self) -> tuple[Line, ...]:
        """The heaviest first, those without a weight last."""
        return tuple(sorted(self.lines, key=lambda line: (np.isnan(line.weight), -line.weight)))

    def state(self, line: Line, place: int) -> State:
        """What there is to show of a line at a response."""
        if not line.before[place]:
            return "after"
        value = line.nats[place]
        return "failed" if np.isnan(value) else "noise" if abs(value) <= self.floors[place] else "value"

    def is_finding(self, line: Line) -> bool:
        """Whether all its scores are there, and it made some response likelier by more than the noise."""
        return not np.isnan(line.weight) and bool((line.nats > self.floors).any())

    def per_token(self, line: Line) -> float:
        """The weight in nats for each token of the responses that it could change; 0 where there are none."""
        tokens = sum(column.tokens for column, before in zip(self.columns, line.before, strict=True) if before)
        return line.weight / tokens if tokens else 0.0

    @property
    def dependence(self) -> Float64:
        """What memories gave each response, float64 (responses,): all at once where that is known, else the sum of
        what is; NaN where nothing is.
        """
        single = np.full((1, len(self.columns)), np.nan)
        if self.lines:
            single = np.stack([np.where(line.before, np.maximum(line.nats, 0.0), np.nan) for line in self.lines])
        untouched = ~np.any([line.before for line in self.all_lines], axis=0)
        total = np.where(np.isnan(single).all(axis=0), np.nan, np.nansum(single, axis=0))
        if self.together is not None:
            total = np.where(np.isnan(self.together.nats), total, np.maximum(self.together.nats, 0.0))
        return np.asarray(np.where(untouched, 0.0, total), dtype=np.float64)

    def heaviest(self, count: int = HEAVIEST, above: float = HEAVY) -> list[Weighed]:
        """The memories of the largest weights with the responses (by their place) that each gave more than ``above``
        nats, the most first; none that is all noise.
        """
        found = []
        for line in self.ranked[:count]:
            if self.is_finding(line):
                places = [at for at, value in enumerate(line.nats) if value > max(above, self.floors[at])]
                places.sort(key=lambda at: -line.nats[at])
                found.append(Weighed(line.key, line.weight, tuple((at, float(line.nats[at])) for at in places)))
        return found

    def number_of(self, segment: int) -> int:
        """Of the response at a segment of the context."""
        return next(column.number for column in self.columns if column.index == segment)


def matrix_chart(context: Context, matrix: MemoryMatrix) -> Chart:
    """Of each memory by itself, and all at once where that was asked for."""
    responses = [(response.index, response.tokens) for response in matrix.responses]
    columns = _columns(context, responses)
    blank = np.full(len(columns), np.nan)
    lines = []
    for key in matrix.keys:
        row = matrix.rows.get(key)
        nats, failure = (blank, NOT_REACHED) if row is None else (row.nats, row.failure)
        lines.append(_line(context, key, columns, nats, failure))
    whole = matrix.strip_all
    together = None if whole is None else _together(context, columns, whole.nats, whole.failure)
    warnings = () if whole is None else tuple(redundancies(matrix))
    missing = len(matrix.missing)
    note = f"{missing} of {len(matrix.keys)} memories were not reached" if missing else ""
    floors = np.full(len(columns), matrix.noise_floor)
    return Chart("loo", "nats", columns, tuple(lines), together, floors, warnings, note)


def ablated_chart(context: Context, ablated: Ablated, missing: int = 0) -> Chart:
    """Of random ablations, of which so many were not reached."""
    columns = _columns(context, list(zip(ablated.responses, ablated.tokens, strict=True)))
    runs = len(ablated.kept)
    lines = []
    for key, nats in zip(ablated.keys, ablated.weights, strict=True):
        failure = _why(ablated, missing) if np.isnan(nats).any() else ""
        lines.append(_line(context, key, columns, nats, failure))
    note = f"{missing} of {runs} variants were not reached" if missing else ""
    return Chart("ablate", "nats of log-odds", columns, tuple(lines), None, ablated.noise_floor, note=note)


def together_chart(context: Context, totals: Totals, noise_floor: float, missing: int = 0) -> Chart:
    """Of one variant, without any memory."""
    columns = _columns(context, list(zip(totals.responses, totals.tokens, strict=True)))
    failure = NOT_REACHED if missing else totals.failures.get(0, "")
    together = _together(context, columns, totals.effects[0], failure)
    floors = np.full(len(columns), noise_floor)
    return Chart("strip_all", "nats", columns, (), together, floors, note="nothing was done yet" if missing else "")


def _why(ablated: Ablated, missing: int) -> str:
    if missing > len(ablated.failures):
        return NOT_REACHED
    reason = next(iter(ablated.failures.values()), "unknown")
    return f"{len(ablated.failures)} of {len(ablated.kept)} variants failed: {reason}"


def _columns(context: Context, responses: Sequence[tuple[int, int]]) -> tuple[Column, ...]:
    numbers = {index: number for number, index in enumerate(context.responses, 1)}
    return tuple(Column(numbers[index], index, context.segments[index].text, tokens) for index, tokens in responses)


def _line(context: Context, key: str, columns: Sequence[Column], nats: Float64, failure: str) -> Line:
    first = context.first_of(key)
    assert first is not None
    before = np.array([first < column.index for column in columns], dtype=bool)
    return Line(key, context.segments[first].text, nats, before, failure)


def _together(context: Context, columns: Sequence[Column], nats: Float64, failure: str) -> Line:
    first = min(index for key in context.keys if (index := context.first_of(key)) is not None)
    before = np.array([first < column.index for column in columns], dtype=bool)
    return Line("", "", nats, before, failure)
