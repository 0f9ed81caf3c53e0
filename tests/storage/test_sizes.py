"""What a store takes on the disk, while its files come and go."""

from __future__ import annotations

import shutil
from pathlib import Path

from msgspec.structs import asdict

from sona.storage.sizes import files_below
from sona.storage.store import Store
from tests.storage.records import add, rated


def _written(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def test_all_files_of_all_folders_are_found(tmp_path: Path) -> None:
    files = {_written(tmp_path / name) for name in ("a/1", "a/deep/er/2", "b/3")}
    assert set(files_below(tmp_path / "a", tmp_path / "b", tmp_path / "none")) == files


def test_a_folder_that_goes_away_amid_the_walk_is_passed_over(tmp_path: Path) -> None:
    first = _written(tmp_path / "first")
    _written(tmp_path / "draft" / "second")
    walk = files_below(tmp_path)
    assert next(walk) == first
    shutil.rmtree(tmp_path / "draft")
    assert list(walk) == []


def test_the_parts_are_the_whole_and_a_file_of_several_names_counts_once(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        add(store, rated(f"t{number}" for number in range(3)))
        adapter = tmp_path / "versions" / "v1" / "adapter"
        adapter.parent.mkdir(parents=True)
        adapter.write_bytes(bytes(300_000))
        for folder in ("versions/v2", "remote/v1"):
            (tmp_path / folder).mkdir(parents=True)
            (tmp_path / folder / "adapter").hardlink_to(adapter)
        (tmp_path / "set-aside").write_bytes(bytes(70_000))
        sizes = store.sizes()
        assert sizes.versions == 300_000
        assert 70_000 <= sizes.other < 80_000
        assert sum(asdict(sizes).values()) == store.counts().bytes_on_disk
