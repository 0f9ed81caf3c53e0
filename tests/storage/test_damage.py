"""Damaged bytes are found, named, and never pass as records."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from sona.errors import (
    StoreCorruptError,
    StoreError,
)
from sona.storage.store import DATABASE, Store
from tests.storage.records import add, feedback, rated, run_cycle, trajectory


def damage(path: Path, sql: str) -> None:
    raw = sqlite3.connect(path / DATABASE)
    with raw:
        changed = raw.execute(sql).rowcount
    raw.close()
    assert changed == 1


FLIP = "CAST(substr({0}, 1, length({0}) - 1) || x'7e' AS BLOB)"


@pytest.mark.parametrize(
    ("sql", "use", "row"),
    [
        (f"UPDATE trajectories SET payload = {FLIP.format('payload')}", lambda s: s.get("a"), "trajectory 'a'"),
        (
            f"UPDATE trajectories SET embedding = {FLIP.format('embedding')}",
            lambda s: next(s.iterate()),
            "trajectory 'a'",
        ),
        ("UPDATE trajectories SET source = 'other'", lambda s: s.get("a"), "trajectory 'a'"),
        (
            "UPDATE trajectories SET crc = crc + 1",
            lambda s: s.sample("train", 1, np.random.default_rng(0)),
            "trajectory 'a'",
        ),
        ("UPDATE feedback SET quality = 0.9", lambda s: s.get("a"), "feedback 'feedback-a'"),
        (
            f"UPDATE feedback SET payload = {FLIP.format('payload')}",
            lambda s: s.feedback_of("a"),
            "feedback 'feedback-a'",
        ),
        (
            "UPDATE claims SET prompt_ids = x'01000000'",
            lambda s: s.sample("train", 1, np.random.default_rng(0)),
            "claim 0",
        ),
        ("UPDATE claims SET skill = 'other'", lambda s: s.claims(1), "claim 0"),
        ("UPDATE claims SET pattern = 'other'", lambda s: s.claims(1), "claim 0"),
        (
            "UPDATE claims SET skill = 'other'",
            lambda s: s.sample("train", 1, np.random.default_rng(0)),
            "claim 0",
        ),
        (
            "UPDATE claims SET pattern = 'other'",
            lambda s: s.sample("train", 1, np.random.default_rng(0), balanced=True),
            "claim '', '', 0",
        ),
        (
            "UPDATE claim_groups SET size = 2",
            lambda s: s.sample("train", 1, np.random.default_rng(0)),
            "group '', ''",
        ),
        ("UPDATE claim_groups SET skill = 'other'", lambda s: s.replayable("train"), "group 'other', ''"),
        ("DELETE FROM claim_groups", lambda s: s.replayable("train"), "groups of cycle 1"),
        (f"UPDATE cycles SET report = {FLIP.format('report')}", lambda s: s.reports(), "cycle 1"),
        ("UPDATE versions SET parent = NULL WHERE id = 'v1'", lambda s: s.versions(), "version 'v1'"),
        (
            f"UPDATE state SET value = {FLIP.format('value')} WHERE name = 'probes'",
            lambda s: s.read_state("probes"),
            "state 'probes'",
        ),
        ("UPDATE sources SET rated = 7", lambda s: s.counts(), "source 'agent'"),
    ],
)
def test_a_damaged_row_is_named(tmp_path: Path, sql: str, use: Callable[[Store], object], row: str) -> None:
    with Store.open(tmp_path) as store:
        add(store, rated("a"))
        run_cycle(store, publish=True)
        store.write_state("probes", b"1234")
    damage(tmp_path, sql)
    with Store.open(tmp_path) as store, pytest.raises(StoreCorruptError, match=f"{row}.*damaged"):
        use(store)


def redefine(path: Path, table: str, old: str, new: str) -> None:
    """Change what the schema says of a table, and nothing in the table."""
    raw = sqlite3.connect(path / DATABASE)
    with raw:
        raw.execute("PRAGMA writable_schema = ON")
        changed = raw.execute(
            "UPDATE sqlite_schema SET sql = replace(sql, ?, ?) WHERE name = ? AND instr(sql, ?)", (old, new, table, old)
        ).rowcount
    raw.close()
    assert changed == 1


@pytest.mark.parametrize(
    ("table", "use"),
    [
        ("trajectories", lambda s: s.get("a")),
        ("feedback", lambda s: s.feedback_of("a")),
        ("sources", lambda s: s.counts()),
        ("claims", lambda s: s.claims(1)),
    ],
)
@pytest.mark.parametrize("crc", ["NULL", "'text'", "x'00'", "1.5"])
def test_a_checksum_that_is_no_number_is_damage(
    tmp_path: Path, table: str, use: Callable[[Store], object], crc: str
) -> None:
    with Store.open(tmp_path) as store:
        add(store, rated("a"))
        run_cycle(store)
    width = {"claims": 12, "sources": 12}.get(table, 10)  # as its columns are aligned
    redefine(tmp_path, table, f"{'crc':{width}} INTEGER NOT NULL", "crc ANY")
    damage(tmp_path, f"UPDATE {table} SET crc = {crc}")
    with Store.open(tmp_path) as store, pytest.raises(StoreCorruptError, match="damaged"):
        use(store)


def test_a_text_that_is_none_is_damage(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        add(store, rated("a"))
    damage(tmp_path, "UPDATE trajectories SET source = CAST(x'8b' AS TEXT)")
    with Store.open(tmp_path) as store:
        with pytest.raises(StoreCorruptError, match="damaged"):
            store.get("a")
        results = store.append([feedback("a", 0.9, id="later"), trajectory("b")])  # only its own record is refused
        assert [type(result) for result in results] == [StoreCorruptError, type(None)]


def test_a_damaged_schema_is_damage(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        add(store, rated("a"))
    redefine(tmp_path, "trajectories", "payload", "paylobd")
    with Store.open(tmp_path) as store:
        with pytest.raises(StoreCorruptError, match="damaged"):
            store.get("a")
        with pytest.raises(StoreCorruptError, match="damaged"):
            store.append([trajectory("b")])


def test_a_feedback_that_a_claim_names_is_missed(tmp_path: Path) -> None:
    """An index that lost an entry would else make the trajectory look unrated."""
    with Store.open(tmp_path) as store:
        add(store, rated("a"))
        run_cycle(store)
    redefine(tmp_path, "feedback", "REFERENCES trajectories (seq)", "")
    damage(tmp_path, "UPDATE feedback SET trajectory = 9")
    with Store.open(tmp_path) as store, pytest.raises(StoreCorruptError, match="trajectory 'a' is damaged"):
        store.sample("train", 1, np.random.default_rng(0))


def test_a_current_version_that_is_not_there_is_damage(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        add(store, rated("a"))
        run_cycle(store, publish=True)
    damage(tmp_path, "UPDATE versions SET id = 'other' WHERE id = 'v1'")
    with pytest.raises(StoreCorruptError, match=r"version 'v1'.*damaged"):
        Store.open(tmp_path, read_only=True)


def test_a_damaged_index_never_gives_the_feedback_of_another(tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    (tmp_path / "bad").mkdir()
    own = {name: place / 16 for place, name in enumerate("abcdefgh")}
    with Store.open(tmp_path / "good") as store:
        add(store, [record for name, quality in own.items() for record in (trajectory(name), feedback(name, quality))])
    raw = sqlite3.connect(tmp_path / "good" / DATABASE)
    (page,) = raw.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'feedback_of_trajectory'").fetchone()
    raw.close()
    good = (tmp_path / "good" / DATABASE).read_bytes()
    end = page * 16384
    for place in range(end - 6 * len(own), end):  # where the entries lie: at the end, about six bytes each
        for bits in (1, 2, 3):
            bad = bytearray(good)
            bad[place] ^= bits
            (tmp_path / "bad" / DATABASE).write_bytes(bad)
            with Store.open(tmp_path / "bad", read_only=True) as store:
                for name, quality in own.items():
                    with suppress(StoreCorruptError):
                        assert store.get(name).quality in (quality, None)
                    with suppress(StoreCorruptError):
                        assert {one.quality for one in store.feedback_of(name)} <= {quality}


def test_a_damaged_mark_keeps_the_store_from_opening(tmp_path: Path) -> None:
    Store.open(tmp_path).close()
    damage(tmp_path, "UPDATE head SET watermark = 5")
    for read_only in (False, True):
        with pytest.raises(StoreCorruptError, match="head"):
            Store.open(tmp_path, read_only=read_only)
    damage(tmp_path, "UPDATE head SET watermark = 0")
    Store.open(tmp_path).close()  # the refused writer kept no lock


def test_flipped_bytes_of_the_file_never_pass_as_records(tmp_path: Path) -> None:
    names = [f"t{number}" for number in range(40)]
    with Store.open(tmp_path / "good") as store:
        add(store, rated(names))
    good = (tmp_path / "good" / DATABASE).read_bytes()
    rng = np.random.default_rng(0)
    (tmp_path / "bad").mkdir()
    found = 0
    for _ in range(60):
        bad = bytearray(good)
        bad[rng.integers(len(bad))] ^= 1 << int(rng.integers(8))
        (tmp_path / "bad" / DATABASE).write_bytes(bad)
        try:
            with Store.open(tmp_path / "bad", read_only=True) as store:
                for row in store.iterate():
                    assert row.trajectory == trajectory(row.trajectory.id)
                    assert row.quality in (0.5, None)
        except StoreError:
            found += 1
    assert found > 0


def test_damaged_totals_keep_what_they_cannot_count_out_of_the_store(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        add(store, [trajectory("a"), trajectory("rated")])
    damage(tmp_path, "UPDATE sources SET rated = 7")
    with Store.open(tmp_path) as store:
        results = store.append([trajectory("b"), feedback("rated"), trajectory("c", source="other")])
        assert [type(result) for result in results] == [StoreCorruptError, StoreCorruptError, type(None)]
        assert [row.trajectory.id for row in store.iterate()] == ["a", "rated", "c"]
        assert store.get("rated").quality is None


def test_a_damaged_claim_is_not_given_up(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        add(store, rated("a"))
        run_cycle(store)
    damage(tmp_path, "UPDATE claims SET role = 'left_out'")
    with Store.open(tmp_path) as store:
        add(store, [feedback("a", 0.9, id="later")])
        with pytest.raises(StoreCorruptError, match="claim 0"):
            run_cycle(store)


def test_a_damaged_row_refuses_only_its_own_record(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        add(store, [trajectory("a")])
    damage(tmp_path, f"UPDATE trajectories SET payload = {FLIP.format('payload')}")
    with Store.open(tmp_path) as store:
        results = store.append([trajectory("a"), trajectory("b")])
        assert [type(result) for result in results] == [StoreCorruptError, type(None)]
