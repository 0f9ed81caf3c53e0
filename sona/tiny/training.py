"""Training the tiny model from nothing, on questions that are drawn as they are needed and seen once."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from sona.tiny.conversation import Batch, batches, encode_varied
from sona.tiny.skills import SKILLS, draw

SKILL_SHARES = {"echo": 4, "reverse": 2, "pick": 1, "lookup": 5, "call": 2, "tag": 2.5, "count": 0.7, "successor": 0.7}
"""How often each skill is drawn, relative to the others. `echo` stands high because `lookup` builds on it: what finds
the word that followed another is learnt from long copies, and until it is there, `lookup` stays at guessing."""

# Drawn and sorted by length together. More would save little padding and make the batches more alike within.
_SORTED_BATCHES = 8


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """What a training run depends on, besides its code."""

    seed: int = 0
    """Of the weights and the questions."""
    steps: int = 4000
    """Optimizer steps."""
    batch_size: int = 64
    """Conversations a step."""
    muon_lr: float = 0.008
    """Peak learning rate of the matrices inside the layers."""
    adamw_lr: float = 0.01
    """Peak learning rate of the embedding and the norms."""
    warmup_steps: int = 50
    """Steps over which the rates rise from zero."""
    decay_share: float = 0.6
    """The last part of the run, over which the rates fall to zero in a straight line."""


def questions(tokenizer: Tokenizer, settings: TrainingSettings) -> Iterator[Batch]:
    """Yield batches of fresh training questions without end."""
    rng = Random(f"training/{settings.seed}")
    names, shares = tuple(SKILL_SHARES), tuple(SKILL_SHARES.values())
    while True:
        drawn = rng.choices(names, shares, k=settings.batch_size * _SORTED_BATCHES)
        examples = [draw(skill, rng, "train") for skill in drawn]
        pairs = zip(examples, reversed(examples), strict=True)
        pool = batches((encode_varied(tokenizer, first, second, rng) for first, second in pairs), settings.batch_size)
        rng.shuffle(pool)
        yield from pool


def weighted_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Return the mean cross-entropy of each next token, weighted: a scalar.

    Args:
        logits: (B, T, V) float.
        batch: what was fed in; the token at t + 1 is what the logits at t are to predict.
    """
    losses = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch.ids[:, 1:].flatten(), reduction="none")  # (B * (T-1),)
    weights = batch.weights[:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()


def _optimizers(model: PreTrainedModel, settings: TrainingSettings) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the rest. Muon orthogonalises an update, which an
    embedding's sparse rows don't suit.
    """
    matrices = [weight for name, weight in model.named_parameters() if weight.ndim == 2 and "layers" in name]
    others = [weight for name, weight in model.named_parameters() if not (weight.ndim == 2 and "layers" in name)]
    return [
        torch.optim.Muon(matrices, lr=settings.muon_lr, momentum=0.95, weight_decay=0.0, ns_steps=4),
        torch.optim.AdamW(others, lr=settings.adamw_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def _rate(step: int, settings: TrainingSettings) -> float:
    """Return the share of the peak learning rate at a step counted from 0: up, level, down, in straight lines."""
    rising = (step + 1) / settings.warmup_steps
    falling = (settings.steps - step) / (settings.decay_share * settings.steps)
    return min(1.0, rising, falling)


def train(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    settings: TrainingSettings,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Train the model in place; the same settings on the same machine give the same weights.

    Args:
        model: as `new_model` returns it; it is left in evaluation mode.
        tokenizer: turns the questions into ids.
        settings: seed, length and learning rates.
        report: called after each step with its number, counted from 0, and its loss.
    """
    if set(SKILL_SHARES) != set(SKILLS):
        raise ValueError("SKILL_SHARES must name every skill, and nothing else")
    optimizers = _optimizers(model, settings)
    peaks = [settings.muon_lr, settings.adamw_lr]
    model.train()
    for step, batch in zip(range(settings.steps), questions(tokenizer, settings), strict=False):
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * _rate(step, settings)
        loss = weighted_loss(model(input_ids=batch.ids, use_cache=False).logits, batch)
        model.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        report(step, loss.item())
    model.train(False)
