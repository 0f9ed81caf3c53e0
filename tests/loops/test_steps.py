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
from sona.loops.credit import advantage_weights
from sona.loops.mixture import Mixture
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
    return Ready(
        Stored(seq=1, trajectory=trajectory, quality=1.0), np.asarray([1], np.int32), np.asarray([1], np.int32)
    )


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


def mixture(store: Store, seed: int = 0, model: NoModel | None = None) -> Mixture:
    new = [Example(np.asarray([1], np.int32), np.asarray([place], np.int32)) for place in range(20)]
    probes = [Example(np.asarray([1], np.int32), np.asarray([900 + place], np.int32)) for place in range(3)]
    settings = TrainConfig(batch_size=10, replay_share=0.3, probe_share=0.2, passes=2, min_steps=1)
    return Mixture(new, probes, store, model or NoModel(), Bank(), settings, seed)  # type: ignore[arg-type]


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


def test_replayed_prompts_are_embedded_once_in_a_cycle(tmp_path: Path) -> None:
    with with_past(tmp_path / "a") as store:
        model = NoModel()
        made = mixture(store, model=model)
        for step in range(100):
            made.draw(step)
        assert model.embedded == 9


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_the_smallest_batch_has_room_for_what_is_new(tmp_path: Path, size: int) -> None:
    with with_past(tmp_path / "a") as store:
        settings = TrainConfig(batch_size=size, replay_share=0.45, probe_share=0.45)
        new = [Example(np.asarray([1], np.int32), np.asarray([2], np.int32))]
        made = Mixture(new, new, store, NoModel(), Bank(), settings, 0)  # type: ignore[arg-type]
        assert made.steps >= 1
        batch = made.draw(0)
        assert len(batch) == size
        assert kinds(batch)[0] >= 1


def test_without_a_past_its_share_goes_to_the_new(tmp_path: Path) -> None:
    with Store.open(tmp_path / "b") as store:
        assert kinds(mixture(store).draw(0)) == [8, 0, 2]
