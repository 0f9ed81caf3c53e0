"""Which tokens end an answer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def stop_ids_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end an answer: the tokenizer's, then the generation settings' others.

    A base model that never met its end token has left it like every other token it never met, and under a frozen output
    head no adapter can tell them apart (stories260K: exact answers never ended). There a line's end is the answer's.
    """
    configured = model.generation_config.eos_token_id
    listed = configured if isinstance(configured, list) else [configured]
    ends = known_tokens([tokenizer.eos_token_id, *listed], int(model.config.get_text_config().vocab_size))
    trained = [token for token in ends if _is_trained(model, token)]
    newline = tokenizer.encode("\n", add_special_tokens=False)[-1:]
    return trained or (ends if tokenizer.chat_template else [*newline, *ends])


def _is_trained(model: PreTrainedModel, token: int) -> bool:
    """Whether the output head can tell ``token`` from all others."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if head is None:
        return True
    rows = head.weight.detach().float()
    distance = torch.linalg.vector_norm(rows - rows[token], dim=1)
    distance[token] = torch.inf
    return bool(distance.min() > 0.01 * torch.linalg.vector_norm(rows[token]))


def known_tokens(tokens: Sequence[int | None], vocab_size: int) -> list[int]:
    """Those of ``tokens`` that the embedding has a row for, once each. Tokenizers are shipped that know more."""
    return list(dict.fromkeys(int(token) for token in tokens if token is not None and 0 <= token < vocab_size))
