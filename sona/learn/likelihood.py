"""How likely a model finds responses: log-probabilities in nats, in float32 whatever the model's own precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from sona.learn.dataset import Batch, Example, collate, length_sorted_batches

LanguageModel = PeftModel | PreTrainedModel
_TOKENS, _LOGITS = 8192, 2**28
"""Bounds of one forward pass unless told otherwise: padded tokens, and logits, of which several float32 copies live."""


@dataclass(frozen=True, eq=False, slots=True)
class Scores:
    """What a model makes of n responses."""

    log_prob: npt.NDArray[np.float64]
    """(n,) nats: the sum over the response's tokens of log p(token | prompt and the tokens before)."""
    tokens: npt.NDArray[np.int64]
    """(n,) tokens of each response."""
    exact: npt.NDArray[np.bool_]
    """(n,) whether each token is the likeliest at its place, which is when greedy decoding gives this response."""
    share_right: npt.NDArray[np.float64]
    """(n,) share of its tokens that are the likeliest at their place, in [0, 1]."""
    token_log_prob: list[npt.NDArray[np.float32]]
    """n times (tokens of the response,), nats."""
    token_right: list[npt.NDArray[np.bool_]]
    """n times (tokens of the response,): whether each is the likeliest at its place."""


def empty_scores(count: int) -> Scores:
    """Scores to be filled in: of ``count`` responses, all zero."""
    return Scores(
        log_prob=np.zeros(count),
        tokens=np.zeros(count, dtype=np.int64),
        exact=np.zeros(count, dtype=np.bool_),
        share_right=np.zeros(count),
        token_log_prob=[np.zeros(0, np.float32)] * count,
        token_right=[np.zeros(0, np.bool_)] * count,
    )


def put_scores(into: Scores, places: Sequence[int], part: Scores) -> None:
    """Write ``part`` to its ``places`` of ``into``."""
    chosen = list(places)
    for name in ("log_prob", "tokens", "exact", "share_right"):
        getattr(into, name)[chosen] = getattr(part, name)
    for place, log_prob, right in zip(chosen, part.token_log_prob, part.token_right, strict=True):
        into.token_log_prob[place], into.token_right[place] = log_prob, right


