"""EWC++: a quadratic pull towards the weights that earlier cycles ended with, strong where they matter.

Chaudhry, Dokania, Ajanthan, Torr 2018, "Riemannian Walk for Incremental Learning" (arXiv:1801.10112), §4. A weight
matters by two measures: the Fisher information at the end of the path (how much its change changes the answers) and the
path's score (how much loss its change saved on the way, per unit of change in the answers). With θ* the anchor,

    penalty(θ) = λ/2 Σ_i I_i (θ_i − θ*_i)²,     I = importance from both, of mean 1 over all weights.

There may be several anchors, one for each of the latest tasks (:mod:`sona.learn.anchors`). Everything is a vector (P,)
float32 laid out as :class:`sona.learn.flat.Layout` says, of the entries of A and B or of their products ΔW = s B A
(:mod:`sona.learn.products`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from peft import PeftModel
from torch import Tensor

from sona.errors import InvalidInputError, ModelError
from sona.learn import lora
from sona.learn.anchors import Anchor, limited
from sona.learn.dataset import Example
from sona.learn.fisher import Coordinates, fisher_diagonal
from sona.learn.flat import Layout
from sona.learn.products import Products

_PREFIX: dict[Coordinates, str] = {"weights": "", "delta": "delta_"}


@dataclass(frozen=True, eq=False, slots=True)
class EwcState:
    """What earlier cycles leave to the next one. Never changed in place.

    P is the number of adapter weights, or on ``delta`` that of the base weights which have an adapter: for a rank of 8
    on a layer of 4096 x 4096 some 256 times as many. A state on ``delta`` holds two such vectors, and two more for each
    earlier anchor.
    """

    layout: Layout
    fisher: Tensor
    """(P,) running average of the Fisher information's diagonal, nats² per squared unit of weight."""
    score: Tensor
    """(P,) path score, averaged over the cycles; without a unit. Empty on ``delta``, where none is taken."""
    anchor: Tensor
    """(P,) θ*: the weights at the end of the last cycle."""
    updates: int
    """Batches that went into ``fisher`` since it was first measured."""
    on: Coordinates = "weights"
    """What is held: the entries of A and B, or ΔW = s B A."""
    earlier: tuple[Anchor, ...] = ()
    """Anchors of tasks before the latest, oldest first."""
    kept: float = 1.0
    """Share of the pull to the latest anchor that is left, in [0, 1]: below 1 after :meth:`released`, 0 after
    :meth:`at_boundary`, 1 again after the next cycle, which moves that anchor."""
    lam: float | None = None
    """λ where it is led by what was forgotten (:mod:`sona.learn.strength`); None: as the settings say."""

    @property
    def latest(self) -> Anchor:
        """The anchor that moves with each cycle."""
        return Anchor(importance(self) * self.kept, self.anchor)

    @property
    def anchors(self) -> tuple[Anchor, ...]:
        """All of them, oldest first, the latest at the end."""
        return (*self.earlier, self.latest)

    def fitted(self, layout: Layout, device: torch.device) -> EwcState:
        """The same state with its vectors on ``device``.

        Raises:
            ModelError: it belongs to an adapter of another ``layout``.
        """
        if layout != self.layout:
            raise ModelError("EWC state: made with another adapter shape; begin a new state for this adapter")
        return replace(
            self,
            fisher=self.fisher.to(device),
            score=self.score.to(device),
            anchor=self.anchor.to(device),
            earlier=tuple(anchor.to(device) for anchor in self.earlier),
        )

    def released(self, factor: float) -> EwcState:
        """Held by ``factor`` (in [0, 1]) of what it was, for when right answers have changed; 0 forgets all anchors.

        What was observed so far also counts that much less in the averages of the next cycle, after which the latest
        anchor stands for the new answers and holds in full again.

        Raises:
            InvalidInputError: a factor outside [0, 1].
        """
        if not 0.0 <= factor <= 1.0:
            raise InvalidInputError(f"EWC state: released by a factor of {factor}; 0 (forget) to 1 (keep) is allowed")
        return replace(
            self,
            fisher=self.fisher * factor,
            earlier=tuple(anchor.weakened(factor) for anchor in self.earlier) if factor else (),
            kept=self.kept * factor,
        )

    def at_boundary(self, limit: int) -> EwcState:
        """For the first cycle of a new task: what was the latest anchor stays where it is, and a new one will move.

        The new one holds from the end of the next cycle on, by what is observed from here on; until then the pull is
        the same, but for anchors that had to be put together. There are at most ``limit`` with the new one; with 1 only
        the one that moves, and a boundary changes nothing.
        """
        if limit == 1 or not self.kept:  # where nothing is held by the latest, nothing of it can stay
            return replace(self, earlier=limited(self.earlier, limit - 1))
        return replace(
            self,
            fisher=torch.zeros_like(self.fisher),
            earlier=limited(self.anchors, limit - 1),
            kept=0.0,
        )


def initial_state(
    fisher: Mapping[str, Tensor], weights: Mapping[str, Tensor], *, on: Coordinates = "weights"
) -> EwcState:
    """The state before the first cycle: ``fisher`` measured on the base model's own answers, anchored at ``weights``.

    With it the first cycle is already held where the base model is sensitive. Both are A and B by name, or with ``on``
    the products.

    Raises:
        ModelError: the two name different tensors.
    """
    layout = Layout.of(weights)
    information = layout.join(fisher)
    score = torch.zeros_like(information) if on == "weights" else information.new_zeros(0)
    return EwcState(layout, information, score, layout.join(weights), updates=0, on=on)


