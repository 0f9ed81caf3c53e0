"""The word world and its streams."""

from collections.abc import Callable

import pytest

from benchmarks.forgetting.base_skills import BASE_SKILLS
from benchmarks.forgetting.stream import WORLDS, StreamSize, make_stream
from benchmarks.forgetting.vocabulary import CONTENT, VOCABULARY
from benchmarks.forgetting.world import BASE, Question, World, drift_world, many_world, overlap_world, plain_world

NEW_WORLDS = [plain_world, overlap_world, many_world]


def test_vocabulary_names_each_word_once() -> None:
    assert len(set(VOCABULARY)) == len(VOCABULARY)


@pytest.mark.parametrize("make", [*NEW_WORLDS, drift_world])
def test_world_follows_from_its_seed(make: Callable[[int], World]) -> None:
    drawn = [[make(seed).sample(name, 20, "a") for name in make(seed).tasks] for seed in (3, 3, 4)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("make", [*NEW_WORLDS, drift_world])
def test_every_prompt_has_one_right_answer(make: Callable[[int], World]) -> None:
    world = make(0)
    for name in world.tasks:
        answers: dict[tuple[int, ...], tuple[int, ...]] = {}
        for question in world.sample(name, 400, "learnable"):
            assert answers.setdefault(question.prompt, question.answer) == question.answer


@pytest.mark.parametrize("make", NEW_WORLDS)
def test_tasks_share_no_prompt_with_each_other_or_the_base_skills(make: Callable[[int], World]) -> None:
    world = make(0)
    prompts = {name: {question.prompt for question in world.sample(name, 300, "apart")} for name in world.tasks}
    together = [prompt for asked in prompts.values() for prompt in asked]
    assert len(together) == len(set(together))
    openings = {question.prompt[1] for question in world.sample(BASE, 300, "apart")}
    assert not openings & {prompt[1] for prompt in together}


def test_overlapping_tasks_share_all_words_but_a_verb() -> None:
    world = overlap_world(0)
    words = [{token for one in world.sample(name, 2000, "words") for token in one.prompt} for name in world.tasks]
    assert len(words) == 5
    common = set.intersection(*words)
    assert [len(spoken - common) for spoken in words] == [1] * 5


def test_drift_gives_other_answers_to_the_same_prompts() -> None:
    world = drift_world(0)
    for name in (name for name in world.tasks if not name.startswith("new ")):
        before = dict(world.sample(name, 1500, "same"))
        after = dict(world.sample(f"new {name}", 1500, "same"))
        common = before.keys() & after.keys()
        assert len(common) > 50
        assert sum(before[prompt] == after[prompt] for prompt in common) < 0.35 * len(common)


def test_base_exam_takes_the_skills_in_turn() -> None:
    asked = plain_world(0).sample(BASE, 3 * len(BASE_SKILLS), "exam")
    assert all(isinstance(question, Question) for question in asked)
    assert {one.prompt[1] for one in asked[::7]} == {VOCABULARY.index("echo")}
    assert set(CONTENT) <= set(VOCABULARY)


@pytest.mark.parametrize("name", WORLDS)
def test_stream_has_the_declared_hours(name: str) -> None:
    stream = make_stream(name, 0)
    tasks = {"plain": 5, "overlap": 5, "drift": 10, "many": 20, "mixed": 5}[name]
    assert len(stream.segments) == 1 + tasks
    assert all(len(hour) == 96 for hour in stream.hours)
    lengths = [len(segment.hours) for segment in stream.segments[1:]]
    assert len(stream.segments[0].hours) == 2
    assert set(lengths) <= ({2} if name == "many" else {4, 5, 6})
    assert stream.judged == tuple(s.task for s in stream.segments[-5:] if name == "drift") or name != "drift"
    assert len(stream.exams) == 1 + tasks


def test_declared_share_of_answers_is_wrong_in_a_token_or_two() -> None:
    stream = make_stream("plain", 0)
    recorded = [one for hour in stream.hours for one in hour]
    assert sum(one.reward == 0.0 for one in recorded) / len(recorded) == pytest.approx(0.15, abs=0.02)
    right = {one.prompt: one.response for one in recorded if one.reward == 1.0}
    for one in recorded:
        if one.reward == 0.0 and one.prompt in right:
            assert sum(a != b for a, b in zip(one.response, right[one.prompt], strict=True)) in (1, 2)


def test_declared_share_of_mixed_hours_comes_from_before() -> None:
    stream = make_stream("mixed", 0)
    seen = [BASE]
    foreign = total = 0
    for segment in stream.segments[1:]:
        for hour in segment.hours:
            assert {one.task for one in hour} <= {*seen, segment.task}
            foreign += sum(one.task != segment.task for one in hour)
            total += len(hour)
        seen.append(segment.task)
    assert foreign / total == pytest.approx(0.3, abs=0.03)


def test_plain_hours_hold_one_task() -> None:
    for segment in make_stream("plain", 1).segments:
        assert {one.task for hour in segment.hours for one in hour} == {segment.task}


def test_smaller_stream_is_the_beginning_of_no_more_than_it_says() -> None:
    stream = make_stream("many", 0, StreamSize(per_hour=4, base_hours=1, hours=1, jitter=0, tasks=2, exam=5))
    assert [len(segment.hours) for segment in stream.segments] == [1, 1, 1]
    assert stream.starts == {segment.task: hour for hour, segment in enumerate(stream.segments)}
