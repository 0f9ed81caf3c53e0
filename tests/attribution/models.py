"""Small random models, what full passes make of passages, and conversations of random tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    FalconH1Config,
    FalconH1ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    JambaConfig,
    JambaForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from sona.attribution import packed, passes
from sona.attribution.cascade import Piece
from sona.attribution.leave_one_out import OwnTree
from sona.attribution.scorer import Passage, Range, Scores
from sona.ports import ModelTree

VOCAB, POSITIONS = 64, 512
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MAMBA: dict[str, Any] = {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1}
LINEAR: dict[str, Any] = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8}
EXPERTS: dict[str, Any] = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}

MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=8)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=16)),
    "falcon_h1": lambda: FalconH1ForCausalLM(FalconH1Config(**SHAPE, **MAMBA, mamba_d_state=16, mamba_chunk_size=16)),
    "qwen3_next": lambda: Qwen3NextForCausalLM(
        Qwen3NextConfig(
            **{**SHAPE, "num_hidden_layers": 4},
            **LINEAR,
            **EXPERTS,
            linear_value_head_dim=8,
            shared_expert_intermediate_size=16,
            head_dim=8,
        )
    ),
    "lfm2": lambda: Lfm2ForCausalLM(Lfm2Config(**SHAPE, layer_types=["conv", "full_attention", "conv"])),
    "jamba": lambda: JambaForCausalLM(
        JambaConfig(**SHAPE, attn_layer_period=2, attn_layer_offset=1, num_experts=1, mamba_dt_rank=4)
    ),
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**SHAPE, logits_scaling=3.0)),
}


def model_of(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """In evaluation mode, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = MODELS[name]()
    model.train(False)
    torch.nn.Module.to(model.requires_grad_(False), dtype)
    return model


def source_of(name: str, dtype: torch.dtype = torch.float32) -> OwnTree:
    return OwnTree(model_of(name, dtype), POSITIONS)


@torch.no_grad()
def naive(model: PreTrainedModel, passages: Sequence[Passage]) -> list[Scores]:
    """A full pass each, all logits."""
    found = []
    for passage in passages:
        ids = torch.from_numpy(passage.ids.astype(np.int64))
        log_probs = model(input_ids=ids[None], use_cache=False).logits[0].float().log_softmax(-1)
        rows = [torch.arange(start - 1, end - 1) for start, end in passage.ranges]
        found.append([log_probs[row, ids[row + 1]].numpy() for row in rows])
    return found


def conversation(turns: int = 4, seed: int = 0) -> list[Passage]:
    """The whole, then without each of its memories: one before the conversation, one in each turn, the last of them
    at the very end, where no response follows.
    """
    rng = np.random.default_rng(seed)
    stretches: list[tuple[str, Any]] = [("memory", rng.integers(3, VOCAB, 7))]
    for _ in range(turns):
        for kind, longest in (("user", 9), ("memory", 8), ("assistant", 12)):
            stretches.append((kind, rng.integers(3, VOCAB, rng.integers(3, longest))))
    stretches.append(("memory", rng.integers(3, VOCAB, 4)))
    memories = [place for place, (kind, _) in enumerate(stretches) if kind == "memory"]
    return [_without(stretches, dropped) for dropped in (None, *memories)]


def _without(stretches: Sequence[tuple[str, Any]], dropped: int | None) -> Passage:
    ids: list[int] = []
    ranges: list[Range] = []
    for place, (kind, tokens) in enumerate(stretches):
        if place != dropped:
            if kind == "assistant":
                ranges.append((len(ids), len(ids) + len(tokens)))
            ids += tokens.tolist()
    return Passage(np.asarray(ids[: ranges[-1][1]], np.int32), tuple(ranges))


def largest_difference(one: Sequence[Scores], other: Sequence[Scores]) -> float:
    return max(float(np.abs(a - b).max()) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


def watched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the tokens of each packed pass from now on."""
    read: list[int] = []

    def counted(tree: ModelTree, pieces: Sequence[Piece]) -> torch.Tensor:
        read.append(sum(len(piece.ids) for piece in pieces))
        return passes.packed_rows(tree, pieces)

    monkeypatch.setattr(packed, "packed_rows", counted)
    return read
