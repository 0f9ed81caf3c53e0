"""Which responses depend on memories at all: those are worth moving into the weights."""

from __future__ import annotations

from dataclasses import dataclass

from sona.attribution.comparison import CHUNK_TOKENS, Comparison
from sona.attribution.context import ALL_MEMORIES, Context
from sona.attribution.effects import Effect
from sona.attribution.scorer import Scorer
from sona.attribution.tokens import Codec


@dataclass(frozen=True)
class Dependence:
    """Responses against the same context without any memory."""

    effects: tuple[Effect, ...]
    """The largest divergence first."""
    failures: tuple[str, ...] = ()
    """Why some are not there."""


def score_dependence(
    context: Context, codec: Codec, scorer: Scorer, count: int, *, chunk_tokens: int = CHUNK_TOKENS
) -> Dependence:
    """The last ``count`` responses with all memories stripped, sorted by divergence: two passes.

    A context without memories gives nothing, and asks nobody.
    """
    if count < 1 or not context.keys or not context.responses:
        return Dependence(())
    comparison = Comparison(context, codec, scorer, chunk_tokens=chunk_tokens, responses=context.responses[-count:])
    effects: list[Effect] = []
    failures: list[str] = []
    for found in comparison.run([ALL_MEMORIES]):
        effects += found.effects.values()
        failures += [found.failure] * bool(found.failure)
    return Dependence(tuple(sorted(effects, key=lambda one: (-one.nats, one.index))), tuple(dict.fromkeys(failures)))
