"""The folder of the demo's results: what an earlier run made there is replaced, and nothing else is touched."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sona.errors import InvalidInputError, StoreLockedError
from sona.storage.lock import WriterLock

HOME = ".sona-demo"
"""Folder inside it that tells the demo's results from others' files, and holds what is not finished."""
STORE, PICTURE, REPORT = "store", "accuracy.png", "report.html"

_Stamp = list[int]


@contextmanager
def results_folder(out: Path) -> Iterator[ResultsFolder]:
    """Hold ``out`` for one run. A run that ends early leaves what was there before, and nothing of its own.

    Raises:
        InvalidInputError: ``out`` can't be used: a file, a folder with other things in it, no permission, a full disk.
        StoreLockedError: another demo is writing there, or its store is in use.
    """
    _check_usable(out)
    fresh = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        (out / HOME).mkdir(parents=True, exist_ok=True)
        lock = _lock(out)
    except OSError as error:
        raise InvalidInputError(
            f"results folder {str(out)!r}: {error.strerror}; name one that can be written to"
        ) from None
    folder = ResultsFolder(out)
    try:
        folder.begin()
        yield folder
    except OSError as error:
        raise InvalidInputError(
            f"results folder {str(out)!r}: {error.strerror}; free space there, or name one that can be written to"
        ) from error
    finally:
        folder.end()
        lock.release()
        if not folder.filled:
            shutil.rmtree(out / HOME, ignore_errors=True)
            for made in fresh:
                with suppress(OSError):  # not empty: somebody put something there meanwhile
                    made.rmdir()


class ResultsFolder:
    """Made by :func:`results_folder`."""

    def __init__(self, out: Path) -> None:
        self.path = out
        self.draft = out / HOME / "draft"
        """Where a run puts the store, the picture and the report until all are finished."""
        self._made_file = out / HOME / "made.json"

    @property
    def filled(self) -> bool:
        """Some run has finished here."""
        return self._made_file.exists()

    def begin(self) -> None:
        """Make the draft folder; one that is there already is of a run that was killed."""
        self._check_store_free()
        shutil.rmtree(self.draft, ignore_errors=True)
        self.draft.mkdir()

    def end(self) -> None:
        """Remove the draft folder, with whatever is left in it."""
        shutil.rmtree(self.draft, ignore_errors=True)

    def publish(self) -> list[Path]:
        """Move what is in the draft folder to its place.

        Returns:
            Where things went that stood in its place and were changed since, or not made by a demo.

        Raises:
            StoreLockedError: the store of the run before is in use; nothing has been moved.
        """
        self._check_store_free()
        known = self._made()
        # First of all, so that a run that is killed here still leaves no file without its maker.
        self._write_made({**known, **_stamps(self.draft, self.draft)})
        kept = [aside for name in (STORE, PICTURE, REPORT) if (aside := self._clear(self.path / name, known))]
        for item in sorted(self.draft.iterdir()):
            item.rename(self.path / item.name)
        self._write_made(
            {
                name: stamp
                for item in (STORE, PICTURE, REPORT)
                for name, stamp in _stamps(self.path / item, self.path).items()
            }
        )
        return kept

    def _clear(self, item: Path, known: dict[str, _Stamp]) -> Path | None:
        """Make room: delete what a demo made, move aside what holds anything else."""
        if not item.exists():
            return None
        if all(known.get(name) == stamp for name, stamp in _stamps(item, self.path).items()):
            shutil.rmtree(item) if item.is_dir() else item.unlink()
            return None
        numbers = range(1, 1_000_000)
        aside = next(free for number in numbers if not (free := item.with_name(f"{item.name}.kept-{number}")).exists())
        item.rename(aside)
        return aside

    def _check_store_free(self) -> None:
        if (lock := self.path / STORE / "store.lock").exists():
            WriterLock(lock).release()

    def _made(self) -> dict[str, _Stamp]:
        try:
            made = json.loads(self._made_file.read_bytes())
        except (OSError, ValueError):
            return {}  # then everything counts as somebody else's, and is moved aside
        return made if isinstance(made, dict) else {}

    def _write_made(self, stamps: dict[str, _Stamp]) -> None:
        scratch = self._made_file.with_suffix(".new")
        scratch.write_text(json.dumps(stamps, indent=1) + "\n")
        scratch.replace(self._made_file)


def _check_usable(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise InvalidInputError(f"results folder {str(out)!r}: it is a file; name a folder")
    if out.is_dir() and not (out / HOME).is_dir() and any(out.iterdir()):
        raise InvalidInputError(
            f"results folder {str(out)!r}: it holds things that the demo did not make; name an empty or a new folder"
        )


def _lock(out: Path) -> WriterLock:
    try:
        return WriterLock(out / HOME / "lock")
    except StoreLockedError:
        raise StoreLockedError(
            f"results folder {str(out)!r}: another demo is writing to it; wait for it, or name another folder"
        ) from None


def _stamps(item: Path, root: Path) -> dict[str, _Stamp]:
    """Path below ``root`` to size and time of change, of the file ``item`` or the files in it."""
    files = [item] if item.is_file() else [path for path in item.rglob("*") if not path.is_dir()]
    # A lock's file changes with every opening of its store.
    chosen = {os.fspath(path.relative_to(root)): path.lstat() for path in files if path.suffix != ".lock"}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in sorted(chosen.items())}
