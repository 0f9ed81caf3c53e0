"""Forward passes that keep the hidden states of a few rows, and the log-probabilities that follow from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sona.attribution.cascade import Piece, Plan, rows_alone
from sona.attribution.scorer import Passage, Range, Scores
from sona.checks import Int32
from sona.errors import ScoringError
from sona.ports import ModelTree

UNLIKE = {torch.float32: 1e-4, torch.float64: 1e-6}
"""Of the largest logit: rounding is less than that, and an unknown scale or cap does more; 0.02 in half precision."""
LOGITS = 2**25
"""At once: 128 MiB in float32, of which two copies live."""


def as_tokens(ids: Int32, device: torch.device) -> Tensor:
    """int64 (tokens,) on the device."""
    return torch.from_numpy(ids.astype(np.int64)).to(device)


@torch.no_grad()
def hidden_rows(tree: ModelTree, rows: Tensor, **inputs: Any) -> Tensor:
    """What comes to the output head at ``rows`` (n,) of a batch of one: (n, hidden_size). The head itself runs on one
    row alone.

    Raises:
        ScoringError: the model has no output head that it calls as a module.
    """
    head: Any = tree.model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if head is None:
        raise ScoringError(f"{type(tree.model).__name__} has no output head of its own; its tokens can't be scored")
    found: list[Tensor] = []

    def select(_: torch.nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        found.append(given[0][0, rows])
        return (given[0][:, :1], *given[1:])

    handle = head.register_forward_pre_hook(select)
    try:
        tree.model(**inputs)
    finally:
        handle.remove()
    if not found:
        raise ScoringError(f"{type(tree.model).__name__} does not call its output head; its tokens can't be scored")
    return found[0]


def packed_rows(tree: ModelTree, pieces: Sequence[Piece]) -> Tensor:
    """The :func:`hidden_rows` of the pieces' wanted rows, piece by piece; the blocks that they are written into have
    grown by them.
    """
    device = pieces[0].ids.device
    rows = _wanted_rows(pieces).to(device)
    positions = [torch.arange(piece.start, piece.start + len(piece.ids), device=device) for piece in pieces]
    last_layer = int(tree.model.config.get_text_config().num_hidden_layers) - 1
    with rows_alone(tree.model, rows):
        hidden = hidden_rows(
            tree,
            rows,
            input_ids=torch.cat([piece.ids for piece in pieces])[None],
            position_ids=torch.cat(positions)[None],
            use_cache=False,
            cascade=Plan(pieces, last_layer),
        )
    for piece in pieces:
        if piece.into is not None:
            piece.into.tokens += len(piece.ids)
    return hidden


def _wanted_rows(pieces: Sequence[Piece]) -> Tensor:
    begin, rows = 0, [torch.zeros(0).long()]
    for piece in pieces:
        rows += [torch.arange(begin + first, begin + last) for first, last in piece.wanted]
        begin += len(piece.ids)
    return torch.cat(rows)


def wanted_within(ranges: Sequence[Range], start: int, end: int) -> tuple[Range, ...]:
    """Of a piece that holds the tokens from ``start`` to ``end`` the rows that foretell tokens of ``ranges``."""
    clipped = ((max(first - 1, start) - start, min(last - 1, end) - start) for first, last in ranges)
    return tuple((first, last) for first, last in clipped if first < last)


@torch.no_grad()
def check_head(tree: ModelTree, ids: Tensor) -> None:
    """Raises :class:`ScoringError` where the model does to its logits what ``tree.logits`` does not."""
    found: list[Tensor] = []
    head: Any = tree.model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if head is None:
        raise ScoringError(f"{type(tree.model).__name__} has no output head of its own; its tokens can't be scored")
    handle = head.register_forward_pre_hook(lambda _, given: found.append(given[0]))
    try:
        logits = tree.model(input_ids=ids[None], use_cache=False).logits[0].float()
    finally:
        handle.remove()
    unlike = UNLIKE.get(tree.model.dtype, 0.02) * float(logits.abs().max())
    if not found or float((tree.logits(found[0][0]).float() - logits).abs().max()) > unlike:
        raise ScoringError(
            f"{type(tree.model).__name__} makes its logits in a way that is not known here; its tokens can't be scored"
        )


@torch.no_grad()
def log_probs(logits: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
    """Of hidden states (n, hidden_size) the log-probabilities of ``targets`` (n,), float32 (n,), in parts of at most
    :data:`LOGITS` numbers.
    """
    size = max(1, LOGITS // vocab_size)
    parts = []
    for states, wanted in zip(torch.split(hidden, size), torch.split(targets, size), strict=True):
        found = logits(states).float().log_softmax(-1)  # (n, V); on a CPU in half the time of logsumexp
        parts.append(found.gather(-1, wanted[:, None])[:, 0])
    return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)


def rows_before(ranges: Sequence[Range]) -> Tensor:
    """The rows whose states foretell the tokens of ``ranges``: int64 (tokens,)."""
    return torch.cat([torch.arange(start - 1, end - 1) for start, end in ranges]) if ranges else torch.zeros(0).long()


def split(values: Tensor, ranges: Sequence[Range]) -> Scores:
    """The values of all ranges' tokens, range by range."""
    parts = torch.split(values.cpu(), [end - start for start, end in ranges]) if ranges else ()
    return [part.numpy() for part in parts]


def shared(one: Int32, other: Int32) -> int:
    """How many first tokens are the same."""
    length = min(len(one), len(other))
    unlike = np.flatnonzero(one[:length] != other[:length])
    return int(unlike[0]) if len(unlike) else length


def plain_scores(tree: ModelTree, passage: Passage) -> Scores:
    """One full pass of its own; the output head runs on the wanted rows alone."""
    if not passage.ranges:
        return []
    ids = as_tokens(passage.ids[: passage.ranges[-1][1]], tree.model.device)
    rows = rows_before(passage.ranges).to(ids.device)
    hidden = hidden_rows(tree, rows, input_ids=ids[None], use_cache=False)
    return split(log_probs(tree.logits, hidden, ids[rows + 1], vocab_of(tree)), passage.ranges)


def vocab_of(tree: ModelTree) -> int:
    """Rows of the embedding table."""
    return int(tree.model.config.get_text_config().vocab_size)
