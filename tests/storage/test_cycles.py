"""Cycles: each trajectory is taken once, and the past is drawn from what still stands."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import apsw
import numpy as np
import pytest

from sona.checks import pack_tokens
from sona.errors import CycleError, InvalidInputError, StoreCorruptError, StoreError, UnknownIdError
from sona.ports import Claim
from sona.storage.connection import Connection
from sona.storage.reading import COLLECT
from sona.storage.replay import DRAW
from sona.storage.store import DATABASE, Store
from sona.storage.versions import Versions
from sona.types import BASE_VERSION, Feedback, Trajectory, Version
from tests.storage.faulty_disk import faulty_disk
from tests.storage.records import add, ask, collected, feedback, rated, report, run_cycle, trajectory


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as store:
        yield store


def drawn(store: Store, count: int = 60) -> set[str]:
    return {row.trajectory.id for row in store.sample("train", count, np.random.default_rng(0))}


# Collecting


def test_only_rated_trajectories_are_collected(store: Store) -> None:
    add(store, [trajectory("a"), trajectory("b"), feedback("b", 0.7)])
    new = store.collect(10)
    assert [(row.trajectory.id, row.quality) for row in new.rows] == [("b", 0.7)]
    assert new.waiting_for_feedback == 1


def test_collect_goes_by_the_first_feedback_and_takes_the_latest_quality(store: Store) -> None:
    add(
        store, [trajectory("a"), trajectory("b"), feedback("b", 0.1), feedback("a", 0.2), feedback("b", 0.9, id="late")]
    )
    assert [(row.trajectory.id, row.quality) for row in store.collect(10).rows] == [("b", 0.9), ("a", 0.2)]


def test_collect_takes_the_oldest_up_to_the_limit(store: Store) -> None:
    add(store, rated("abcde"))
    assert collected(store, 2) == ["a", "b"]
    run_cycle(store, limit=2)
    assert collected(store, 2) == ["c", "d"]


def test_claimed_trajectories_are_collected_once(store: Store) -> None:
    add(store, rated("ab"))
    run_cycle(store)
    assert collected(store) == []
    add(store, rated("c"))
    assert collected(store) == ["c"]


def test_a_cycle_that_claims_nothing_drops_nothing(store: Store) -> None:
    add(store, rated("ab"))
    store.commit_cycle(report(1, status="skipped"), [], None)
    assert collected(store) == ["a", "b"]


def test_what_a_cycle_leaves_unclaimed_comes_again(store: Store) -> None:
    add(store, rated("abc"))
    middle = store.collect(10).rows[1]
    store.commit_cycle(report(1), [Claim(seq=middle.seq, role="train")], None)
    assert collected(store) == ["a", "c"]
    run_cycle(store)
    assert collected(store) == []


def test_late_feedback_for_an_old_trajectory_is_found(store: Store) -> None:
    add(store, [trajectory("old")])
    for number in range(3):
        add(store, rated([f"new{number}"]))
        run_cycle(store)
    add(store, [feedback("old", 0.8)])
    assert collected(store) == ["old"]


def test_second_feedback_does_not_collect_again(store: Store) -> None:
    add(store, rated("a", 0.2))
    run_cycle(store)
    add(store, [feedback("a", 0.9, id="second")])
    assert collected(store) == []
    assert store.get("a").quality == 0.9
    add(store, rated("b"))
    assert collected(store) == ["b"]


# What was left out


def left_out(store: Store, *names: str, quality: float = 0.1) -> None:
    """Store trajectories, and let a cycle leave them out."""
    add(store, rated(names, quality))
    run_cycle(store, role="left_out")


def again(name: str, quality: float, number: int = 0) -> Feedback:
    return feedback(name, quality, id=f"again-{name}-{number}")


def split_of(store: Store) -> tuple[int, int, int, int, int]:
    counts = store.counts()
    parts = (counts.trained, counts.held_out, counts.left_out, counts.uncollected, counts.waiting_for_feedback)
    assert sum(parts) == counts.trajectories
    return parts


def test_what_was_left_out_and_then_corrected_is_collected_and_trained_on_once(store: Store) -> None:
    left_out(store, "a", "b")
    assert (collected(store), split_of(store)) == ([], (0, 0, 2, 0, 0))
    add(store, [again("a", 0.9)])
    assert (collected(store), split_of(store)) == (["a"], (0, 0, 1, 1, 0))
    run_cycle(store, publish=True)
    assert (collected(store), split_of(store)) == ([], (1, 0, 1, 0, 0))
    assert drawn(store) == {"a"}
    add(store, [again("a", 0.1, 1)])
    assert (collected(store), split_of(store)) == ([], (1, 0, 1, 0, 0))
    assert [store.claims(cycle)[0].role for cycle in (1, 2)] == ["left_out", "train"]
    assert len(store.claims(1)) == 1


def test_what_is_left_out_again_is_collected_once_for_each_time_that_it_is_rated(store: Store) -> None:
    left_out(store, "a")
    for number in range(3):
        add(store, [again("a", 0.2, 2 * number), again("a", 0.3, 2 * number + 1)])
        rows = store.collect(10).rows
        assert [(row.trajectory.id, row.quality) for row in rows] == [("a", 0.3)]
        run_cycle(store, role="left_out")
        assert (collected(store), split_of(store)) == ([], (0, 0, 1, 0, 0))
        assert watermark_of(store.path) == store.counts().feedback


def test_a_correction_that_comes_while_a_cycle_runs_is_not_missed(store: Store) -> None:
    add(store, rated(["a", "b"], 0.1))
    run_cycle(store, role="left_out", meanwhile=lambda: add(store, [again("a", 0.9)]))
    assert (collected(store), split_of(store)) == (["a"], (0, 0, 1, 1, 0))
    run_cycle(store, role="held_out", meanwhile=lambda: add(store, [again("a", 0.8, 1)]))
    assert (collected(store), split_of(store)) == ([], (0, 1, 1, 0, 0))


def test_corrections_come_in_the_order_of_arrival_with_what_is_new(store: Store) -> None:
    left_out(store, "a", "b")
    add(store, [*rated("c"), again("b", 0.7), *rated("d"), again("a", 0.8), again("b", 0.6, 1)])
    assert [(row.trajectory.id, row.quality) for row in store.collect(10).rows] == [
        ("c", 0.5),
        ("b", 0.6),
        ("d", 0.5),
        ("a", 0.8),
    ]
    assert collected(store, 2) == ["c", "b"]
    run_cycle(store, limit=2)
    assert collected(store) == ["d", "a"]


def test_reports_and_cycles_keep_the_numbers_of_their_day(store: Store) -> None:
    left_out(store, "a")
    add(store, [again("a", 0.9)])
    run_cycle(store)
    raw = apsw.Connection(str(store.path / DATABASE), flags=apsw.SQLITE_OPEN_READONLY)
    assert list(raw.execute("SELECT cycle, train, held_out, left_out FROM cycles")) == [(1, 0, 0, 1), (2, 1, 0, 0)]
    raw.close()


# What the version in force learned of it before


def before(store: Store) -> dict[str, tuple[float | None, int, str]]:
    """By trajectory that is new to a cycle, what is told of its past."""
    rows = store.collect(1000).rows
    return {row.trajectory.id: (row.learned_quality, row.learned_cycle, row.learned_pattern) for row in rows}


def leave_out(store: Store, *, publish: bool = True, pattern: str = "p") -> None:
    groups = dict.fromkeys(collected(store), ("", pattern))
    run_cycle(store, publish=publish, role="left_out", groups=groups)


NEW = (None, 0, "")


def test_what_was_left_out_tells_what_was_learned_of_it(store: Store) -> None:
    add(store, rated("ab", 0.75))
    assert before(store) == {"a": NEW, "b": NEW}
    leave_out(store, pattern="p1")
    add(store, [again("a", 0.25), again("a", 0.5, 1), *rated("c")])
    assert before(store) == {"a": (0.75, 1, "p1"), "c": NEW}
    leave_out(store, pattern="p2")
    add(store, [again("a", 0.0, 2), again("b", 0.0)])
    assert before(store) == {"a": (0.5, 2, "p2"), "b": (0.75, 1, "p1")}


def test_a_rejected_cycle_leaves_what_was_learned_before_it(store: Store) -> None:
    add(store, rated("a", 0.75))
    leave_out(store, publish=False)
    add(store, [again("a", 0.5)])
    assert before(store) == {"a": NEW}
    leave_out(store, pattern="p2")
    for number in (1, 2):
        add(store, [again("a", 0.25, number)])
        leave_out(store, publish=False)
    add(store, [again("a", 0.0, 3)])
    assert before(store) == {"a": (0.5, 2, "p2")}


def test_a_rollback_leaves_what_the_version_in_force_has_learned(store: Store) -> None:
    add(store, rated("a", 1.0))
    leave_out(store, pattern="p1")
    add(store, [again("a", 0.75), *rated("b", 0.5)])
    leave_out(store, pattern="p2")
    store.set_current("v1")
    add(store, [again("a", 0.25, 1), again("b", 0.25)])
    assert before(store) == {"a": (1.0, 1, "p1"), "b": NEW}
    leave_out(store, pattern="p3")
    add(store, [again("a", 0.0, 2)])
    for version, expected in (
        ("v3", (0.25, 3, "p3")),
        ("v2", (0.75, 2, "p2")),
        ("v1", (1.0, 1, "p1")),
        (BASE_VERSION, NEW),
    ):
        store.set_current(version)
        assert before(store) == {"a": expected}


def test_a_cycle_that_is_not_committed_gives_nothing_up(store: Store) -> None:
    add(store, rated("a", 1.0))
    leave_out(store)
    add(store, [again("a", 0.5)])
    (row,) = store.collect(10).rows
    claims = [Claim(seq=row.seq, role="left_out"), Claim(seq=99, role="left_out")]
    with pytest.raises(CycleError):
        store.commit_cycle(report(2), claims, None)
    assert before(store) == {"a": (1.0, 1, "p")}
    assert store.read_state("claims/given up/2") is None


def test_what_gave_way_is_checked_when_it_is_read(store: Store) -> None:
    add(store, rated("a", 1.0))
    leave_out(store)
    add(store, [again("a", 0.5)])
    leave_out(store, publish=False)
    add(store, [again("a", 0.25, 1)])
    raw = apsw.Connection(str(store.path / DATABASE))
    raw.execute("UPDATE state SET value = x'80' WHERE name = 'claims/given up/2'")
    raw.close()
    with pytest.raises(StoreCorruptError, match="claims/given up/2"):
        store.collect(10)


def test_a_claim_names_the_feedback_that_it_follows(store: Store) -> None:
    left_out(store, "a", "b")
    add(store, [again("a", 0.9)])
    (row,) = store.collect(10).rows
    before = (split_of(store), collected(store), watermark_of(store.path))
    for feedback_seq, why in ((1, "cycle 1 has claimed it"), (2, "is not of it"), (99, "is not of it")):
        with pytest.raises(CycleError, match=why):
            store.commit_cycle(report(2), [Claim(seq=row.seq, role="train", feedback_seq=feedback_seq)], None)
    twice = [Claim(seq=row.seq, role="left_out", feedback_seq=3), Claim(seq=row.seq, role="train", feedback_seq=3)]
    with pytest.raises(CycleError, match="cycle 2 has claimed it"):
        store.commit_cycle(report(2), twice, None)
    assert (split_of(store), collected(store), watermark_of(store.path)) == before
    store.commit_cycle(report(2), [Claim(seq=row.seq, role="train")], None)  # by the latest feedback
    assert store.claims(2) == [Claim(seq=row.seq, role="train", feedback_seq=3)]


def test_the_schema_lets_no_trajectory_have_two_claims(store: Store) -> None:
    add(store, rated("a"))
    run_cycle(store)
    raw = apsw.Connection(str(store.path / DATABASE))
    with pytest.raises(apsw.ConstraintError):
        raw.execute("INSERT INTO claims (seq, cycle, role, ordinal, feedback, crc) VALUES (1, 2, 'train', 0, 1, 0)")
    raw.close()


def test_only_what_was_taken_for_good_is_drawn(store: Store) -> None:
    left_out(store, "a")
    with pytest.raises(InvalidInputError, match="one of train, held_out"):
        store.sample("left_out", 1, np.random.default_rng(0))


def steps_of(path: Path, watermark: int, limit: int) -> int:
    """Instructions that SQLite's machine runs for one collect: a count of work that no clock disturbs."""
    connection = Connection(str(path / DATABASE), path, apsw.SQLITE_OPEN_READONLY)
    steps = 0

    def count() -> bool:
        nonlocal steps
        steps += 1
        return False

    connection.set_progress_handler(count, 1)
    assert list(connection.execute(COLLECT, (watermark, limit))) != []
    connection.close()
    return steps


