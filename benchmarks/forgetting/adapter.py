"""The adapter of the peers: PEFT's own LoRA on the base model, and AdamW."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor

from benchmarks.forgetting.base import load_base
from benchmarks.forgetting.batch import collate, share_right
from benchmarks.forgetting.world import Question

RANK, ALPHA = 8, 16
BETAS = (0.9, 0.99)
MAX_NORM = 1.0

Extra = Callable[[], Tensor]
"""A term that is added to the loss."""


class Adapter:
    """A LoRA of rank 8 on all linear layers but the head. PEFT draws A from torch's generator; B begins at 0."""

    def __init__(self, folder: Path, learning_rate: float, seed: int) -> None:
        self._rate, self._seed = learning_rate, seed
        self._attach(load_base(folder))

    def _attach(self, model: Any) -> None:
        config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            self.model: Any = peft.get_peft_model(model, config).eval()  # there is no dropout to train with
        self.parameters: dict[str, Tensor] = {
            name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad
        }
        """A (rank, in) and B (out, rank) of each layer, by name."""
        self._adamw = torch.optim.AdamW(self.parameters.values(), lr=self._rate, betas=BETAS, weight_decay=0.0)

    def loss(self, questions: Sequence[Question]) -> Tensor:
        """Mean cross-entropy of the answers' tokens, in nats."""
        loss: Tensor = self.model(**collate(questions)._asdict()).loss
        return loss

    def gradient(self, questions: Sequence[Question]) -> dict[str, Tensor]:
        """Of :meth:`loss`, by parameter."""
        found = torch.autograd.grad(self.loss(questions), list(self.parameters.values()))
        return dict(zip(self.parameters, found, strict=True))

    def step(self, questions: Sequence[Question], extra: Extra | None = None) -> float:
        """One step of AdamW, gradients clipped to a norm of 1; returns the loss without the extra term."""
        loss = self.loss(questions)
        self._adamw.zero_grad()
        torch.autograd.backward(loss if extra is None else loss + extra())
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), MAX_NORM)
        self._adamw.step()
        return loss.item()

    def copies(self) -> dict[str, Tensor]:
        """The parameters as they are now."""
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    def merge(self) -> None:
        """Add the adapter to the model's weights for good, and put a new one on."""
        self._seed += 1
        self._attach(self.model.merge_and_unload())

    def share_right(self, questions: Sequence[Question]) -> float:
        """See :func:`benchmarks.forgetting.batch.share_right`."""
        return share_right(self.model, questions)
