"""Recall for a prompt, lessons, and what they turn out to be worth, through the engine."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sona
from sona.bank.lessons import LessonDraft, LessonRequest
from sona.bank.prompting import in_prompt
from sona.checks import Float32
from sona.config import Config, CycleConfig, LessonsConfig
from sona.errors import ClosedError, DimensionMismatchError, InvalidInputError, ModelError, UnknownIdError
from sona.patterns import Lesson
from tests.engine.small import SMALL, open_small, record_task

WIDTH = 16
CENTRES = np.random.default_rng(0).normal(size=(2, WIDTH))
SETTINGS = Config(cycle=CycleConfig(min_trajectories=4))
MARKER = "Xq7-marker"


def near(place: int, seed: int) -> Float32:
    noise = np.random.default_rng(seed).normal(size=WIDTH)
    return np.asarray(CENTRES[place] + 0.1 * noise, np.float32)


def distill(request: LessonRequest) -> list[LessonDraft]:
    said = request.best[0].prompt.split()[0]
    return [
        LessonDraft(title=f"About {said}", when="always", advice="do", text=f"Do it as in {request.best[0].prompt}")
    ]


def opened(store: Path, **options: Any) -> sona.SyncEngine:
    return sona.open_sync(store, **{"config": SETTINGS, "distill": distill, **options})


def record_both(engine: sona.SyncEngine, count: int = 40, sources: tuple[str, str] = ("bob", "bob")) -> None:
    """Of two kinds of queries; every third went wrong."""
    for place in range(count):
        kind = place % 2
        trajectory = sona.Trajectory(
            messages=f"{sources[kind]} asks {place}",
            response=f"answer {place}",
            embedding=near(kind, place),
            source=sources[kind],
            steps=[sona.Step(name=f"tool:{sources[kind]}")],
        )
        engine.record(trajectory, quality=0.1 if place % 3 == 0 else 0.9)


def lessons(engine: sona.SyncEngine) -> dict[str, Lesson]:
    return {lesson.id: lesson for pattern in engine.bank.patterns for lesson in pattern.lessons}


def answered(engine: sona.SyncEngine, seed: int) -> sona.Trajectory:
    """A query of the first kind for which was recalled."""
    with engine.trajectory(f"query {seed}") as t:
        assert t.recall(1, embedding=near(0, seed))
        t.respond("yes")
    engine.flush()
    return engine.get(t.id).trajectory


def test_a_lesson_is_written_recalled_and_judged_by_later_feedback(tmp_path: Path) -> None:
    with opened(tmp_path / "store") as engine:
        record_both(engine)
        report = engine.learn()
        assert report.metrics["lessons_written"] == 2
        (found, *_) = engine.recall(near(0, 999), 1)
        assert "- Do: About bob." in found.text
        assert found.tokens is None
        trajectories = [answered(engine, 100 + number) for number in range(6)]
        assert all(one.recalled == found.ids for one in trajectories)
        assert engine.learn().status == "skipped", "nothing of it is rated yet"
    with opened(tmp_path / "store") as engine:  # days later
        for number, one in enumerate(trajectories):
            engine.feedback(one.id, 1.0 if number < 5 else 0.0)
        report = engine.learn()
        assert (report.metrics["lessons_helped"], report.metrics["lessons_harmed"]) == (5, 1)
        judged = lessons(engine)[found.ids[1]]
        assert (judged.helpful, judged.harmful) == (5, 1)
        assert "With it queries went 0.21 better than usual, in 6 trials." in engine.recall(near(0, 999), 1)[0].text


def test_a_trajectory_that_is_collected_again_counts_once_by_its_latest_quality(tmp_path: Path) -> None:
    """Without a model all are left out, so each later feedback has them collected again."""
    with opened(tmp_path / "store") as engine:
        record_both(engine)
        engine.learn()
        trajectories = [answered(engine, 100 + number) for number in range(4)]
        name = trajectories[0].recalled[1]
        for quality, counters in ((0.0, (1, 3)), (0.0, (1, 3)), (1.0, (4, 0))):
            for number, one in enumerate(trajectories):
                engine.feedback(one.id, quality if number else 1.0)
            assert engine.learn().funnel.collected == 4
            assert (lessons(engine)[name].helpful, lessons(engine)[name].harmful) == counters


def test_a_rollback_takes_the_counters_back_and_a_useless_lesson_goes(tmp_path: Path) -> None:
    with opened(tmp_path / "store") as engine:
        record_both(engine)
        first = engine.learn().version
        trajectories = [answered(engine, 100 + number) for number in range(20)]
        for one in trajectories:
            engine.feedback(one.id, 0.0)
        report = engine.learn()
        assert report.metrics["lessons_dropped"] == 1
        assert len(lessons(engine)) == 1
        assert engine.roll_back().id == first
        assert lessons(engine)[trajectories[0].recalled[1]].harmful == 0


def test_lessons_are_off_where_nobody_writes_them(tmp_path: Path) -> None:
    with opened(tmp_path / "store", distill=None) as engine:
        record_both(engine)
        report = engine.learn()
        assert report.status == "published"
        assert not [name for name in report.metrics if name.startswith("lessons")]
        assert lessons(engine) == {}


def test_a_distiller_that_raises_breaks_no_cycle(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def broken(request: LessonRequest) -> list[LessonDraft]:
        raise RuntimeError("no network")

    with opened(tmp_path / "store", distill=broken) as engine:
        record_both(engine)
        report = engine.learn()
        assert report.status == "published"
        assert (report.metrics["lessons_asked"], report.metrics["lessons_failed"]) == (2, 2)
        assert len(engine.bank.patterns) == 2
    assert "could not be distilled" in caplog.text


@pytest.mark.parametrize("wrong", ["a text", 7, object()])
def test_a_distiller_is_a_function(wrong: Any, tmp_path: Path) -> None:
    async def later(request: LessonRequest) -> list[LessonDraft]:
        return []

    refused: list[Any] = [wrong, later]
    for one in refused:
        with pytest.raises(InvalidInputError, match="distill"):
            sona.open(tmp_path, distill=one)


def test_what_is_recalled_has_to_be_told_apart_from_what_was_used(tmp_path: Path) -> None:
    with opened(tmp_path / "store") as engine:
        record_both(engine)
        engine.learn()
        with engine.trajectory("query") as t:
            found = t.recall(2, embedding=near(0, 1))
            put = in_prompt(found, max_tokens=30, count_tokens=lambda text: len(text.split()))
            t.used(put.ids)
            with pytest.raises(InvalidInputError, match="recalled"):
                t.used("p1")
            t.respond("yes")
        elsewhere = engine.recall(near(1, 1), 1)[0]
        with engine.trajectory("another", recalled=elsewhere.ids) as u:
            u.respond("yes")
        engine.flush()
        assert engine.get(t.id).trajectory.recalled == put.ids
        assert set(put.ids) < {name for one in found for name in one.ids}
        vector = engine.get(t.id).trajectory.vector()
        assert vector is not None
        np.testing.assert_array_equal(vector, near(0, 1))
        assert engine.get(u.id).trajectory.recalled == elsewhere.ids
        with pytest.raises(InvalidInputError, match="recalled"):
            engine.trajectory("q", recalled=[""])


def test_a_recall_that_can_t_be_is_the_caller_s_error(tmp_path: Path) -> None:
    with opened(tmp_path / "store") as engine:
        with engine.trajectory("before the first cycle") as t:
            assert t.recall(3, embedding=near(0, 1)) == []
            with engine.trajectory("another") as u, pytest.raises(ModelError, match="no model"):
                u.recall()
            with pytest.raises(InvalidInputError, match="embedding"):
                t.recall(3, embedding=[float("nan")] * WIDTH)
            t.respond("yes")
        engine.flush()
        with engine.trajectory("of another width") as u:
            with pytest.raises(DimensionMismatchError):
                u.recall(3, embedding=[1.0, 2.0])
            u.respond("yes")
        assert engine.status().hook_errors == 0
        with pytest.raises(DimensionMismatchError):
            engine.recall(np.ones(WIDTH + 1, np.float32))
        with pytest.raises(ModelError):
            engine.count_tokens("text")
        inner = engine._engine._host
    with pytest.raises(ClosedError):
        engine.recall(near(0, 1))
    assert inner._parts.closed


def test_an_erased_source_takes_its_lessons_and_route_names_with_it(tmp_path: Path) -> None:
    with opened(tmp_path / "store") as engine:
        record_both(engine, sources=(MARKER, "bob"))
        engine.learn()
        assert len(lessons(engine)) == 2
        done = engine.erase(MARKER)
        assert (done.lessons, done.trajectories) == (1, 20)
        assert [one.title for one in lessons(engine).values()] == ["About bob"]
        assert {route for pattern in engine.bank.patterns for route in pattern.routes} == {"tool:bob"}
        assert [pattern.count for pattern in engine.bank.patterns] == [20, 20]
        with pytest.raises(UnknownIdError, match=r"'nobody'.*'bob'"):
            engine.erase("nobody")
    files = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert [path.name for path in files if MARKER.encode() in path.read_bytes()] == []


@pytest.mark.anyio
async def test_the_async_engine_does_the_same(tmp_path: Path) -> None:
    async with sona.open(tmp_path / "store", config=SETTINGS, distill=distill) as engine:
        for place in range(40):
            record = sona.Trajectory(messages=f"q {place}", response="a", embedding=near(place % 2, place))
            engine.record(record, quality=0.9 if place % 3 else 0.1)
        assert (await engine.learn()).metrics["lessons_written"] == 2
        async with engine.trajectory("query") as t:
            (found,) = await t.recall(1, embedding=near(1, 500))
            t.respond("yes")
        await t.durable()
        assert engine.get(t.id).trajectory.recalled == found.ids
        assert len(found.ids) == 2


def test_a_served_model_counts_tokens_and_may_write_lessons(tmp_path: Path) -> None:
    config = Config(
        seed=1, serve=SMALL.serve, train=SMALL.train, gate=SMALL.gate, cycle=SMALL.cycle,
        lessons=LessonsConfig(by_model=True, max_tokens=32),
    )  # fmt: skip
    with open_small(tmp_path / "store", config=config) as engine:
        record_task(engine, 60, seed=1)
        report = engine.learn()
        assert report.status == "published", report.reason
        asked, failed = report.metrics["lessons_asked"], report.metrics["lessons_failed"]
        assert (asked > 0, failed) == (True, 0)
        with engine.trajectory("echo blue river") as t:
            found = t.recall(2)
            t.respond("blue river")
        engine.flush()
        assert engine.get(t.id).trajectory.recalled == tuple(name for one in found for name in one.ids)
        assert [one.text for one in engine.recall("echo blue river", 2)] == [one.text for one in found]
        for one in found:
            assert one.tokens == engine.count_tokens(one.text) > 0
        put = in_prompt(found, max_tokens=400, count_tokens=engine.count_tokens)
        assert 0 < put.tokens == engine.count_tokens(put.text) <= 400


def test_what_fails_behind_a_recall_is_kept_from_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path / "store") as engine:
        record_both(engine)
        engine.learn()
        monkeypatch.setattr(engine.bank, "recall", lambda vector, k: 1 / 0)
        with engine.trajectory("query") as t:
            assert t.recall(1, embedding=near(0, 1)) == []
            t.respond("yes")
        assert engine.status().hook_errors == 1
        engine.flush()
        assert engine.get(t.id).trajectory.recalled == ()
