"""The ways to weigh memories, each as a vector: how much every memory gave the last answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.attribution.peer import ContextCite
from sona.attribution.ablate import ablate, drop_of, log_odds, random_masks
from sona.attribution.context import Context
from sona.attribution.memories import score_memories
from sona.attribution.redundancy import likely_group, redundancies
from sona.attribution.scorer import Scorer
from sona.attribution.tokens import Codec
from sona.attribution.totals import total_log_probs

Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]
RUNS = {"ablate": 64, "ablate_32": 32}
PEER = "context_cite"
METHODS = ("loo", "strip_all", *RUNS, PEER)
HELD_OUT = 32
HELD_OUT_SEED = 1_000_003  # of masks that no method is fitted on


@dataclass(frozen=True, eq=False)
class Measured:
    """One context, by every method."""

    weights: dict[str, Float64]
    """By method (memories,)."""
    floors: dict[str, float]
    """By method, where it says what is noise: nothing below it is a finding."""
    whole_nats: float
    """What all memories together gave the answer."""
    warned: bool
    """Whether the redundancy warning fired."""
    group: tuple[str, ...]
    """The memories that it names."""
    kept: Bool
    """(runs, memories) held-out ablations."""
    log_odds: Float64
    """(runs,) of the answer there."""


def measure(context: Context, codec: Codec, scorer: Scorer, seed: int, peer: ContextCite | None = None) -> Measured:
    """Weigh the memories of a context with one response.

    ``strip_all`` knows only the response: every memory gets an equal share of what all of them give.
    """
    matrix = score_memories(context, codec, scorer, strip_all=True)
    assert matrix.strip_all is not None
    singles, whole = matrix.signed[:, 0], float(matrix.strip_all.nats[0])
    ablated = {name: ablate(context, codec, scorer, runs=runs, seed=seed) for name, runs in RUNS.items()}
    weights = {
        "loo": singles,
        "strip_all": np.full(len(singles), whole / len(singles)),
        **{name: found.weights[:, 0] for name, found in ablated.items()},
    }
    floors = {"loo": matrix.noise_floor, **{name: float(found.noise_floor[0]) for name, found in ablated.items()}}
    if peer is not None:
        weights[PEER] = _by_peer(peer, context)
    warned = bool(redundancies(matrix))
    group = likely_group(ablated["ablate"], matrix.responses[0].index, singles) if warned else ()
    kept = random_masks(len(singles), HELD_OUT, HELD_OUT_SEED + seed)
    totals = total_log_probs(context, codec, scorer, [drop_of(context, row) for row in kept])
    odds = log_odds(totals.dropped[:, 0], scorer.noise_floor)
    return Measured(weights, floors, whole, warned, group, kept, odds)


def _by_peer(peer: ContextCite, context: Context) -> Float64:
    texts = [segment.text for segment in context.segments if segment.kind == "memory"]
    asked, answer = context.segments[-2].text, context.segments[-1].text
    return np.array(peer.weights(texts, asked, answer, RUNS["ablate"]))
