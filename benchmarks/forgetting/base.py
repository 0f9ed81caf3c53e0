"""The base model: a Llama of 0.36 M weights, made from nothing on the base skills, as a transformers folder.

Its loss counts the prompts' tokens too, a little: then it writes prompts like those it knows when it is sampled from
the opening of a user's turn, as large models do (Xu et al. 2024, "Magpie", arXiv:2406.08464).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from benchmarks.forgetting.base_skills import BASE_SKILLS, SHARES
from benchmarks.forgetting.batch import IGNORED, Batch, collate
from benchmarks.forgetting.vocabulary import (
    ANSWER,
    ANSWER_ID,
    END,
    END_ID,
    PAD,
    PAD_ID,
    START,
    START_ID,
    VOCABULARY,
    answer_ids,
    prompt_ids,
)
from benchmarks.forgetting.world import Question
from benchmarks.options import OUT

RECIPE = "recipe.json"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '" + ANSWER + "' + message['content'] + '" + END + "' }}"
    "{% else %}{{ '" + START + "' + message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + ANSWER + "' }}{% endif %}"
)


@dataclass(frozen=True)
class Recipe:
    """What the weights depend on, besides the code."""

    seed: int
    steps: int = 1300
    batch_size: int = 64
    muon_rate: float = 0.02
    """Peak, of the matrices in the layers."""
    adamw_rate: float = 4e-3
    """Peak, of the embedding and the norms."""
    warmup_steps: int = 30
    decay_share: float = 0.4
    """The last part of the steps, over which the rates fall to 0."""
    prompt_weight: float = 0.05
    """What a prompt's token counts in the loss against an answer's."""
    vocabulary: int = len(VOCABULARY)


def base_folder(recipe: Recipe, below: Path = OUT / "forgetting", progress: Callable[[str], None] = print) -> Path:
    """The folder of the model that ``recipe`` makes; it is made now unless it was before."""
    folder = below / f"base-{recipe.seed}{'' if recipe == Recipe(recipe.seed) else f'-{recipe.steps}'}"
    wanted = json.dumps(asdict(recipe))
    if (folder / RECIPE).is_file() and (folder / RECIPE).read_text(encoding="utf-8") == wanted:
        return folder
    progress(f"making the base model of seed {recipe.seed}")
    model = pretrain(recipe)
    with _quiet():
        model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    (folder / RECIPE).write_text(wanted, encoding="utf-8")  # last: a folder that has it is whole
    return folder


def load_base(folder: Path) -> LlamaForCausalLM:
    """The model of a folder, for a peer to put its adapter on; in eval mode (it has no dropout)."""
    with _quiet():
        model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    model.train(False)
    return model


def pretrain(recipe: Recipe) -> LlamaForCausalLM:
    """A model made from nothing: Muon (Jordan 2024) on the layers' matrices, AdamW on the rest."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = _untrained()
    matrices = [weight for name, weight in model.named_parameters() if weight.ndim == 2 and "layers" in name]
    others = [weight for name, weight in model.named_parameters() if not (weight.ndim == 2 and "layers" in name)]
    muon = torch.optim.Muon(matrices, lr=recipe.muon_rate, momentum=0.95, weight_decay=0.0, ns_steps=4)
    adamw = torch.optim.AdamW(others, lr=recipe.adamw_rate, betas=(0.9, 0.98), weight_decay=0.0)
    rng = Random(f"pretraining/{recipe.seed}")
    for step in range(recipe.steps):
        share = min(1.0, (step + 1) / recipe.warmup_steps, (recipe.steps - step) / (recipe.decay_share * recipe.steps))
        muon.param_groups[0]["lr"], adamw.param_groups[0]["lr"] = recipe.muon_rate * share, recipe.adamw_rate * share
        loss = _loss(model, collate(_drawn(rng, recipe.batch_size)), recipe.prompt_weight)
        model.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        muon.step()  # type: ignore[no-untyped-call]
        adamw.step()
    model.train(False)
    return model


def _loss(model: LlamaForCausalLM, batch: Batch, prompt_weight: float) -> Tensor:
    """Mean cross-entropy of each next token, in nats: answers count 1, prompts ``prompt_weight``, padding nothing."""
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1]  # (B, T - 1, V)
    each = F.cross_entropy(logits.flatten(0, 1), batch.input_ids[:, 1:].flatten(), reduction="none")
    weights = torch.where(batch.labels == IGNORED, prompt_weight, 1.0) * batch.attention_mask  # (B, T)
    weights = weights[:, 1:].flatten()
    return (each * weights).sum() / weights.sum()


def _drawn(rng: Random, count: int) -> list[Question]:
    skills = rng.choices([BASE_SKILLS[name] for name in SHARES], list(SHARES.values()), k=count)
    drawn = [skill(rng) for skill in skills]
    return [Question(prompt_ids(prompt), answer_ids(answer)) for prompt, answer in drawn]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _untrained() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            use_cache=False,
            pad_token_id=PAD_ID,
            bos_token_id=START_ID,
            eos_token_id=END_ID,
            initializer_range=0.06,
            rope_parameters={"rope_type": "default", "rope_theta": 50.0},  # these prompts are short
        )
    )


def _tokenizer() -> PreTrainedTokenizerFast:
    """A token is a word between spaces; the template's markers need no space beside them."""
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(VOCABULARY)}, unk_token=PAD))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=words, bos_token=START, eos_token=END, pad_token=PAD, additional_special_tokens=[ANSWER]
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    assert tokenizer.convert_tokens_to_ids(ANSWER) == ANSWER_ID
    return tokenizer
