"""What one adapter learns in one cycle, and the learning of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor

from sona.bank.bank import Bank
from sona.config import Config, TrainConfig
from sona.learn.dataset import Example
from sona.learn.ewc import EwcState, measured_state
from sona.learn.lora import load_weights, weights
from sona.learn.strength import adapted
from sona.learn.trainer import auto_learning_rate, train
from sona.loops.mixture import Mixture, Past, Scope
from sona.ports import Report, ServedModel, TrajectoryStore
from sona.types import Progress

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Lesson:
    """One adapter's part of a cycle."""

    adapter: str
    new: Sequence[Example]
    """To imitate, and to push away."""
    scopes: Sequence[Scope]
    """The past that it is replayed from, each part alike."""
    probes: Sequence[Example] = ()
    """The base model's own answers, where the adapter answers its queries too."""
    effort: Sequence[float] = ()
    """How often each of ``new`` is seen, times the configured passes; empty: once."""
    approved: Sequence[Example] = ()
    """Answers that a person approved to be moved into the weights: they have a share of their own of each batch."""
    moved: Sequence[Example] = ()
    """Those that earlier cycles moved there, to be replayed."""


@dataclass(frozen=True)
class AdapterState:
    """An adapter in memory, with what its training goes on from."""

    weights: Weights
    ewc: EwcState | None = None
    optimizer: Mapping[str, Tensor] | None = None

    def released(self) -> AdapterState:
        """No longer held to what it knew: the right answers have changed."""
        return replace(self, ewc=None if self.ewc is None else self.ewc.released(0.0))

    def at_boundary(self, anchors: int) -> AdapterState:
        """Before it learns a skill that is new to it: held to up to ``anchors`` skills from before, each for itself."""
        return replace(self, ewc=None if self.ewc is None else self.ewc.at_boundary(anchors))

    def led(self, forgotten: float, settings: TrainConfig) -> AdapterState:
        """With the strength of its hold led by the share of what it knew that its lesson made it forget."""
        return replace(self, ewc=None if self.ewc is None else adapted(self.ewc, forgotten, settings))


@dataclass(frozen=True)
class Learned:
    """An adapter before and after its lesson."""

    before: AdapterState
    after: AdapterState
    metrics: Mapping[str, float] = field(default_factory=dict)


class Teacher:
    """Gives lessons in one learner: a module tree of its own over the served weights, so requests go on."""

    def __init__(
        self, learner: PeftModel, store: TrajectoryStore, model: ServedModel, bank: Bank, config: Config, report: Report
    ) -> None:
        self._learner, self._store, self._model, self._bank = learner, store, model, bank
        self._config, self._report = config, report

    def give(self, lesson: Lesson, state: AdapterState, seed: int) -> Learned:
        """Train from ``state``; the learner is left with the new weights.

        Raises:
            CycleError: a loss or weight that is not finite.
        """
        load_weights(self._learner, state.weights)
        settings, rng = self._config.train, np.random.default_rng(seed)
        past = Past(lesson.scopes, self._store, self._model, self._bank, settings, rng, lesson.moved)
        share = self._config.candidates.share
        mixture = Mixture(lesson.new, past, lesson.probes, settings, rng, lesson.effort or None, lesson.approved, share)
        steps = mixture.steps

        def on_step(step: int, loss: float) -> None:
            note = f"{lesson.adapter}: loss {loss:.3f}"
            self._report(Progress(stage="train", done=step + 1, total=steps, note=note))

        result = train(
            self._learner,
            mixture.draw,
            steps=steps,
            settings=settings,
            learning_rate=settings.learning_rate or auto_learning_rate(self._model.hidden_size),
            pad_id=self._model.pad_id,
            ewc=state.ewc or self._first_anchor(lesson, seed),
            optimizer_state=state.optimizer,
            on_step=on_step,
        )
        after = AdapterState(weights(self._learner), result.ewc, result.optimizer_state)
        metrics = {**result.metrics, "replayed": float(mixture.replayed)}
        return Learned(state, after, metrics)

    def _first_anchor(self, lesson: Lesson, seed: int) -> EwcState:
        """What matters to the base model's own answers is held from the start, where the adapter answers them; where
        it answers only what is new, nothing is.
        """
        generator = torch.Generator().manual_seed(seed)
        on = self._config.train.ewc_on
        return measured_state(self._learner, lesson.probes, self._model.pad_id, generator, on=on)
