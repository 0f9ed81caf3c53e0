"""Lessons by a served model: greedy, bounded, and read strictly."""

from collections.abc import Sequence

import numpy as np
import pytest

from sona.bank.lesson_text import question
from sona.bank.lessons import LessonDraft
from sona.checks import Int32
from sona.config import Config, LessonsConfig
from sona.loops.cycle import CycleContext
from sona.loops.distiller import ModelDistiller
from sona.types import Message, Reply
from tests.bank.lesson_records import exemplar, request

GOOD = "DO | Look it up | orders | Call the lookup first. | 1, 3"


class FixedModel:
    """Answers the same to everything; a token is a word."""

    def __init__(self, answer: str, max_tokens: int = 1000) -> None:
        self.answer, self.max_tokens = answer, max_tokens
        self.asked: list[str] = []
        self.limits: list[int] = []

    def encode_prompt(self, messages: Sequence[Message]) -> Int32:
        self.asked.append(messages[-1].content)
        return np.ones(len(messages[-1].content.split()), np.int32)

    def generate(self, prompt: Int32, *, max_new_tokens: int) -> Reply:
        assert len(prompt) + max_new_tokens <= self.max_tokens
        self.limits.append(max_new_tokens)
        return Reply(text=self.answer, token_ids=(1,), prompt_ids=(1,), version="v0", finish_reason="stop")


def distilled(model: FixedModel, max_tokens: int = 256) -> list[LessonDraft | str]:
    return ModelDistiller(model, max_tokens)(request())  # type: ignore[arg-type]


def test_a_fixed_answer_becomes_drafts() -> None:
    model = FixedModel(f"Sure!\n{GOOD}")
    first, draft = distilled(model, 99)
    assert first == "Sure!"
    assert isinstance(draft, LessonDraft)
    assert draft.trajectory_ids == ("p1-good1", "p1-bad")
    assert model.limits == [99]
    shown = request()
    assert model.asked == [question(shown.best, shown.worst, 3)]


@pytest.mark.parametrize("answer", ["", "\n\n", "no", "DO | DO | DO", "|" * 999, "\x00" * 9])
def test_hostile_answers_hold_no_lesson(answer: str) -> None:
    assert not [one for one in distilled(FixedModel(answer)) if isinstance(one, LessonDraft)]


def test_a_small_model_sees_as_many_exemplars_as_fit() -> None:
    whole = len(question(request().best, request().worst, 3).split())
    model = FixedModel("DO | a | b | c | 1, 2, 3", max_tokens=whole + 40)
    (draft,) = distilled(model)
    assert isinstance(draft, LessonDraft)
    assert draft.trajectory_ids == ("p1-good1", "p1-bad"), "the second best was not shown, and is not named"
    assert model.limits[0] >= 40
    assert distilled(FixedModel(GOOD, max_tokens=whole)) == []


def test_texts_too_long_for_the_model_are_not_asked_about() -> None:
    long = request(exemplars=(exemplar("a", 1.0, prompt="so " * 900), exemplar("b", 0.9, prompt="so " * 900)))
    model = FixedModel(GOOD)
    assert ModelDistiller(model, 64)(long) == []  # type: ignore[arg-type]
    assert model.limits == []


def test_who_writes_lessons() -> None:
    def own(request: object) -> None:
        return None

    def context(model: object, distill: object, by_model: bool) -> object:
        config = Config(lessons=LessonsConfig(by_model=by_model))
        made = CycleContext(None, None, model, config, distill)  # type: ignore[arg-type]
        return made.distiller()

    model = FixedModel("")
    assert context(model, None, False) is None, "off by default"
    assert context(None, None, True) is None
    assert isinstance(context(model, None, True), ModelDistiller)
    assert context(model, own, True) is own
    assert context(None, own, False) is own
