"""Lessons by the served model: it is asked, greedily and within a bound, what a pattern's exemplars teach."""

from __future__ import annotations

import msgspec

from sona.bank.lesson_text import answered, question
from sona.bank.lessons import FEWEST_SHOWN, LessonDraft, LessonRequest
from sona.checks import Int32
from sona.ports import ServedModel
from sona.types import Message

LEAST_ANSWER = 16
"""Tokens. A lesson takes more; with less room there is no use in asking."""


class ModelDistiller:
    """A :data:`sona.bank.lessons.Distiller`. It answers with what the version in force makes of the question."""

    def __init__(self, model: ServedModel, max_tokens: int) -> None:
        """``max_tokens``: of an answer, at most."""
        self._model, self._max_tokens = model, max_tokens

    def __call__(self, request: LessonRequest) -> list[LessonDraft | str]:
        """A draft, or what is none, for each line of the answer; [] where not even two exemplars fit into the model.

        Raises:
            ModelError: the model's template refuses the question.
        """
        fitting = self._fitting(request)
        if fitting is None:
            return []
        smaller, prompt = fitting
        limit = min(self._max_tokens, self._model.max_tokens - len(prompt))
        return answered(self._model.generate(prompt, max_new_tokens=limit).text, smaller)

    def _fitting(self, request: LessonRequest) -> tuple[LessonRequest, Int32] | None:
        """The request with as many of its exemplars as leave room for an answer, and the question about them."""
        best, worst = request.best, request.worst
        while len(best) + len(worst) >= FEWEST_SHOWN:
            asked = Message(role="user", content=question(best, worst, request.most))
            prompt = self._model.encode_prompt([asked])
            if len(prompt) + min(self._max_tokens, LEAST_ANSWER * request.most) <= self._model.max_tokens:
                return msgspec.structs.replace(request, best=best, worst=worst), prompt
            if len(best) > len(worst):  # the least outstanding one of the larger side
                best = best[:-1]
            else:
                worst = worst[:-1]
        return None