def watermark_of(path: Path) -> int:
    connection = Connection(str(path / DATABASE), path, apsw.SQLITE_OPEN_READONLY)
    watermark: int = connection.execute("SELECT watermark FROM head").get
    connection.close()
    return watermark


def test_the_cost_of_collecting_follows_what_is_new(store: Store) -> None:
    costs = []
    for round_ in range(4):
        add(store, rated(f"{round_}-{number}" for number in range(300)))
        run_cycle(store)
        add(store, rated(f"new-{round_}-{number}" for number in range(10)))
        costs.append(steps_of(store.path, watermark_of(store.path), 10))
        without = steps_of(store.path, 0, 10)
        run_cycle(store)
    assert max(costs) <= min(costs) * 1.05
    assert watermark_of(store.path) == store.counts().feedback
    assert without > 5 * max(costs)


def test_the_cost_of_collecting_corrections_follows_what_is_new(store: Store) -> None:
    costs = []
    for round_ in range(4):
        left_out(store, *(f"{round_}-{number}" for number in range(300)))
        add(store, [again(f"0-{number}", 0.2, round_) for number in range(10)])
        costs.append(steps_of(store.path, watermark_of(store.path), 10))
        run_cycle(store, role="left_out")
    assert max(costs) <= min(costs) * 1.05
    assert watermark_of(store.path) == store.counts().feedback


