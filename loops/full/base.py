"""The served base model, as training has to know it: what it takes, and whether there is room for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sona.checks import largest_token
from sona.config import FullConfig
from sona.errors import InvalidInputError, ModelTooLargeError, UnknownTokenError
from sona.loops.full.memory import available_bytes
from sona.training import Recipe, TrainingSample


@dataclass(frozen=True)
class TrainableBase:
    """A model, frozen where it is served."""

    place: str
    """Folder or hub id."""
    fingerprint: str
    shapes: Mapping[str, Sequence[int]]
    """Of its parameters, by name."""
    vocab_size: int
    max_tokens: int
    """The model's own limit."""

    def check_samples(self, samples: Sequence[TrainingSample], limits: FullConfig) -> None:
        """Raises InvalidInputError for samples that it can't learn, of which UnknownTokenError for token ids outside
        its vocabulary.
        """
        if not 0 < len(samples) <= limits.max_samples:
            raise InvalidInputError(f"samples: {len(samples)}; 1 to {limits.max_samples} are allowed")
        most = min(limits.max_tokens, self.max_tokens)
        for place, sample in enumerate(samples):
            if not sample.context or not sample.continuation:
                raise InvalidInputError(f"samples[{place}]: context or continuation without a token; give one or more")
            if len(sample) > most:
                raise InvalidInputError(f"samples[{place}]: {len(sample)} tokens; at most {most} are allowed")
            top = max(largest_token(sample.context), largest_token(sample.continuation))
            if top >= self.vocab_size:
                raise UnknownTokenError(f"samples[{place}]: token id {top}; below {self.vocab_size} is allowed")

    def check_size(self, limits: FullConfig) -> None:
        """Raises ModelTooLargeError beyond ``full.max_parameters``."""
        parameters = sum(math.prod(shape) for shape in self.shapes.values())
        if parameters > limits.max_parameters:
            raise ModelTooLargeError(
                f"the model has {parameters} parameters; at most {limits.max_parameters} are allowed "
                "(full.max_parameters)"
            )

    def check_memory(self, recipe: Recipe) -> None:
        """Raises ModelTooLargeError where the memory that is free is less than training takes."""
        from sona.learn.full_weights import needed_bytes

        needed, free = needed_bytes(self.shapes, recipe), available_bytes()
        if free is not None and needed > free:
            raise ModelTooLargeError(
                f"training takes {needed >> 20} MiB of memory, and {free >> 20} MiB are free; take optimizer "
                "'apollo-mini', a smaller rank, or a smaller model"
            )
