"""The pure steps of a cycle: credit, split, and the mixture of a batch."""

from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from sona.bank.bank import Bank
from sona.checks import Float32
from sona.config import TrainConfig
from sona.learn.dataset import Example
from sona.loops.credit import advantage_weights, push_weights
from sona.loops.mixture import Mixture, Past, Scope
from sona.loops.screen import Ready
from sona.loops.split import question_key, questions, split
from sona.ports import Claim, Stored
from sona.storage.store import Store
from sona.types import CycleReport, Feedback, Funnel, Trajectory

unit = st.floats(0.0, 1.0)


@given(st.lists(st.tuples(unit, unit), min_size=1, max_size=40))
def test_weights_are_positive_bounded_and_of_mean_one(pairs: list[tuple[float, float]]) -> None:
    settings = TrainConfig(advantage_beta=0.3, max_weight=4.0)
    weights = advantage_weights([q for q, _ in pairs], [b for _, b in pairs], settings)
    assert weights.mean() == pytest.approx(1.0)
    assert (weights > 0).all()
    raw = np.minimum(np.exp([(q - b) / 0.3 for q, b in pairs]), 4.0)
    np.testing.assert_allclose(weights / weights[0], raw / raw[0])


def test_an_answer_above_its_pattern_s_usual_counts_more() -> None:
    better, usual = advantage_weights([1.0, 1.0], [0.2, 1.0], TrainConfig())
    assert better > usual
    assert len(advantage_weights([], [], TrainConfig())) == 0


def ready(question: str, *, system: str = "be brief") -> Ready:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    trajectory = Trajectory(messages=messages, response="r")
    some = np.asarray([1], np.int32)
    return Ready(Stored(seq=1, trajectory=trajectory, quality=1.0), some, some, some)


def test_a_question_is_always_on_the_same_side() -> None:
    asked = [f"question {place}" for place in range(2000)]
    parts = split(
        [ready(question) for question in asked] + [ready(question, system="today is Monday") for question in asked], 0.2
    )
    sides = [{question_key(item.stored.trajectory) for item in side} for side in parts]
    assert not sides[0] & sides[1]
    assert len(sides[1]) / 2000 == pytest.approx(0.2, abs=0.04)
    assert questions(parts.held_out) == len(sides[1]) == len(parts.held_out) / 2
    assert split([ready("q")], 0.0).held_out == []


class NoModel:
    """Every trajectory here brings its own ids, so only its embeddings are asked for."""

    hidden_size, vocab_size = 4, 1000

    def __init__(self) -> None:
        self.embedded = 0

    def embed(self, prompts: list[object]) -> Float32:
        self.embedded += len(prompts)
        return np.ones((len(prompts), self.hidden_size), np.float32)


def with_past(path: Path) -> Store:
    """A store in which one cycle trained on the responses 100..109; the last of them was turned down later."""
    store = Store.open(path)
    rows = [Trajectory(id=f"t{place}", prompt_ids=[1], response_ids=[100 + place]) for place in range(10)]
    store.append([*rows, *(Feedback(trajectory_id=row.id, quality=1.0) for row in rows)])
    claims = [Claim(seq=row.seq, role="train") for row in store.collect(100).rows]
    funnel = Funnel(collected=10, trained=10, held_out=0)
    store.commit_cycle(CycleReport(cycle=1, status="rejected", reason="", funnel=funnel, parent="v0"), claims, None)
    store.append([Feedback(trajectory_id="t9", quality=0.0)])
    return store


def claimed(store: Store, cycle: int, skill: str, responses: range) -> None:
    """A cycle that trained on these responses for ``skill``."""
    rows = [Trajectory(id=f"t{place}", prompt_ids=[1], response_ids=[place]) for place in responses]
    store.append([*rows, *(Feedback(trajectory_id=row.id, quality=1.0) for row in rows)])
    claims = [Claim(seq=row.seq, role="train", skill=skill) for row in store.collect(1000).rows]
    funnel = Funnel(collected=len(rows), trained=len(rows), held_out=0)
    store.commit_cycle(CycleReport(cycle=cycle, status="rejected", reason="", funnel=funnel, parent="v0"), claims, None)


def past(store: Store, settings: TrainConfig, rng: np.random.Generator, model: NoModel | None = None) -> Past:
    return Past([Scope(None)], store, model or NoModel(), Bank(), settings, rng)  # type: ignore[arg-type]


def mixture(store: Store, seed: int = 0, model: NoModel | None = None) -> Mixture:
    new = [Example(np.asarray([1], np.int32), np.asarray([place], np.int32)) for place in range(20)]
    probes = [Example(np.asarray([1], np.int32), np.asarray([900 + place], np.int32)) for place in range(3)]
    settings = TrainConfig(batch_size=10, replay_share=0.3, probe_share=0.2, passes=2, min_steps=1)
    rng = np.random.default_rng(seed)
    return Mixture(new, past(store, settings, rng, model), probes, settings, rng)


