"""How the next token is chosen from a model's logits, for each row of a batch by its own wishes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sona.serving.generation import Sampling
from sona.types import Token


class Chooser:
    """One answer's wishes, and the random numbers that are its own: nobody else's draws move them.

    Args:
        sampling: how to choose. Without a seed it takes a fresh one.
        logprobs: None, or how many of the likeliest tokens are told with each chosen one.
    """

    def __init__(self, sampling: Sampling, logprobs: int | None) -> None:
        self.sampling, self.logprobs = sampling, logprobs
        self._generator: torch.Generator | None = None
        if not sampling.greedy:
            self._generator = torch.Generator()
            if sampling.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(sampling.seed)

    def draw(self, logits: Tensor) -> int:
        """A token at random, from logits (V,): tempered, then the ``top_k`` likeliest, then of these the fewest that
        together have ``top_p`` (nucleus sampling, Holtzman et al. 2020, arXiv:1904.09751).

        One random number a token, looked up in the distribution function in float64: float32 would lose rare tokens of
        a large vocabulary.
        """
        settings = self.sampling
        weights = torch.softmax(logits.double().cpu() / settings.temperature, dim=-1)
        order = None
        if settings.top_k or settings.top_p < 1.0:
            weights, order = weights.sort(descending=True, stable=True)
            if settings.top_k:
                weights = weights[: settings.top_k]
            before = weights.cumsum(0) - weights  # what the likelier ones have
            weights = weights[before < settings.top_p * weights.sum()]
        sums = weights.cumsum(0)
        point = torch.rand(1, generator=self._generator, dtype=torch.float64) * sums[-1]
        place = min(int(torch.searchsorted(sums, point, right=True)), len(sums) - 1)
        return place if order is None else int(order[place])


def choose(logits: Tensor, choosers: Sequence[Chooser]) -> list[Token]:
    """The next token of each row of ``logits`` (n, V), float32."""
    likeliest = logits.argmax(dim=-1).tolist()
    chosen = [
        greedy if chooser.sampling.greedy else chooser.draw(row)
        for greedy, chooser, row in zip(likeliest, choosers, logits, strict=True)
    ]
    if all(chooser.logprobs is None for chooser in choosers):
        return [Token(id=token) for token in chosen]
    return [
        Token(id=token) if chooser.logprobs is None else _scored(token, row, chooser.logprobs)
        for token, chooser, row in zip(chosen, choosers, logits, strict=True)
    ]


def _scored(token: int, logits: Tensor, count: int) -> Token:
    scores = torch.log_softmax(logits, dim=-1)
    best = torch.topk(scores, min(count, len(scores)))
    top = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return Token(id=token, logprob=float(scores[token]), top=tuple(top))