def test_collecting_and_drawing_walk_through_no_table(store: Store) -> None:
    connection = Connection(str(store.path / DATABASE), store.path, apsw.SQLITE_OPEN_READONLY)
    for sql, values in ((COLLECT, (0, 1)), (DRAW, (1, "train", 0))):
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", values)]
        scans = [line for line in plan if line.startswith("SCAN") and line != "SCAN fresh"]
        assert scans == []
    connection.close()


# Committing


def test_a_cycle_is_stored_whole(store: Store) -> None:
    add(store, rated("abc"))
    rows = store.collect(10).rows
    claims = [
        Claim(seq=rows[0].seq, role="train"),
        Claim(seq=rows[1].seq, role="held_out"),
        Claim(seq=rows[2].seq, role="left_out"),
    ]
    version = Version(
        id="v1", parent="v0", cycle=1, created_ns=5, digest="ab", metrics={"x": 1.0}, settings={"seed": 3}
    )
    outcome = report(1, status="published", version="v1")
    store.commit_cycle(outcome, claims, version)
    assert store.current() == version
    assert [one.id for one in store.versions()] == ["v0", "v1"]
    assert store.reports() == [outcome]
    assert store.next_cycle() == 2
    counts = store.counts()
    assert (counts.trained, counts.held_out, counts.left_out, counts.cycles, counts.uncollected) == (1, 1, 1, 1, 0)


