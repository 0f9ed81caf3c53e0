"""The shape of the tiny model: a Qwen3 of three layers."""

from typing import Final

from transformers import Qwen3Config, Qwen3ForCausalLM

from sona.tiny.tokenizer import END, PAD, SPECIALS

MAX_TOKENS: Final = 512
"""Positions that the model accepts. It was trained on conversations of up to about 60 tokens."""


def new_model(vocabulary_size: int) -> Qwen3ForCausalLM:
    """Return an untrained model; the weights follow from torch's global seed.

    Qwen3 for its normalised queries and keys: after 1,200 steps it answered seven of the eight skills at .95 or more, a
    Llama of the same size (with a rotary base of 10,000) one of them. The low base of the rotary embedding, 1,000,
    spends fewer dimensions on distances that these prompts never reach.
    """
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocabulary_size,
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=32,
            max_position_embeddings=MAX_TOKENS,
            rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
            tie_word_embeddings=True,
            initializer_range=0.06,
            bos_token_id=None,
            pad_token_id=SPECIALS.index(PAD),
            eos_token_id=SPECIALS.index(END),
        )
    )
