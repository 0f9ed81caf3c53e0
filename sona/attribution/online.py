"""A conversation's matrix, column by column, as it goes on."""

from __future__ import annotations

from sona.attribution.comparison import CHUNK_TOKENS
from sona.attribution.context import Context, Segment
from sona.attribution.matrix import MemoryMatrix
from sona.attribution.memories import MatrixRun
from sona.attribution.scorer import Scorer
from sona.attribution.tokens import Codec


class Online:
    """Scores each response once, when it has come. One thread uses it at a time.

    Args:
        codec: the model's.
        scorer: a :class:`sona.attribution.live.LiveScorer`, so that a turn costs its own tokens alone; any other gives
            the same.
        chunk_tokens: as for :class:`sona.attribution.memories.MatrixRun`.
    """

    def __init__(self, codec: Codec, scorer: Scorer, *, chunk_tokens: int = CHUNK_TOKENS) -> None:
        self._codec, self._scorer, self._chunk_tokens = codec, scorer, chunk_tokens
        self._seen: tuple[Segment, ...] = ()

    def extend(self, context: Context) -> MemoryMatrix:
        """The matrix of all memories and the responses that the last call's context did not hold. Of a context that
        does not begin as that one, all are new. What failed is not asked for again.
        """
        known = len(self._seen) if context.segments[: len(self._seen)] == self._seen else 0
        new = [index for index in context.responses if index >= known]
        run = MatrixRun(context, self._codec, self._scorer, chunk_tokens=self._chunk_tokens, responses=new)
        for _ in run.rows():
            pass
        self._seen = context.segments
        return run.matrix()
