"""What the served model gives: answers, their tokens, and the proof that it is the version that it claims."""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

from sona.checks import check_id, check_one_of, check_text, pack_tokens, tuple_of
from sona.record import Record

FinishReason = Literal["stop", "length"]
FINISHES: tuple[FinishReason, ...] = get_args(FinishReason)
_set = msgspec.structs.force_setattr


class Token(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One token of an answer, as it was chosen. The model makes it, so nothing in it is checked."""

    id: int
    logprob: float | None = None
    """Natural logarithm of its probability in the model's own distribution, at temperature 1; None where not asked
    for."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens there and their logarithms, likeliest first, as many as were asked for."""


class Attestation(msgspec.Struct, frozen=True, kw_only=True):
    """What was compared to know that the served model is the version that it claims."""

    version: str
    adapters: tuple[str, ...]
    """Each was asked, and so was the base."""
    prompts: int
    tokens: int
    """Of the prompts, whose log-probabilities were compared, for each of them."""
    dtype: str
    """The precision that answers."""
    tolerance: float
    """Nats a token by which the log-probabilities may differ from the stored ones, on average."""
    difference: float | None
    """By how much they do, where it is most; None: the version stores none, being older than that or the base."""
    moved: dict[str, float]
    """By adapter, how much they differ from the base's: 0 only for an adapter that is empty."""


class Reply(Record, kw_only=True):
    """What the served model answered."""

    text: str
    token_ids: tuple[int, ...]
    """The answer's tokens, with the end token if the model wrote one."""
    prompt_ids: tuple[int, ...]
    version: str
    """The version that made it."""
    finish_reason: FinishReason
    adapter: str | None = None
    """The version's adapter that wrote it; None: the untouched base."""
    micro: str | None = None
    """The family of patterns whose fast weights took part (:mod:`sona.learn.micro`), by its first pattern; None: none
    did."""
    tokens: tuple[Token, ...] = ()
    """Those of ``token_ids`` with their log-probabilities, where these were asked for."""

    def __post_init__(self) -> None:
        check_text(self.text, "reply text", empty=True)
        for name in ("token_ids", "prompt_ids"):
            ids = tuple_of(getattr(self, name), int, name)
            if ids:
                pack_tokens(ids, name)
            _set(self, name, ids)
        check_id(self.version, "version")
        check_one_of(self.finish_reason, FINISHES, "finish_reason")
        for name in ("adapter", "micro"):
            if getattr(self, name) is not None:
                check_id(getattr(self, name), name)
        _set(self, "tokens", tuple_of(self.tokens, Token, "tokens"))
