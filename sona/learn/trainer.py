"""The gradient steps of a cycle: AdamW on a LoRA adapter, held by EWC++, averaged into the candidate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor

from sona.config import TrainConfig
from sona.errors import CycleError, InvalidInputError
from sona.learn.average import Average
from sona.learn.dataset import Example, collate, length_sorted_batches
from sona.learn.ewc import EwcState
from sona.learn.fisher import PerExampleTaps
from sona.learn.flat import FlatWeights, flattened
from sona.learn.hold import Hold
from sona.learn.likelihood import default_batch_tokens, token_nll
from sona.learn.optimizer import Optimizer
from sona.learn.step_log import StepLog

Draw = Callable[[int], Sequence[Example]]
OnStep = Callable[[int, float], None]


def auto_learning_rate(hidden_size: int) -> float:
    """AdamW's rate for LoRA on a model ``hidden_size`` wide: 5e-5 · 10 · (2000 / hidden)^0.781, within [1e-5, 5e-3].

    Schulman et al. 2025, "LoRA Without Regret" (thinkingmachines.ai/blog/lora): the fit over their sweeps, with its
    exponent for Llama models. The bounds are ours: the fit was made on models from 2,048 to 8,192 wide.
    """
    return min(max(5e-5 * 10 * math.pow(2000 / hidden_size, 0.781), 1e-5), 5e-3)


@dataclass(frozen=True, eq=False, slots=True)
class TrainResult:
    """What the steps leave behind, beside the candidate's weights in the model."""

    ewc: EwcState | None
    """For the next cycle, anchored at the candidate; None where none was given."""
    optimizer_state: dict[str, Tensor]
    """For the next cycle, on the CPU, for a safetensors file."""
    metrics: dict[str, float]
    """Measured: ``steps``, ``tokens`` (response tokens learned from) and, after at least one step, ``loss_first`` and
    ``loss_last`` (means over the first and last 10 % of the steps, nats a token), ``weight_change`` (L2, start to
    candidate), and with a penalty ``ewc_lambda``, ``ewc_penalty_last`` (nats) and ``ewc_gradient_share`` (its
    gradient's norm against the task's, mean; in the proximal form how far it moved the weights, against the
    optimizer)."""


def train(
    model: PeftModel,
    draw: Draw,
    *,
    steps: int,
    settings: TrainConfig,
    learning_rate: float,
    pad_id: int,
    ewc: EwcState | None = None,
    optimizer_state: Mapping[str, Tensor] | None = None,
    on_step: OnStep = lambda step, loss: None,
    batch_tokens: int | None = None,
) -> TrainResult:
    """Take ``steps`` steps and leave the candidate, the running average of the stepped weights, in the model's adapter.

    The loss of a batch is Σ_n w_n (nll_n / T_n) / Σ_n w_n, T_n the tokens of response n: each trajectory has the say
    that its weight gives it. One that is to be pushed away has the loss of :func:`push_signs` instead. Were tokens
    counted rather than trajectories, a batch's shares of new, replayed and probed examples, and the advantages, would
    be outweighed by whichever answers happen to be long. (Two streams of five tasks ended at an accuracy of .70 and .71
    with this mean, of .56 and .65 with that over the batch's tokens.)

    The task's gradient is clipped before the penalty's is added. Clipped together, one wild batch would shrink the pull
    towards the anchor just when it is needed.

    Args:
        model: with the adapter that the cycle starts from, in eval mode (dropout would draw from the global generator).
        draw: gives the examples of step 0, 1, ...; the only source of chance.
        steps: 0 or more.
        settings: the clip, warm-up, decays, λ and the form of EWC++.
        learning_rate: AdamW's peak rate.
        pad_id: fills batches, always masked.
        ewc: the state that earlier cycles left; None trains without a penalty and observes nothing.
        optimizer_state: what the last cycle's result held; None starts afresh.
        on_step: called with each step and its loss, in order; on a GPU several steps late. What it raises ends the
            training.
        batch_tokens: padded tokens in one pass; a larger batch is taken in several, to the same gradient. By default
            what is safe for the vocabulary.

    Raises:
        CycleError: a loss or gradient that is not finite, with the step's number; or such a weight at the end.
        InvalidInputError: a draw without examples, or with none of a weight above 0.
        ModelError: a state that belongs to another adapter, or is not on what ``settings.ewc_on`` says.

    After any exception the adapter's weights are those from before the call.
    """
    with flattened(model) as flat:
        run = _Run(model, flat, settings, pad_id, batch_tokens or default_batch_tokens(model))
        if ewc is not None:
            run.hold = Hold(model, flat, ewc, settings)
        optimizer = Optimizer(flat, settings, learning_rate, optimizer_state)
        slow, log = Average(settings.ema_decay), StepLog(on_step, flat.values.device)
        for step in range(steps):
            examples = draw(step)
            loss = run.task_gradient(step, examples)
            norm, share = run.move(step, optimizer)
            slow.add(flat.values)
            log.tokens += sum(len(example.response) for example in examples)
            log.step(loss, norm, share)
        log.flush()
        metrics = log.metrics()
        state = run.finish(slow.value(flat.values), metrics)
        return TrainResult(state, optimizer.state(), metrics)


