"""An adapter's tensors as one vector.

Dozens of small tensors cost a step more in calls than in arithmetic. Laid end to end, the optimizer, the penalty, the
clip and the averages are each a few operations on one vector, on a CPU as on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor

from sona.errors import ModelError
from sona.learn import lora


@dataclass(frozen=True, slots=True)
class Layout:
    """Which stretch of a vector (P,) belongs to which tensor."""

    shapes: dict[str, tuple[int, ...]]
    """Shape by name; the names are sorted, and lie in the vector in this order."""

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Layout:
        """The layout of these tensors, whatever order they come in."""
        return cls({name: tuple(tensors[name].shape) for name in sorted(tensors)})

    @property
    def size(self) -> int:
        """P, the numbers in the vector."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """``vector`` (P,) as named tensors, views of its memory."""
        pieces = torch.split(vector, [math.prod(shape) for shape in self.shapes.values()])
        return {name: piece.view(shape) for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)}

    def join(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The named tensors as a new vector (P,) float32.

        Raises:
            ModelError: names or shapes other than the layout's.
        """
        if tensors.keys() != self.shapes.keys():
            odd = sorted(tensors.keys() ^ self.shapes.keys())
            raise ModelError(f"learned state: {len(odd)} tensors do not match this adapter's, such as {odd[0]!r}")
        for name, shape in self.shapes.items():
            if tuple(tensors[name].shape) != shape:
                raise ModelError(f"learned state: {name} is {tuple(tensors[name].shape)}; this adapter's is {shape}")
        return torch.cat([tensors[name].detach().float().reshape(-1) for name in self.shapes])


@dataclass(frozen=True, eq=False, slots=True)
class FlatWeights:
    """A model's adapter while it is one vector: writing to it changes the model."""

    layout: Layout
    values: Tensor
    """(P,) float32: the weights."""
    gradient: Tensor
    """(P,) float32: ``backward()`` adds to it; zero it before."""


@contextmanager
def flattened(model: PeftModel) -> Iterator[FlatWeights]:
    """The adapter's parameters as views of one vector, within the block; an exception puts their old values back."""
    parameters = lora.parameters(model)
    originals = {name: parameter.data for name, parameter in parameters.items()}
    layout = Layout.of(originals)
    values = layout.join(originals)
    flat = FlatWeights(layout, values, torch.zeros_like(values))
    views, gradients = layout.split(flat.values), layout.split(flat.gradient)
    for name, parameter in parameters.items():
        parameter.data, parameter.grad = views[name], gradients[name]
    try:
        yield flat
        for name, original in originals.items():
            original.copy_(views[name])
    finally:
        for name, parameter in parameters.items():
            parameter.data, parameter.grad = originals[name], None
