"""A warning where leave-one-out is blind: memories that say the same, each of which is enough for the response.

Without one of them the other still helps, so each by itself seems to matter nothing. What gives them away is that
without all memories the response is much less likely than the single effects add up to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sona.attribution.ablate import ALPHA, RUNS, Ablated, ablate
from sona.attribution.comparison import CHUNK_TOKENS
from sona.attribution.context import Context, Drop
from sona.attribution.lasso import Float64
from sona.attribution.matrix import MemoryMatrix
from sona.attribution.memories import score_memories
from sona.attribution.scorer import Scorer
from sona.attribution.tokens import Codec
from sona.attribution.totals import total_log_probs
from sona.errors import InvalidInputError
from sona.ports import Report, ignore_progress

SHARE = 0.5
"""The single effects explain less than this of the whole one. Effects in nats do not add up exactly where nothing is
redundant: what is left out last finds the response unlikely already."""
SMALLEST_NATS = 0.05
"""Where the single effects miss less than this, it is not worth a warning: a response 1.05 times as likely."""
ALIKE = 0.5
"""Copies of one fact get about the same weight by ablations: at least this share of the heaviest one's."""


@dataclass(frozen=True)
class Redundancy:
    """One response that memories hold up together."""

    response: int
    """By its segment's index."""
    stripped_nats: float
    """What all memories together give it."""
    single_nats: float
    """The sum of what each gives it by itself, negative ones left out."""
    group: tuple[str, ...] = ()
    """The memories that likely say the same, the heaviest first; empty where nothing points to them."""
    group_nats: float = float("nan")
    """What leaving out the whole group takes from it; NaN where that was not measured."""

    @property
    def excess_nats(self) -> float:
        """What the single effects miss."""
        return self.stripped_nats - self.single_nats

    def __str__(self) -> str:
        told = f"likely because {', '.join(self.group)} say the same" if self.group else "which memories is not known"
        return (
            f"response {self.response}: all memories give it {self.stripped_nats:.2f} nats, the single ones "
            f"{self.single_nats:.2f}; leave-one-out is blind here, {told}"
        )


@dataclass(frozen=True, eq=False)
class Checked:
    """Every response of a context, checked for redundancy."""

    matrix: MemoryMatrix
    """Each memory by itself, and all at once."""
    warnings: tuple[Redundancy, ...]
    ablated: Ablated | None
    """The ablations that name the groups; None where nothing was to be named."""


def redundancies(matrix: MemoryMatrix, share: float = SHARE) -> list[Redundancy]:
    """The responses whose single effects explain too little of what all memories do, beyond the noise.

    A response of which a row failed is not judged: what failed may be what is missing.

    Args:
        matrix: with its ``strip_all``.
        share: from 0 to 1: below it the single effects are too little.

    Raises:
        InvalidInputError: the matrix has memories and no ``strip_all``.
    """
    if not matrix.keys or not matrix.responses:
        return []
    if matrix.strip_all is None:
        raise InvalidInputError("redundancies: the matrix has no strip_all; score the memories with strip_all=True")
    found = []
    singles = matrix.divergence.sum(axis=0)  # NaN stays
    for response, whole, single in zip(matrix.responses, matrix.strip_all.nats, singles, strict=True):
        # Either side may be off by the floor.
        clear = max(2 * matrix.noise_floor, SMALLEST_NATS)
        if whole - single > clear and single < share * whole:
            found.append(Redundancy(response.index, float(whole), float(single)))
    return found


def likely_group(ablated: Ablated, response: int, singles: Float64) -> tuple[str, ...]:
    """The memories that the ablations find alike in weight, while each by itself (``singles`` (memories,), nats) is
    worth less than that; empty where there are no two.
    """
    alone = dict(zip(ablated.keys, singles.tolist(), strict=True))
    heavy = [(key, weight) for key, weight in ablated.findings(response) if alone[key] < weight]
    group = tuple(key for key, weight in heavy if weight >= ALIKE * heavy[0][1])
    return group if len(group) > 1 else ()


def check_redundancy(
    context: Context,
    codec: Codec,
    scorer: Scorer,
    *,
    runs: int = RUNS,
    seed: int = 0,
    alpha: float = ALPHA,
    chunk_tokens: int = CHUNK_TOKENS,
    report: Report = ignore_progress,
) -> Checked:
    """Leave out each memory, then all; where that warns, find the likely group by ablations, and leave it out too.

    Costs a variant a memory and one more; ``runs`` more only where something warns. For the arguments see
    :func:`sona.attribution.ablate.ablate`.
    """
    matrix = score_memories(context, codec, scorer, chunk_tokens=chunk_tokens, strip_all=True, report=report)
    warned = redundancies(matrix)
    if not warned:
        return Checked(matrix, (), None)
    ablated = ablate(
        context, codec, scorer, runs=runs, seed=seed, alpha=alpha, chunk_tokens=chunk_tokens, report=report
    )
    columns = {response.index: column for column, response in enumerate(matrix.responses)}
    named = [
        replace(one, group=likely_group(ablated, one.response, matrix.signed[:, columns[one.response]]))
        for one in warned
    ]
    return Checked(matrix, _measured(context, codec, scorer, named, chunk_tokens), ablated)


def _measured(
    context: Context, codec: Codec, scorer: Scorer, warned: Sequence[Redundancy], chunk_tokens: int
) -> tuple[Redundancy, ...]:
    """... with what each group's absence takes."""
    groups = list(dict.fromkeys(one.group for one in warned if one.group))
    if not groups:
        return tuple(warned)
    drops = [Drop(keys=group) for group in groups]
    totals = total_log_probs(context, codec, scorer, drops, chunk_tokens=chunk_tokens)
    nats = dict(zip(groups, totals.effects, strict=True))
    return tuple(
        replace(one, group_nats=float(nats[one.group][totals.responses.index(one.response)])) if one.group else one
        for one in warned
    )
