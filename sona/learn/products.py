"""What an adapter adds to its layers, ΔW = s B A, as one vector, and how a gradient comes back from there to A and B.

The entries of A and B have no meaning of their own: (B R)(R⁻¹ A) is the same model for any invertible R. What is said
of ΔW, such as how much each entry matters, holds for all of these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

import torch
from peft import PeftModel
from torch import Tensor, nn

from sona.learn import lora
from sona.learn.flat import Layout

_A, _B, _PRODUCT = ".lora_A.weight", ".lora_B.weight", ".delta"


def adapted_layers(model: PeftModel) -> dict[str, nn.Module]:
    """The layers that have an adapter, each with its base weights and its A and B, by ``<path>.delta``, sorted."""
    paths = [name.removesuffix(_A) for name in lora.layers(model) if name.endswith(_A)]
    return {f"{path}{_PRODUCT}": model.get_submodule(path) for path in paths}


class Products:
    """From an adapter's vector (P,) to that of its products (D,) and back; D is the number of adapted base weights."""

    def __init__(self, adapter: Layout, scales: Mapping[str, float]) -> None:
        """``scales`` has s = alpha / rank for each ``<path>.delta``."""
        self._adapter, self._scales = adapter, dict(scales)
        shapes = adapter.shapes
        pairs = {name: (f"{name.removesuffix(_PRODUCT)}{_A}", f"{name.removesuffix(_PRODUCT)}{_B}") for name in scales}
        self.layout = Layout({name: (shapes[pairs[name][1]][0], shapes[pairs[name][0]][1]) for name in sorted(scales)})
        """Where each ΔW (out, in) lies in the vector (D,)."""
        self._pairs = {name: pairs[name] for name in self.layout.shapes}

    @classmethod
    def of_model(cls, model: PeftModel) -> Products:
        """Those of a model's adapter, whose vector is laid out as :func:`sona.learn.flat.flattened` does."""
        scales = {
            name: float(cast("Mapping[str, float]", layer.scaling)[lora.ADAPTER])
            for name, layer in adapted_layers(model).items()
        }
        return cls(Layout.of(lora.parameters(model)), scales)

    @torch.no_grad()
    def of(self, weights: Tensor) -> Tensor:
        """ΔW = s B A of every layer, (D,) float32, for the adapter's ``weights`` (P,)."""
        products = weights.new_empty(self.layout.size)
        for product, A, B, scale in self._layers(products, weights):
            torch.addmm(product, B, A, beta=0, alpha=scale, out=product)  # (out, r) (r, in)
        return products

    @torch.no_grad()
    def pulled_back(self, gradient: Tensor, weights: Tensor) -> Tensor:
        """The chain rule: ∂L/∂A = s Bᵀ G and ∂L/∂B = s G Aᵀ, (P,), for G = ∂L/∂ΔW, ``gradient`` (D,)."""
        result = torch.empty_like(weights)
        parts = self._adapter.split(result)
        for (first, second), (G, A, B, scale) in zip(
            self._pairs.values(), self._layers(gradient, weights), strict=True
        ):
            torch.addmm(parts[first], B.T, G, beta=0, alpha=scale, out=parts[first])  # (r, out) (out, in)
            torch.addmm(parts[second], G, A.T, beta=0, alpha=scale, out=parts[second])  # (out, in) (in, r)
        return result

    def _layers(self, products: Tensor, weights: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, float]]:
        """Of each layer its stretch of ``products`` (out, in), A (r, in), B (out, r) and s."""
        parts = self._adapter.split(weights)
        for name, product in self.layout.split(products).items():
            first, second = self._pairs[name]
            yield product, parts[first], parts[second], self._scales[name]
