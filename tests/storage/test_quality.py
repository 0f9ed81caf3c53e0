"""Several feedbacks for one trajectory: one policy says what they come to, wherever a quality is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sona.config import QualityPolicy, StoreConfig
from sona.errors import StoreVersionError
from sona.storage.quality import STATE, effective
from sona.storage.store import Store
from sona.types import Feedback
from tests.storage.records import add, run_cycle, trajectory

POLICIES: list[QualityPolicy] = ["last", "first", "mean", "min", "max"]
GIVEN = {"a": [0.25, 1.0, 0.5], "b": [0.75], "c": [0.0, 0.5], "d": []}
EXPECTED: dict[QualityPolicy, dict[str, float | None]] = {
    "last": {"a": 0.5, "b": 0.75, "c": 0.5, "d": None},
    "first": {"a": 0.25, "b": 0.75, "c": 0.0, "d": None},
    "mean": {"a": 1.75 / 3, "b": 0.75, "c": 0.25, "d": None},
    "min": {"a": 0.25, "b": 0.75, "c": 0.0, "d": None},
    "max": {"a": 1.0, "b": 0.75, "c": 0.5, "d": None},
}


def fill(store: Store) -> None:
    add(store, [trajectory(name) for name in GIVEN])
    for turn in range(3):  # in a batch of its own each, and once more: the same id counts once
        batch = [
            Feedback(trajectory_id=name, quality=values[turn], id=f"{name}{turn}", at_ns=turn, giver=f"g{turn}")
            for name, values in GIVEN.items()
            if turn < len(values)
        ]
        add(store, batch)
        add(store, batch)


def qualities(store: Store) -> dict[str, float | None]:
    return {row.trajectory.id: row.quality for row in store.iterate()}


def mean_quality(store: Store) -> float | None:
    (source,) = store.sources()
    return source.mean_quality


def mean_of(expected: dict[str, float | None]) -> float:
    return float(np.mean([value for value in expected.values() if value is not None]))


@pytest.mark.parametrize("policy", POLICIES)
def test_every_way_of_reading_gives_the_effective_quality(tmp_path: Path, policy: QualityPolicy) -> None:
    expected = EXPECTED[policy]
    with Store.open(tmp_path, config=StoreConfig(quality=policy)) as store:
        fill(store)
        assert qualities(store) == pytest.approx(expected)
        assert store.get("a").quality == pytest.approx(expected["a"])
        assert {row.trajectory.id: row.quality for row in store.collect(10).rows} == pytest.approx(
            {name: value for name, value in expected.items() if value is not None}
        )
        assert mean_quality(store) == pytest.approx(mean_of(expected))
        run_cycle(store, publish=True)
        for row in store.sample("train", 20, np.random.default_rng(0)):
            assert row.quality == pytest.approx(expected[row.trajectory.id])
        assert [one.giver for one in store.feedback_of("a")] == ["g0", "g1", "g2"]


@pytest.mark.parametrize("policy", POLICIES)
def test_what_was_learned_is_the_effective_quality_of_its_day(tmp_path: Path, policy: QualityPolicy) -> None:
    with Store.open(tmp_path, config=StoreConfig(quality=policy)) as store:
        fill(store)
        run_cycle(store, publish=True, role="left_out")
        add(store, [Feedback(trajectory_id=name, quality=quality) for name in "abc" for quality in (0.0, 1.0)])
        learned = {row.trajectory.id: row.learned_quality for row in store.collect(10).rows}
        assert learned == pytest.approx({name: EXPECTED[policy][name] for name in "abc"})


@pytest.mark.parametrize("policy", POLICIES)
def test_another_policy_counts_the_totals_anew_and_stays_with_the_store(tmp_path: Path, policy: QualityPolicy) -> None:
    with Store.open(tmp_path) as store:
        fill(store)
        assert mean_quality(store) == pytest.approx(mean_of(EXPECTED["last"]))
    with Store.open(tmp_path, config=StoreConfig(quality=policy)) as store:
        assert mean_quality(store) == pytest.approx(mean_of(EXPECTED[policy]))
        with Store.open(tmp_path, read_only=True) as reader:
            assert qualities(reader) == pytest.approx(EXPECTED[policy])
    with Store.open(tmp_path) as store:  # settings that say nothing of it
        assert qualities(store) == pytest.approx(EXPECTED[policy])
        add(store, [Feedback(trajectory_id="d", quality=0.5)])
        assert mean_quality(store) == pytest.approx(mean_of({**EXPECTED[policy], "d": 0.5}))


def test_a_policy_of_a_newer_sona_is_refused(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        store.write_state(STATE, b"median")
    for read_only in (False, True):
        with pytest.raises(StoreVersionError, match="median"):
            Store.open(tmp_path, read_only=read_only)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 4).map(lambda n: n / 4)), max_size=12),
    st.sampled_from(POLICIES),
    st.sampled_from(POLICIES),
)
def test_totals_agree_with_the_rows_whatever_comes(
    tmp_path_factory: pytest.TempPathFactory,
    given_: list[tuple[str, float]],
    policy: QualityPolicy,
    later: QualityPolicy,
) -> None:
    folder = tmp_path_factory.mktemp("store")
    with Store.open(folder, config=StoreConfig(quality=policy)) as store:
        add(store, [trajectory("a"), trajectory("b")])
        for name, quality in given_:
            add(store, [Feedback(trajectory_id=name, quality=quality)])
    for now in (policy, later):
        with Store.open(folder, config=StoreConfig(quality=now)) as store:
            values = {name: effective(now, [q for other, q in given_ if other == name]) for name in "ab"}
            known = [value for value in values.values() if value is not None]
            assert qualities(store) == pytest.approx(values)
            assert mean_quality(store) == (pytest.approx(sum(known) / len(known)) if known else None)
