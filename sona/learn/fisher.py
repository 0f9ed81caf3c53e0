"""Fisher information of an adapter's weights, example by example, without a loop over examples.

With p(y|x; θ) the likelihood of a whole response, the diagonal of the Fisher information is

    F_i = mean over examples n of (∂ log p(y_n | x_n; θ) / ∂θ_i)²

where y_n is drawn from the model (the Fisher information proper) or is the recorded response (the empirical Fisher;
Kunstner, Balles, Hennig 2019, arXiv:1905.12558, on the difference). The square stands inside the mean: the square of a
batch's mean gradient, which many EWC implementations take, is another and much smaller quantity.

For a linear map y = W x that sees T positions of each example, the gradient of one example is a product of what the
layer reads and the gradient of what it writes (Goodfellow 2015, arXiv:1510.01799):

    ∂L_n/∂W = Σ_t g_nt x_ntᵀ

W may be A or B, or what they add to the layer they adapt: y = (W₀ + ΔW) x with ΔW = s B A, whose gradient has the same
form in what that layer reads and writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Literal, Self

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sona.errors import CycleError
from sona.learn import lora
from sona.learn.dataset import Example, collate, length_sorted_batches
from sona.learn.flat import Layout
from sona.learn.likelihood import causal_lm, default_batch_tokens, response_logits
from sona.learn.products import Products, adapted_layers

Coordinates = Literal["weights", "delta"]
"""Information of what: the entries of A and B, or those of ΔW = s B A."""
_CHUNK_NUMBERS = 2**26
"""Per-example gradients held at once, 256 MiB of float32."""


class PerExampleTaps:
    """Sums squared per-example gradients of the adapter during an ordinary backward pass.

    Within the block, tell the taps before each forward pass how the loss weighs its examples::

        with PerExampleTaps(model) as taps:
            taps.expect(coefficients)      # the loss is sum_n coefficients[n] * nll_n
            loss.backward()
        fisher = taps.mean()

    Each layer's sums are made while the backward pass is at that layer, so that nothing outlives it. On ``delta`` they
    take as much memory as the adapted base weights in float32.
    """

    def __init__(self, model: PeftModel, on: Coordinates = "weights") -> None:
        weights = lora.parameters(model)
        self._layers: Mapping[str, nn.Module] = lora.layers(model) if on == "weights" else adapted_layers(model)
        shapes = Layout.of(weights) if on == "weights" else Products.of_model(model).layout
        device = next(iter(weights.values())).device
        self._sums = {name: torch.zeros(shape, device=device) for name, shape in shapes.shapes.items()}
        self._handles: list[RemovableHandle] = []
        self._scale = torch.empty(0)
        self._count = 0
        self._seen: set[str] = set()

    def __enter__(self) -> Self:
        for name, layer in self._layers.items():
            self._handles.append(layer.register_forward_hook(self._tap(name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def expect(self, coefficients: Sequence[float]) -> None:
        """The next loss is Σ_n coefficients[n] · nll_n, nll_n in nats; examples of coefficient 0 are left out."""
        scale = [1.0 / coefficient if coefficient else 0.0 for coefficient in coefficients]
        device = next(iter(self._sums.values())).device
        self._scale = torch.tensor(scale, device=device).view(-1, 1, 1)  # (N, 1, 1)
        self._count += sum(1 for coefficient in coefficients if coefficient)
        self._seen.clear()

    def mean(self) -> dict[str, Tensor]:
        """The Fisher information's diagonal over all examples so far, by name; zeros where there were none."""
        return {name: total / max(self._count, 1) for name, total in self._sums.items()}

    def _tap(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def tap(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if not output.requires_grad:
                return
            if name in self._seen:  # the example's gradient would be the sum over both calls, squared after
                raise CycleError(f"{name} runs twice in one forward pass; layers that share an adapter can't be tapped")
            self._seen.add(name)
            x = inputs[0].detach()
            output.register_hook(lambda g: self._add(name, x, g))  # type: ignore[no-untyped-call]

        return tap

    @torch.no_grad()
    def _add(self, name: str, x: Tensor, gradient: Tensor) -> None:
        """Add Σ_n (Σ_t g_nt x_ntᵀ)² to the layer's sum."""
        count = len(self._scale)
        if x.numel() // x.shape[-1] % count:
            raise CycleError(f"{name} reads {tuple(x.shape)}, which does not divide into {count} examples")
        x = x.reshape(count, -1, x.shape[-1]).float()  # (N, T, in); a base layer's own may be bfloat16
        g = gradient.reshape(count, -1, gradient.shape[-1]).float() * self._scale  # (N, T, out)
        total = self._sums[name]
        chunk = max(1, _CHUNK_NUMBERS // total.numel())
        for x_chunk, g_chunk in zip(torch.split(x, chunk), torch.split(g, chunk), strict=True):
            total += torch.bmm(g_chunk.transpose(1, 2), x_chunk).square_().sum(dim=0)  # (N, out, in) -> (out, in)


def fisher_diagonal(
    model: PeftModel,
    examples: Sequence[Example],
    pad_id: int,
    *,
    sampled: bool,
    generator: torch.Generator,
    batch_tokens: int | None = None,
    on: Coordinates = "weights",
) -> dict[str, Tensor]:
    """The diagonal of the Fisher information of the adapter's weights, by name, each of its weight's shape, float32.

    The examples' weights play no part. With B = 0, as in a new adapter, A has no effect on the output, so its
    information is zero, and only B's is not; that of ΔW, ``<path>.delta`` (out, in), is the base model's own.

    Args:
        model: stays as it is; gradients its parameters may hold are not touched.
        examples: at least one.
        pad_id: fills batches, always masked.
        sampled: draw each response token from the model, given the recorded tokens before it; else take the recorded.
        generator: draws them, on the CPU, so that every device draws the same.
        batch_tokens: padded tokens in one pass; by default what is safe for the vocabulary.
        on: whether of A and B or of their products.
    """
    inputs = list(lora.parameters(model).values())
    with PerExampleTaps(model, on) as taps:
        for indices in length_sorted_batches(examples, batch_tokens or default_batch_tokens(model)):
            batch = collate([examples[i] for i in indices], pad_id, causal_lm(model).device)
            taps.expect([1.0] * len(indices))
            logits = response_logits(model, batch).float()
            targets = sample_tokens(logits.detach(), generator) if sampled else batch.targets
            torch.autograd.grad(F.cross_entropy(logits, targets, reduction="sum"), inputs)
    return taps.mean()


def sample_tokens(logits: Tensor, generator: torch.Generator) -> Tensor:
    """One token id for each row of ``logits`` (R, V), drawn from its softmax: int64 (R,), on the logits' device.

    By inverting the cumulated distribution, since torch.multinomial demands a generator on the logits' own device.
    """
    place = _float64_device(logits.device)
    cumulated = logits.to(place).double().softmax(dim=-1).cumsum(dim=-1)  # (R, V); float32 loses a long tail
    uniform = torch.rand(len(logits), 1, generator=generator, dtype=torch.float64).to(place)
    drawn = torch.searchsorted(cumulated, uniform, right=True).squeeze(1).clamp_(max=logits.shape[1] - 1)  # (R,)
    return drawn.to(logits.device)


def _float64_device(device: torch.device) -> torch.device:
    """Where to compute in float64: on ``device`` itself, but for Apple's GPUs, which have none."""
    return torch.device("cpu") if device.type == "mps" else device
