"""A known string, by which a server is tried once before it is believed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sona.attribution.scorer import Passage, Range, Scorer, Scores
from sona.attribution.tokens import Codec
from sona.checks import Float32, Int32
from sona.errors import ScoringError

TEXT = "One day, a girl went to the park. The girl saw a dog in the park. The dog saw the girl and ran to the girl."
"""Plain words, some of them again and again, so that a model has something to foretell."""
PER_TOKEN = 0.1
"""Nats: half precision moves a token by about 0.01 on average, another model or position by far more."""


@dataclass(frozen=True, eq=False)
class Known:
    """The string as the client's tokenizer spells it."""

    text: str
    ids: Int32
    """int32 (tokens,), at least 4."""
    log_probs: Float32 | None = None
    """float32 (tokens - 1,) of all tokens but the first, by a model that is known to be right; None: there is none."""

    @classmethod
    def of(cls, codec: Codec, reference: Scorer | None = None, text: str = TEXT) -> Known:
        """The string by this tokenizer, and its values by ``reference``, which runs the same model.

        Raises:
            ScoringError: it has too few tokens, or the reference fails.
        """
        ids = codec.spell_out(text, ()).ids
        if len(ids) < 4:
            raise ScoringError(f"known string: {len(ids)} tokens; give a text of at least 4")
        found = None if reference is None else reference.score(ids, [(1, len(ids))])[0]
        return cls(text, ids, found)

    @property
    def whole(self) -> Passage:
        """All its tokens to be scored at once."""
        return Passage(self.ids, ((1, len(self.ids)),))

    @property
    def parts(self) -> Passage:
        """Its later tokens, in two ranges: they must have the values that they have in the whole."""
        third = len(self.ids) // 3
        ranges: tuple[Range, ...] = ((third, 2 * third), (2 * third, len(self.ids)))
        return Passage(self.ids, ranges)

    def check_ids(self, theirs: list[int], name: str) -> None:
        """Raises ScoringError where a server spells the string otherwise. A start token of its own is no difference."""
        ours = self.ids.tolist()
        if theirs not in (ours, ours[1:]) and theirs[1:] != ours:
            place = next((at for at, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), 0)
            raise ScoringError(
                f"{name}: tokenizer mismatch: it spells the known string with {len(theirs)} tokens, other than our "
                f"{len(ours)} from token {place} on; serve the model whose tokenizer is used here"
            )

    def check_values(self, whole: Scores, parts: Scores, name: str) -> float:
        """How far two ways to ask, and the reference where there is one, lie apart: nats of the largest total.

        Raises:
            ScoringError: they disagree by more than rounding.
        """
        joined, start = np.concatenate(parts), self.parts.ranges[0][0] - 1
        gaps = {"itself, asked otherwise": joined - whole[0][start:]}
        if self.log_probs is not None:
            gaps["the model that is known to be right"] = whole[0] - self.log_probs
        for other, gap in gaps.items():
            apart = float(np.abs(gap).mean())
            if not apart <= PER_TOKEN:
                raise ScoringError(
                    f"{name}: disagrees on the known string with {other} by {apart:.3g} nats a token, where at most "
                    f"{PER_TOKEN} is allowed; it serves another model or adapter, or scales its log-probabilities"
                )
        return max(abs(float(gap.sum())) for gap in gaps.values())
