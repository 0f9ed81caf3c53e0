"""Retention of versions: what one may still go back to keeps its files, whatever happens while the others' go."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sona.errors import StoreFullError, StoreReadOnlyError, UnknownIdError
from sona.storage.doctor import diagnose
from sona.storage.sizes import bytes_in
from sona.storage.store import Store
from sona.storage.version_retention import ancestors, prune_versions, worth_keeping
from sona.storage.versions import DRAFT, Versions
from sona.types import Version
from tests.storage.learned import ADAPTER, publish
from tests.storage.records import add, rated


def chain(*parents: int) -> list[Version]:
    """v0, and then for each number a version that was made from the one of that number."""
    versions = [Version(id="v0", parent=None, cycle=0, created_ns=0, digest="")]
    for number, parent in enumerate(parents, start=1):
        versions.append(Version(id=f"v{number}", parent=f"v{parent}", cycle=number, created_ns=number, digest="00"))
    return versions


def fill(path: Path, count: int) -> Store:
    store = Store.open(path)
    for number in range(count):
        add(store, rated([f"t{number}"]))
        publish(store, {"own.json": b"%d" % number * 1000})
    return store


def folders(path: Path) -> list[str]:
    return sorted(entry.name for entry in (path / "versions").iterdir())


# The rule


@pytest.mark.parametrize(
    ("parents", "current", "pinned", "steps", "kept"),
    [
        ((0, 1, 2, 3, 4), "v5", (), 2, ["v3", "v4", "v5"]),
        ((0, 1, 2, 3, 4), "v5", ("v1",), 2, ["v1", "v3", "v4", "v5"]),
        ((0, 1, 2, 3, 4), "v3", (), 1, ["v2", "v3"]),  # a rollback from there needs v2 first of all
        ((0, 1, 2, 3, 4), "v3", (), 3, ["v1", "v2", "v3", "v5"]),  # the newest of the others has room
        ((0, 1, 2, 3, 4), "v1", (), 1, ["v1", "v5"]),  # the base needs no room
        ((0, 1, 2, 1), "v4", (), 1, ["v1", "v4"]),
        ((0, 1, 2, 1), "v4", ("v3",), 1, ["v1", "v3", "v4"]),
        ((0, 1, 2, 1), "v4", ("v4",), 2, ["v1", "v3", "v4"]),  # a pinned one that stays anyhow takes no room
        ((0,), "v0", (), 1, ["v0", "v1"]),
        ((0, 1), "v2", ("v0",), 1, ["v0", "v1", "v2"]),
    ],
)
def test_what_a_rollback_may_need_stays(
    parents: tuple[int, ...], current: str, pinned: tuple[str, ...], steps: int, kept: list[str]
) -> None:
    assert sorted(worth_keeping(chain(*parents), current, pinned, steps)) == kept


@given(st.data(), st.integers(1, 12), st.integers(1, 15))
def test_the_rule_keeps_the_current_one_its_nearest_ancestors_and_the_pinned(
    data: st.DataObject, count: int, steps: int
) -> None:
    versions = chain(*(data.draw(st.integers(0, number)) for number in range(count)))
    ids = [version.id for version in versions]
    current, pinned = data.draw(st.sampled_from(ids)), data.draw(st.sets(st.sampled_from(ids)))
    kept = worth_keeping(versions, current, pinned, steps)
    lineage = [name for name in ancestors(versions, current) if name != "v0"]
    assert {current, *lineage[:steps], *pinned} <= kept <= set(ids)
    assert len(kept - {"v0", current} - pinned) <= steps
    # As many as there may be, where there are so many.
    assert len(kept - {"v0", current}) >= min(steps, len(set(ids) - {"v0", current}))


# The removal


def test_files_go_and_rows_stay(tmp_path: Path) -> None:
    with fill(tmp_path, 5) as store:
        store.pin("v1")
        own = bytes_in([Versions(tmp_path).path(name) for name in ("v2", "v3")]).own
        before = store.sizes().versions
        done = prune_versions(store, 1)
        assert done.versions == ("v2", "v3")
        assert done.freed_bytes == own == before - store.sizes().versions
        assert folders(tmp_path) == ["v1", "v4", "v5"]
        assert [version.id for version in store.versions()] == ["v0", "v1", "v2", "v3", "v4", "v5"]
        assert prune_versions(store, 1).versions == ()
        with pytest.raises(UnknownIdError, match="pruned"):
            Versions(tmp_path).verify(store.versions()[2])
    assert diagnose(tmp_path).exit_code == 0


def test_no_limit_keeps_all(tmp_path: Path) -> None:
    with fill(tmp_path, 3) as store:
        assert prune_versions(store, 0).versions == ()
    assert folders(tmp_path) == ["v1", "v2", "v3"]


def test_a_file_that_others_share_stays_theirs_and_counts_for_nothing(tmp_path: Path) -> None:
    with fill(tmp_path, 4) as store:
        versions = Versions(tmp_path)
        assert (versions.path("v4") / ADAPTER).samefile(versions.path("v1") / ADAPTER)
        size = (versions.path("v1") / ADAPTER).stat().st_size
        going = [versions.path(name) for name in ("v1", "v2")]
        all_bytes = sum(file.stat().st_size for folder in going for file in folder.rglob("*") if file.is_file())
        assert prune_versions(store, 1).freed_bytes == all_bytes - 2 * size
        for version in store.versions()[3:]:
            versions.verify(version)
        assert (versions.path("v4") / ADAPTER).stat().st_nlink == 2


def test_a_backup_beside_it_keeps_what_it_linked(tmp_path: Path) -> None:
    with fill(tmp_path / "store", 3) as store:
        store.backup(tmp_path / "copy")
        done = prune_versions(store, 1)
        assert (done.versions, done.freed_bytes) == (("v1",), 0), "the backup has it still"
        rows = store.versions()
    for version in rows[1:]:
        Versions(tmp_path / "copy").verify(version)


class KilledError(BaseException):
    """Nothing runs after it: what is on the disk then is what a kill leaves."""


@contextmanager
def killed_at(number: int) -> Iterator[Callable[[], int]]:
    """At the N-th call that changes a folder's entries or syncs; gives how many there were."""
    calls = 0
    names = ("rename", "unlink", "rmdir", "fsync")
    before: dict[str, Any] = {name: getattr(os, name) for name in names}

    def counted(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == number:
                raise KilledError
            return before[name](*args, **kwargs)

        return call

    for name in names:
        setattr(os, name, counted(name))
    try:
        yield lambda: calls
    finally:
        for name in names:
            setattr(os, name, before[name])


def test_killed_between_any_two_steps_each_version_has_all_of_its_files_or_none(tmp_path: Path) -> None:
    with fill(tmp_path / "whole", 5) as store:
        store.pin("v2")
    number, was_killed = 0, True
    while was_killed:
        number += 1
        path = tmp_path / f"killed{number}"
        shutil.copytree(tmp_path / "whole", path)
        relink(path)
        with Store.open(path) as store, killed_at(number) as calls:
            with suppress(KilledError):
                prune_versions(store, 1)
            was_killed = calls() >= number
        found = diagnose(path)
        assert found.exit_code == 0, found
        with Store.open(path) as store:
            backup = store.backup(tmp_path / f"copy{number}")
            assert backup.damaged == ()
            assert {"v2", "v4", "v5"} <= set(backup.versions)
            whole = [name for name in folders(path) if not name.startswith(DRAFT)]
            assert set(backup.versions) == set(whole)
            # The next start, and the next publication.
            Versions(path).clean({version.id for version in store.versions()})
            prune_versions(store, 1)
            assert folders(path) == ["v2", "v4", "v5"]
            for version in store.versions():
                if version.id in folders(path):
                    Versions(path).verify(version)
        assert diagnose(tmp_path / f"copy{number}").exit_code == 0
    assert number > 10, "else nothing was tried"


def relink(path: Path) -> None:
    """copytree copied the adapter of each version; here they share it again."""
    for name in folders(path)[1:]:
        (path / "versions" / name / ADAPTER).unlink()
        os.link(path / "versions" / "v1" / ADAPTER, path / "versions" / name / ADAPTER)


def test_no_file_goes_before_its_version_s_name_is_gone_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    with fill(tmp_path, 4) as store:
        for name in ("rename", "fsync", "unlink", "rmdir"):
            real = getattr(os, name)

            def noted(*args: Any, name: str = name, real: Callable[..., Any] = real, **kwargs: Any) -> Any:
                calls.append(name)
                return real(*args, **kwargs)

            monkeypatch.setattr(os, name, noted)
        assert prune_versions(store, 1).versions == ("v1", "v2")
    assert calls[:3] == ["rename", "rename", "fsync"]
    assert set(calls[3:]) >= {"unlink", "rmdir"}
    assert "rename" not in calls[3:]


def test_a_disk_that_lets_nothing_go_is_a_typed_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fill(tmp_path, 4) as store:
        for error, kind in ((PermissionError(13, "no"), StoreReadOnlyError), (OSError(28, "full"), StoreFullError)):

            def refuse(*_: object, error: OSError = error) -> None:
                raise error

            monkeypatch.setattr(Path, "rename", refuse)
            with pytest.raises(kind):
                prune_versions(store, 1)
            monkeypatch.undo()
        assert folders(tmp_path) == ["v1", "v2", "v3", "v4"]


def test_sizes_are_counted_while_files_go(tmp_path: Path) -> None:
    """Of a store that an agent prunes just then."""
    with fill(tmp_path, 6) as store:
        stop = threading.Event()
        trouble: list[BaseException] = []

        def count() -> None:
            while not stop.is_set():
                try:
                    bytes_in([tmp_path / "versions"])
                except BaseException as error:
                    trouble.append(error)

        thread = threading.Thread(target=count)
        thread.start()
        try:
            for steps in (4, 3, 2, 1):
                prune_versions(store, steps)
        finally:
            stop.set()
            thread.join()
        assert trouble == []