def test_reports_come_newest_first(store: Store) -> None:
    for number in range(1, 5):
        store.commit_cycle(report(number, status="skipped"), [], None)
    assert [one.cycle for one in store.reports(2)] == [4, 3]


def test_a_new_store_is_at_the_untouched_base(store: Store) -> None:
    base = store.current()
    assert (base.id, base.parent, base.cycle, base.digest, base.trajectories) == (BASE_VERSION, None, 0, "", 0)
    assert store.versions() == [base]
    assert store.next_cycle() == 1


def published(cycle: int, version: str, parent: str) -> Version:
    return Version(id=version, parent=parent, cycle=cycle, created_ns=0, digest="")


def test_what_does_not_follow_is_refused_and_changes_nothing(store: Store) -> None:
    add(store, [*rated("abc"), trajectory("unrated")])
    first = run_cycle(store, publish=True, limit=1)
    fresh = [Claim(seq=row.seq, role="train") for row in store.collect(10).rows]
    good = report(2, status="published", parent="v1", version="v2")
    before = (store.counts(), store.versions(), collected(store), watermark_of(store.path))
    for outcome, claims, version, why in (
        (report(2), [*fresh, *first], None, "cycle 1 has claimed it"),
        (report(2), [*fresh, fresh[0]], None, "cycle 2 has claimed it"),
        (report(2), [*fresh, Claim(seq=7, role="train")], None, "without feedback"),
        (report(2), [Claim(seq=99, role="train")], None, "not in the store"),
        (good, fresh, published(2, "v2", "v0"), "has the parent 'v0'"),
        (good, fresh, published(3, "v2", "v1"), "of cycle 3"),
        (good, fresh, None, "came with version None"),
        (report(2), fresh, published(2, "v2", "v1"), "came with version 'v2'"),
        (report(2, status="published", version="v1"), fresh, published(2, "v1", "v1"), "the id is taken"),
        (report(1), fresh, None, "the next one is 2"),
        (report(3), fresh, None, "the next one is 2"),
    ):
        with pytest.raises(CycleError, match=why):
            store.commit_cycle(outcome, claims, version)
        assert (store.counts(), store.versions(), collected(store), watermark_of(store.path)) == before
    store.commit_cycle(good, fresh, published(2, "v2", "v1"))


