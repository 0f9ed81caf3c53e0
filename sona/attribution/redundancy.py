"""A warning where leave-one-out is blind: memories that say the same, each of which is enough for the response.

Without one of them the other still helps, so each by itself seems to matter nothing. What gives them away is that
without all memories the response is much less likely than the single effects add up to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sona.attribution.ablate import ALPHA, RUNS, Ablated, random_masks, weigh
from sona.attribution.context import ALL_MEMORIES, Context, Drop
from sona.attribution.lasso import Float64
from sona.attribution.scorer import Scorer
from sona.attribution.tokens import Codec
from sona.attribution.totals import Progress, Totals, total_log_probs, without_each
from sona.errors import InvalidInputError, SonaError

SHARE = 0.5
"""The single effects explain less than this of the whole one. Effects in nats do not add up exactly where nothing is
redundant: what is left out last finds the response unlikely already."""
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

    warnings: tuple[Redundancy, ...]
    singles: Float64
    """(memories, responses) nats, signed; NaN where it failed."""
    stripped: Float64
    """(responses,) nats, signed."""
    ablated: Ablated | None
    """The ablations that name the groups; None where nothing was to be named."""
    failures: Mapping[str, SonaError]
    """By the memory's key; "" is the variant without all memories."""


def redundancies(
    responses: Sequence[int], singles: Float64, stripped: Float64, noise_floor: float, share: float = SHARE
) -> list[Redundancy]:
    """The responses whose single effects explain too little of what all memories do.

    Args:
        responses: by their segments' indices.
        singles: (memories, responses) signed nats that each memory gives by itself. A response with a NaN is not
            judged: what failed may be what is missing.
        stripped: (responses,) nats that all memories give.
        noise_floor: in nats; both sides may be off by it.
        share: from 0 to 1: below it the single effects are too little.
    """
    if singles.shape[1:] != (len(responses),) or stripped.shape != (len(responses),):
        raise InvalidInputError(
            f"redundancies: {singles.shape} and {stripped.shape} for {len(responses)} responses; give (memories, "
            "responses) and (responses,)"
        )
    found = []
    for column, response in enumerate(responses):
        whole, single = float(stripped[column]), float(np.maximum(singles[:, column], 0.0).sum())  # NaN stays
        if whole - single > 2 * noise_floor and single < share * whole:
            found.append(Redundancy(response, whole, single))
    return found


def likely_group(ablated: Ablated, response: int, singles: Float64) -> tuple[str, ...]:
    """The memories that the ablations find alike in weight, while each by itself (``singles`` (memories,), nats) is
    worth less than that; empty where there are no two.
    """
    findings = ablated.findings(response)
    alone = dict(zip(ablated.keys, singles.tolist(), strict=True))
    heavy = [(key, weight) for key, weight in findings if alone[key] < weight]
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
    progress: Progress | None = None,
) -> Checked:
    """Leave out each memory, then all; where that warns, find the likely group by ablations, and leave it out too.

    Costs a variant a memory and one more; ``runs`` more only where something warns.

    Raises:
        SonaError: the whole context can't be encoded or scored. What fails alone is in the result.
    """
    drops = [*without_each(context), ALL_MEMORIES]
    totals = total_log_probs(context, codec, scorer, drops if context.keys else [], progress)
    effects = totals.effects
    singles = effects[:-1] if context.keys else np.zeros((0, len(totals.responses)))
    stripped = effects[-1] if context.keys else np.zeros(len(totals.responses))
    warned = redundancies(totals.responses, singles, stripped, scorer.noise_floor)
    failures = {(*context.keys, "")[variant]: error for variant, error in totals.failures.items()}
    if not warned:
        return Checked((), singles, stripped, None, failures)
    kept = random_masks(len(context.keys), runs, seed)
    masks = [Drop(keys=tuple(key for key, here in zip(context.keys, row, strict=True) if not here)) for row in kept]
    ablated = weigh(
        context, kept, total_log_probs(context, codec, scorer, masks, progress), scorer.noise_floor, alpha
    )
    named = [
        replace(one, group=likely_group(ablated, one.response, singles[:, totals.responses.index(one.response)]))
        for one in warned
    ]
    return Checked(_measured(context, codec, scorer, named), singles, stripped, ablated, failures)


def _measured(
    context: Context, codec: Codec, scorer: Scorer, warned: Sequence[Redundancy]
) -> tuple[Redundancy, ...]:
    """... with what each group's absence takes."""
    groups = list(dict.fromkeys(one.group for one in warned if one.group))
    if not groups:
        return tuple(warned)
    totals: Totals = total_log_probs(context, codec, scorer, [Drop(keys=group) for group in groups])
    nats = {
        (group, response): float(totals.effects[row, column])
        for row, group in enumerate(groups)
        for column, response in enumerate(totals.responses)
    }
    return tuple(replace(one, group_nats=nats.get((one.group, one.response), float("nan"))) for one in warned)
