"""Whether a version that is to be served answers as it did when it was published.

A version's folder holds what its adapters, and the base, made of a few fixed prompts: the log-probability of each of
their tokens. Before a version is served it is asked again, beside the one that is, and has to say the same. That the
files are whole is known before (their digest); this shows that they have become the model that the gate let pass, on
this machine, under this base, in this precision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import torch

from sona.checks import Float32
from sona.errors import SwapError
from sona.serving.adapted import AdaptedModel
from sona.serving.adapters import Adapter
from sona.serving.proof import FORM, PROMPTS, TOKENS, Proof, apart, probe_ids
from sona.types import Attestation

TOLERANCE = {"float32": 0.001, "float16": 0.03, "bfloat16": 0.25}
"""Nats a token by which the prompts may differ on average, by the coarser of the two precisions: three times what the
shipped model with a cycle's adapter differs by when it is computed in that precision (float16 .008, bfloat16 .075; in
float32 one thread and two gave the same numbers). The same adapter 1 % smaller differs by .026, 10 % smaller by .27,
and the base by 3.0. An average, for in bfloat16 a single unlikely token moved by 2."""


class Witness:
    """Asks a model and its adapters; one thread at a time."""

    def __init__(self, model: AdaptedModel) -> None:
        self._model = model
        self._base: Float32 | None = None

    def prove(self, adapters: Mapping[str, Adapter]) -> bytes:
        """What goes into the version's folder."""
        base, said = self.say(None), {name: self.say(adapter).tolist() for name, adapter in adapters.items()}
        return msgspec.json.encode(
            Proof(form=FORM, dtype=self._dtype, base=base.tolist(), adapters=said, vocabulary=self._vocabulary)
        )

    def attest(
        self, version: str, adapters: Mapping[str, Adapter], proof: Proof | None, *, afresh: bool
    ) -> Attestation:
        """Ask the adapters again, and the base, which is remembered unless it is to be ``afresh``: its weights are
        frozen, and a swap takes its time from the answers under way.

        Raises:
            SwapError: one of them says something else than the proof; or an adapter that is not empty says what the
                base does. In half precision rounding may swallow a small adapter, so there the second holds only where
                the proof says that it was larger than the tolerance.
        """
        tolerance = max(TOLERANCE.get(dtype, 0.5) for dtype in (self._dtype, proof.dtype if proof else self._dtype))
        if proof is not None and proof.adapters.keys() != adapters.keys():
            raise SwapError(
                f"{version} was published with the adapters {sorted(proof.adapters)} and has {sorted(adapters)}; "
                "it is not served"
            )
        if self._base is None or afresh:
            self._base = self.say(None)
        now = {name: self.say(adapter) for name, adapter in adapters.items()}
        difference = None
        if proof is not None:
            difference = _compared(version, {"": self._base, **now}, {"": proof.base, **proof.adapters}, tolerance)
        moved = {name: apart(said, self._base) for name, said in now.items()}
        for name, adapter in adapters.items():
            told = 0.0 if proof is None else apart(np.asarray(proof.adapters[name], np.float32), proof.base)
            if moved[name] == 0.0 and not adapter.empty and (self._dtype == "float32" or told > tolerance):
                raise SwapError(
                    f"{version}: with the adapter {name!r} the model says what it says without; it is not served"
                )
        return Attestation(
            version=version,
            adapters=tuple(adapters),
            prompts=PROMPTS,
            tokens=PROMPTS * (TOKENS - 1),
            dtype=self._dtype,
            tolerance=tolerance,
            difference=difference,
            moved=moved,
        )

    @torch.no_grad()
    def say(self, adapter: Adapter | None) -> Float32:
        """Log-probabilities, float32 (PROMPTS, TOKENS - 1), of fixed prompts' tokens with this adapter; None: the
        base.
        """
        base = self._model.model
        ids = torch.from_numpy(probe_ids(self._vocabulary)).to(base.device)
        self._model.set_rows([adapter] * PROMPTS)
        try:
            logits = base(input_ids=ids, use_cache=False).logits[:, :-1].float()  # (PROMPTS, TOKENS - 1, V)
        finally:
            self._model.set_rows(())
        chosen = logits.gather(-1, ids[:, 1:, None])[..., 0] - logits.logsumexp(dim=-1)
        found: Float32 = chosen.cpu().numpy()
        return found

    @property
    def _vocabulary(self) -> int:
        return int(self._model.model.config.get_text_config().vocab_size)

    @property
    def _dtype(self) -> str:
        return str(self._model.model.dtype).removeprefix("torch.")


def _compared(
    version: str, now: Mapping[str, Float32], then: Mapping[str, Sequence[Sequence[float]]], tolerance: float
) -> float:
    """The largest of their differences; SwapError where it is beyond the tolerance."""
    found = {name: apart(said, then[name]) for name, said in now.items()}
    worst = max(found, key=lambda name: found[name])
    if not found[worst] <= tolerance:  # a NaN is beyond it too
        who = f"its adapter {worst!r}" if worst else "the base model"
        raise SwapError(
            f"{version}: {who} does not answer as when it was published (log-probabilities differ by "
            f"{found[worst]:.3g} nats a token, and {tolerance:g} are allowed); it is not served"
        )
    return found[worst]