def test_an_unknown_role_is_refused(store: Store) -> None:
    add(store, rated("a"))
    with pytest.raises(InvalidInputError, match="role 'wrong'"):
        store.commit_cycle(report(1), [Claim(seq=1, role="wrong")], None)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="role 'wrong'"):
        store.sample("wrong", 1, np.random.default_rng(0))  # type: ignore[arg-type]


# Rolling back and drawing


def test_set_current_moves_only_the_pointer(store: Store) -> None:
    add(store, rated("a"))
    run_cycle(store, publish=True)
    assert store.set_current("v0").id == "v0"
    assert store.current().id == "v0"
    assert [one.id for one in store.versions()] == ["v0", "v1"]
    assert collected(store) == []
    with pytest.raises(UnknownIdError, match="v9"):
        store.set_current("v9")


def test_nothing_is_drawn_from_an_empty_past(store: Store) -> None:
    add(store, rated("a"))
    assert store.sample("train", 5, np.random.default_rng(0)) == []
    run_cycle(store, role="held_out")
    assert store.sample("train", 5, np.random.default_rng(0)) == []
    assert len(store.sample("held_out", 5, np.random.default_rng(0))) == 5


def test_drawing_follows_the_lineage_of_the_current_version(store: Store) -> None:
    for name in "abc":
        add(store, rated(name))
        run_cycle(store, publish=True)
    assert drawn(store) == {"a", "b", "c"}
    store.set_current("v1")
    assert drawn(store) == {"a"}
    add(store, rated("d"))
    run_cycle(store, publish=True)
    assert drawn(store) == {"a", "d"}
    store.set_current("v3")
    assert drawn(store) == {"a", "b", "c"}
    store.set_current("v0")
    assert drawn(store) == set()


