"""What a served version can do: right answers on queries it never saw, and what it kept of the base model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sona.config import CycleConfig, ServeConfig
from sona.learn.dataset import Example
from sona.learn.likelihood import LanguageModel, Scores, empty_scores, evaluate, put_scores
from sona.learn.lora import load_adapter
from sona.ports import Served
from sona.serving.local import LocalModel
from sona.tiny import SKILLS, sample
from sona.types import Message

SHIPPED = "shipped"
SKILL_PROMPTS = 60  # of each of the shipped model's skills
FRESH_PROBES = 96
FRESH_SEED = 1_000_000  # beyond the seeds that an engine's own probes are drawn with


@dataclass(frozen=True)
class Marks:
    """One version's examination."""

    accuracy: dict[str, float]
    """By domain: the share of queries whose whole answer is right, decoded greedily."""
    kept: float
    """How much of the base model it still is, in [0, 1]: the share of right answers to held-out prompts of the shipped
    model's skills (the base's own is below 1); of any other model's own answers the share of tokens that it still
    chooses, weighted by the base's probability of each."""

    @property
    def mean(self) -> float:
        """Mean accuracy over the domains."""
        return float(np.mean(list(self.accuracy.values())))


class Examiner:
    """Examines versions of one base model: each query is answered by the adapter that the version's router picks.

    An answer counts as right where each of its tokens, the end token included, is the likeliest after those before it.
    That is when greedy decoding writes this answer, at the cost of one forward pass instead of one a token.
    """

    def __init__(self, model: str, held_out: Mapping[str, Sequence[tuple[str, str]]], seed: int) -> None:
        """``held_out`` is by domain the (query, right answer) pairs; ``seed`` is that of the engines examined."""
        self._model = LocalModel("tiny" if model == SHIPPED else model, ServeConfig(device="cpu"))
        self._held_out = {domain: self._examples(pairs) for domain, pairs in held_out.items()}
        self._asked = self._skill_prompts() if model == SHIPPED else self._fresh_probes(seed)
        self._base = None if model == SHIPPED else self._scores(Served({}), self._asked)

    def mark(self, served: Served) -> Marks:
        """The marks of what a version answers with; without an adapter the untouched base."""
        accuracy = {
            domain: float(self._scores(served, examples).exact.mean()) for domain, examples in self._held_out.items()
        }
        return Marks(accuracy, self._kept(self._scores(served, self._asked)))

    def _kept(self, scores: Scores) -> float:
        if self._base is None:
            return float(scores.exact.mean())
        pairs = zip(scores.token_right, self._base.token_log_prob, strict=True)
        return float(np.mean([np.average(right, weights=np.exp(log_prob)) for right, log_prob in pairs]))

    def _scores(self, served: Served, examples: Sequence[Example]) -> Scores:
        scores, names = empty_scores(len(examples)), self._answered_by(served, examples)
        for name in dict.fromkeys(names):
            places = [place for place, other in enumerate(names) if other == name]
            tree = self._model.trainable_copy()
            learner: LanguageModel = tree if name is None else load_adapter(tree, served.adapters[name])
            part = [examples[place] for place in places]
            put_scores(scores, places, evaluate(learner, part, self._model.pad_id))
        return scores

    def _answered_by(self, served: Served, examples: Sequence[Example]) -> list[str | None]:
        """The adapter of each, as :class:`LocalModel` picks it; None for the base."""
        if served.router is None or not served.adapters:
            return [next(iter(served.adapters), None)] * len(examples)
        return served.router.route(self._model.features([example.prompt for example in examples]))

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
