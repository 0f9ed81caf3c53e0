"""What a version said of a few fixed prompts when it was published, as it lies in the version's ``proof.json``."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from sona.checks import Float32
from sona.errors import SwapError

PROMPTS, TOKENS = 4, 16
FORM = 1


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """Log-probabilities of the tokens of :func:`probe_ids`."""

    form: int
    dtype: str
    base: list[list[float]]
    """(PROMPTS, TOKENS - 1) log-probabilities of each prompt's tokens but the first."""
    adapters: dict[str, list[list[float]]]
    """The same by adapter."""
    vocabulary: int = 0
    """Rows of the model's embedding table, which the prompts were drawn from; 0: of a version older than that."""


def read_proof(raw: bytes) -> Proof:
    """The proof in a version's file.

    Raises:
        SwapError: it is none that this sona reads.
    """
    try:
        proof = msgspec.json.decode(raw, type=Proof)
        if proof.form != FORM:
            raise ValueError(f"it is of form {proof.form}, and this sona reads {FORM}")
        for said in (proof.base, *proof.adapters.values()):
            if np.asarray(said, dtype=np.float32).shape != (PROMPTS, TOKENS - 1):
                raise ValueError("it is of other prompts")
    except ValueError as error:  # msgspec's are ValueErrors too
        raise SwapError(f"the proof of a version can't be read: {error}; it is not served") from error
    return proof


def probe_ids(vocabulary: int) -> npt.NDArray[np.int64]:
    """The prompts, (PROMPTS, TOKENS) token ids drawn from so many: words that nobody wrote, so that nothing depends on
    a tokenizer, and the same ones for ever.
    """
    return np.random.default_rng(0).integers(0, vocabulary, (PROMPTS, TOKENS))


def apart(said: Float32, other: Float32 | Sequence[Sequence[float]]) -> float:
    """Mean absolute difference, in nats a token."""
    return float(np.abs(said - np.asarray(other, dtype=np.float32)).mean())
