"""How likely a response is as a function of the last hidden states alone, with its gradient there."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sona.checks import Float32, Int32
from sona.learn.micro import Judged, Objective

Head = Callable[[Tensor], Tensor]
"""A model's output head: hidden states (T, d) float32 on the CPU to logits (T, V) wherever the model is."""
LOGITS = 2**25  # float32 numbers of one piece: 128 MiB, of which a few copies live


def response_log_prob(head: Head, targets: Int32, vocab_size: int) -> Objective:
    """The log-probability of a response as an :data:`Objective`: nats, the sum over its tokens.

    Its gradient at the hidden state h_t is that of log p(y_t) through the head and nothing else. For a plain linear
    head W it is Wᵀ (onehot(y_t) − softmax(W h_t)); autograd takes it here, so that a bias, a scale or a cap on the
    logits is in it.

    Args:
        head: only its value and its gradient for the hidden states are asked for.
        targets: (T,) the response's token ids.
        vocab_size: how many logits a row has, for the size of the pieces.
    """
    wanted = torch.from_numpy(targets.astype(np.int64))
    rows_at_once = max(1, LOGITS // vocab_size)

    def objective(hidden: Float32) -> Judged:
        value, gradients = 0.0, []
        for start in range(0, len(hidden), rows_at_once):
            rows = slice(start, start + rows_at_once)
            log_prob, gradient = _piece(head, torch.from_numpy(hidden[rows]), wanted[rows])
            value += log_prob
            gradients.append(gradient)
        return Judged(value, np.concatenate(gradients))

    return objective


@torch.enable_grad()
def _piece(head: Head, hidden: Tensor, targets: Tensor) -> tuple[float, Float32]:
    leaf = hidden.detach().requires_grad_()
    logits = head(leaf).float()  # (T, V)
    each = torch.nn.functional.cross_entropy(logits, targets.to(logits.device), reduction="none")  # (T,)
    (gradient,) = torch.autograd.grad(-each.sum(), leaf)
    found: Float32 = gradient.numpy()
    return -float(each.detach().cpu().double().sum()), found
