"""The examiner's shortcuts against the engine's own answers."""

from pathlib import Path

import pytest
from msgspec.structs import replace

import sona
from benchmarks.course import CPU
from benchmarks.examiner import Examiner
from sona.config import Config, TrainConfig
from sona.loops.version_files import read_served
from sona.ports import Served
from sona.storage.versions import Versions
from sona.tiny import sample
from tests.engine.small import SMALL, WORLD, open_small, record_task


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
    accuracy = Examiner("shipped", questions, 0).mark(Served({})).accuracy
    with sona.open_sync(tmp_path / "store", model="tiny", config=Config(serve=CPU)) as engine:
        for skill, pairs in questions.items():
            replies = engine.generate_batch([text for text, _ in pairs], max_new_tokens=32)
            right = [reply.text == answer for reply, (_, answer) in zip(replies, pairs, strict=True)]
            assert accuracy[skill] == pytest.approx(sum(right) / len(right))


def test_a_routed_version_is_examined_as_it_is_served(tmp_path: Path) -> None:
    """Two skills in one version: each question is answered by the adapter that the engine picks, or by the base."""
    asked = {
        task: [(one.prompt, one.response) for one in WORLD.sample(task, 12, 9, "held_out")]
        for task in ("tool_call", "routing_policy")
    }
    with open_small(tmp_path / "store", config=replace(SMALL, train=TrainConfig(passes=12, max_steps=80))) as engine:
        for seed, task in enumerate(asked):
            record_task(engine, 60, seed=seed, task=task)
            assert engine.learn().status == "published"
        exact = {
            task: [
                reply.text == answer
                for reply, (_, answer) in zip(
                    engine.generate_batch([text for text, _ in pairs], max_new_tokens=32), pairs, strict=True
                )
            ]
            for task, pairs in asked.items()
        }
        version = engine.version.id
    examiner = Examiner("shipped", asked, 0)
    served = read_served(Versions(tmp_path / "store"), version)
    assert len(served.adapters) == 2
    marks = examiner.mark(served)
    assert marks.accuracy == {task: pytest.approx(sum(right) / len(right)) for task, right in exact.items()}
    assert marks.mean > 0
    assert marks.kept > 0.95, "the base's own queries are left to it"
