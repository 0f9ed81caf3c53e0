"""Whether a server elsewhere answers with a version's adapters as the version's proof says.

The counterpart of :mod:`sona.serving.swap`, through a server's log-probabilities of prompts. Its arithmetic is another
one: other kernels, mostly bfloat16, and whatever else is in the batch.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sona.checks import Float32
from sona.errors import SwapError
from sona.serving.proof import PROMPTS, TOKENS, Proof, apart, probe_ids
from sona.serving.remote.server import AdapterServer
from sona.types import Attestation

LEAST_MOVED = 0.25
"""An adapter must move the server's answers by this share at least of what it moved them by when it was published.
Rounding may take something of a small adapter's effect, or add to it; a server that leaves it out moves nothing."""


def attest(
    server: AdapterServer, version: str, names: Mapping[str, str], proof: Proof, vocabulary: int, tolerance: float
) -> Attestation:
    """Ask the server's base, and each of the adapters, for the fixed prompts, and tell what was compared.

    Args:
        server: it has the adapters.
        version: that they are of.
        names: what the server calls each of them.
        proof: what they said when the version was published.
        vocabulary: rows of the model's embedding table.
        tolerance: nats a token by which base and adapters may differ from the proof, on average.

    Raises:
        SwapError: the base, or an adapter, says something else than the proof; or an adapter that changed the base's
            answers then does not change them here.
        RemoteError: the server could not be asked.
    """
    if proof.adapters.keys() != names.keys():
        raise SwapError(f"{version} was proved with the adapters {sorted(proof.adapters)} and has {sorted(names)}")
    base = _say(server, None, vocabulary)
    now = {adapter: _say(server, name, vocabulary) for adapter, name in names.items()}
    differences = {"the base model": apart(base, proof.base)}
    differences |= {f"its adapter {name!r}": apart(said, proof.adapters[name]) for name, said in now.items()}
    worst = max(differences, key=lambda who: differences[who])
    if not differences[worst] <= tolerance:  # a NaN is beyond it too
        raise SwapError(
            f"{version}: {worst} does not answer on the server as when it was published (log-probabilities differ by "
            f"{differences[worst]:.3g} nats a token, and remote.tolerance_nats allows {tolerance:g})"
        )
    moved = {adapter: apart(said, base) for adapter, said in now.items()}
    for adapter, by in moved.items():
        told = apart(np.asarray(proof.adapters[adapter], dtype=np.float32), proof.base)
        if by < LEAST_MOVED * told:
            raise SwapError(
                f"{version}: with the adapter {adapter!r} the server says what it says without (it moves by {by:.3g} "
                f"nats a token, and was published with {told:.3g})"
            )
    return Attestation(
        version=version,
        adapters=tuple(names),
        prompts=PROMPTS,
        tokens=PROMPTS * (TOKENS - 1),
        dtype=proof.dtype,
        tolerance=tolerance,
        difference=differences[worst],
        moved=moved,
    )


def _say(server: AdapterServer, name: str | None, vocabulary: int) -> Float32:
    """(PROMPTS, TOKENS - 1)"""
    return np.stack([server.prompt_logprobs(name, ids.tolist()) for ids in probe_ids(vocabulary)])