def test_cycles_that_published_nothing_always_count(store: Store) -> None:
    add(store, rated("a"))
    run_cycle(store)
    add(store, rated("b"))
    run_cycle(store, publish=True)
    store.set_current("v0")
    assert drawn(store) == {"a"}


def test_each_claim_is_as_likely_as_any_other(store: Store) -> None:
    add(store, rated("a"))
    run_cycle(store, publish=True)
    add(store, rated("bcd"))
    run_cycle(store)
    counts = Counter(row.trajectory.id for row in store.sample("train", 4000, np.random.default_rng(1)))
    expected = 1000
    deviation = sum((counts[name] - expected) ** 2 / expected for name in "abcd")
    assert deviation < 16.27  # chi square, 3 degrees of freedom, p = 0.001


def test_a_draw_is_deterministic(store: Store) -> None:
    add(store, rated("abcdef"))
    run_cycle(store)
    one, two = (store.sample("train", 20, np.random.default_rng(3)) for _ in range(2))
    assert one == two


def test_token_ids_come_from_the_claim_where_the_trajectory_has_none(store: Store) -> None:
    own = Trajectory(id="own", messages=ask("q"), response="r", prompt_ids=[1, 2], response_ids=[3])
    add(store, [trajectory("bare"), feedback("bare"), own, feedback("own")])
    prompt, response = pack_tokens([7, 8]), pack_tokens([9])
    claims = [
        Claim(seq=row.seq, role="train", feedback_seq=row.feedback_seq, prompt_ids=prompt, response_ids=response)
        for row in store.collect(10).rows
    ]
    store.commit_cycle(report(1), claims, None)
    assert store.claims(1) == claims
    rows = {row.trajectory.id: row.trajectory for row in store.sample("train", 40, np.random.default_rng(0))}
    assert (rows["bare"].prompt_ids, rows["bare"].response_ids) == (prompt, response)
    assert rows["own"] == own
    assert store.get("bare").trajectory.prompt_ids is None


def test_draws_carry_the_effective_quality(store: Store) -> None:
    add(store, rated("a", 0.2))
    run_cycle(store)
    add(store, [feedback("a", 0.7, id="later")])
    assert store.sample("train", 1, np.random.default_rng(0))[0].quality == 0.7


@pytest.mark.parametrize("works_again", [False, True])
def test_files_are_not_removed_while_their_commit_may_be_on_the_disk(tmp_path: Path, works_again: bool) -> None:
    """It failed, and nobody sees it; after a kill it is in force."""
    folders = Versions(tmp_path / "store")
    with faulty_disk() as disk:
        with Store.open(tmp_path / "store") as store:
            add(store, rated("ab"))
            store.versions()  # by a connection that stays
            with folders.draft() as draft:
                (draft / "bank.json").write_text("{}")
                digest = folders.publish(draft, "v1")
            version = Version(id="v1", parent="v0", cycle=1, created_ns=1, digest=digest)
            disk.failing_syncs = 100
            with pytest.raises(StoreError):
                store.commit_cycle(report(1, status="published", version="v1"), [Claim(seq=1, role="train")], version)
            assert [one.id for one in store.versions()] == ["v0"]
            if works_again:
                disk.failing_syncs = 0
                assert folders.clean(store.known_versions()) == ["v1"]
            else:
                with pytest.raises(StoreError):
                    folders.clean(store.known_versions())
            shutil.copytree(store.path, tmp_path / "killed")
            disk.failing_syncs = 0
        for shared in (tmp_path / "killed").glob("*-shm"):  # no file: it dies with the machine's memory
            shared.unlink()
        with Store.open(tmp_path / "killed") as store:
            assert store.current().id == ("v0" if works_again else "v1")
            if not works_again:
                Versions(store.path).verify(store.current())
