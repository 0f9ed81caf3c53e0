"""A context against itself without something."""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence

from sona.attribution.chunk_run import ChunkRun
from sona.attribution.chunks import Chunk, chunks_of
from sona.attribution.context import NOTHING, Context, Drop
from sona.attribution.effects import Found
from sona.attribution.scorer import Scorer, held, version_of
from sona.attribution.tokens import Codec, Encoded, encode
from sona.errors import InvalidInputError

CHUNK_TOKENS = 32_768


class Comparison:
    """What dropping something changes, in chunks where the context is long.

    Args:
        context: the full one.
        codec: the model's.
        scorer: the model.
        chunk_tokens: a longer context is scored in chunks of about so many tokens.
        responses: those that are looked at, by their segments; None: all.

    Raises:
        InvalidInputError: a chunk is longer than the model takes.
        ModelError: the template refuses the context.
    """

    def __init__(
        self,
        context: Context,
        codec: Codec,
        scorer: Scorer,
        *,
        chunk_tokens: int = CHUNK_TOKENS,
        responses: Collection[int] | None = None,
    ) -> None:
        self._codec, self._scorer, self._wanted = codec, scorer, responses
        self._by = scorer
        """Who scores: of a model with versions one of them."""
        self._whole = encode(context, codec)
        self._chunks = chunks_of(context, self._whole, min(chunk_tokens, scorer.max_tokens))
        self._bases = [self._base(chunk) for chunk in self._chunks]
        self.tokens: dict[int, int] = {}
        """Of each response that is looked at, by its segment; those without a token of their own are not there."""
        for base in self._bases:
            for index in base.chosen(responses):
                start, end = base.responses[index]
                self.tokens[index] = end - start

    def _base(self, chunk: Chunk) -> Encoded:
        base = self._whole if len(self._chunks) == 1 else chunk.encode(self._codec, NOTHING)
        needed = len(base.passage(self._wanted).ids)
        if needed > self._scorer.max_tokens:
            raise InvalidInputError(
                f"context: {needed} tokens up to the response of segment {chunk.responses[-1]}, with the fixed "
                f"beginning; the model takes {self._scorer.max_tokens} and a turn is not cut, so leave something out"
            )
        return base

    def chunks_with(self, drop: Drop) -> list[int]:
        """The chunks in which there is something to drop and a response to look at."""
        return [
            place
            for place, chunk in enumerate(self._chunks)
            if chunk.holds(drop) and self._bases[place].chosen(self._wanted)
        ]

    @property
    def version(self) -> str:
        """Which version of the model scored, from the first effect on; empty where it has none, or nobody knows."""
        return version_of(self._by)

    def run(self, drops: Sequence[Drop]) -> Generator[Found, None, None]:
        """The effects of each drop in each of its :meth:`chunks_with`, as they are done, all by the version that is in
        force at the beginning. What fails is told in its :class:`Found`; once the scorer itself has failed, so is all
        the rest, unasked.
        """
        with held(self._scorer) as self._by:
            yield from self._run(drops)

    def _run(self, drops: Sequence[Drop]) -> Generator[Found, None, None]:
        places = [set(self.chunks_with(drop)) for drop in drops]
        dead = ""
        for place, (chunk, base) in enumerate(zip(self._chunks, self._bases, strict=True)):
            there = {number: drop for number, drop in enumerate(drops) if place in places[number]}
            if dead:
                lost = tuple(base.chosen(self._wanted))
                yield from (Found(number, failure=dead, lost=lost) for number in there)
            elif there:
                one = ChunkRun(chunk, base, self._codec, self._by, self._wanted)
                yield from one.run(there)
                dead = one.dead
