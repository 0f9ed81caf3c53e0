"""Trajectories and feedback: what goes in comes out, once."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import cast

import apsw
import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sona.checks import MAX_NUMBER, pack_tokens
from sona.errors import (
    ClosedError,
    ConflictError,
    DimensionMismatchError,
    InvalidInputError,
    StoreError,
    UnknownIdError,
)
from sona.storage import new_trajectories
from sona.storage.claims import ROLES
from sona.storage.rows import TrajectoryRow, read_trajectory, trajectory_row
from sona.storage.store import DATABASE, Store
from sona.types import Feedback, Message, Step, ToolCall, Trajectory, new_id
from tests.storage.records import add, ask, feedback, rated, report, run_cycle, trajectory


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as store:
        yield store


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=40).filter(
    lambda name: bool(name.strip())
)
rewards = st.none() | st.floats(-MAX_NUMBER, MAX_NUMBER)
tokens = st.none() | st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=20)
vectors = st.none() | st.lists(st.floats(-9, 9, width=32), min_size=4, max_size=4).filter(any)
messages = st.builds(
    Message,
    role=st.sampled_from(["system", "user", "assistant", "tool"]),
    content=names,
    name=st.none() | names,
    tool_calls=st.lists(st.builds(ToolCall, name=names, arguments=texts), max_size=2).map(tuple),
)
steps = st.builds(Step, name=names, reward=rewards, latency_s=st.none() | st.floats(0, 1e9), content=texts)
trajectories = st.builds(
    Trajectory,
    source=names,
    messages=st.lists(messages, min_size=1, max_size=3),
    response=names,
    prompt_ids=tokens,
    response_ids=tokens,
    embedding=vectors,
    steps=st.lists(steps, max_size=3),
    outcome=st.sampled_from(["completed", "failed", "abandoned"]),
    version=st.none() | names,
    recalled=st.lists(names, max_size=2),
    metadata=st.dictionaries(names, texts, max_size=2),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(record=trajectories, quality=st.floats(0, 1), comment=texts)
def test_what_is_stored_is_read_back_equal(store: Store, record: Trajectory, quality: float, comment: str) -> None:
    said = Feedback(trajectory_id=record.id, quality=quality, comment=comment)
    add(store, [record, said])
    stored = store.get(record.id)
    assert stored.trajectory == record
    assert stored.quality == quality
    assert store.feedback_of(record.id) == [said]


def test_an_embedding_alone_is_a_trajectory(store: Store) -> None:
    record = Trajectory(embedding=[1.0, 2.0])
    add(store, [record])
    assert store.get(record.id).trajectory == record


def test_numpy_numbers_are_stored_as_plain_ones(store: Store) -> None:
    record = Trajectory(messages=ask("q"), response="a", steps=[Step(name="s", reward=cast(float, np.float32(0.5)))])
    add(store, [record])
    assert store.get(record.id).trajectory.steps[0].reward == 0.5


def test_seq_follows_the_order_of_arrival(store: Store) -> None:
    add(store, [trajectory("b"), trajectory("a")])
    add(store, [trajectory("c")])
    assert [(row.seq, row.trajectory.id) for row in store.iterate()] == [(1, "b"), (2, "a"), (3, "c")]
    assert [row.trajectory.id for row in store.iterate(after_seq=2)] == ["c"]


def test_iterate_crosses_its_pages(store: Store) -> None:
    add(store, [trajectory(str(number), width=None) for number in range(600)])
    assert [row.seq for row in store.iterate()] == list(range(1, 601))


def test_the_same_record_again_is_no_change(store: Store) -> None:
    records: list[Trajectory | Feedback] = [trajectory("a"), feedback("a")]
    add(store, records)
    before = store.counts()
    add(store, [*records, *records])
    after = store.counts()
    assert (after.trajectories, after.feedback) == (before.trajectories, before.feedback) == (1, 1)
    assert store.sources()[0].steps == 2


def test_a_record_given_twice_in_one_batch_is_stored_once(store: Store) -> None:
    add(store, [trajectory("a"), trajectory("a"), feedback("a"), feedback("a")])
    assert (store.counts().trajectories, store.counts().feedback) == (1, 1)


def test_metadata_in_another_order_is_the_same_content(store: Store) -> None:
    one = Trajectory(id="a", created_ns=1, messages=ask("q"), response="r", metadata={"x": "1", "y": "2"})
    two = Trajectory(id="a", created_ns=1, messages=ask("q"), response="r", metadata={"y": "2", "x": "1"})
    add(store, [one])
    add(store, [two])


def test_a_retry_that_builds_the_record_again_is_the_same_content(store: Store) -> None:
    """Its clock goes on, and its steps' too; the first one's times stay."""

    def built(at_ns: int, reward: float = 0.5) -> Trajectory:
        step = Step(name="tool:lookup", reward=reward, at_ns=at_ns)
        return Trajectory(id="a", created_ns=at_ns, messages=ask("q"), response="r", steps=[step])

    add(store, [built(1)])
    add(store, [built(2), feedback("a", 0.9)])
    assert store.get("a").trajectory == built(1)
    assert store.get("a").quality == 0.9
    assert [type(result) for result in store.append([built(1, reward=0.6)])] == [ConflictError]


def test_another_content_under_a_taken_id_is_left_out_alone(store: Store) -> None:
    add(store, [trajectory("a"), feedback("a", 0.2)])
    other = Trajectory(id="a", messages=ask("something else"), response="r")
    results = store.append([other, trajectory("b"), feedback("a", 0.9), feedback("b")])
    assert [type(result) for result in results] == [ConflictError, type(None), ConflictError, type(None)]
    assert store.get("a").trajectory == trajectory("a")
    assert store.get("a").quality == 0.2
    assert "b" in store


def test_feedback_belongs_to_the_nearest_trajectory_of_its_id_before_it(store: Store) -> None:
    other = Trajectory(id="a", messages=ask("something else"), response="r")
    results = store.append([trajectory("a"), feedback("a", 0.2, id="of a"), other, feedback("a", 0.9, id="of other")])
    assert [type(result) for result in results] == [type(None), type(None), ConflictError, ConflictError]
    assert store.get("a").quality == 0.2
    results = store.append([feedback("a", 0.3, id="before"), other, trajectory("a"), feedback("a", 0.4, id="again")])
    assert [type(result) for result in results] == [type(None), ConflictError, type(None), type(None)]
    assert [one.id for one in store.feedback_of("a")] == ["of a", "before", "again"]


def test_feedback_of_one_left_out_for_its_width_does_not_rate_the_one_that_is_there(store: Store) -> None:
    add(store, [trajectory("a", width=8)])
    results = store.append([trajectory("a", width=9), feedback("a", 0.9)])
    assert [type(result) for result in results] == [DimensionMismatchError, UnknownIdError]
    assert "an embedding of 9 numbers" in str(results[1])
    assert store.get("a").quality is None


def test_feedback_stays_with_its_trajectory_where_a_batch_is_taken_apart(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stumble(record: Trajectory) -> TrajectoryRow:
        if record.id == "b":
            raise ValueError("a bug")
        return trajectory_row(record)

    monkeypatch.setattr(new_trajectories, "trajectory_row", stumble)
    other = Trajectory(id="a", messages=ask("something else"), response="r")
    results = store.append(
        [trajectory("a"), feedback("a", 0.2, id="of a"), other, trajectory("b"), feedback("a", 0.9, id="other's")]
    )
    expected = [type(None), type(None), ConflictError, InvalidInputError, ConflictError]
    assert [type(result) for result in results] == expected
    assert store.get("a").quality == 0.2


def test_feedback_for_no_trajectory_is_left_out_alone(store: Store) -> None:
    results = store.append([feedback("ghost"), trajectory("a"), feedback("a")])
    assert [type(result) for result in results] == [UnknownIdError, type(None), type(None)]
    assert store.counts().feedback == 1


def test_another_width_is_left_out_alone(store: Store) -> None:
    assert store.embedding_width is None
    add(store, [trajectory("none", width=None)])
    assert store.embedding_width is None
    results = store.append([trajectory("a", width=8), trajectory("b", width=9), trajectory("c", width=8)])
    assert [type(result) for result in results] == [type(None), DimensionMismatchError, type(None)]
    assert store.embedding_width == 8


def test_the_latest_feedback_is_the_effective_quality(store: Store) -> None:
    add(store, [trajectory("a"), feedback("a", 0.1, id="1"), feedback("a", 0.9, id="2"), feedback("a", 0.4, id="3")])
    assert store.get("a").quality == 0.4
    assert [one.quality for one in store.feedback_of("a")] == [0.1, 0.9, 0.4]


def test_unknown_ids_are_said(store: Store) -> None:
    with pytest.raises(UnknownIdError, match="ghost"):
        store.get("ghost")
    with pytest.raises(UnknownIdError, match="ghost"):
        store.feedback_of("ghost")
    assert "ghost" not in store


def test_counts_and_sources_are_those_of_the_records(store: Store) -> None:
    add(store, [trajectory("a", source="x"), trajectory("b", source="x"), trajectory("c", source="y")])
    add(store, [Trajectory(id="d", source="y", messages=ask("q"), outcome="failed")])
    add(store, [feedback("a", 0.2, id="1"), feedback("c", 1.0, id="2")])
    add(store, [feedback("a", 0.6, id="3")])
    counts = store.counts()
    assert (counts.trajectories, counts.feedback, counts.waiting_for_feedback, counts.uncollected) == (4, 3, 2, 2)
    assert counts.bytes_on_disk > 0
    x, y = store.sources()
    assert (x.source, x.trajectories, x.steps, x.rewards, x.rated) == ("x", 2, 4, 2, 1)
    assert x.mean_reward == 0.5
    assert x.mean_quality is not None
    assert math.isclose(x.mean_quality, 0.6)
    assert x.outcomes == {"completed": 2}
    assert (y.mean_quality, y.outcomes) == (1.0, {"completed": 1, "failed": 1})


def test_token_ids_from_a_claim_are_known_to_the_trajectory(store: Store) -> None:
    row = trajectory_row(Trajectory(id="a", messages=ask("x"), response="y"))
    assert read_trajectory(row).largest_token == -1
    found = read_trajectory(row, ("prompt_ids", pack_tokens([7, 900])), ("response_ids", pack_tokens([8])))
    assert found.largest_token == 900


def test_the_largest_rewards_are_counted_and_leave_the_mean_sensible(store: Store) -> None:
    most = MAX_NUMBER
    for number, rewards in enumerate([(most, most), (-most, -most), (1.5, 2.5)]):
        taken = [Step(name="s", reward=reward) for reward in rewards]
        add(store, [Trajectory(id=str(number), source="x", messages=ask("q"), response="r", steps=taken)])
    (x,) = store.sources()
    assert (x.rewards, x.mean_reward) == (6, 4 / 6)


def test_totals_that_leave_the_floats_hold_up_nothing_else(store: Store) -> None:
    """No reward that is let in can do it: these slip by the checks."""
    for number, reward in enumerate([1e308, 1e308, -1e308, -1e308]):
        step = Step(name="s")
        msgspec.structs.force_setattr(step, "reward", reward * 10)
        wild = Trajectory(id=f"wild{number}", source="x", messages=ask("q"), response="r", steps=[step])
        results = store.append([*rated([f"a{number}"]), wild, *rated([f"b{number}"])])
        assert [results[index] for index in (0, 1, 3, 4)] == [None] * 4
    assert store.counts().feedback == 8
    store.sources()


# What can't be stored


def trap(store: Store, table: str, when: str) -> None:
    """Let SQLite refuse a change of ``table``, as it refuses NULL where none may be."""
    raw = apsw.Connection(str(store.path / DATABASE))
    raw.execute(
        f"CREATE TRIGGER trap BEFORE INSERT ON {table} WHEN {when} BEGIN SELECT RAISE(ABORT, 'refused'); END",
    )
    raw.close()


@pytest.mark.parametrize("place", [0, 3, 8])
@pytest.mark.parametrize(
    ("table", "when"), [("trajectories", "NEW.id = 'poison'"), ("sources", "NEW.source = 'poisoned'")]
)
def test_a_record_that_sqlite_refuses_is_left_out_alone(store: Store, table: str, when: str, place: int) -> None:
    trap(store, table, when)
    names = list("abcdefgh")
    records = [trajectory(name) for name in names]
    records.insert(place, trajectory("poison", source="poisoned"))
    results = store.append([*records, *(feedback(name) for name in names), feedback("poison")])
    assert isinstance(results[place], InvalidInputError)
    assert "refused" in str(results[place])
    assert isinstance(results[-1], UnknownIdError)
    assert [result for index, result in enumerate(results[:-1]) if index != place] == [None] * 16
    counts = store.counts()
    assert (counts.trajectories, counts.feedback) == (8, 8)
    assert "poison" not in store


def test_a_record_that_trips_over_a_bug_is_left_out_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(record: Trajectory) -> TrajectoryRow:
        if record.id == "b":
            raise ZeroDivisionError("a bug")
        return trajectory_row(record)

    monkeypatch.setattr(new_trajectories, "trajectory_row", stumble)
    results = store.append([trajectory("a"), trajectory("b"), trajectory("c")])
    assert [type(result) for result in results] == [type(None), InvalidInputError, type(None)]
    assert "ZeroDivisionError: a bug" in str(results[1])
    assert [row.trajectory.id for row in store.iterate()] == ["a", "c"]


def test_trouble_of_the_store_leaves_no_record_out(store: Store) -> None:
    raw = apsw.Connection(str(store.path / DATABASE))
    raw.execute("ALTER TABLE sources RENAME TO elsewhere")
    with pytest.raises(StoreError, match="no such table"):
        store.append(rated("ab"))
    raw.execute("ALTER TABLE elsewhere RENAME TO sources")
    raw.close()
    add(store, rated("ab"))


@settings(max_examples=15)
@given(data=st.data())
def test_totals_agree_with_a_slow_count(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    ids = [f"t{number}" for number in range(6)]
    some = st.one_of(
        st.sampled_from(ids).map(lambda name: trajectory(name, source=f"s{int(name[1]) % 2}")),
        st.builds(
            lambda name, quality, number: feedback(name, quality, id=f"f{number}"),
            st.sampled_from(ids),
            st.sampled_from([0.0, 0.25, 1.0]),
            st.integers(0, 8),
        ),
    )
    with Store.open(tmp_path_factory.mktemp("totals")) as store:
        for batch in data.draw(st.lists(st.lists(some, max_size=6), max_size=5)):
            store.append(batch)
            if role := data.draw(st.sampled_from([None, *ROLES])):
                late = data.draw(st.lists(some, max_size=3))
                run_cycle(store, role=role, meanwhile=partial(store.append, late))
        rows = list(store.iterate())
        qualities = [row.quality for row in rows if row.quality is not None]
        counts = store.counts()
        assert counts.trajectories == len(rows)
        assert counts.feedback == sum(len(store.feedback_of(row.trajectory.id)) for row in rows)
        assert counts.waiting_for_feedback == len(rows) - len(qualities)
        assert counts.uncollected == len(store.collect(100).rows)
        claims = [claim for cycle in range(1, store.next_cycle()) for claim in store.claims(cycle)]
        assert len({claim.seq for claim in claims}) == len(claims)
        anew = {row.seq for row in store.collect(100).rows}
        roles = Counter(claim.role for claim in claims if claim.seq not in anew)
        assert (counts.trained, counts.held_out, counts.left_out) == tuple(roles[role] for role in ROLES)
        taken = counts.trained + counts.held_out + counts.left_out
        assert taken + counts.uncollected + counts.waiting_for_feedback == counts.trajectories
        total = sum((one.mean_quality or 0.0) * one.rated for one in store.sources())
        assert math.isclose(total, sum(qualities), abs_tol=1e-9)


def test_everything_survives_reopening(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        add(store, rated("ab"))
        run_cycle(store, publish=True)
        store.write_state("probes", b"\x00\xff")
        before = (list(store.iterate()), store.versions(), store.reports(), store.sources())
    with Store.open(tmp_path) as store:
        assert (list(store.iterate()), store.versions(), store.reports(), store.sources()) == before
        assert store.current().id == "v1"
        assert store.read_state("probes") == b"\x00\xff"
        assert store.embedding_width == 8


def test_state_is_replaced(store: Store) -> None:
    assert store.read_state("probes") is None
    store.write_state("probes", b"one")
    store.write_state("probes", b"two")
    assert store.read_state("probes") == b"two"


def test_threads_append_and_read_at_once(store: Store) -> None:
    errors: list[BaseException] = []

    def work(name: str) -> None:
        try:
            for number in range(20):
                add(store, rated([f"{name}{number}"]))
                assert store.get(f"{name}{number}").quality == 0.5
                store.counts()
        except BaseException as error:  # noqa: BLE001, RUF100
            errors.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert store.counts().trajectories == 80


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    rows = store.iterate()
    store.close()
    store.close()
    for use in (
        lambda: store.append([trajectory("a")]),
        lambda: store.collect(1),
        store.current,
        store.counts,
        lambda: store.commit_cycle(report(1), [], None),
        lambda: next(rows),
        lambda: "a" in store,
    ):
        with pytest.raises(ClosedError, match="close"):
            use()


def test_new_ids_are_stored_in_order(store: Store) -> None:
    ids = [new_id() for _ in range(5)]
    add(store, [trajectory(name) for name in ids])
    assert [row.trajectory.id for row in store.iterate()] == ids
