"""Whether a pattern's id goes on meaning the same while domains that it has nothing to do with arrive."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from benchmarks.bank.agreement import Labels
from benchmarks.bank.methods import by_faiss
from sona.bank.bank import Bank
from sona.bank.pattern import Member
from sona.bank.vectors import Ints, sums_by_label, unit_rows
from sona.checks import Float32
from sona.config import BankConfig

CYCLE = 250
"""Queries between two cycles of the bank."""

Naming = Callable[[Ints, Ints], Sequence[str]]
"""Learns of the queries at the places of the first argument, which are new, and returns the ids of all those at the
places of the second, which have arrived by then."""


@dataclass(frozen=True, eq=False)
class Named:
    """The ids that the queries had, domain after domain."""

    id_stability: float
    """Share of the earlier queries whose id is what it was before the domain; the mean of all domains but the first."""
    labels: Labels
    """(n,) the last ids by number, in the order of arrival."""
    patterns: tuple[int, ...]
    """How many there were after each domain."""


def arrivals(domains: Labels, seed: int) -> list[Ints]:
    """Places of each domain's queries. The ``seed`` draws the order of the domains, and of the queries in each."""
    rng = np.random.default_rng(seed)
    return [rng.permutation(np.flatnonzero(domains == domain)) for domain in rng.permutation(int(domains.max()) + 1)]


def by_bank(embeddings: Float32, arrived: Sequence[Ints], seed: int) -> Named:
    """The bank's: the ids of the patterns nearest to ``embeddings`` (n, width)."""
    bank, cycles, patterns = Bank(), count(1), []

    def name(new: Ints, known: Ints) -> list[str]:
        nonlocal bank
        for start in range(0, len(new), CYCLE):
            members = [_member(place, embeddings[place]) for place in new[start : start + CYCLE].tolist()]
            bank = bank.learn(members, BankConfig(), cycle=next(cycles), seed=seed).bank
        patterns.append(len(bank.patterns))
        return ["" if pattern is None else pattern.id for pattern in bank.nearest(embeddings[known])]

    shares, ids = follow(arrived, name)
    return Named(shares, np.unique(ids, return_inverse=True)[1], tuple(patterns))


def by_reclustering(embeddings: Float32, arrived: Sequence[Ints], seed: int, patterns: Sequence[int]) -> Named:
    """What a plain implementation does: k-means of everything after each domain, ids handed on to what lies nearest.

    ``patterns``: into how many clusters after each domain.
    """
    rows = unit_rows(embeddings - embeddings[arrived[0]].mean(0))
    names: list[str] = []
    centroids = np.empty((0, rows.shape[1]), dtype=np.float32)
    fresh, asked = count(), iter(patterns)

    def name(new: Ints, known: Ints) -> list[str]:
        nonlocal names, centroids
        labels = by_faiss(rows[known], next(asked), seed)[0]
        now = unit_rows(sums_by_label(rows[known], labels))
        heirs = matched(centroids, now)
        names = [str(next(fresh)) if heir < 0 else names[heir] for heir in heirs.tolist()]
        centroids = now
        return [names[label] for label in labels.tolist()]

    shares, ids = follow(arrived, name)
    return Named(shares, np.unique(ids, return_inverse=True)[1], tuple(patterns))


def matched(before: Float32, now: Float32) -> Ints:
    """For each row of ``now`` (m, width) its row of ``before`` (n, width), or -1: the pair of the largest cosine first,
    then that of the largest among what is left, until one of the two is used up. Rows have norm 1.
    """
    found = np.full(len(now), -1)
    cosines = now @ before.T  # (m, n)
    for _ in range(min(cosines.shape)):
        mine, theirs = np.unravel_index(cosines.argmax(), cosines.shape)
        found[mine] = theirs
        cosines[mine], cosines[:, theirs] = -np.inf, -np.inf
    return found


def follow(arrived: Sequence[Ints], name: Naming) -> tuple[float, Sequence[str]]:
    """Mean share of the ids that stay, and the last ids."""
    shares: list[float] = []
    before: Sequence[str] = ()
    for number, new in enumerate(arrived):
        ids = name(new, np.concatenate(arrived[: number + 1]))
        if number:
            shares.append(float(np.mean([one == other for one, other in zip(before, ids, strict=False)])))
        before = ids
    return float(np.mean(shares)) if shares else 1.0, before


def _member(place: int, embedding: Float32) -> Member:
    return Member(trajectory_id=str(place), embedding=embedding, quality=1.0, prompt=str(place), response="")
