"""The ways to weigh memories, each as a vector: how much every memory gave the answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from benchmarks.attribution.peer import ContextCite
from sona.attribution.ablate import ablate, log_odds, random_masks
from sona.attribution.context import Context, Drop
from sona.attribution.redundancy import Redundancy, redundancies
from sona.attribution.scorer import Scorer
from sona.attribution.tokens import Codec
from sona.attribution.totals import total_log_probs, without_each
from sona.attribution.context import ALL_MEMORIES

Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]
METHODS = ("loo", "strip_all", "ablate", "ablate_32", "context_cite")
HELD_OUT = 32
HELD_OUT_SEED = 1_000_003  # of masks that no method is fitted on


@dataclass(frozen=True, eq=False)
class Measured:
    """One context, by every method; its last response is looked at."""

    weights: dict[str, Float64]
    """By method (memories,)."""
    warning: Redundancy | None
    held_out: Bool
    """(runs, memories)"""
    log_odds: Float64
    """(runs,) measured there."""
    more: dict[str, Float64] = field(default_factory=dict)


Embed = Callable[[list[str]], Float64]


def measure(context: Context, codec: Codec, scorer: Scorer, seed: int, peer: ContextCite | None = None) -> Measured:
    """Weigh the memories for the context's last response.

    ``strip_all`` knows only the response: every memory gets an equal share of what all of them give.
    """
    singles = total_log_probs(context, codec, scorer, [*without_each(context), ALL_MEMORIES])
    effects = singles.effects[:, -1]
    count = len(context.keys)
    weights = {"loo": effects[:-1], "strip_all": np.full(count, effects[-1] / count)}
    for name, runs in (("ablate", 64), ("ablate_32", 32)):
        weights[name] = ablate(context, codec, scorer, runs=runs, seed=seed).weights[:, -1]
    if peer is not None:
        texts = {segment.key: segment.text for segment in context.segments if segment.key is not None}
        asked, said = context.segments[-2].text, context.segments[-1].text
        weights["context_cite"] = np.array(peer.weights([texts[key] for key in context.keys], asked, said, runs=64))
    warned = redundancies(singles.responses[-1:], effects[:-1, None], effects[-1:], scorer.noise_floor)
    held_out = random_masks(count, HELD_OUT, HELD_OUT_SEED + seed)
    drops = [Drop(keys=tuple(np.asarray(context.keys, dtype=object)[~row])) for row in held_out]
    odds = log_odds(total_log_probs(context, codec, scorer, drops).dropped[:, -1], scorer.noise_floor)
    return Measured(weights, warned[0] if warned else None, held_out, odds)
