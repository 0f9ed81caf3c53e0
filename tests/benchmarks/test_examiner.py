"""The examiner's shortcuts against the engine's own answers."""

from pathlib import Path

import pytest

import sona
from benchmarks.course import CPU
from benchmarks.examiner import Examiner
from sona.config import Config
from sona.tiny import sample


@pytest.fixture(scope="module")
def questions() -> dict[str, list[tuple[str, str]]]:
    """Some that the shipped model can answer, and some that it can't."""
    return {
        skill: [(one.prompt, one.response) for one in sample(skill, 12, 3, "held_out")]
        for skill in ("echo", "reverse", "tag")
    }


def test_one_pass_finds_the_answers_that_the_engine_writes(
    tmp_path: Path, questions: dict[str, list[tuple[str, str]]]
) -> None:
    accuracy = Examiner("shipped", questions, 0).mark(None).accuracy
    with sona.open_sync(tmp_path / "store", model="tiny", config=Config(serve=CPU)) as engine:
        for skill, pairs in questions.items():
            replies = engine.generate_batch([text for text, _ in pairs], max_new_tokens=32)
            right = [reply.text == answer for reply, (_, answer) in zip(replies, pairs, strict=True)]
            assert accuracy[skill] == pytest.approx(sum(right) / len(right))
