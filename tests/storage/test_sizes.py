"""What a store takes on the disk, while its files come and go."""

from __future__ import annotations

import shutil
from pathlib import Path

from sona.storage.sizes import files_below


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
