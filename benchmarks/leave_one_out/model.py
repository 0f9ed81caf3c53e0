"""A model of random weights: its time is that of a trained one of its shape."""

from __future__ import annotations

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from sona.attribution.leave_one_out import OwnTree

POSITIONS = 8192


def random_model(vocab: int, seed: int) -> Qwen3ForCausalLM:
    """A Qwen3 of 4 layers, 256 wide, float32; its weights are spread so far that a dropped memory moves a token's
    log-probability by some nats.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=vocab,
                hidden_size=256,
                intermediate_size=1024,
                num_hidden_layers=4,
                num_attention_heads=8,
                num_key_value_heads=4,
                head_dim=32,
                max_position_embeddings=POSITIONS,
                initializer_range=0.08,
                tie_word_embeddings=False,
            )
        )
    model.train(False)
    return model.requires_grad_(False)


def source(model: Qwen3ForCausalLM) -> OwnTree:
    """Lends it."""
    return OwnTree(model, POSITIONS)
