"""Training all weights of a model on given continuations, from a state that goes on from call to call.

The loss of a step is Σ_n (nll_n / T_n) / N over its N samples, T_n the tokens of continuation n: each sample has the
same say, as in :mod:`sona.learn.trainer`. Nothing is drawn from a global generator: the order of the samples follows
from a seed, and APOLLO's projections from seeds of their own, so a training that goes on from a stored state equals the
unbroken one bit for bit on a CPU, with the same number of threads.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sona.errors import ModelError, TrainingError
from sona.learn.apollo import Apollo, ApolloSettings, moment_shape
from sona.learn.dataset import Example, collate, length_sorted_batches
from sona.learn.likelihood import default_batch_tokens, evaluate, token_nll
from sona.training import Recipe

OnStep = Callable[[int, float], None]
MOST_MEASURED = 128
"""Samples whose loss is measured before and after; of more, so many that lie evenly among them."""
WEIGHT, OPTIMIZER = "weight/", "optimizer/"


@dataclass(frozen=True, slots=True)
class Trained:
    """What one training did."""

    steps: int
    tokens: int
    """Of the continuations, counted once."""
    loss_before: float
    """Nats a token of the continuations of up to :data:`MOST_MEASURED` samples, under the weights before it."""
    loss_after: float
    """... and of the same ones after it."""
    continued: bool
    """Whether the optimizer went on from an earlier state."""


class FullWeights:
    """A model whose every weight is trained, with the optimizer's state."""

    def __init__(self, model: PreTrainedModel, *, pad_id: int, seed: int = 0) -> None:
        """Args:
            model: in evaluation mode (dropout would draw from the global generator); its weights are moved in place.
            pad_id: fills batches, always masked.
            seed: of projections, of rounding and of the samples' order.

        Raises:
            ModelError: its weights are not all of float32, bfloat16 or float16, as those of quantized models.
        """
        model.requires_grad_(False)
        odd = [name for name, weight in model.named_parameters() if weight.dtype not in _FLOATS]
        if odd:
            raise ModelError(
                f"weight {odd[0]!r} is no float32, bfloat16 or float16; give a model that is not quantized"
            )
        self.model, self.pad_id, self.seed = model.requires_grad_(True), pad_id, seed
        self.kind, self.steps = "", 0
        """Of the optimizer's state, and the steps that it has seen."""
        self._optimizer: Apollo | None = None
        self._state: dict[str, Tensor] = {}  # as it was loaded, until there is an optimizer

    def train(
        self,
        examples: Sequence[Example],
        recipe: Recipe,
        *,
        seed: str = "",
        on_step: OnStep = lambda step, loss: None,
        batch_tokens: int | None = None,
    ) -> Trained:
        """Take the steps of a recipe. Where it shares no optimizer's state with the one before, it begins a new state.

        Args:
            examples: what is to be learned; their weights play no part.
            recipe: how.
            seed: makes the order of this training its own.
            on_step: called with each step, from 1, and its loss in nats a token.
            batch_tokens: padded tokens in one pass; a larger batch is taken in several. By default what is safe for the
                vocabulary.

        Raises:
            TrainingError: a loss, gradient or weight that is not finite. The weights are then those of some step, and
                the state must be loaded again.
        """
        tokens = batch_tokens or default_batch_tokens(self.model)
        optimizer = self._ready(recipe)
        continued = self.steps > 0
        measured = _measured(examples)
        before = self._loss(measured, tokens)
        done = 0
        for order in range(recipe.passes):
            for batch in _batches(examples, recipe.batch_size, _generator(self.seed, seed, order)):
                done += 1
                on_step(done, self._step(optimizer, batch, recipe, tokens))
        after = self._loss(measured, tokens)
        if not math.isfinite(after) or not _are_finite(own(self.model).values()):
            raise TrainingError(f"after {done} steps the weights are not finite; lower lr or scale")
        count = sum(len(example.response) for example in examples)
        return Trained(done, count, before, after, continued)

    def to_tensors(self) -> dict[str, Tensor]:
        """Weights and optimizer's state, for a safetensors file: ``weight/<name>`` in the model's own precision, tied
        ones once, buffers that belong to a checkpoint too; ``optimizer/<key>`` as :meth:`Apollo.to_tensors` has it.
        """
        tensors = {f"{WEIGHT}{name}": tensor.detach().cpu().contiguous() for name, tensor in own(self.model).items()}
        if self._optimizer is None:
            return tensors | self._state
        return tensors | {f"{OPTIMIZER}{key}": tensor for key, tensor in self._optimizer.to_tensors().items()}

    def load_tensors(self, tensors: Mapping[str, Tensor], kind: str, steps: int) -> None:
        """Go on from what :meth:`to_tensors` gave.

        Args:
            tensors: weights are copied.
            kind: of the optimizer's state, as :attr:`Recipe.kind`; "" where there is none.
            steps: that the state has seen.

        Raises:
            ModelError: they are of another model, or of another precision.
        """
        stored = {name.removeprefix(WEIGHT): tensor for name, tensor in tensors.items() if name.startswith(WEIGHT)}
        mine = own(self.model)
        fits = {name: (tensor.shape, tensor.dtype) for name, tensor in mine.items()}
        if {name: (tensor.shape, tensor.dtype) for name, tensor in stored.items()} != fits:
            raise ModelError("the checkpoint's weights are of another model, or of another precision")
        with torch.no_grad():
            for name, tensor in mine.items():
                tensor.copy_(stored[name])
        state = {name: tensor for name, tensor in tensors.items() if name.startswith(OPTIMIZER)}
        self._optimizer, self._state, self.kind, self.steps = None, state, kind, steps

    def _ready(self, recipe: Recipe) -> Apollo:
        """An optimizer for the recipe, in the state that there is where that is of its kind."""
        settings = settings_of(recipe, self.model)
        if self._optimizer is not None and self.kind == recipe.kind:
            self._optimizer.settings = settings
            return self._optimizer
        optimizer = Apollo(self.model.named_parameters(), settings, recipe.learning_rate, seed=self.seed)
        if self._optimizer is None and self._state and self.kind == recipe.kind:
            optimizer.load_tensors({name.removeprefix(OPTIMIZER): tensor for name, tensor in self._state.items()})
        else:
            self.kind, self.steps = recipe.kind, 0
        self._optimizer, self._state = optimizer, {}
        return optimizer

    def _step(self, optimizer: Apollo, batch: Sequence[Example], recipe: Recipe, batch_tokens: int) -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = self._backward(batch, batch_tokens)
        if not math.isfinite(loss) or not _are_finite(_gradients(self.model)):
            raise TrainingError(f"a step's loss ({loss:g}) or gradient is not finite; lower lr or scale")
        self.steps += 1
        warm = min(1.0, self.steps / max(recipe.warmup_steps, 1))
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * warm
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    def _backward(self, batch: Sequence[Example], batch_tokens: int) -> float:
        """Put the gradient into the weights and return the loss."""
        total = 0.0
        for indices in length_sorted_batches(batch, batch_tokens):
            padded = collate([batch[i] for i in indices], self.pad_id, self.model.device)
            share = np.repeat([1.0 / (len(batch[i].response) * len(batch)) for i in indices], padded.lengths)  # (R,)
            loss = torch.dot(
                token_nll(self.model, padded), torch.from_numpy(share.astype(np.float32)).to(self.model.device)
            )
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total

    def _loss(self, examples: Sequence[Example], batch_tokens: int) -> float:
        scores = evaluate(self.model, examples, self.pad_id, batch_tokens=batch_tokens)
        return float(-scores.log_prob.sum() / scores.tokens.sum())