def measured_state(
    model: PeftModel, examples: Sequence[Example], pad_id: int, generator: torch.Generator, *, on: Coordinates
) -> EwcState:
    """:func:`initial_state` of a model as it stands, with answers sampled from it for the prompts of ``examples``."""
    fisher = fisher_diagonal(model, examples, pad_id, sampled=True, generator=generator, on=on)
    weights = lora.weights(model)
    if on == "delta":
        products = Products.of_model(model)
        weights = products.layout.split(products.of(Layout.of(weights).join(weights)))
    return initial_state(fisher, weights, on=on)


def importance(state: EwcState) -> Tensor:
    """I (P,), 0 or more, of mean 1: Fisher information and path score, each divided by its own mean, in equal parts.

    A part that is zero throughout (no score yet, nothing measured yet) is left out. The paper divides by the maximum,
    which here is an outlier: over the cycles of one stream the Fisher information's maximum was 55 to 980 times its
    mean, so one λ would mean many, and the score's only 5 to 32 times, so it alone would decide.
    """
    if not state.score.numel():
        return scaled_mean((state.fisher, 1.0))
    return scaled_mean((state.fisher, 1.0), (state.score, 1.0))


def scaled_mean(*parts: tuple[Tensor, float]) -> Tensor:
    """The mean of the vectors (P,), 0 or more, each divided by its own mean first, by their shares.

    A vector that is zero throughout, or of share 0, is left out.
    """
    found = [(part / part.mean(), share) for part, share in parts if share and bool(part.any())]
    if not found:
        return torch.zeros_like(parts[0][0])
    total = sum(share for _, share in found)
    return torch.stack([scaled * (share / total) for scaled, share in found]).sum(dim=0)


def to_tensors(state: EwcState) -> dict[str, Tensor]:
    """The state for a safetensors file, float32 on the CPU.

    ``fisher/<name>``, ``score/<name>``, ``anchor/<name>`` and ``updates``; for the k-th earlier anchor
    ``importance.k/<name>`` and ``weights.k/<name>``; on products each of these begins with ``delta_``, and there is no
    score. Where they say anything, ``kept`` and ``lambda`` (float64).
    """
    groups = {"fisher": state.fisher, "score": state.score, "anchor": state.anchor}
    for place, anchor in enumerate(state.earlier):
        groups |= {f"importance.{place}": anchor.importance, f"weights.{place}": anchor.weights}
    tensors = {"updates": torch.tensor(state.updates, dtype=torch.int64)}
    if state.kept != 1.0:
        tensors["kept"] = torch.tensor(state.kept, dtype=torch.float64)
    if state.lam is not None:
        tensors["lambda"] = torch.tensor(state.lam, dtype=torch.float64)
    for group, vector in groups.items():
        for name, tensor in state.layout.split(vector).items() if vector.numel() else ():
            # safetensors refuses views of one memory
            tensors[f"{_PREFIX[state.on]}{group}/{name}"] = tensor.detach().cpu().clone()
    return tensors


def from_tensors(tensors: Mapping[str, Tensor]) -> EwcState:
    """The state that :func:`to_tensors` wrote, now or before there were earlier anchors and products.

    Raises:
        ModelError: a tensor is missing, of another shape than its weight, not finite, or negative where it must not be.
    """
    on: Coordinates = "delta" if any(key.startswith("delta_") for key in tensors) else "weights"
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        group, slash, name = key.removeprefix(_PREFIX[on]).partition("/")
        if slash:
            groups.setdefault(group, {})[name] = tensor
    if "updates" not in tensors or "anchor" not in groups:
        raise ModelError("EWC state: no 'updates' or no anchor; this is no EWC state")
    layout = Layout.of(groups["anchor"])

    def vector(group: str) -> Tensor:
        joined = layout.join(groups.get(group, {}))
        signed = group.startswith(("anchor", "weights"))
        if not bool(torch.isfinite(joined).all()) or (not signed and bool((joined < 0).any())):
            raise ModelError(f"EWC state: {group} holds a number that is not finite, or negative; it was not loaded")
        return joined

    return EwcState(
        layout,
        fisher=vector("fisher"),
        score=vector("score") if on == "weights" else torch.zeros(0),
        anchor=vector("anchor"),
        updates=int(tensors["updates"]),
        on=on,
        earlier=tuple(
            Anchor(vector(f"importance.{place}"), vector(f"weights.{place}"))
            for place in range(sum(group.startswith("importance.") for group in groups))
        ),
        kept=_number(tensors, "kept", 1.0, 1.0),
        lam=_number(tensors, "lambda", math.inf, 0.0) if "lambda" in tensors else None,
    )


def _number(tensors: Mapping[str, Tensor], key: str, most: float, default: float) -> float:
    """The scalar ``key``, finite, 0 to ``most``, or ``default`` where there is none."""
    if key not in tensors:
        return default
    if tensors[key].numel() != 1 or not 0 <= (value := float(tensors[key])) <= most or math.isinf(value):
        raise ModelError(f"EWC state: {key} is no number from 0 to {most}; it was not loaded")
    return value
