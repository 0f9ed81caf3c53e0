"""The results folder: what the demo made is replaced, and nothing else is touched."""

import errno
import os
from pathlib import Path

import pytest

from sona.demo.folder import PICTURE, REPORT, STORE, results_folder
from sona.errors import InvalidInputError, StoreLockedError
from sona.storage.lock import WriterLock


def fill(out: Path, text: str, picture: bool = True) -> list[Path]:
    """One run that makes a store, a report and perhaps a picture; returns what it moved aside."""
    with results_folder(out) as folder:
        store = folder.draft / STORE
        (store / "versions" / "v1").mkdir(parents=True)
        (store / "versions" / "v1" / "adapter").write_text(text)
        (store / "store.lock").write_text("1")
        (folder.draft / REPORT).write_text(text)
        if picture:
            (folder.draft / PICTURE).write_text(text)
        return folder.publish()


def fill_half(out: Path) -> None:
    """A run that is interrupted."""
    with results_folder(out) as folder:
        (folder.draft / REPORT).write_text("half")
        raise KeyboardInterrupt


def visible(out: Path) -> set[str]:
    return {path.name for path in out.iterdir() if not path.name.startswith(".")}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "some" / "demo"


def test_results_appear_all_at_once(out: Path) -> None:
    with results_folder(out) as folder:
        (folder.draft / REPORT).write_text("half")
        assert visible(out) == set()
        folder.publish()
    assert visible(out) == {REPORT}


def test_second_run_replaces_the_first(out: Path) -> None:
    assert fill(out, "first") == []
    assert fill(out, "second", picture=False) == []
    assert visible(out) == {STORE, REPORT}
    assert (out / REPORT).read_text() == "second"
    assert (out / STORE / "versions" / "v1" / "adapter").read_text() == "second"


def test_full_disk_is_told_as_that_of_the_results(out: Path) -> None:
    with pytest.raises(InvalidInputError, match="No space left on device; free space there"), results_folder(out):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not out.exists()


def test_run_that_fails_leaves_the_results_before(out: Path) -> None:
    fill(out, "first")
    with pytest.raises(KeyboardInterrupt):
        fill_half(out)
    assert visible(out) == {STORE, PICTURE, REPORT}
    assert (out / REPORT).read_text() == "first"
    assert not (out / ".sona-demo" / "draft").exists()


def test_first_run_that_fails_leaves_nothing(out: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fill_half(out)
    assert list(tmp_path.iterdir()) == []


def test_run_after_a_killed_one_begins_afresh(out: Path) -> None:
    killed = out / ".sona-demo" / "draft" / STORE
    killed.mkdir(parents=True)
    (killed / "store.db").write_text("half")
    fill(out, "first")
    assert not (out / STORE / "store.db").exists()


def test_file_put_beside_the_results_stays(out: Path) -> None:
    fill(out, "first")
    (out / "notes.txt").write_text("mine")
    fill(out, "second")
    assert (out / "notes.txt").read_text() == "mine"


def test_store_with_more_in_it_than_the_demo_made_is_moved_aside(out: Path) -> None:
    fill(out, "first")
    (out / STORE / "versions" / "v2").mkdir()
    (out / STORE / "versions" / "v2" / "adapter").write_text("mine")
    [kept] = fill(out, "second")
    assert (kept / "versions" / "v2" / "adapter").read_text() == "mine"
    assert not (out / STORE / "versions" / "v2").exists()


def test_report_that_was_changed_is_moved_aside(out: Path) -> None:
    fill(out, "first")
    (out / REPORT).write_text("edited by hand")
    assert [path.read_text() for path in fill(out, "second")] == ["edited by hand"]
    (out / REPORT).write_text("edited again")
    assert len(fill(out, "third")) == 1
    assert len([path for path in out.iterdir() if ".kept-" in path.name]) == 2


def test_store_that_was_only_opened_is_replaced(out: Path) -> None:
    fill(out, "first")
    (out / STORE / "store.lock").write_text("another process id")
    assert fill(out, "second") == []


def test_damaged_record_of_what_was_made_deletes_nothing(out: Path) -> None:
    fill(out, "first")
    (out / ".sona-demo" / "made.json").write_text("{")
    assert len(fill(out, "second")) == 3


def test_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(InvalidInputError, match="name an empty or a new folder"), results_folder(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InvalidInputError, match="name"), results_folder(out):
            pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InvalidInputError, match="can be written to"), results_folder(tmp_path / "demo"):
        pass


def test_two_runs_at_once_are_refused(out: Path) -> None:
    with results_folder(out), pytest.raises(StoreLockedError, match="another demo"), results_folder(out):
        pass


def test_store_in_use_is_left_alone(out: Path) -> None:
    fill(out, "first")
    lock = WriterLock(out / STORE / "store.lock")
    try:
        with pytest.raises(StoreLockedError):
            fill(out, "second")
    finally:
        lock.release()
    assert (out / REPORT).read_text() == "first"
