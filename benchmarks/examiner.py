"""What a served version can do: right answers on queries it never saw, and what it kept of the base model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sona.config import CycleConfig, ServeConfig
from sona.learn.dataset import Example
from sona.learn.likelihood import LanguageModel, evaluate
from sona.learn.lora import load_adapter
from sona.serving.local import LocalModel
from sona.tiny import SKILLS, sample
from sona.types import Message

SHIPPED = "shipped"
SKILL_PROMPTS = 60  # of each of the shipped model's skills
FRESH_PROBES = 96
FRESH_SEED = 1_000_000  # beyond the seeds that an engine's own probes are drawn with


class Kept(NamedTuple):
    """How much of the base model a version still is."""

    score: float
    """Share of the answers that are right (the shipped model), or of the tokens that are the base's own (any other)."""
    nats: float
    """-log p of the same answers, a token."""


@dataclass(frozen=True)
class Marks:
    """One version's examination."""

    accuracy: dict[str, float]
    """By domain: the share of queries whose whole answer is right, decoded greedily."""
    kept: Kept

    @property
    def mean(self) -> float:
        """Mean accuracy over the domains."""
        return float(np.mean(list(self.accuracy.values())))


class Examiner:
    """Examines adapters of one base model.

    An answer counts as right where each of its tokens, the end token included, is the likeliest after those before it.
    That is when greedy decoding writes this answer, at the cost of one forward pass instead of one a token.
    """

    def __init__(self, model: str, held_out: Mapping[str, Sequence[tuple[str, str]]], seed: int) -> None:
        """``held_out`` is by domain the (query, right answer) pairs; ``seed`` is that of the engines examined."""
        self._model = LocalModel("tiny" if model == SHIPPED else model, ServeConfig(device="cpu"))
        self._held_out = {domain: self._examples(pairs) for domain, pairs in held_out.items()}
        self._skills = model == SHIPPED
        self._base = self._skill_prompts() if self._skills else self._fresh_probes(seed)

    def mark(self, adapter: Path | None) -> Marks:
        """The marks of the adapter in this folder; None is the untouched base."""
        tree = self._model.trainable_copy()
        learner: LanguageModel = tree if adapter is None else load_adapter(tree, adapter)
        accuracy = {domain: self._exact(learner, examples) for domain, examples in self._held_out.items()}
        return Marks(accuracy, self._kept(learner))

    def _kept(self, learner: LanguageModel) -> Kept:
        """By whole answers where they are right or wrong, by tokens where they are long texts of the base's own."""
        scores = evaluate(learner, self._base, self._model.pad_id)
        score = scores.exact.mean() if self._skills else scores.share_right.mean()
        return Kept(float(score), float(-scores.log_prob.sum() / scores.tokens.sum()))

    def _exact(self, learner: LanguageModel, examples: Sequence[Example]) -> float:
        return float(evaluate(learner, examples, self._model.pad_id).exact.mean())

    def _examples(self, pairs: Sequence[tuple[str, str]]) -> list[Example]:
        return [
            Example(
                self._model.encode_prompt([Message(role="user", content=text)]), self._model.encode_response(answer)
            )
            for text, answer in pairs
        ]

    def _skill_prompts(self) -> list[Example]:
        return self._examples(
            [(one.prompt, one.response) for skill in SKILLS for one in sample(skill, SKILL_PROMPTS, 1, "held_out")]
        )

    def _fresh_probes(self, seed: int) -> list[Example]:
        """Texts of the base model itself that no engine with this seed had among its probes."""
        settings = CycleConfig()
        known = {
            prompt.tobytes() for prompt, _ in self._model.make_probes(settings.probes, settings.probe_tokens, seed)
        }
        fresh = self._model.make_probes(FRESH_PROBES, settings.probe_tokens, FRESH_SEED + seed)
        return [Example(prompt, answer) for prompt, answer in fresh if prompt.tobytes() not in known]
