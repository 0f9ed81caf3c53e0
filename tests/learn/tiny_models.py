"""Random models and examples, small enough that a slow reference is fast."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from sona.config import LoraConfig
from sona.learn import lora
from sona.learn.dataset import Example

VOCAB = 64
PAD = 0
ARCHITECTURES = ("llama", "qwen3")


def tiny_model(architecture: str = "llama", *, seed: int = 0, spread: float = 0.3) -> PreTrainedModel:
    """Two layers of width 32, float32, in eval mode; the wide spread makes its answers far from uniform."""
    shape: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": spread,
        "pad_token_id": PAD,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model: PreTrainedModel
        if architecture == "qwen3":
            model = Qwen3ForCausalLM(Qwen3Config(**shape, head_dim=8, tie_word_embeddings=False))
        else:
            model = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=True))
    model.train(False)
    return model


def tiny_adapter(
    architecture: str = "llama", *, seed: int = 0, rank: int = 4, zero: bool = False, spread: float = 0.3
) -> PeftModel:
    """The model with an adapter that changes its outputs, unless ``zero``."""
    model = lora.attach(tiny_model(architecture, seed=seed, spread=spread), LoraConfig(rank=rank, alpha=8.0), seed)
    if not zero:
        generator = torch.Generator().manual_seed(seed + 1)
        noisy = {name: w + 0.1 * torch.randn(w.shape, generator=generator) for name, w in lora.weights(model).items()}
        lora.load_weights(model, noisy)
    return model


def random_examples(count: int, seed: int = 0, *, longest: int = 8) -> list[Example]:
    """Prompts and responses of 1 to ``longest`` tokens each."""
    rng = np.random.default_rng(seed)

    def ids() -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        return rng.integers(3, VOCAB, rng.integers(1, longest + 1)).astype(np.int32)

    return [Example(ids(), ids()) for _ in range(count)]


def reference_log_probs(model: PeftModel | PreTrainedModel, example: Example) -> torch.Tensor:
    """log p of each response token (T,), the slow way: one example, no padding, every logit."""
    ids = torch.tensor(np.concatenate([example.prompt, example.response])).long()[None]
    logits = model(input_ids=ids, use_cache=False).logits[0].float()  # (T, V)
    start = len(example.prompt)
    chosen = logits[start - 1 : -1].log_softmax(dim=-1)  # (response, V)
    return torch.gather(chosen, 1, ids[0, start:, None]).squeeze(1)
