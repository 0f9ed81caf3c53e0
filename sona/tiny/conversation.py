"""Conversations as token ids, with how much each token counts in training."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

import torch
from tokenizers import Tokenizer
from torch import Tensor

from sona.tiny.example import Example
from sona.tiny.tokenizer import ASSISTANT, END, PAD, SPECIALS, SYSTEM, TOOL, USER

RESPONSE_WEIGHT: Final = 4.0
"""Weight of a whole response, shared out among its tokens. By token, an answer of one word, as `lookup` gives, would be
drowned by those of ten."""

PROMPT_WEIGHT: Final = 0.05
"""Weight of each token of a prompt; less than any token of a response. Not zero, because the model is also asked to
write prompts of its own; small, because their words are random and the gradient from them is mostly noise."""

_SECOND_TURN_SHARE: Final = 0.1
_FACTS_APART_SHARE: Final = 0.3
_FACTS_END: Final = " . "


@dataclass(frozen=True, slots=True)
class Conversation:
    """The tokens of one conversation."""

    ids: tuple[int, ...]
    """Token ids, from the first marker to the last."""
    weights: tuple[float, ...]
    """How much it counts to predict each of `ids`."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Conversations of nearly one length, padded on the right."""

    ids: Tensor
    """(B, T) int64."""
    weights: Tensor
    """(B, T) float32, zero where padded."""


def encode(tokenizer: Tokenizer, prompt: str, response: str) -> Conversation:
    """Return `prompt`, which begins with a marker, and the response, as
    `<|user|>prompt<|assistant|>response<|end|>`.
    """
    asked: list[int] = tokenizer.encode(prompt + ASSISTANT).ids
    answered: list[int] = tokenizer.encode(response + END).ids
    weights = (PROMPT_WEIGHT,) * len(asked) + (RESPONSE_WEIGHT / len(answered),) * len(answered)
    return Conversation((*asked, *answered), weights)


def encode_example(tokenizer: Tokenizer, example: Example) -> Conversation:
    """Return the example as a conversation of one question and one answer."""
    return encode(tokenizer, USER + example.prompt, example.response)


def encode_varied(tokenizer: Tokenizer, example: Example, following: Example, rng: Random) -> Conversation:
    """Return the example as it may come up in use.

    Facts to be looked up sometimes stand in a system or a tool turn of their own, and sometimes a `following`
    question comes in the same conversation.
    """
    prompt = USER + example.prompt
    facts, end, question = example.prompt.partition(_FACTS_END)
    if end and rng.random() < _FACTS_APART_SHARE:
        prompt = rng.choice((SYSTEM, TOOL)) + facts + USER + question
    first = encode(tokenizer, prompt, example.response)
    if rng.random() >= _SECOND_TURN_SHARE:
        return first
    second = encode_example(tokenizer, following)
    return Conversation(first.ids + second.ids, first.weights + second.weights)


def collate(conversations: Sequence[Conversation]) -> Batch:
    """Return one batch, padded to its longest. Causal attention never looks at padding on the right, so no mask is
    needed.
    """
    rows = [torch.tensor(conversation.ids) for conversation in conversations]
    weights = [torch.tensor(conversation.weights) for conversation in conversations]
    return Batch(
        ids=torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=SPECIALS.index(PAD)),
        weights=torch.nn.utils.rnn.pad_sequence(weights, batch_first=True),
    )


def batches(conversations: Iterable[Conversation], size: int) -> list[Batch]:
    """Return the conversations in batches of like length, the shortest first, so that little is padding."""
    ordered = sorted(conversations, key=lambda conversation: len(conversation.ids))
    return [collate(ordered[start : start + size]) for start in range(0, len(ordered), size)]
