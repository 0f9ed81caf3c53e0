"""An episode: contexts with opposite right answers, feedbacks on answers given there, and what each of them moved."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

STILL = 0.1
"""The others may move by so much of what the own context moved by."""
RIGHT, WRONG = 0.9, 0.1
"""Quality of an answer; the usual one of a context is in the middle."""


@dataclass(frozen=True)
class Step:
    """One feedback."""

    context: int
    x: Floats
    """(width,) the query."""
    answer: int
    """1 or -1: along the axis, or against it."""
    quality: float

    @property
    def way(self) -> int:
        """Where along the axis the query's output is to move: to the answer if it was right, away if it was wrong."""
        return self.answer if self.quality > 0.5 else -self.answer


@dataclass(frozen=True)
class Episode:
    """Feedbacks in the order of arrival, and queries of each context that no feedback is about."""

    steps: list[Step]
    probes: list[Floats]
    """A context each, (queries, width)."""
    axis: Floats
    """(width,) of norm 1: the right answer of every other context lies along it, of the others against it."""
    earlier: Floats
    """(queries, width) of all contexts, without labels: what a reasoning bank has seen before."""


def draw(seed: int, contexts: int, feedbacks: int, width: int = 256, noise: float = 0.5) -> Episode:
    """Contexts are random directions; a query lies about its own at a distance of ``noise``. Half of the answers are
    right.
    """
    rng = np.random.default_rng(seed)
    centres, axis = _units(rng.normal(size=(contexts, width))), _units(rng.normal(size=(1, width)))[0]

    def queries(context: int, count: int) -> Floats:
        return _units(centres[context] + noise * rng.normal(size=(count, width)) / np.sqrt(width))

    order = np.concatenate([rng.permutation(contexts) for _ in range(-(-feedbacks // contexts))])[:feedbacks]
    right = {context: 1 if context % 2 == 0 else -1 for context in range(contexts)}
    steps = []
    for context in order.tolist():
        is_right = bool(rng.random() < 0.5)
        answer = right[context] if is_right else -right[context]
        steps.append(Step(context, queries(context, 1)[0], answer, RIGHT if is_right else WRONG))
    earlier = np.concatenate([queries(context, 40) for context in range(contexts)])
    return Episode(steps, [queries(context, 5) for context in range(contexts)], axis, earlier)


def _units(rows: Floats) -> Floats:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


@dataclass(frozen=True)
class Shares:
    """Of the feedbacks, from 0 to 1; NaN where there was none of the kind."""

    rose: float
    """Of those on right answers: the answer became likelier on its own context."""
    fell: float
    """Of those on wrong answers: it became less likely."""
    still: float
    """Of all: the other contexts moved by less than :data:`STILL` of that, each of them."""
    right_way: float
    """Of all: moved the right way on its own context, and the others still."""


def shares(steps: list[tuple[int, int, bool]], moves: Floats) -> Shares:
    """What became of the feedbacks.

    Args:
        steps: for each its context, the sign of the way that it should move there, and whether the answer was right.
        moves: (feedbacks, contexts) by how much the answer along the axis became likelier in each context.
    """
    own = np.array([move[context] * way for move, (context, way, _) in zip(moves, steps, strict=True)])
    others = np.array(
        [np.abs(np.delete(move, context)).max() for move, (context, _, _) in zip(moves, steps, strict=True)]
    )
    right = np.array([is_right for _, _, is_right in steps])
    moved, still = own > 0, others < STILL * np.abs(own)
    return Shares(_share(moved[right]), _share(moved[~right]), _share(still), _share(moved & still))


def _share(flags: npt.NDArray[np.bool_]) -> float:
    return float(flags.mean()) if len(flags) else float("nan")
