"""Tell one base model from another."""

from __future__ import annotations

import hashlib
import json

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
SAMPLED_VALUES = 64  # from each end of a parameter


def fingerprint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """Hex SHA-256 over the configuration, the tokenizer, and the names, shapes and samples of all parameters.

    The same checkpoint has the same one on every device, loaded in bfloat16 or in float32: the samples are rounded to
    bfloat16, to nearest even, which is what loading in bfloat16 does. float16 drops other bits, so that only a
    checkpoint stored in float16 has the same one when it is loaded so.

    Of the configuration only what names the architecture counts: all of it would change with each release of
    transformers, which adds fields of its own.
    """
    config = model.config.get_text_config()
    about = {
        "model_type": config.model_type,
        "sizes": [getattr(config, size, None) for size in SIZES],
        "vocabulary": sorted(tokenizer.get_vocab().items()),
        "chat_template": tokenizer.chat_template,
    }
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, value in sorted(model.named_parameters()):
        flat = value.detach().reshape(-1)
        ends = torch.cat([flat[:SAMPLED_VALUES], flat[-SAMPLED_VALUES:]]).to(torch.bfloat16).cpu()
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(ends.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()
