"""Whether an attempt will succeed, foretold from the attempts before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.bank.attempts import Attempt, seen_before
from benchmarks.bank.embedding import Embedding
from benchmarks.bank.forecasts import Chances, auroc, brier
from sona.bank.bank import Bank
from sona.bank.pattern import Member
from sona.bank.vectors import unit_rows
from sona.checks import Float32
from sona.config import BankConfig
from sona.errors import InvalidInputError

CYCLE = 20
"""Attempts between two cycles."""
NEIGHBOURS = 10


@dataclass(frozen=True, eq=False)
class Foretold:
    """For each attempt after the first cycle, the quality that was expected of it: (n - CYCLE,)."""

    bank: Chances
    base: Chances
    """Mean quality of all attempts before."""
    knn: Chances
    """Mean quality of the nearest attempts before, by cosine."""


def figures(attempts: Sequence[Attempt], embed: Embedding, seed: int) -> dict[str, float]:
    """What is reported of the attempts whose query has an embedding, those of the first cycle aside.

    Raises:
        InvalidInputError: there is no second cycle.
    """
    embedded = zip(attempts, embed([attempt.query for attempt in attempts]), strict=True)
    known = [(attempt, row) for attempt, row in embedded if row is not None]
    if len(known) <= CYCLE:
        raise InvalidInputError(f"attempts: {len(known)}; more than a cycle of {CYCLE} is needed, give more data")
    tried = [attempt for attempt, _ in known]
    foretold = replay(tried, np.stack([row for _, row in known]), seed)
    succeeded = np.array([attempt.succeeded for attempt in tried[CYCLE:]])
    return {
        "attempts": float(len(succeeded)),
        "successes": float(succeeded.mean()),
        "seen_before": float(np.mean(seen_before(tried, CYCLE)[CYCLE:])),
        "auroc": auroc(foretold.bank, succeeded),
        "base": auroc(foretold.base, succeeded),
        "knn": auroc(foretold.knn, succeeded),
        "brier.bank": brier(foretold.bank, succeeded),
        "brier.base": brier(foretold.base, succeeded),
        "brier.knn": brier(foretold.knn, succeeded),
    }


def replay(attempts: Sequence[Attempt], embeddings: Float32, seed: int) -> Foretold:
    """The attempts again, in cycles; all of a cycle are foretold from the same past, which ends before the cycle.

    ``embeddings`` (n, width) are those of the queries.
    """
    quality = np.array([attempt.quality for attempt in attempts])
    bank, by_bank, by_base, by_knn = Bank(), [], [], []
    for cycle, start in enumerate(range(0, len(attempts), CYCLE)):
        now = slice(start, start + CYCLE)
        if start:
            by_bank.append(bank.predict(embeddings[now]))
            by_base.append(np.full(len(embeddings[now]), quality[:start].mean()))
            by_knn.append(nearest_mean(embeddings[now], embeddings[:start], quality[:start]))
        tried = zip(attempts[now], embeddings[now], strict=True)
        members = [_member(start + place, attempt, row) for place, (attempt, row) in enumerate(tried)]
        bank = bank.learn(members, BankConfig(), cycle=cycle + 1, seed=seed).bank
    return Foretold(np.concatenate(by_bank), np.concatenate(by_base), np.concatenate(by_knn))


def nearest_mean(queries: Float32, past: Float32, quality: Chances) -> Chances:
    """(m,) mean quality of the :data:`NEIGHBOURS` of each of ``queries`` (m, width) in the ``past`` (n, width).

    Of the equally near, the earliest count.
    """
    cosines = unit_rows(queries) @ unit_rows(past).T  # (m, n)
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :NEIGHBOURS]
    return np.asarray(quality[nearest].mean(1))


def _member(place: int, attempt: Attempt, embedding: Float32) -> Member:
    return Member(
        trajectory_id=str(place),
        embedding=embedding,
        quality=attempt.quality,
        prompt=attempt.query,
        response=attempt.response,
        routes=attempt.routes,
    )