def kinds(batch: list[Example]) -> list[int]:
    """New, replayed, probes."""
    firsts = [int(example.response[0]) for example in batch]
    return [sum(lo <= first < lo + 100 for first in firsts) for lo in (0, 100, 900)]


def test_a_batch_is_made_of_new_replayed_and_probes(tmp_path: Path) -> None:
    with with_past(tmp_path / "a") as store:
        made = mixture(store)
        assert made.steps == 8  # 2 passes over 20, 5 at a time
        batches = [made.draw(step) for step in range(8)]
        assert all(kinds(batch) == [5, 3, 2] for batch in batches)
        seen = [int(example.response[0]) for batch in batches for example in batch]
        assert sorted(first for first in seen if first < 100) == sorted([*range(20), *range(20)])
        assert 109 not in seen, "what was turned down later is not replayed"
        assert made.replayed == 24
        again = mixture(store)
        assert [kinds(again.draw(step)) for step in range(8)] == [kinds(batch) for batch in batches]


def test_replay_costs_no_pass_of_the_model(tmp_path: Path) -> None:
    with with_past(tmp_path / "a") as store:
        model = NoModel()
        made = mixture(store, model=model)
        for step in range(100):
            made.draw(step)
        assert model.embedded == 0


def test_the_past_is_drawn_from_all_skills_alike_and_only_as_far_as_it_holds(tmp_path: Path) -> None:
    with Store.open(tmp_path / "a") as store:
        for cycle, (skill, count) in enumerate([("s1", 60), ("s2", 10), ("s1", 5)], start=1):
            claimed(store, cycle, skill, range(100 * cycle, 100 * cycle + count))

        def drawn(*scopes: Scope) -> list[int]:
            made = Past(scopes, store, NoModel(), Bank(), TrainConfig(), np.random.default_rng(0))  # type: ignore[arg-type]
            return [int(example.response[0]) // 100 for example in made.draw(100)] if made else []

        both = drawn(Scope(("s1",)), Scope(("s2",)))
        assert len(both) == 100
        assert both.count(2) == 50
        assert set(drawn(Scope(("s1",), after_cycle=1))) == {3}
        assert set(drawn(Scope(("s2", "s1"), after_cycle=1))) == {2, 3}
        assert set(drawn(Scope(None))) == {1, 2, 3}
        assert set(drawn(Scope(("s3",)), Scope(("s2",)))) == {2}, "what has no past takes no share"
        assert drawn(Scope(("s3",)), Scope(("s2",), after_cycle=2)) == []


@given(st.lists(st.tuples(unit, unit), max_size=20))
def test_only_what_is_worse_than_usual_is_pushed_away(pairs: list[tuple[float, float]]) -> None:
    weights = push_weights([q for q, _ in pairs], [b for _, b in pairs], TrainConfig(push_weight=0.1))
    assert weights.tolist() == pytest.approx([0.1 * max(0.0, usual - quality) for quality, usual in pairs])


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_the_smallest_batch_has_room_for_what_is_new(tmp_path: Path, size: int) -> None:
    with with_past(tmp_path / "a") as store:
        settings = TrainConfig(batch_size=size, replay_share=0.45, probe_share=0.45)
        new = [Example(np.asarray([1], np.int32), np.asarray([2], np.int32))]
        rng = np.random.default_rng(0)
        made = Mixture(new, past(store, settings, rng), new, settings, rng)
        assert made.steps >= 1
        batch = made.draw(0)
        assert len(batch) == size
        assert kinds(batch)[0] >= 1


def test_each_new_answer_is_seen_as_often_as_it_takes_effort(tmp_path: Path) -> None:
    with Store.open(tmp_path / "b") as store:
        settings, rng = TrainConfig(batch_size=10, passes=4), np.random.default_rng(0)
        new = [Example(np.asarray([1], np.int32), np.asarray([place], np.int32)) for place in range(20)]
        made = Mixture(new, past(store, settings, rng), [], settings, rng, [0.25] * 10 + [1.5] * 10)
        assert made.steps == 14  # 4 passes over 17.5, 5 at a time, as if the other half were replayed
        seen = [int(example.response[0]) for step in range(700) for example in made.draw(step)]
        assert len(seen) == 7000
        assert sum(first < 10 for first in seen) / 7000 == pytest.approx(2.5 / 17.5, abs=0.01)
        assert set(seen) == set(range(20))


def test_without_a_past_its_share_goes_to_the_new(tmp_path: Path) -> None:
    with Store.open(tmp_path / "b") as store:
        assert kinds(mixture(store).draw(0)) == [8, 0, 2]
