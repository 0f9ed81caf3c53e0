"""The suite finds what it is there to find: each kind of count rises where the product is made worse."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import apsw
import pytest

from sona.storage.schema import WRITER_PRAGMAS
from sona.storage.store import Store
from tests.crash.counts import Counts
from tests.crash.host import ToldStore
from tests.crash.ledger import Ledger, truth
from tests.crash.nursery import Nursery
from tests.crash.scenarios import play
from tests.crash.torn_disk import Platter, torn_disk
from tests.storage.records import run_cycle


def a_store(folder: Path, told: Ledger) -> None:
    """With two records and a cycle, all told of."""
    store = ToldStore.open_told(folder, told)
    store.append([truth("a-1"), truth("feedback-a-1")])
    run_cycle(store)
    store.close()


def checked(folder: Path, ledger: Ledger) -> Counts:
    counts = Counts()
    with Store.open(folder) as store:
        ledger.check(store, counts)
    return counts


def test_a_sound_store_is_sound(tmp_path: Path) -> None:
    ledger = Ledger()
    a_store(tmp_path, ledger)
    assert checked(tmp_path, ledger).sound
    assert ledger.acknowledged == 3


def test_what_was_told_and_is_not_there_is_lost_once(tmp_path: Path) -> None:
    ledger = Ledger()
    a_store(tmp_path, ledger)
    ledger.recorded("a-2")
    ledger.committed(2)
    assert checked(tmp_path, ledger).lost == 2
    assert checked(tmp_path, ledger).lost == 0


def test_a_cycle_that_took_other_than_it_told_is_found(tmp_path: Path) -> None:
    ledger = Ledger()
    a_store(tmp_path, ledger)
    ledger.begins(1, [])
    assert checked(tmp_path, ledger).trained_twice == 1


def test_a_trajectory_that_two_cycles_trained_on_is_found(tmp_path: Path) -> None:
    ledger = Ledger()
    a_store(tmp_path, ledger)
    with Store.open(tmp_path) as store:
        run_cycle(store)  # which finds nothing new
    ledger.begins(2, [1])
    assert checked(tmp_path, ledger).trained_twice == 2  # the claims are others, and both say that they took it


def test_a_record_that_reads_wrong_is_found(tmp_path: Path) -> None:
    ledger = Ledger()
    with mock.patch("tests.crash.ledger.truth", lambda id: truth(f"other-{id}")):
        a_store(tmp_path, ledger)
        assert checked(tmp_path, ledger).undetected >= 1


def test_a_store_that_does_not_sync_loses_what_it_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pragmas = [one.replace("FULL", "NORMAL") for one in WRITER_PRAGMAS]
    monkeypatch.setattr("sona.storage.connection.WRITER_PRAGMAS", pragmas)
    assert play("lose-power", 20).counts.lost > 0


def fails_to_sync(times: int) -> Callable[[str], apsw.Error | None]:
    left = [apsw.IOError("the disk failed to sync")] * times
    return lambda operation: left.pop() if operation == "sync" and left else None


@pytest.mark.parametrize("trusts", [False, True])
def test_a_store_that_trusts_a_failed_sync_loses_what_it_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusts: bool
) -> None:
    if trusts:
        monkeypatch.setattr("sona.storage.connection.write_again", lambda _: None)
    counts = Counts()
    for seed in range(12):
        folder, left = tmp_path / f"{seed}", tmp_path / f"left-{seed}"
        left.mkdir()
        with torn_disk(random.Random(seed)) as disk:
            ledger = Ledger()
            store = ToldStore.open_told(folder, ledger)
            disk.failure = fails_to_sync(2)  # as it commits, and as it closes the log
            store.append([truth("a-1"), truth("feedback-a-1")])
            disk.power_off(left)
            store.close()
        with Store.open(left) as after:
            ledger.check(after, counts, power_failed=True)
    assert bool(counts.lost) == trusts


@pytest.mark.parametrize(
    ("name", "module"), [("damage-database", "sona.storage.rows"), ("damage-journal", "sona.storage.segment")]
)
def test_without_checksums_damage_passes(monkeypatch: pytest.MonkeyPatch, name: str, module: str) -> None:
    monkeypatch.setattr(f"{module}.crc32c", lambda *_: 0)
    assert play(name, 40).counts.undetected > 0


def test_a_platter_keeps_what_was_synced_and_any_part_of_the_rest() -> None:
    rng = random.Random(0)
    platter = Platter(b"a" * 2048)
    platter.write(0, b"b" * 1024)
    platter.sync()
    platter.write(512, b"c" * 1024)
    sectors = {bytes(platter.surviving(rng)[at : at + 512])[:1] for at in range(0, 2048, 512) for _ in range(40)}
    assert sectors == {b"a", b"b", b"c"}
    assert all(platter.surviving(rng)[:512] == b"b" * 512 for _ in range(20))
    platter.truncate(512)
    assert {len(platter.surviving(rng)) for _ in range(60)} == {512, 2048}


def test_after_a_failed_sync_a_later_one_writes_nothing() -> None:
    for seed in range(20):
        platter = Platter(b"a" * 512)
        platter.write(0, b"b" * 512)
        platter.fail_to_sync(random.Random(seed))
        kept = bytes(platter.surviving(random.Random(0)))
        platter.sync()
        assert bytes(platter.surviving(random.Random(1))) == kept


def test_a_life_that_fails_by_itself_is_no_kill(capfd: pytest.CaptureFixture[str]) -> None:
    with Nursery() as nursery:
        life = nursery.bear("migrate", "/dev/null/no", "x", tell=lambda _: None)
        with pytest.raises(AssertionError, match="failed by itself"):
            life.end()
    assert "StoreError" in capfd.readouterr().err