def causal_lm(model: LanguageModel) -> Any:
    """The transformers model itself, with the adapter's layers in it where there is one."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def default_batch_tokens(model: LanguageModel) -> int:
    """Padded tokens in one forward pass: 8192, or fewer where a large vocabulary makes the logits larger than 1 GiB."""
    vocabulary: int = causal_lm(model).get_input_embeddings().num_embeddings
    return max(1, min(_TOKENS, _LOGITS // vocabulary))


def response_logits(model: LanguageModel, batch: Batch) -> Tensor:
    """Logits (R, V) at the batch's R response positions, in the model's own precision, with gradients where enabled.

    The output head, which costs most in a small model, runs on these positions alone: a hook hands it only their rows.
    So scaling and soft-capping of logits (Cohere, Granite, Gemma), which a model's forward does after its head, still
    happen.
    """
    network = causal_lm(model)
    with _head_on_rows(network.get_output_embeddings(), batch.rows) as applied:
        logits = network(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    flat: Tensor = logits.flatten(0, 1)  # (R, V), or (B·T, V) where a model doesn't call its head as a module
    return flat if applied else flat.index_select(0, batch.rows)


@contextmanager
def _head_on_rows(head: nn.Module | None, rows: Tensor) -> Iterator[list[bool]]:
    """``head`` sees (1, R, hidden) in place of (B, T, hidden); the list is empty until it has run."""
    applied: list[bool] = []

    def select(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        applied.append(True)
        return (inputs[0].flatten(0, 1).index_select(0, rows).unsqueeze(0), *inputs[1:])  # (1, R, hidden)

    if head is None:
        yield applied
        return
    handle = head.register_forward_pre_hook(select)
    try:
        yield applied
    finally:
        handle.remove()


def token_nll(model: LanguageModel, batch: Batch) -> Tensor:
    """-log p of each response token, nats, float32 (R,), in the order of ``batch.rows``."""
    return F.cross_entropy(response_logits(model, batch).float(), batch.targets, reduction="none")


def response_nll(model: LanguageModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """-log p of each response, the sum over its tokens in nats, float32 (B,), and its number of tokens, int64 (B,)."""
    nll = token_nll(model, batch)
    grid = nll.new_zeros(batch.input_ids.numel())
    grid[batch.rows] = nll  # each row once: unlike index_add, the same sum on every CUDA run
    return grid.view_as(batch.input_ids).sum(dim=1), (batch.labels >= 0).sum(dim=1)


@torch.no_grad()
def evaluate(
    model: LanguageModel,
    examples: Sequence[Example],
    pad_id: int,
    *,
    batch_tokens: int | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> Scores:
    """Score each example's response under the model as it stands; the weights of the examples play no part.

    Args:
        model: left as it is, train or eval mode included; dropout is off as long as the caller keeps it in eval mode.
        examples: in any order; the scores come back in theirs.
        pad_id: fills batches, always masked.
        batch_tokens: padded tokens in one forward pass; by default :func:`default_batch_tokens`.
        on_batch: called after each with the examples done and their number in all; what it raises ends the work.
    """
    count = len(examples)
    scores = empty_scores(count)
    done = 0
    for indices in length_sorted_batches(examples, batch_tokens or default_batch_tokens(model)):
        batch = collate([examples[i] for i in indices], pad_id, causal_lm(model).device)
        _score(response_logits(model, batch).float(), batch, indices, scores)
        done += len(indices)
        if on_batch is not None:
            on_batch(done, count)
    return scores


@torch.no_grad()
def kl_from_base(
    model: PeftModel, examples: Sequence[Example], pad_id: int, *, batch_tokens: int | None = None
) -> npt.NDArray[np.float64]:
    """How far the adapter moved the model on each response: KL(base || adapted) of the next token, mean over the
    response's tokens, nats, (n,).

    Args:
        model: with its adapter active; the base is the same model without it.
        examples: in any order; the figures come back in theirs.
        pad_id: fills batches, always masked.
        batch_tokens: padded tokens in one forward pass; by default :func:`default_batch_tokens`.
    """
    found = np.zeros(len(examples))
    for indices in length_sorted_batches(examples, batch_tokens or default_batch_tokens(model)):
        batch = collate([examples[i] for i in indices], pad_id, causal_lm(model).device)
        adapted = response_logits(model, batch).float().log_softmax(dim=-1)  # (R, V)
        with model.disable_adapter():
            base = response_logits(model, batch).float().log_softmax(dim=-1)
        each = F.kl_div(adapted, base, log_target=True, reduction="none").sum(dim=-1).cpu().numpy()  # (R,)
        starts = np.cumsum((0, *batch.lengths[:-1]))
        found[indices] = np.add.reduceat(each.astype(np.float64), starts) / np.asarray(batch.lengths)
    return found


def _score(logits: Tensor, batch: Batch, indices: list[int], scores: Scores) -> None:
    """Write the batch's scores to their places; sums are taken in float64 on the host."""
    log_prob = -F.cross_entropy(logits, batch.targets, reduction="none").cpu().numpy().astype(np.float64)  # (R,)
    right = (logits.argmax(dim=-1) == batch.targets).cpu().numpy()  # (R,)
    starts = np.cumsum((0, *batch.lengths[:-1]))
    scores.log_prob[indices] = np.add.reduceat(log_prob, starts)
    scores.exact[indices] = np.logical_and.reduceat(right, starts)
    scores.tokens[indices] = batch.lengths
    scores.share_right[indices] = np.add.reduceat(right.astype(np.float64), starts) / scores.tokens[indices]
    for index, start, length in zip(indices, starts, batch.lengths, strict=True):
        scores.token_log_prob[index] = log_prob[start : start + length].astype(np.float32)
        scores.token_right[index] = right[start : start + length]
