"""What adapters and router together make of answers: each prompt is scored with the adapter that would answer it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from peft import PeftModel
from torch import Tensor

from sona.bank.skills import SHARED, SkillSet
from sona.checks import Float32
from sona.learn.dataset import Example
from sona.learn.likelihood import Scores, empty_scores, evaluate, kl_from_base, put_scores
from sona.learn.lora import load_weights, weights
from sona.ports import Report
from sona.types import Progress

Weights = Mapping[str, Tensor]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class System:
    """What answers: adapters, and the skills that say which of them does."""

    skills: SkillSet
    adapters: Mapping[str, Weights]


@dataclass(frozen=True)
class Questions:
    """Answers that were never trained on."""

    examples: list[Example]
    features: Float32 | None
    """(n, width) of their prompts, for a router; None where nothing is routed."""

    def answered_by(self, skills: SkillSet) -> list[str | None]:
        """The adapter that answers each: the router's choice, or the only one; None for the base."""
        if skills.router is not None and self.features is not None and len(self.examples):
            return skills.router.route(self.features)
        return [SHARED if SHARED in skills.adapters else None] * len(self.examples)

    def at(self, places: Sequence[int]) -> Questions:
        """Those at ``places`` alone."""
        chosen = list(places)
        rows = None if self.features is None else self.features[chosen]
        return Questions([self.examples[place] for place in chosen], rows)


class Examiner:
    """Scores examples with one adapter after the other in the learner, which is left as it was."""

    def __init__(self, learner: PeftModel, pad_id: int, report: Report) -> None:
        self._learner, self._pad_id, self._report = learner, pad_id, report

    def ask(self, questions: Questions, system: System, stage: str) -> Scores:
        """What ``system`` makes of the answers."""
        return self.score(questions.examples, questions.answered_by(system.skills), system.adapters, stage)

    def divergence(self, questions: Questions, system: System) -> Floats:
        """(n,) KL(base || system) of each answer's tokens, nats a token; 0 where the base itself answers."""
        found = np.zeros(len(questions.examples))
        answered_by = questions.answered_by(system.skills)
        for name, adapter in system.adapters.items():
            if places := [place for place, own in enumerate(answered_by) if own == name]:
                with self._holding(adapter):
                    found[places] = kl_from_base(self._learner, questions.at(places).examples, self._pad_id)
        return found

    def score(
        self,
        examples: Sequence[Example],
        answered_by: Sequence[str | None],
        adapters: Mapping[str, Weights],
        stage: str,
    ) -> Scores:
        """The scores of ``examples``, in their order.

        Args:
            examples: what is asked.
            answered_by: for each the adapter's name; None for the untouched base.
            adapters: weights by name.
            stage: what to tell of the progress.
        """
        scores = empty_scores(len(examples))
        done = 0

        def on_batch(part: int, _: int) -> None:
            self._report(Progress(stage=stage, done=done + part, total=len(examples)))

        for name in sorted(set(answered_by), key=lambda one: one or ""):
            places = [place for place, own in enumerate(answered_by) if own == name]
            part = [examples[place] for place in places]
            with self._learner.disable_adapter() if name is None else self._holding(adapters[name]):
                put_scores(scores, places, evaluate(self._learner, part, self._pad_id, on_batch=on_batch))
            done += len(places)
        return scores

    @contextmanager
    def _holding(self, adapter: Weights) -> Iterator[None]:
        """The learner with these weights, until the block ends."""
        before = weights(self._learner)
        load_weights(self._learner, adapter)
        try:
            yield
        finally:
            load_weights(self._learner, before)


def between(old: Weights, new: Weights, share: float) -> dict[str, Tensor]:
    """The weights ``share`` of the way from ``old`` to ``new``."""
    return {name: torch.lerp(old[name].to(tensor.device), tensor, share) for name, tensor in new.items()}


def nats(scores: Scores) -> Floats:
    """(n,) of each answer: -log p, nats a token."""
    return np.asarray(-scores.log_prob / scores.tokens, dtype=np.float64)
