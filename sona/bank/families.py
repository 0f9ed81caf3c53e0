"""Families of patterns: what a person, or the deep loop, sees first of a bank of hundreds."""

from __future__ import annotations

import numpy as np

from sona.bank.clustering import spherical_kmeans
from sona.bank.vectors import sums_by_label
from sona.bank.ward import Groups, agglomerated, scale_of
from sona.patterns import Pattern

GRAIN = 0.25
"""A few patterns make a family: at the price that trajectories pay, all would be one."""
MOST, SEED = 1000, 0
"""Of more patterns, pieces are put together: agglomeration takes time and memory with the square of their number."""
NAME = 60
"""Characters of a family's name."""


def families_of(patterns: tuple[Pattern, ...]) -> dict[str, str]:
    """By pattern id the name of its family: agglomerated by their centroids, each pattern counting once
    (:mod:`sona.bank.ward`), and named by the best exemplar of the pattern nearest to the family's middle.
    """
    if not patterns:
        return {}
    centroids = np.stack([pattern.vector() for pattern in patterns])
    piece = np.arange(len(patterns))
    if len(patterns) > MOST:
        piece = spherical_kmeans(centroids, MOST, SEED, exchanges=False).labels.astype(np.intp)
    groups = Groups(np.bincount(piece).astype(np.float64), sums_by_label(centroids.astype(np.float64), piece))
    of = agglomerated(groups, scale_of(groups, GRAIN))[piece]
    names: dict[int, str] = {}
    for label in range(int(of.max()) + 1):
        members = np.flatnonzero(of == label)
        middle = centroids[members].sum(0, dtype=np.float64)
        nearest = patterns[int(members[np.einsum("nd,d->n", centroids[members], middle).argmax()])]
        name = name_of(nearest)
        names[label] = name if name not in names.values() else f"{name} ({nearest.id})"
    return {pattern.id: names[int(label)] for pattern, label in zip(patterns, of, strict=True)}


def has_stale_names(patterns: tuple[Pattern, ...]) -> bool:
    """Whether a family is named by words that none of the ``patterns`` shows any more."""
    names = {name for one in patterns for name in ("", name_of(one), f"{name_of(one)} ({one.id})")}
    return any(pattern.family not in names for pattern in patterns)


def name_of(pattern: Pattern) -> str:
    """What it is like, in one line."""
    prompts = [" ".join(one.prompt.split()) for one in (*pattern.exemplars, *pattern.failures)]
    return next((prompt[:NAME] for prompt in prompts if prompt), pattern.id)
