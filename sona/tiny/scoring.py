"""How often a model answers exactly right."""

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from sona.tiny.conversation import PROMPT_WEIGHT, batches, encode_example
from sona.tiny.example import Example


def exact_match(
    model: PreTrainedModel, tokenizer: Tokenizer, examples: Sequence[Example], batch_size: int = 128
) -> float:
    """Return the share of examples whose whole response, end marker included, is what the model decodes greedily.

    One forward pass suffices: greedy decoding gives the response exactly if each of its tokens is the most likely one
    after those before it. The model's mode is left as it is; a `transformers` tokenizer gives its
    `backend_tokenizer`.

    Raises:
        ValueError: there are no examples.
    """
    if not examples:
        raise ValueError("no examples to score: pass at least one")
    right = 0
    with torch.inference_mode():
        for batch in batches((encode_example(tokenizer, example) for example in examples), batch_size):
            logits: torch.Tensor = model(input_ids=batch.ids, use_cache=False).logits
            greedy = logits[:, :-1].argmax(-1)  # (B, T-1)
            is_given = batch.weights[:, 1:] <= PROMPT_WEIGHT  # prompt and padding
            right += int((is_given | (greedy == batch.ids[:, 1:])).all(1).sum())
    return right / len(examples)
