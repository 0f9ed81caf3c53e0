"""How likely each response is in each of many variants of one context."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sona.attribution.context import NOTHING, Context, Drop
from sona.attribution.lasso import Float64
from sona.attribution.scorer import Passage, Scorer, scores_of
from sona.attribution.tokens import Codec, Encoded, encode
from sona.errors import SonaError

Progress = Callable[[int, int], None]
"""Told how many variants are done, and of how many. What it raises ends the work."""


@dataclass(frozen=True, eq=False)
class Totals:
    """Sums over the responses' tokens."""

    responses: tuple[int, ...]
    """The responses that have tokens, by their segments' indices."""
    tokens: tuple[int, ...]
    """How many each response has in the whole context."""
    whole: Float64
    """(responses,) log p of each response with everything there, in nats."""
    dropped: Float64
    """(variants, responses) the same in each variant; NaN where it failed."""
    failures: Mapping[int, SonaError]
    """Why, by variant. Those that were done before a backend died are kept."""

    @property
    def effects(self) -> Float64:
        """(variants, responses) nats that what was dropped gave each response; below 0 where it stood in its way."""
        return self.whole - self.dropped


def total_log_probs(
    context: Context, codec: Codec, scorer: Scorer, drops: Sequence[Drop], progress: Progress | None = None
) -> Totals:
    """Score every response of the context, whole and without each of ``drops``.

    Raises:
        SonaError: the whole context can't be encoded or scored. What fails a variant alone is in the result.
    """
    whole = encode(context, codec)
    responses = tuple(sorted(whole.responses))
    passages, variants, failures = [whole.passage()], list[int](), dict[int, SonaError]()
    encoded = [whole]
    for variant, drop in enumerate(drops):
        try:
            encoded.append(encode(context, codec, drop))
        except SonaError as error:  # a template may refuse what remains
            failures[variant] = error
            continue
        passages.append(encoded[-1].passage())
        variants.append(variant)
    sums = np.full((1 + len(drops), len(responses)), np.nan)
    rows = [0, *(1 + variant for variant in variants)]
    _fill(sums, scorer, passages, encoded, rows, responses, failures, progress)
    return Totals(
        responses,
        tuple(whole.responses[index][1] - whole.responses[index][0] for index in responses),
        sums[0],
        sums[1:],
        failures,
    )


def without_each(context: Context) -> list[Drop]:
    """Each memory left out by itself, in the order of the context's keys."""
    return [Drop(keys=(key,)) for key in context.keys]


def _fill(
    sums: Float64,
    scorer: Scorer,
    passages: Sequence[Passage],
    encoded: Sequence[Encoded],
    rows: Sequence[int],
    responses: Sequence[int],
    failures: dict[int, SonaError],
    progress: Progress | None,
) -> None:
    """Write each passage's sums into its row; what a backend leaves undone when it dies has failed with it."""
    waiting = set(range(len(passages)))
    try:
        for place, scores in scores_of(scorer, passages):
            waiting.discard(place)
            if isinstance(scores, SonaError):
                if not place:
                    raise scores
                failures[rows[place] - 1] = scores
            else:
                found = dict(zip(sorted(encoded[place].responses), scores, strict=True))
                of_each = [found[index].sum(dtype=np.float64) if index in found else np.nan for index in responses]
                sums[rows[place]] = of_each
            if progress is not None:
                progress(len(passages) - len(waiting), len(passages))
    except SonaError as error:
        if 0 in waiting or np.isnan(sums[0]).all():
            raise
        failures.update((rows[place] - 1, error) for place in waiting)


__all__ = ["NOTHING", "Progress", "Totals", "total_log_probs", "without_each"]