_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def own(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that make a model's checkpoint, by name; of those that share their memory (tied weights) the first
    that is a parameter.
    """
    parameters = dict(model.named_parameters())
    found: dict[str, Tensor] = dict(parameters)
    seen = {id(tensor) for tensor in parameters.values()}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name not in found and id(tensor) not in seen:
            found[name] = tensor
            seen.add(id(tensor))
    return found


def settings_of(recipe: Recipe, model: PreTrainedModel) -> ApolloSettings:
    """The optimizer of a recipe: embedding and output head on AdamW, as in APOLLO's paper; for AdamW everything."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())  # type: ignore[no-untyped-call]
    kept = {id(weight) for end in ends if isinstance(end, nn.Module) for weight in end.parameters()}
    plain = tuple(name for name, weight in model.named_parameters() if id(weight) in kept)
    return ApolloSettings(
        rank=recipe.rank,
        per_tensor=recipe.optimizer == "apollo-mini",
        scale=recipe.scale,
        refresh_steps=recipe.refresh_steps,
        growth_limit=recipe.growth_limit,
        plain=("",) if recipe.optimizer == "adamw" else plain,
        betas=recipe.betas,
        eps=recipe.eps,
        weight_decay=recipe.weight_decay,
        rounding=recipe.rounding,
    )


def needed_bytes(shapes: Mapping[str, Sequence[int]], recipe: Recipe) -> int:
    """Memory that training weights of these shapes takes at most, beside what its passes do: weights, gradients and
    masters of 4 bytes, the optimizer's moments, and its state once more while a checkpoint is written. The embedding
    and the output head, which stay on AdamW, are taken for the two largest matrices.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    largest = sorted((name for name in shapes if len(shapes[name]) == 2), key=lambda name: -sizes[name])[:2]
    moments = 0
    for name, shape in shapes.items():
        is_plain = recipe.optimizer == "adamw" or len(shape) != 2 or min(shape) <= recipe.rank or name in largest
        moments += 2 * (sizes[name] if is_plain else math.prod(moment_shape(torch.Size(shape), recipe.rank)))
    total = sum(sizes.values())
    return 4 * (2 * total + 2 * (moments + total)) + _COUNTERS * len(shapes)


_COUNTERS = 64
"""Bytes of a weight's counters and lengths, and their copies."""


def _measured(examples: Sequence[Example]) -> list[Example]:
    count = min(len(examples), MOST_MEASURED)
    return [examples[place * len(examples) // count] for place in range(count)]


def _batches(examples: Sequence[Example], size: int, generator: np.random.Generator) -> list[list[Example]]:
    """All of them once, in a random order, so that what comes in a row is not learned in a row."""
    order = generator.permutation(len(examples))
    return [[examples[i] for i in order[start : start + size]] for start in range(0, len(order), size)]


def _generator(*words: str | int) -> np.random.Generator:
    digest = hashlib.blake2b("/".join(map(str, words)).encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def _gradients(model: nn.Module) -> list[Tensor]:
    return [weight.grad for weight in model.parameters() if weight.grad is not None]


def _are_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether each number is; by the largest of each tensor, which NaN is passed on by, and asking the device once."""
    largest = [tensor.detach().abs().amax().float() for tensor in tensors if _has_floats(tensor)]
    return bool(torch.isfinite(torch.stack(largest)).all())


def _has_floats(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.numel() > 0