def loss_coefficients(examples: Sequence[Example]) -> list[float]:
    """c_n = w_n / (T_n Σ w): what each example's nll, summed over its T_n response tokens, counts in the batch's loss.

    Raises:
        InvalidInputError: no example has a weight above 0.
    """
    total = sum(example.weight for example in examples)
    if not total > 0:
        raise InvalidInputError(f"batch: {len(examples)} examples, none of a weight above 0; draw at least one")
    return [example.weight / (len(example.response) * total) for example in examples]


def push_signs(nll: Tensor, lengths: Sequence[int], bounds: Sequence[float | None]) -> Tensor:
    """For each response token of a batch: 1 where its answer is imitated, -1 where it is pushed away and still likelier
    than its bound, 0 where it is unlikely enough.

    So an answer that was turned down has the loss max(0, log p - bound), whose gradient ends at the bound: pushed
    without one, the likelihood of anything like it falls for ever (as Zhang et al. 2024, arXiv:2404.05868, found of
    gradient ascent), and the probability goes to answers that nobody asked for.

    Args:
        nll: float32 (R,), -log p of each token.
        lengths: tokens of each of the N answers; their sum is R.
        bounds: nats for each answer; None imitates it.
    """
    # Not by index_add, which sums in another order each time on CUDA.
    log_prob = -torch.stack([part.sum() for part in torch.split(nll, list(lengths))])  # (N,)
    pushed = torch.tensor([bound is not None for bound in bounds], device=nll.device)
    bound = torch.tensor([0.0 if bound is None else bound for bound in bounds], device=nll.device)
    signs = torch.where(pushed, -(log_prob > bound).float(), 1.0)
    return torch.repeat_interleave(signs, torch.tensor(lengths, device=nll.device))  # (R,)


class _Run:
    """One call of :func:`train` under way."""

    def __init__(
        self, model: PeftModel, flat: FlatWeights, settings: TrainConfig, pad_id: int, batch_tokens: int
    ) -> None:
        self.model, self.flat, self.settings = model, flat, settings
        self.pad_id, self.batch_tokens = pad_id, batch_tokens
        self.start, self.before = flat.values.clone(), flat.values.clone()
        self.hold: Hold | None = None

    def task_gradient(self, step: int, examples: Sequence[Example]) -> Tensor:
        """Put the task's gradient into ``flat.gradient`` and return its loss; observe the Fisher information if due."""
        self.flat.gradient.zero_()
        if self.hold is None or (taps := self.hold.taps(step)) is None:
            return self._backward(examples, None)
        with taps:
            loss = self._backward(examples, taps)
        self.hold.observe_fisher(taps)
        return loss

    def _backward(self, examples: Sequence[Example], taps: PerExampleTaps | None) -> Tensor:
        coefficients, total = loss_coefficients(examples), self.flat.values.new_zeros(())
        for indices in length_sorted_batches(examples, self.batch_tokens):
            batch = collate([examples[i] for i in indices], self.pad_id, total.device)
            chosen = [coefficients[i] for i in indices]
            bounds = [examples[i].push_below for i in indices]
            if taps is not None:  # what is pushed away tells nothing of what the weights know
                taps.expect([0.0 if bound is not None else c for c, bound in zip(chosen, bounds, strict=True)])
            share = torch.from_numpy(np.repeat(np.asarray(chosen, np.float32), batch.lengths)).to(total.device)  # (R,)
            nll = token_nll(self.model, batch)
            if any(bound is not None for bound in bounds):
                share *= push_signs(nll.detach(), batch.lengths, bounds)
            torch.dot(nll, share).backward()  # type: ignore[no-untyped-call]
            total += torch.dot(nll.detach(), share.clamp(min=0.0))
        return total

    def move(self, step: int, optimizer: Optimizer) -> tuple[Tensor, Tensor | None]:
        """One optimizer step, held; returns the task gradient's norm and the penalty's part against it."""
        task, norm = self.flat.gradient, torch.linalg.vector_norm(self.flat.gradient)
        clip = (self.settings.max_grad_norm / (norm + 1e-6)).clamp_(max=1.0)
        total, share = task * clip, None
        pull = None if self.hold is None else self.hold.pull()
        if pull is not None:
            share = torch.linalg.vector_norm(pull) / (norm * clip + 1e-12)
            total += pull
        self.before.copy_(self.flat.values)
        optimizer.step(total)
        if self.hold is not None:
            settled = self.hold.settle(self.before, optimizer.rate)
            share = share if settled is None else settled
            self.hold.observe_step(step, task, self.before)
        return norm, share

    def finish(self, candidate: Tensor, metrics: dict[str, float]) -> EwcState | None:
        """Put the candidate (P,) into the model, add what is measured on it, and return the next state."""
        stepped = metrics["steps"] > 0
        if self.hold is not None:
            if self.hold.penalty is not None and stepped:
                metrics["ewc_lambda"] = self.hold.lam
                metrics["ewc_penalty_last"] = float(self.hold.penalty.value(self.flat.values))
            self.hold.take_score()
        self.flat.values.copy_(candidate)
        if stepped:
            metrics["weight_change"] = float(torch.linalg.vector_norm(self.flat.values - self.start))
            if not math.isfinite(metrics["weight_change"]):  # the last step's own doing, which no later loss shows
                raise CycleError("training: the last step left weights that are not finite; lower train.ewc_lambda")
        return None if self.hold is None else self.hold.consolidate()
